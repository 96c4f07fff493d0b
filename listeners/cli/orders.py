"""Commands about orders: what was ordered, by whom, and what waits for a person."""

from typing import Annotated

import typer
from rich.table import Table
from sqlmodel import col, select

from listeners.cli.context import console, open_context
from schemas.tables import Order

app = typer.Typer(help="Orders of the agents and of people.", no_args_is_help=True)


@app.command("list")
def list_orders(limit: Annotated[int, typer.Option(min=1)] = 20) -> None:
    """The newest orders with their reasons and outcomes."""
    table = Table("order", "model", "what", "state", "actor", "reason", "outcome")
    with open_context().database.read() as session:
        for row in session.exec(select(Order).order_by(col(Order.created_at).desc()).limit(limit)):
            what = f"{row.kind} {row.remedy}" if row.remedy else row.kind
            table.add_row(row.order_id, row.model, what, row.state, row.actor, row.reason, row.explanation)
    console.print(table)
