"""What every command needs: settings read with readable errors, and the process-wide resources."""

import difflib
import sys
from collections.abc import Sequence

import typer
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table

from schemas.settings import Settings, load_settings
from services.runtime.clock import SystemClock
from services.runtime.database import Database
from services.runtime.errors import InvalidInput
from services.runtime.identity import load_pseudonyms
from services.runtime.migrations import upgrade
from services.runtime.presence import HOW_TO_START, is_at_work
from services.runtime.service import Context

console = Console(highlight=False)
NARROW = 120
"""Columns of a terminal in which a table with sentences can be read."""


def open_context(settings: Settings | None = None) -> Context:
    """Settings, a migrated database, the clock and the pseudonyms' key."""
    chosen = settings or load_settings()
    try:
        chosen.state_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(
            f"the state folder {chosen.state_dir} cannot be used ({error.strerror}): set RECLAIM_STATE_DIR"
        ) from None
    clock = SystemClock()
    database = Database.from_settings(chosen, clock)
    upgrade(database)
    return Context(settings=chosen, database=database, clock=clock, pseudonyms=load_pseudonyms(chosen))


def show(table: Table, otherwise: str, *, prose: int = 0) -> None:
    """Print a table whose first column, an id, is never cut short; `otherwise` where it is empty.

    The last `prose` columns hold sentences, which a narrow terminal would cut to a few letters a line: there each row is
    printed as a paragraph instead.
    """
    if prose and table.row_count and console.width < NARROW:
        console.print(_paragraphs(table, prose))
        return
    table.columns[0].overflow, table.columns[0].no_wrap = "fold", True
    console.print(table if table.row_count else otherwise, soft_wrap=not table.row_count)


def _paragraphs(table: Table, prose: int) -> Group:
    """Each row as its id, its other values after their headings, and its sentences."""
    names = [str(column.header) for column in table.columns]
    last = len(names) - prose
    lines: list[RenderableType] = []
    for identity, *cells in zip(*(column.cells for column in table.columns), strict=True):
        values = [f"{name} {cell}" for name, cell in zip(names[1:last], cells, strict=False) if cell]
        told = (", ".join(values), *map(str, cells[last - 1 :]))
        lines += [str(identity), *(Padding(text, (0, 0, 0, 2), expand=False) for text in told if text)]
    return Group(*lines)


def nearest(name: str, known: Sequence[str], most: int = 5) -> str:
    """What to say after a name that was not found: names like it, else the first of those there are."""
    close = difflib.get_close_matches(name, known, 3, 0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are {', '.join(known[:most])}{' …' if len(known) > most else ''}" if known else "; there is none yet"


def ask_leave(question: str, *, yes: bool) -> None:
    """Ask before what cannot be undone; without a terminal only `--yes` is an answer. Exits with 1 on a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidInput(f"say --yes, there is no terminal to ask at: {question}")
    if not typer.confirm(question, default=False):
        console.print("nothing done")
        raise typer.Exit(1)


def remark_on_service(context: Context, meanwhile: str) -> None:
    """Where nothing runs that would go on with what a command has put in, say so and how to start it."""
    if not is_at_work(context.database):
        console.print(f"[yellow]The service is not running.[/] {meanwhile}; {HOW_TO_START}.", soft_wrap=True)
