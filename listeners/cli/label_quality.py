"""`reclaim labels suspects` and `reclaim labels quality`: what the stored cases say about the labels themselves."""

import json
from dataclasses import fields, is_dataclass, replace
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from listeners.cli.context import console, open_context, show
from schemas.vocabulary import Status
from services.evaluation.delays import Quantile
from services.evaluation.intervals import Interval
from services.evaluation.label_review import Review, review
from services.evaluation.labelling import TEST_LEVEL, Labelling
from services.evaluation.next_batch import next_batch
from services.evaluation.suspects import Conflict, Noise
from services.evaluation.truth_repository import Punctuality
from services.evaluation.verification import Verification

Model = Annotated[str, typer.Argument(help="Model, as `reclaim models list` prints it")]
Version = Annotated[int | None, typer.Option(help="Version; default: the champion")]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of tables")]
WORSE = (Status.DEGRADED, Status.WATCH)
RISEN = (
    "Lately labels contradict the model in {:.0%} more of the cases than before. That is taken for the model's decline and not for "
    "wrong labels; if a source of labels has changed since, look at its labels too."
)
WHERE = "Studies are named by their pseudonym: their images lie in the archive's folder FIRST TWO CHARACTERS/PSEUDONYM."


def suspects(
    model: Model,
    version: Version = None,
    limit: Annotated[int, typer.Option(min=1, help="So many of each list, the surest and the newest first")] = 20,
    as_json: Json = False,
) -> None:
    """Labels to look at again: those that are probably wrong, the surest first, and studies whose sources contradict each other.

    Where labels contradict the model more than before, it is taken to have become worse, and such labels are suspected the less.
    A model that was worse from its first study on accuses right labels: read `reclaim evaluations list` beside it. Nothing is
    changed; a label is corrected by importing another one for the same study, or withdrawn by `reclaim labels withdraw`.

    Examples:
    reclaim labels suspects lung

    reclaim labels suspects lung --limit 100 --json

    """
    found = _examined(model, version)
    name, number, noise, contested = found.model, found.version, found.labelling.noise, found.conflicts
    if as_json:
        listed = replace(noise, suspects=noise.suspects[:limit]) if noise else None
        wrong = listed.wrong_among(listed.suspects) if listed else None
        said = {"noise": listed, "expected_wrong": wrong, "status": found.status, "degraded": found.degraded}
        _print_json({"model": name, "version": number, **said, "conflicts": contested[:limit]})
        return
    if found.status in WORSE:
        text = f"This version is {found.status}: some of what looks like wrong labels may be the model's own errors."
        console.print(f"[yellow]{text}[/]", soft_wrap=True)
    _print_noise(name, number, noise, limit)
    _print_conflicts(contested, limit)
    if contested or (noise and noise.suspects):
        console.print(WHERE, soft_wrap=True)


def quality(model: Model, version: Version = None, as_json: Json = False) -> None:
    """How late labels come, which predictions get one, and the rates that follow for all predictions.

    Examples:
    reclaim labels quality lung

    """
    examined = _examined(model, version)
    name, number, found = examined.model, examined.version, examined.labelling
    if as_json:
        whole = {field.name: getattr(found, field.name) for field in fields(found) if field.name != "noise"}
        _print_json(
            {"model": name, "version": number, **whole, "punctuality": examined.punctuality, "unmatched": examined.unmatched}
        )
        return
    console.print(f"{escape(name)} version {number}")
    _print_missing(name, number)
    _print_delays(found)
    _print_punctuality(examined.punctuality)
    if examined.unmatched:
        text = (
            f"{examined.unmatched} labels belong to no study that {name} has scored: not come yet, or wrongly named. They are kept."
        )
        console.print(escape(text), soft_wrap=True)
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


def _examined(model: str, version: int | None) -> Review:
    context = open_context()
    with context.database.read() as session:
        return review(session, context.settings.evaluation, model, version, context.clock.now())


def _print_noise(name: str, number: int, noise: Noise | None, limit: int) -> None:
    if noise is None:
        console.print(
            f"{escape(name)} version {number}: too few labelled cases (or classes that do not exclude each other) to tell."
        )
        return
    said = f"{noise.rate:.1%} of labels are probably wrong ({noise.low:.1%} to {noise.high:.1%})"
    console.print(f"{escape(name)} version {number}: of {noise.cases} labelled cases {said}; {len(noise.suspects)} suspects")
    if noise.declined:
        console.print(RISEN.format(noise.risen), soft_wrap=True)
    if not noise.suspects:
        return
    listed = noise.suspects[:limit]
    wrong = noise.wrong_among(listed)
    console.print(
        f"Of the {len(listed)} listed about {wrong:.0f} are expected to be wrong labels and {len(listed) - wrong:.0f} right ones."
    )
    table = Table("study", "acquired", "label", "source", "rather", "surely wrong")
    for each in listed:
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
        clear = "beyond chance" if sooner.p_value < TEST_LEVEL else "may be chance"
        chance = f"of a wrong and a right prediction the wrong one is labelled first in {sooner.probability:.0%}"
        console.print(f"  {chance} ({clear}, {p_text(sooner.p_value)}; {sooner.wrong} wrong, {sooner.right} right)")


def _print_missing(name: str, number: int) -> None:
    context = open_context()
    with context.database.read() as session:
        found = next_batch(session, context.settings.join, name, number)
    if found is not None:
        console.print(escape(found.say()), soft_wrap=True)


def _print_punctuality(found: dict[str, Punctuality]) -> None:
    for source, each in found.items():
        took = f"come {_hours(each.shortest_hours)} or more after the time that they state, half within {_hours(each.median_hours)}"
        ahead = f"; {each.ahead} of {each.labels} stated a time in the future: its clock runs ahead" if each.ahead else ""
        console.print(escape(f"  {source}: labels {took}{ahead}"), soft_wrap=True)


def _hours(hours: float) -> str:
    return f"{60 * hours:.0f} minutes" if hours < 2 else f"{hours:.0f} hours" if hours < 72 else f"{hours / 24:.0f} days"


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
    many = len(found.selection)
    looked = f"{many} comparison{'s' * (many != 1)}"
    clear = f"{p_text(min(1.0, by.p_value * many))} after Bonferroni's correction for {looked}" if by else ""
    chosen = f"chosen by {by.facet} (from {by.least:.0%} to {by.most:.0%}, {clear})" if by else f"no choice is seen ({looked})"
    console.print(escape(f"{found.labelled} of {found.cases} settled predictions have a label; {chosen}"))
    for each in found.shares if by else ():
        if by and each.facet == by.facet:
            share = f"{each.share:.0%} ({each.low:.0%} to {each.high:.0%})"
            console.print(
                escape(f"  {each.facet} {each.group or '(none)'}: {each.labelled} of {each.cases} labelled, {share}"),
                soft_wrap=True,
            )
    table = Table("rate", "of labelled cases", "of all predictions, weighted", "by class alone", "worth cases", "")
    for rate in found.rates:
        alone = "-" if rate.begg_greenes is None else f"{rate.begg_greenes:.3f}"
        cells: tuple[Any, ...] = (rate.name, _interval(rate.raw), _interval(rate.weighted), alone, f"{rate.effective_cases:.0f}")
        table.add_row(*map(escape, cells), "[yellow]differs[/]" if rate.matters else "")
    console.print(table)
    if any(rate.matters for rate in found.rates):
        console.print(
            f"Each of the {len(found.rates)} rates is compared by itself at {TEST_LEVEL:.0%}: one in twenty differs by chance."
        )


def p_text(value: float) -> str:
    """A p-value as journals print it: `p 0.03`, never `p 0.000`."""
    return "p < 0.001" if value < 0.001 else f"p {value:.2g}" if value < 0.1 else f"p {value:.2f}"


def _interval(found: Interval) -> str:
    if found.value is None or found.low is None or found.high is None:
        return "-"
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
