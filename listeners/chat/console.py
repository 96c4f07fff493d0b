"""The console chat. Whoever may run commands on the service's own machine is its admin, under the login's name."""

import importlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Final

from rich.console import Console

from agents.proposals import reply_event_id
from listeners.chat import repository
from listeners.chat.cards import Card, card_lines
from listeners.chat.conversation import POLL_S, ask, is_sent, reply_to
from schemas.events import AgentReply
from schemas.vocabulary import UserRole
from services.runtime.errors import InvalidInput
from services.runtime.login import login
from services.runtime.presence import HOW_TO_START, is_at_work
from services.runtime.service import Context

UNSENT_HINT_S: Final = 3.0
BYE: Final = frozenset({"exit", "quit", "bye", ":q"})


@dataclass
class _News:
    """What is told in this conversation's thread, each line once; a reply that was waited for is not told again."""

    context: Context
    thread: str
    told: dict[str, int] = field(default_factory=dict)
    lines: dict[str, set[str]] = field(default_factory=dict)

    def answered(self, command_id: str) -> None:
        """The reply to this command has been printed."""
        self.told[repository.message_id(self.thread, reply_event_id(command_id))] = 1

    def tell(self, out: Console) -> None:
        """Print messages that are new and lines that have come to one since."""
        with self.context.database.read() as session:
            rows = [row for row in repository.newest(session, self.thread) if row.revision > self.told.get(row.message_id, 0)]
        for row in rows:
            self.told[row.message_id] = row.revision
            before = self.lines.setdefault(row.message_id, set())
            lines = [line for line in card_lines(Card.model_validate(row.content)) if line not in before]
            before.update(lines)
            out.print("\n".join(lines), style="dim", markup=False)


def say(context: Context, text: str, timeout_s: float, console: Console | None = None) -> int:
    """Ask once and print the answer; returns the exit code (0 answered, 1 no answer in time, 2 not a message)."""
    out = console or Console(highlight=False)
    return 0 if _exchange(text, timeout_s, _News(context, _thread()), out) else 1


def converse(context: Context, timeout_s: float, console: Console | None = None, read: Callable[[str], str] | None = None) -> int:
    """A conversation until `exit` or end of input. What has come to its thread since is told before each prompt."""
    out, news = console or Console(highlight=False), _News(context, _thread())
    history = _Lines(context.settings.state_dir / "chat_history")
    out.print('Ask about your models; "help" says what is possible, "exit" ends.', style="dim")
    while True:
        news.tell(out)
        line = history.read("you> ", read)
        if line is None or line.lower() in BYE:
            return 0
        if line:
            _exchange(line, timeout_s, news, out)


def _thread() -> str:
    return f"console:{login()}:{os.getpid()}:{time.time_ns():x}"


def _exchange(text: str, timeout_s: float, news: _News, out: Console) -> AgentReply | None:
    context = news.context
    try:
        command_id = ask(context, text, login(), UserRole.ADMIN, news.thread, "console")
    except InvalidInput as error:
        out.print(f"Not sent: {error.reason}.", style="yellow")
        return None
    reply = _wait(context, command_id, timeout_s, out)
    if reply is None:
        running = is_at_work(context.database)
        why = f"No answer within {timeout_s:.0f} s." if running else f"The service is not running: {HOW_TO_START}."
        out.print(f"{why} The question is kept and will be answered.", style="yellow")
        return None
    news.answered(command_id)
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
