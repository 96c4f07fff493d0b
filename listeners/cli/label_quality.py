"""`reclaim labels suspects` and `reclaim labels quality`: what the stored cases say about the labels themselves."""

import json
from dataclasses import fields, is_dataclass, replace
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from listeners.cli.context import console, open_context, show
from services.evaluation.delays import Quantile
from services.evaluation.intervals import Interval
from services.evaluation.label_review import review
from services.evaluation.labelling import Labelling
from services.evaluation.next_batch import next_batch
from services.evaluation.suspects import Conflict, Noise
from services.evaluation.verification import Verification

Model = Annotated[str, typer.Argument(help="Model, as `reclaim models list` prints it")]
Version = Annotated[int | None, typer.Option(help="Version; default: the champion")]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of tables")]
WHERE = "Studies are named by their pseudonym: their images lie in the archive's folder FIRST TWO CHARACTERS/PSEUDONYM."


def suspects(
    model: Model,
    version: Version = None,
    limit: Annotated[int, typer.Option(min=1, help="So many of each list, the surest and the newest first")] = 20,
    as_json: Json = False,
) -> None:
    """Labels to look at again: those that are probably wrong, the surest first, and studies whose sources contradict each other.

    A model that has become worse accuses right labels: read `reclaim evaluations list` beside it. Nothing is changed; a label is
    corrected by importing another one for the same study.

    Examples:
    reclaim labels suspects lung

    reclaim labels suspects lung --limit 100 --json

    """
    name, number, found, contested, degraded = _examined(model, version)
    if as_json:
        noise = replace(found.noise, suspects=found.noise.suspects[:limit]) if found.noise else None
        _print_json({"model": name, "version": number, "noise": noise, "degraded": degraded, "conflicts": contested[:limit]})
        return
    if degraded:
        console.print("[yellow]This version is degraded: much of what looks like wrong labels may be the model's own errors.[/]")
    _print_noise(name, number, found.noise, limit)
    _print_conflicts(contested, limit)
    if contested or (found.noise and found.noise.suspects):
        console.print(WHERE, soft_wrap=True)


def quality(model: Model, version: Version = None, as_json: Json = False) -> None:
    """How late labels come, which predictions get one, and the rates that follow for all predictions.

    Examples:
    reclaim labels quality lung

    """
    name, number, found, _, _ = _examined(model, version)
    if as_json:
        whole = {field.name: getattr(found, field.name) for field in fields(found) if field.name != "noise"}
        _print_json({"model": name, "version": number, **whole})
        return
    console.print(f"{escape(name)} version {number}")
    _print_missing(name, number)
    _print_delays(found)
    _print_verification(found.verification)


def _print_json(said: dict[str, Any]) -> None:
    typer.echo(json.dumps(_plain(said), indent=2, default=str))


def _plain(value: Any) -> Any:
    """Named tuples and data classes as dicts, all the way down."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _examined(model: str, version: int | None) -> tuple[str, int, Labelling, list[Conflict], bool]:
    """Name, version, what was found, contradicting sources, and whether the newest evaluation says degraded."""
    context = open_context()
    with context.database.read() as session:
        found = review(session, context.settings.evaluation, model, version, context.clock.now())
    return found.model, found.version, found.labelling, found.conflicts, found.degraded


def _print_noise(name: str, number: int, noise: Noise | None, limit: int) -> None:
    if noise is None:
        console.print(
            f"{escape(name)} version {number}: too few labelled cases (or classes that do not exclude each other) to tell."
        )
        return
    said = f"{noise.rate:.1%} of labels are probably wrong ({noise.low:.1%} to {noise.high:.1%})"
    console.print(f"{escape(name)} version {number}: of {noise.cases} labelled cases {said}; {len(noise.suspects)} suspects")
    if not noise.suspects:
        return
    table = Table("study", "acquired", "label", "source", "rather", "surely wrong")
    for each in noise.suspects[:limit]:
        cells = (each.study_key, f"{each.acquired_at:%F}", each.label, each.source or "", each.proposed, f"{each.sure:.0%}")
        table.add_row(*map(escape, cells))
    show(table, "")


def _print_conflicts(contested: list[Conflict], limit: int) -> None:
    if not contested:
        console.print("No sources contradict each other.")
        return
    table = Table("study", "counts", "also said", title=f"Studies whose sources contradict each other: {len(contested)}")
    for each in contested[:limit]:
        first, *others = (f"{source}: {label} ({at:%F})" for source, label, at in each.labels)
        table.add_row(*map(escape, (each.study_key, first, "; ".join(others))))
    show(table, "")


def _print_delays(found: Labelling) -> None:
    table = Table("days from score to label", "group", "predictions", "labelled", "half after", "nine of ten after")
    for each in found.delays:
        cells = (each.facet, each.group, str(each.cases), str(each.labelled), _days(each.median), _days(each.ninety))
        table.add_row(*map(escape, cells))
    console.print(table)
    for source, (many, median, ninety) in found.by_source.items():
        console.print(escape(f"  {source}: {many} labels, half within {median:.1f} days, nine of ten within {ninety:.1f}"))
    if (sooner := found.sooner) is not None:
        clear = "beyond chance" if sooner.p_value < 0.05 else "may be chance"
        chance = f"of a wrong and a right prediction the wrong one is labelled first in {sooner.probability:.0%}"
        console.print(f"  {chance} ({clear}, p {sooner.p_value:.3f}; {sooner.wrong} wrong, {sooner.right} right)")


def _print_missing(name: str, number: int) -> None:
    context = open_context()
    with context.database.read() as session:
        found = next_batch(session, context.settings.join, name, number)
    if found is not None:
        console.print(escape(found.say()), soft_wrap=True)


def _days(found: Quantile) -> str:
    if found.days is None:
        return "not yet"
    high = "?" if found.high is None else f"{found.high:.1f}"
    return f"{found.days:.1f} ({0.0 if found.low is None else found.low:.1f} to {high})"


def _print_verification(found: Verification | None) -> None:
    if found is None:
        console.print("No settled prediction has a label yet.")
        return
    by = found.selected_by
    chosen = f"chosen by {by.facet} (from {by.least:.0%} to {by.most:.0%}, p {by.p_value:.2g})" if by else "no choice is seen"
    console.print(escape(f"{found.labelled} of {found.cases} settled predictions have a label; {chosen}"))
    for each in found.shares if by else ():
        if by and each.facet == by.facet:
            share = f"{each.share:.0%} ({each.low:.0%} to {each.high:.0%})"
            console.print(escape(f"  {each.facet} {each.group}: {each.labelled} of {each.cases} labelled, {share}"), soft_wrap=True)
    table = Table("rate", "of labelled cases", "of all predictions, weighted", "by class alone", "worth cases", "")
    for rate in found.rates:
        alone = "-" if rate.begg_greenes is None else f"{rate.begg_greenes:.3f}"
        cells: tuple[Any, ...] = (rate.name, _interval(rate.raw), _interval(rate.weighted), alone, f"{rate.effective_cases:.0f}")
        table.add_row(*map(escape, cells), "[yellow]differs[/]" if rate.matters else "")
    console.print(table)


def _interval(found: Interval) -> str:
    if found.value is None or found.low is None or found.high is None:
        return "-"
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
