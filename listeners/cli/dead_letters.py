"""Commands about messages that could not be processed."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from listeners.cli.context import console, open_context, remark_on_service, show
from schemas.tables import DeadLetter
from services.runtime import dead_letters
from services.runtime.errors import InvalidInput
from services.runtime.login import login
from services.runtime.presence import is_at_work
from services.runtime.service import Context

app = typer.Typer(help="Messages that could not be processed, with their reasons.", no_args_is_help=True)
SHOWN_BYTES = 4_000
MOST = 10_000
"""Letters that `--all` takes at once."""
PAUSE_S = 0.25
Ids = Annotated[list[int], typer.Argument(help="Ids, as `list` prints them")]


@app.command("list")
def list_letters(
    everything: Annotated[bool, typer.Option("--all", "--replayed", help="Also those replayed or discarded")] = False,
    limit: Annotated[int, typer.Option(min=1)] = 50,
) -> None:
    """Waiting dead letters, newest first.

    Example: reclaim dead-letters list
    """
    table = Table("id", "topic", "consumer", "at", "state", "reason")
    with open_context().database.read() as session:
        for row in dead_letters.list_letters(session, include_replayed=everything, limit=limit):
            cells = (str(row.id), row.topic, row.consumer, f"{row.created_at:%F %R}", _state(row), row.reason)
            table.add_row(*map(escape, cells))
    show(table, "No dead letter waits.", prose=1)


def _state(row: DeadLetter) -> str:
    if row.discarded_at:
        return f"discarded {row.discarded_at:%F %R}"
    if row.replayed_at:
        return f"replayed {row.replayed_at:%F %R}"
    return f"waits, failed {row.replays + 1} times" if row.replays else "waits"


@app.command("show")
def show_letter(identity: Annotated[int, typer.Argument(metavar="ID", help="Id, as `list` prints it")]) -> None:
    """Everything about one dead letter: why, from where, and the message itself.

    Example: reclaim dead-letters show 12
    """
    with open_context().database.read() as session:
        row = dead_letters.letter(session, identity)
    facts = {
        "state": _state(row),
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
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for what comes of them, where the service runs")] = 10.0,
) -> None:
    """Put messages back on their topics, after the cause is mended, and say what came of them. Exit code 1: one failed again.

    Example: reclaim dead-letters replay 12 13; reclaim dead-letters replay --all
    """
    if bool(ids) == everything:
        raise InvalidInput("name the ids to replay, or say --all")
    context = open_context()
    with context.database.read() as session:
        named = sorted(set(ids or ())) or sorted(row.id or 0 for row in dead_letters.list_letters(session, limit=MOST))
    count = dead_letters.replay(context.database, ids=named, actor=f"user:{login()}")
    console.print(f"{_messages(count)} put back")
    if not count:
        return
    remark_on_service(context, "They wait until it runs")
    if is_at_work(context.database):
        raise typer.Exit(int(_failed_again(context, named, wait)))


def _failed_again(context: Context, ids: Sequence[int], seconds: float) -> bool:
    """Wait for the consumers and tell what came of each letter; whether one failed again."""
    end, found = time.monotonic() + seconds, Counter[str]()
    while True:
        with context.database.read() as session:
            found = Counter(dead_letters.outcome(session, identity) for identity in ids)
        if "on its way" not in found or time.monotonic() >= end:
            break
        time.sleep(PAUSE_S)
    console.print(", ".join(f"{count} {what}" for what, count in found.most_common()), soft_wrap=True)
    if "failed again" in found:
        console.print("`reclaim dead-letters list` says why")
    return "failed again" in found


@app.command()
def discard(ids: Ids, reason: Annotated[str, typer.Option(help="Why they need not be processed, for the audit record")]) -> None:
    """Say that messages will not be processed. They are kept, no longer listed as waiting, and can be replayed by id.

    Example: reclaim dead-letters discard 12 --reason "a test study"
    """
    count = dead_letters.discard(open_context().database, ids, actor=f"user:{login()}", reason=reason)
    console.print(f"{_messages(count)} discarded")


def _messages(count: int) -> str:
    return f"{count} message{'s' if count != 1 else ''}"
