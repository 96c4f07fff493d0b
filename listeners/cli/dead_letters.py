"""Commands about messages that could not be processed."""

import json
from getpass import getuser
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from listeners.cli.context import console, open_context, remark_on_service, show
from schemas.tables import DeadLetter
from services.runtime import dead_letters
from services.runtime.errors import InvalidInput

app = typer.Typer(help="Messages that could not be processed, with their reasons.", no_args_is_help=True)
SHOWN_BYTES = 4_000
Ids = Annotated[list[int], typer.Argument(help="Ids, as `list` prints them")]


@app.command("list")
def list_letters(
    everything: Annotated[bool, typer.Option("--all", "--replayed", help="Also those replayed or discarded")] = False,
    limit: Annotated[int, typer.Option(min=1)] = 50,
) -> None:
    """Waiting dead letters, newest first.

    Example: reclaim dead-letters list
    """
    table = Table("id", "topic", "consumer", "reason", "at", "since")
    with open_context().database.read() as session:
        for row in dead_letters.list_letters(session, include_replayed=everything, limit=limit):
            cells = (str(row.id), row.topic, row.consumer, row.reason, f"{row.created_at:%F %R}", _state(row))
            table.add_row(*map(escape, cells))
    show(table, "No dead letter waits.")


def _state(row: DeadLetter) -> str:
    if row.discarded_at:
        return f"discarded {row.discarded_at:%F %R}"
    return f"replayed {row.replayed_at:%F %R}" if row.replayed_at else "waits"


@app.command("show")
def show_letter(identity: Annotated[int, typer.Argument(metavar="ID", help="Id, as `list` prints it")]) -> None:
    """Everything about one dead letter: why, from where, and the message itself.

    Example: reclaim dead-letters show 12
    """
    with open_context().database.read() as session:
        row = dead_letters.letter(session, identity)
    facts = {
        "state": f"{_state(row)}, replayed {row.replays} times",
        "reason": f"{row.reason} ({row.error})",
        "consumer": row.consumer,
        "topic": f"{row.topic}, partition {row.partition}, offset {row.offset}",
        "event": row.event_id,
        "key": row.key,
        "at": f"{row.created_at:%F %T} UTC",
    }
    for name, value in facts.items():
        console.print(f"[bold]{name:>8}[/]  {escape(value)}", soft_wrap=True)
    console.print(_body(row.body), markup=False, soft_wrap=True)


def _body(body: bytes) -> str:
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False)[:SHOWN_BYTES]
    except ValueError:
        return f"not JSON: {body[:SHOWN_BYTES]!r}"


@app.command()
def replay(
    ids: Annotated[list[int] | None, typer.Argument(help="Ids, as `list` prints them")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All waiting ones")] = False,
) -> None:
    """Put messages back on their topics, after the cause is mended.

    Example: reclaim dead-letters replay 12 13; reclaim dead-letters replay --all
    """
    if bool(ids) == everything:
        raise InvalidInput("name the ids to replay, or say --all")
    context = open_context()
    count = dead_letters.replay(context.database, ids=ids or None, actor=f"user:{getuser()}")
    console.print(f"{_messages(count)} put back")
    if count:
        remark_on_service(context, "They wait until it runs")


@app.command()
def discard(ids: Ids, reason: Annotated[str, typer.Option(help="Why they need not be processed, for the audit record")]) -> None:
    """Say that messages will not be processed. They are kept, no longer listed as waiting, and can be replayed by id.

    Example: reclaim dead-letters discard 12 --reason "a test study"
    """
    count = dead_letters.discard(open_context().database, ids, actor=f"user:{getuser()}", reason=reason)
    console.print(f"{_messages(count)} discarded")


def _messages(count: int) -> str:
    return f"{count} message{'s' if count != 1 else ''}"
