"""Commands about orders: what was ordered, by whom, and what waits for a person."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table
from sqlmodel import col, select

from listeners.cli.context import console, nearest, open_context, show
from schemas.tables import Job, Order
from services.runtime.errors import InvalidInput

app = typer.Typer(help="Orders of the agents and of people.", no_args_is_help=True)
SEARCHED = 200


@app.command("list")
def list_orders(limit: Annotated[int, typer.Option(min=1, help="Newest so many")] = 20) -> None:
    """The newest orders with their reasons and outcomes. One that awaits approval is approved in the chat.

    Example: reclaim orders list; reclaim chat "approve ORDER"
    """
    table = Table("order", "model", "what", "state", "actor", "reason", "outcome")
    with open_context().database.read() as session:
        for row in session.exec(select(Order).order_by(col(Order.created_at).desc()).limit(limit)):
            cells = (row.order_id, row.model, _what(row), _words(row.state), row.actor, row.reason, row.explanation)
            table.add_row(*map(escape, cells))
    show(table, "Nothing has been ordered yet.", prose=2)


@app.command("show")
def show_order(order_id: Annotated[str, typer.Argument(help="Id, as `list` prints it")]) -> None:
    """One order: who, why, with which settings, how far its job is, and what the gate said.

    Example: reclaim orders show ord-1a2b3c4d5e6f
    """
    with open_context().database.read() as session:
        row = session.get(Order, order_id)
        job = session.exec(select(Job).where(Job.order_id == order_id)).first()
        newest = select(Order.order_id).order_by(col(Order.created_at).desc()).limit(SEARCHED)
        known = [] if row else list(session.exec(newest))
    if row is None:
        raise InvalidInput(f"there is no order {order_id!r}{nearest(order_id, known)}")
    facts = {
        "order": f"{row.order_id}, {_what(row)} of {row.model}",
        "state": f"{_words(row.state)}, {row.updated_at:%F %R} UTC",
        "by": f"{row.actor}, {row.created_at:%F %R} UTC",
        "reason": row.reason,
        "settings": ", ".join(f"{name} {value}" for name, value in row.settings.items()),
        "outcome": row.explanation,
        **(_about(job) if job else {}),
    }
    for name, value in facts.items():
        if value:
            console.print(f"[bold]{name:>8}[/]  {escape(value)}", soft_wrap=True)
    for sentence in job.result.get("reasons", []) if job else []:
        console.print(f"          - {escape(sentence)}", soft_wrap=True)


def _about(job: Job) -> dict[str, str]:
    progress = job.progress.get("message", "")
    return {"job": f"{_words(job.state)}, attempt {job.attempt}" + (f", {progress}" if progress else ""), "fault": job.error}


def _what(row: Order) -> str:
    return _words(f"{row.kind} {row.remedy}" if row.remedy else row.kind)


def _words(name: str) -> str:
    return name.replace("_", " ")
