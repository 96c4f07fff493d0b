"""Commands about maintenance reports: which there are, where they lie, and one on demand."""

import uuid
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table
from sqlmodel import col, select

from listeners.cli.context import console, nearest, open_context, show
from schemas.tables import Report
from services.runtime import registry
from services.runtime.errors import InvalidInput
from services.runtime.login import login
from services.runtime.service import Context

app = typer.Typer(help="Maintenance reports.", no_args_is_help=True)
STYLES = {"healthy": "green", "watch": "yellow", "degraded": "red", "undecided": "dim"}
SEARCHED = 200
WEEK = timedelta(days=7)
Model = Annotated[str | None, typer.Option(help="Only this model")]


class Form(StrEnum):
    """A form that a report has."""

    HTML = "html"
    PDF = "pdf"
    MARKDOWN = "markdown"
    JSON = "json"


@app.command("list")
def list_reports(model: Model = None, limit: Annotated[int, typer.Option(min=1, help="Newest so many")] = 20) -> None:
    """The newest reports.

    Example: reclaim reports list
    """
    query = select(Report).order_by(col(Report.written_at).desc(), Report.report_id).limit(limit)
    table = Table("report", "model", "version", "kind", "status", "written", "title")
    with open_context().database.read() as session:
        if model:
            query = query.where(Report.model == registry.model(session, model).name)
        for row in session.exec(query):
            cells = (row.report_id, row.model, str(row.version), row.kind.replace("_", " "))
            status = f"[{STYLES[row.status]}]{row.status}[/]"
            table.add_row(*map(escape, cells), status, f"{row.written_at:%F %R}", escape(row.title))
    show(table, "No report is written yet. Write one: reclaim reports write MODEL.", prose=1)


@app.command("show")
def show_report(
    report_id: Annotated[str, typer.Argument(help="Id, as `list` prints it; without one, the newest")] = "",
    model: Model = None,
) -> None:
    """Print a report's text, and where its forms lie.

    Example: reclaim reports show REPORT
    """
    context = open_context()
    row = _report(context, report_id) if report_id else _newest(context, model)
    console.print(_place(context, row, Form.MARKDOWN).read_text(encoding="utf-8"), markup=False)
    _tell(context, row)


@app.command("path")
def show_path(
    report_id: Annotated[str, typer.Argument(help="Id, as `list` prints it; without one, the newest")] = "",
    form: Annotated[Form, typer.Option(help="Which form of it")] = Form.HTML,
    model: Model = None,
) -> None:
    """Print where a report lies and nothing else, to be opened: xdg-open "$(reclaim reports path --form pdf)".

    Example: reclaim reports path --model lung --form pdf
    """
    context = open_context()
    row = _report(context, report_id) if report_id else _newest(context, model)
    typer.echo(_place(context, row, form))


@app.command("write")
def write(
    model: Annotated[str, typer.Argument(help="Name of the model")],
    since: Annotated[
        str, typer.Option(help="Look back to this day or time (UTC), e.g. 2026-03-01; default: a week before the end")
    ] = "",
    until: Annotated[str, typer.Option(help="As it stood then, UTC; default: now")] = "",
) -> None:
    """Write a report on a model over a period, now and here, as the routine one is written every week.

    Example: reclaim reports write lung --since 2026-01-01 --until 2026-04-01
    """
    from services.reporting.facts import Cause
    from services.reporting.rules import rules_for
    from services.reporting.writer import Writer

    context = open_context()
    end = _moment(until, "--until") if until else context.clock.now()
    begin = _moment(since, "--since") if since else end - WEEK
    if not begin < end <= context.clock.now():
        raise InvalidInput(f"the period from {begin:%F %R} to {end:%F %R} UTC is empty or ends in the future")
    chosen, today = context.settings, context.clock.now().date()
    rules = partial(rules_for, chosen, today=today)
    writer = Writer(context.database, chosen.reports_dir, rules, chosen.chat.reports_url)
    actor, identity = f"user:{login()}", uuid.uuid4().hex
    written = writer.write(Cause(identity, end, model, actor=actor, settings={"kind": "routine"}, since=begin))
    with context.database.transaction() as tx:
        data = writer.enter(tx, written)
    console.print(escape(f"{data.title}\n{data.summary}"), soft_wrap=True)
    _tell(context, _report(context, data.report_id))


def _moment(text: str, option: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(f"{option} {text!r} is no day or time, such as 2026-03-01 or 2026-03-01T06:00") from None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _report(context: Context, report_id: str) -> Report:
    with context.database.read() as session:
        row = session.get(Report, report_id)
        known = [] if row else list(session.exec(select(Report.report_id).order_by(col(Report.written_at).desc()).limit(SEARCHED)))
    if row is None:
        raise InvalidInput(f"there is no report {report_id!r}{nearest(report_id, known)}")
    return row


def _newest(context: Context, model: str | None) -> Report:
    query = select(Report).order_by(col(Report.written_at).desc(), Report.report_id).limit(1)
    with context.database.read() as session:
        row = session.exec(query.where(Report.model == registry.model(session, model).name) if model else query).first()
    if row is None:
        raise InvalidInput("there is no report yet; write one: reclaim reports write MODEL")
    return row


def _place(context: Context, row: Report, form: Form) -> Path:
    """Where a form lies; InvalidInput where the report has none or its file is gone."""
    inside = {Form.HTML: row.html, Form.PDF: row.pdf, Form.MARKDOWN: row.markdown, Form.JSON: row.data}[form]
    path = context.settings.reports_dir.absolute() / inside
    if not inside or not path.is_file():
        raise InvalidInput(f"report {row.report_id} has no {form} file in {context.settings.reports_dir.absolute()}")
    return path


def _tell(context: Context, row: Report) -> None:
    root = context.settings.reports_dir.absolute()
    for name, inside in (("HTML", row.html), ("PDF", row.pdf)):
        if inside:
            console.print(f"{name}: {root / inside}", soft_wrap=True, markup=False)
