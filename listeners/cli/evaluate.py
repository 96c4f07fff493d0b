"""`reclaim evaluate`: what a rule would have said of the stored cases."""

import json
import math
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from listeners.cli.context import console, nearest, open_context
from services.evaluation import repository
from services.evaluation.replay import SHOWN, Period, Rule, Step
from services.evaluation.retrospect import retrospect
from services.runtime import registry
from services.runtime.errors import InvalidInput
from services.runtime.service import Context

LIMIT_HELP = "Another limit: relative fall (0.05) for reclaim, height of the chart for cusum, log evidence for paired"


def evaluate(
    model: Annotated[str, typer.Option("--model", "-m", help="Model, as `reclaim models list` prints it")],
    since: Annotated[str | None, typer.Option(help="Only cases acquired on this day or later, YYYY-MM-DD")] = None,
    until: Annotated[str | None, typer.Option(help="Only cases acquired on this day or before, YYYY-MM-DD")] = None,
    rule: Annotated[str, typer.Option(help="paired: the detector; reclaim: the 5 % rule; cusum: a control chart")] = "paired",
    threshold: Annotated[float | None, typer.Option(help=LIMIT_HELP)] = None,
    facet: Annotated[list[str], typer.Option(help="Only cases with this facet, NAME=VALUE; may be given several times")] = [],  # noqa: B006 - typer copies it
    version: Annotated[int | None, typer.Option(help="Only this version; else every version that has batches")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables")] = False,
) -> None:
    """What would have happened: replay stored, labelled cases and show which batches would have alarmed under a rule.

    Nothing is written, nothing is ordered. The rule knows, after each batch, only what was labelled and batched by then; its
    memory begins with --since. paired is what runs here, with its calibrated thresholds; reclaim compares each batch with the
    test set and alarms at a relative fall of 5 % of any metric; cusum adds up how far recall lies below the test set's.

    Examples:
    reclaim evaluate --model lung --since 2026-03-01

    reclaim evaluate --model lung --rule reclaim --threshold 0.10

    reclaim evaluate --model lung --rule cusum --facet StationName=CT2 --json

    """
    chosen = _rule(rule)
    _check(chosen, threshold)
    period = Period(_day(since, "--since"), _after(_day(until, "--until")), dict(map(_facet, facet)))
    if period.since and period.until and period.since >= period.until:
        raise InvalidInput(f"--since {since} is later than --until {until}: no case lies between")
    owner, told = _replayed(open_context(), model, version, chosen, threshold, period)
    if as_json:
        question = {"model": owner, "rule": str(chosen), "threshold": threshold, "since": since, "until": until}
        typer.echo(json.dumps({**question, "facets": period.facets, "versions": told}, indent=2, default=str))
        return
    for each in told:
        _print(owner, chosen, each)


def _replayed(
    context: Context, model: str, version: int | None, rule: Rule, threshold: float | None, period: Period
) -> tuple[str, list[dict[str, Any]]]:
    """The model's full name and what the rule says of each version with batches. Raises InvalidInput where there is none."""
    with context.database.read() as session:
        owner = registry.model(session, model).name
        wanted = [registry.version(session, owner, version).version] if version is not None else None
        numbers = wanted or sorted({row.version for row in repository.batches(session, owner)})
        found = [
            retrospect(session, context.settings, owner, each, rule, threshold, period, calibrating=_calibrating)
            for each in numbers
        ]
    told = [each for each in found if each["batches"]]
    if not told:
        raise InvalidInput(_nothing(owner, period, bool(found)))
    return owner, told


def _calibrating() -> None:
    typer.echo("calibrating the detector for these batches; this takes some seconds …", err=True)


def _rule(name: str) -> Rule:
    if name not in set(Rule):
        raise InvalidInput(f"there is no rule {name!r}{nearest(name, list(Rule))}")
    return Rule(name)


def _check(rule: Rule, threshold: float | None) -> None:
    if threshold is None:
        return
    if not (math.isfinite(threshold) and threshold > 0):
        raise InvalidInput(f"--threshold is a number above 0, not {threshold:g}: {LIMIT_HELP[15:]}")
    if rule is Rule.RECLAIM and threshold >= 1:
        raise InvalidInput(f"--threshold of the rule reclaim is a relative fall below 1, such as 0.05 for 5 %, not {threshold:g}")


def _day(text: str | None, option: str) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.combine(date.fromisoformat(text), time(), UTC)
    except ValueError:
        raise InvalidInput(f"{option} {text!r} is no day: write YYYY-MM-DD, such as 2026-03-01") from None


def _after(day: datetime | None) -> datetime | None:
    return None if day is None else day + timedelta(days=1)


def _facet(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise InvalidInput(f"--facet {text!r} is not NAME=VALUE, such as StationName=CT2")
    return name, value


def _nothing(model: str, period: Period, any_batches: bool) -> str:
    if not any_batches:
        return f"{model} has no batch of labelled cases yet: `reclaim labels import FILE` brings labels"
    first = f" since {period.since:%Y-%m-%d}" if period.since else ""
    last = f" until {period.until - timedelta(days=1):%Y-%m-%d}" if period.until else ""
    return f"no labelled case of {model} was acquired{first}{last}{' with these facets' if period.facets else ''}"


def _print(model: str, rule: Rule, found: dict[str, Any]) -> None:
    steps = [Step(**step) for step in found["batches"]]
    table = Table("batch", Column("acquired", no_wrap=True), "cases", SHOWN[rule], "alarms at", "", Column("what", overflow="fold"))
    for step in steps:
        days = (
            f"{step.first:%F} to {step.last:%m-%d}" if step.first.year == step.last.year else f"{step.first:%F} to {step.last:%F}"
        )
        alarm = "[red]ALARM[/]" if step.alarmed else ""
        numbers = (f"{step.statistic:.3f}", f"{step.limit:.3f}")
        table.add_row(str(step.batch), days, str(step.cases), *numbers, alarm, escape(step.what))
    console.print(f"{escape(model)} version {found['version']}, rule {rule} ({found['limits']} limits)")
    console.print(table)
    many, first = len(found["alarmed"]), next((step for step in steps if step.alarmed), None)
    ending = f"; the first in batch {first.batch}, {first.last:%F}" if first else ""
    console.print(f"{many} of {len(steps)} batches would have alarmed{ending}.")
