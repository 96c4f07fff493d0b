"""Commands that show evaluations."""

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from sqlmodel import col, select

from listeners.cli.context import console, nearest, open_context, show
from schemas.tables import Evaluation
from services.evaluation.next_batch import next_batch
from services.runtime import registry
from services.runtime.errors import InvalidInput

evaluations = typer.Typer(help="What the statistics said, batch by batch.", no_args_is_help=True)
STYLES = {"healthy": "green", "watch": "yellow", "degraded": "red", "undecided": "dim"}
SEARCHED = 200
Limit = Annotated[int, typer.Option(min=1, help="Newest so many")]
Model = Annotated[str | None, typer.Option(help="Only this model")]


@evaluations.command("list")
def list_evaluations(model: Model = None, limit: Limit = 20) -> None:
    """The newest evaluations, and how many labelled cases are missing: until the first, and of --model until the next.

    The last column but one is the published 5 % rule, which decides nothing here.

    Example: reclaim evaluations list --model lung
    """
    query = select(Evaluation).order_by(col(Evaluation.evaluated_at).desc()).limit(limit)
    table = Table("evaluation", "model", "version", "cases", "status", "diagnosis", "5 % rule", "summary")
    context = open_context()
    with context.database.read() as session:
        named = registry.model(session, model).name if model else None
        names = [named] if named else [each.name for each in registry.models(session)]
        missing = [found for name in names if (found := next_batch(session, context.settings.join, name))]
        if named:
            query = query.where(Evaluation.model == named)
        for row in session.exec(query):
            status = f"[{STYLES[row.status]}]{row.status}[/]"
            rule = "decline" if row.reclaim_rule else "no decline"
            cells = (row.evaluation_id, row.model, str(row.version), str(row.cases))
            table.add_row(*map(escape, cells), status, row.diagnosis, rule, escape(row.summary))
    show(table, "No batch has been evaluated yet. It takes scored studies and their labels: `reclaim labels import FILE`.", prose=1)
    for each in (each for each in missing if named or not each.batches):
        console.print(escape(f"{each.model} version {each.version}: {each.say()}"), soft_wrap=True)


@evaluations.command("show")
def show_evaluation(evaluation_id: Annotated[str, typer.Argument(help="Id, as `list` prints it")]) -> None:
    """One evaluation: every metric with its interval, and the detector's evidence.

    Example: reclaim evaluations show EVALUATION
    """
    with open_context().database.read() as session:
        row = session.get(Evaluation, evaluation_id)
        newest = select(Evaluation.evaluation_id).order_by(col(Evaluation.evaluated_at).desc()).limit(SEARCHED)
        known = [] if row else list(session.exec(newest))
    if row is None:
        raise InvalidInput(f"there is no evaluation {evaluation_id!r}{nearest(evaluation_id, known)}")
    status = f"[{STYLES[row.status]}]{row.status}[/], {row.diagnosis}"
    console.print(f"{escape(row.model)} version {row.version}, batch {escape(row.batch_id)}: {status}\n{escape(row.summary)}")
    table = Table("metric", "value", "95 % interval", "baseline", "cases")
    for metric in row.metrics:
        interval = "-" if metric["low"] is None else f"{metric['low']:.3f} to {metric['high']:.3f}"
        cells = (_number(metric["value"]), interval, _number(metric["baseline"]), str(metric["cases"]))
        table.add_row(escape(metric["name"]), *cells)
    console.print(table)
    _print_confusion(row.confusion)
    for name, value in row.evidence.items():
        console.print(escape(f"  {name.replace('_', ' ')}: {value}"), soft_wrap=True)
    for rule in row.rules:
        said = "alarm" if rule["alarmed"] else "no alarm"
        what = f"{rule['metric']} {rule['statistic']:.3f}, limit {rule['limit']:.3f}"
        console.print(escape(f"  rule {rule['rule']} (orders nothing): {said}, {what}"), soft_wrap=True)
    _print_subgroups(row.subgroups)


def _print_confusion(found: dict[str, Any] | None) -> None:
    """Counts, and in brackets the 95 % limits of each cell's share of its row in percent."""
    if found is None:
        return
    table = Table("truth \\ predicted", *map(escape, found["classes"]))
    for label, counts, low, high in zip(found["classes"], found["counts"], found["low"], found["high"], strict=True):
        limits = [
            "" if least is None else f" ({100 * least:.0f}-{100 * most:.0f} %)" for least, most in zip(low, high, strict=True)
        ]
        table.add_row(escape(label), *(f"{count}{limit}" for count, limit in zip(counts, limits, strict=True)))
    console.print(table)


def _print_subgroups(found: list[dict[str, Any]]) -> None:
    """Groups that are worse, then those that are too small to say so of them; the others only by their number."""
    if not found:
        return
    table = Table("group", "cases", "verdict", "recall", "of the others", "since batch", "more cases needed")
    for each in found:
        if each["worse"] or each["more_cases"]:
            lacking = "nobody beside it" if each.get("compared") == 0 else "too few to tell"
            verdict = "[red]worse[/]" if each["worse"] else f"[dim]{lacking}[/]"
            since = f"{each['since_batch']} ({each['since_batch_low']} to {each['since_batch_high']})" if each["worse"] else ""
            of = f" of {each['label']}" if each["label"] else ""
            cells = (f"{_number(each['recall'])}{of}", _number(each["recall_others"]), since, str(each["more_cases"] or ""))
            table.add_row(escape(f"{each['facet']} {each['group']}"), str(each["cases"]), verdict, *map(escape, cells))
    if table.row_count:
        console.print(table)
    console.print(
        f"{len(found) - table.row_count} of {len(found)} groups show no difference and are large enough to have shown one."
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
