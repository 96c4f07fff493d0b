"""Commands that show evaluations and reports."""

from typing import Annotated

import typer
from rich.table import Table
from sqlmodel import col, select

from listeners.cli.context import console, open_context
from schemas.tables import Evaluation, Report
from services.runtime.errors import InvalidInput

evaluations = typer.Typer(help="What the statistics said, batch by batch.", no_args_is_help=True)
reports = typer.Typer(help="Maintenance reports.", no_args_is_help=True)
STYLES = {"healthy": "green", "watch": "yellow", "degraded": "red", "undecided": "dim"}
Limit = Annotated[int, typer.Option(min=1, help="Newest so many")]


@evaluations.command("list")
def list_evaluations(model: Annotated[str | None, typer.Option(help="Only this model")] = None, limit: Limit = 20) -> None:
    """The newest evaluations."""
    query = select(Evaluation).order_by(col(Evaluation.evaluated_at).desc()).limit(limit)
    table = Table("evaluation", "model", "version", "cases", "status", "diagnosis", "5 % rule", "summary")
    with open_context().database.read() as session:
        for row in session.exec(query.where(Evaluation.model == model) if model else query):
            status = f"[{STYLES[row.status]}]{row.status}[/]"
            rule = "decline" if row.reclaim_rule else "-"
            table.add_row(row.evaluation_id, row.model, str(row.version), str(row.cases), status, row.diagnosis, rule, row.summary)
    console.print(table)


@evaluations.command("show")
def show_evaluation(evaluation_id: Annotated[str, typer.Argument(help="Id, as `list` prints it")]) -> None:
    """One evaluation: every metric with its interval, and the detector's evidence."""
    with open_context().database.read() as session:
        row = session.get(Evaluation, evaluation_id)
    if row is None:
        raise InvalidInput(f"there is no evaluation {evaluation_id!r}; ask `reclaim evaluations list`")
    status = f"[{STYLES[row.status]}]{row.status}[/], {row.diagnosis}"
    console.print(f"{row.model} version {row.version}, batch {row.batch_id}: {status}\n{row.summary}")
    table = Table("metric", "value", "95 % interval", "baseline", "cases")
    for metric in row.metrics:
        interval = "-" if metric["low"] is None else f"{metric['low']:.3f} to {metric['high']:.3f}"
        table.add_row(metric["name"], _number(metric["value"]), interval, _number(metric["baseline"]), str(metric["cases"]))
    console.print(table)
    for name, value in row.evidence.items():
        console.print(f"  {name}: {value}", soft_wrap=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


@reports.command("list")
def list_reports(limit: Limit = 20) -> None:
    """The newest reports."""
    context = open_context()
    table = Table("report", "model", "version", "kind", "status", "title", "written")
    with context.database.read() as session:
        for row in session.exec(select(Report).order_by(col(Report.written_at).desc()).limit(limit)):
            table.add_row(row.report_id, row.model, str(row.version), row.kind, row.status, row.title, f"{row.written_at:%F %R}")
    console.print(table)


@reports.command("show")
def show_report(report_id: Annotated[str, typer.Argument(help="Id, as `list` prints it")]) -> None:
    """Print a report's text, and where its HTML lies."""
    context = open_context()
    with context.database.read() as session:
        row = session.get(Report, report_id)
    if row is None:
        raise InvalidInput(f"there is no report {report_id!r}; ask `reclaim reports list`")
    root = context.settings.reports_dir.absolute()
    console.print((root / row.markdown).read_text(encoding="utf-8"), markup=False)
    console.print(f"HTML: {root / row.html}", soft_wrap=True)
