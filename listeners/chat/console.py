"""The console chat. Whoever may run commands on the service's own machine is its admin, under the login's name."""

import getpass
import importlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Final

from rich.console import Console

from agents import repository
from listeners.chat.conversation import POLL_S, ask, is_sent, reply_to
from schemas.events import AgentReply
from schemas.tables import Order
from schemas.vocabulary import OrderState, UserRole
from services.runtime.errors import InvalidInput
from services.runtime.presence import HOW_TO_START, is_at_work
from services.runtime.service import Context

UNSENT_HINT_S: Final = 3.0
BYE: Final = frozenset({"exit", "quit", "bye", ":q"})
FINISHED: Final = frozenset({OrderState.DONE, OrderState.FAILED, OrderState.REFUSED})


def say(context: Context, text: str, timeout_s: float, console: Console | None = None) -> int:
    """Ask once and print the answer; returns the exit code (0 answered, 1 no answer in time, 2 not a message)."""
    out = console or Console(highlight=False)
    return 0 if _exchange(context, text, timeout_s, _thread(), out) else 1


def converse(context: Context, timeout_s: float, console: Console | None = None, read: Callable[[str], str] | None = None) -> int:
    """A conversation until `exit` or end of input. What has changed about orders made here is told before each prompt."""
    out, thread = console or Console(highlight=False), _thread()
    history = _Lines(context.settings.state_dir / "chat_history")
    followed: dict[str, str] = {}
    out.print('Ask about your models; "help" says what is possible, "exit" ends.', style="dim")
    while True:
        _tell_news(context, followed, out)
        line = history.read("you> ", read)
        if line is None or line.lower() in BYE:
            return 0
        reply = _exchange(context, line, timeout_s, thread, out) if line else None
        followed.update(dict.fromkeys(reply.order_ids, "") if reply else {})


def _thread() -> str:
    return f"console:{getpass.getuser()}:{os.getpid()}:{time.time_ns():x}"


def _exchange(context: Context, text: str, timeout_s: float, thread: str, out: Console) -> AgentReply | None:
    try:
        command_id = ask(context, text, getpass.getuser(), UserRole.ADMIN, thread, "console")
    except InvalidInput as error:
        out.print(f"Not sent: {error.reason}.", style="yellow")
        return None
    reply = _wait(context, command_id, timeout_s, out)
    if reply is None:
        running = is_at_work(context.database)
        why = f"No answer within {timeout_s:.0f} s." if running else f"The service is not running: {HOW_TO_START}."
        out.print(f"{why} The question is kept and will be answered.", style="yellow")
        return None
    out.print(reply.text, markup=False)
    return reply


def _wait(context: Context, command_id: str, timeout_s: float, out: Console) -> AgentReply | None:
    begun = time.monotonic()
    with out.status("the agents are thinking …") as status:
        while time.monotonic() - begun < timeout_s:
            reply = reply_to(context, command_id)
            if reply is not None:
                return reply
            if time.monotonic() - begun > UNSENT_HINT_S and not is_sent(context, command_id):
                if not is_at_work(context.database):
                    return None
                status.update("the service is slow to take the question …")
            time.sleep(POLL_S)
    return reply_to(context, command_id)


def _tell_news(context: Context, followed: dict[str, str], out: Console) -> None:
    """Print what is new about the orders of this conversation and forget those that are finished."""
    with context.database.read() as session:
        for order_id in list(followed):
            row = session.get(Order, order_id)
            job = repository.job_of(session, order_id)
            epoch = f", epoch {job.progress['epoch']} of {job.progress.get('epochs')}" if job and job.progress.get("epoch") else ""
            news = f"{row.state.replace('_', ' ')}{epoch}" if row else ""
            if row is not None and followed[order_id] not in {"", news}:
                out.print(f"{order_id}: {news} {row.explanation}".rstrip(), style="dim", markup=False)
            followed[order_id] = news
            if row is None or row.state in FINISHED:
                del followed[order_id]


class _Lines:
    """Line input with editing and a history that outlives the process, where the platform has readline."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._readline = _readline()
        if self._readline is not None and path.is_file():
            self._readline.read_history_file(path)

    def read(self, prompt: str, source: Callable[[str], str] | None) -> str | None:
        """One line without its ends, None at the end of the input."""
        try:
            line = (source or input)(prompt).strip()
        except (EOFError, KeyboardInterrupt):
            return None
        if self._readline is not None and source is None:
            self._readline.write_history_file(self._path)
            self._path.chmod(0o600)
        return line


def _readline() -> ModuleType | None:
    try:
        return importlib.import_module("readline")
    except ImportError:
        return None
