"""Commands about messages that could not be processed."""

from typing import Annotated

import typer
from rich.table import Table

from listeners.cli.context import console, open_context
from services.runtime.errors import InvalidInput

app = typer.Typer(help="Messages that could not be processed, with their reasons.", no_args_is_help=True)


@app.command("list")
def list_letters(
    replayed: Annotated[bool, typer.Option("--replayed", help="Also those replayed already")] = False,
    limit: Annotated[int, typer.Option(min=1)] = 50,
) -> None:
    """Waiting dead letters, newest first."""
    from services.runtime.dead_letters import list_letters as letters

    table = Table("id", "topic", "consumer", "reason", "at", "replayed")
    with open_context().database.read() as session:
        for row in letters(session, include_replayed=replayed, limit=limit):
            again = f"{row.replayed_at:%F %R}" if row.replayed_at else "-"
            table.add_row(str(row.id), row.topic, row.consumer, row.reason, f"{row.created_at:%F %R}", again)
    console.print(table)


@app.command()
def replay(
    ids: Annotated[list[int] | None, typer.Argument(help="Ids, as `list` prints them")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All waiting ones")] = False,
) -> None:
    """Put messages back on their topics, after the cause is mended."""
    from services.runtime.dead_letters import replay as replay_letters

    if bool(ids) == everything:
        raise InvalidInput("name the ids to replay, or say --all")
    count = replay_letters(open_context().database, ids=ids or None, actor="user:cli")
    console.print(f"{count} message{'s' if count != 1 else ''} put back")
