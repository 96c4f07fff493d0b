"""What every command needs: settings read with readable errors, and the process-wide resources."""

import difflib
import sys
from collections.abc import Sequence

import typer
from rich.console import Console
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


def show(table: Table, otherwise: str) -> None:
    """Print a table whose first column, an id, is never cut short; `otherwise` where it is empty."""
    table.columns[0].overflow, table.columns[0].no_wrap = "fold", True
    console.print(table if table.row_count else otherwise, soft_wrap=not table.row_count)


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
