"""Runs commands through the agents as the service does, and scores them exactly."""

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sqlmodel import Session

from agents.causes import command_cause
from agents.proposals import Ledger
from agents.runner import Run, Runner
from agents.settlement import settle
from agents.tools.catalogue import BY_NAME
from schemas.events import AgentCommand
from schemas.settings import Settings
from schemas.tables import Order
from schemas.topics import AGENT_COMMAND
from schemas.vocabulary import OrderState, UserRole
from services.runtime.database import Database
from services.runtime.messages import Received, Record, headers_of

from .world import MODELS, NOW, WAITING

SET: Final = Path(__file__).resolve().parent.parent / "commands_data" / "commands.v2.jsonl"
LOOK_UPS: Final = frozenset({"list_models", "remedy_options", "handoff"})
"""Reading that costs nothing and that any planner may do on its way; counted only where it was asked for."""
Call = tuple[str, tuple[tuple[str, str], ...]]
Done = Counter[tuple[str, str]]
"""Orders by tool and model, decisions by tool and order."""


@dataclass(frozen=True)
class Command:
    """One command of the set with what must come of it."""

    id: str
    family: str
    language: str
    text: str
    expect: list[list[dict[str, Any]]]
    split: str
    ask: str = ""
    role: str = "admin"
    world: str = "one"
    before: list[str] = field(default_factory=list)
    orders_out: int | None = None
    may_read: bool = False
    """Nothing may be ordered; reading in answer is as good as words."""


@dataclass(frozen=True)
class Score:
    """`wrong_orders`: proposals and decisions of the run that no expected reading has; `carried_out`: those that took effect.

    The others were refused, or wait for a clear yes. `asked_back`: the reply ends without an order and with a question.
    """

    command: Command
    right: bool
    wrong_orders: int
    carried_out: int
    calls: tuple[Call, ...]
    reply: str
    planner: str
    seconds: float = 0.0
    usage: dict[str, Any] = field(default_factory=dict)

    @property
    def asked_back(self) -> bool:
        """Whether nothing was called and something was asked."""
        return "?" in self.reply and all(tool in LOOK_UPS for tool, _ in self.calls)


class _TakenBackError(Exception):
    """Ends the transaction of a command, so that the next one meets the same world."""


def read_set(path: Path = SET) -> list[Command]:
    """The versioned set."""
    return [Command(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def score(command: Command, database: Database, runner: Runner) -> Score:
    """Run a command in its world, after the messages that came before it in the thread."""
    past: list[tuple[str, str]] = []
    for text in command.before:
        past.append((text, _run(text, command, runner, past).reply))
    begun = time.perf_counter()
    run = _run(command.text, command, runner, past)
    seconds = time.perf_counter() - begun
    out, lines, done = _settled(run, database, runner.settings, past)
    waiting = WAITING[command.world]
    calls = _calls(run, waiting)
    expected = [[_call(each["tool"], each["arguments"], waiting) for each in reading] for reading in command.expect]
    wrong = min(sum(_unasked(run.ledger, reading).values()) for reading in expected)
    if command.orders_out is not None:
        wrong = max(wrong, out - command.orders_out)
    if command.may_read and not any(BY_NAME[tool].orders for tool, _ in calls):
        expected.append([call for call in calls if call[0] not in LOOK_UPS])
    right = any(_fits(calls, reading, run.reply) for reading in expected) and wrong == 0
    right = right and (command.orders_out is None or out == command.orders_out)
    right = right and (not command.ask or "?" in run.reply) and bool(run.reply or lines)
    carried_out = min(sum((_unasked(run.ledger, reading) & done).values()) for reading in expected)
    return Score(command, right, wrong, carried_out, calls, run.reply, run.planner, seconds, run.usage)


def _run(text: str, command: Command, runner: Runner, past: list[tuple[str, str]]) -> Run:
    data = AgentCommand(command_id="c", thread="t", user="ada", user_role=UserRole(command.role), channel="console", text=text)
    record = Record(AGENT_COMMAND.name, 0, 0, "k", headers_of(AGENT_COMMAND, command.id, NOW), data.model_dump_json().encode())
    prompts = [(json.dumps({"kind": "command", "text": said}, ensure_ascii=False), reply) for said, reply in past]
    return runner.run(command_cause(Received(command.id, AGENT_COMMAND, data, record)), prompts)


def _settled(run: Run, database: Database, settings: Settings, past: list[tuple[str, str]]) -> tuple[int, list[str], Done]:
    """How many orders went out or wait, the lines of the reply, and which tools took effect; the transaction is taken back."""
    found: tuple[int, list[str], Done] = (0, [], Counter())
    try:
        with database.transaction() as tx:
            settlement = settle(tx, run, settings, tuple(past))
            lines = settlement.lines
            went = sum(" is accepted and on its way" in line or " waits for approval" in line for line in lines)
            went += sum(" is approved and on its way" in line for line in lines)
            found = (went, lines, _took_effect(tx.session, settlement.order_ids, {each.order_id for each in run.ledger.decisions}))
            raise _TakenBackError  # noqa: TRY301 - the way to end this transaction without keeping it
    except _TakenBackError:
        return found


def _took_effect(session: Session, order_ids: list[str], decided: set[str]) -> Done:
    """The orders that were sent, by tool and model, and those that were decided on, by tool and id."""
    rows = [row for order_id in order_ids if (row := session.get(Order, order_id)) is not None]
    accepted = [row for row in rows if row.state == OrderState.ACCEPTED]
    found = Counter((f"order_{row.kind}", row.model) for row in accepted if row.order_id not in decided)
    words = {True: "approve_order", False: "reject_order"}
    found.update((words[row in accepted], row.order_id) for row in rows if row.order_id in decided)
    return found


def _calls(run: Run, waiting: dict[str, str]) -> tuple[Call, ...]:
    seen = [_call(str(step["act"]), step["arguments"], waiting) for step in run.steps if step.get("act") in BY_NAME]
    return tuple(dict.fromkeys(seen))


def _call(tool: str, arguments: dict[str, Any], waiting: dict[str, str]) -> Call:
    """A call in one form: defaults filled in, reasons left out, the only order that waits named."""
    given = {name: value for name, value in arguments.items() if name not in {"reason", "advice"} and value != "None"}
    if tool in {"approve_order", "reject_order"}:
        model = given.pop("model", "")
        meant = [order for name, order in waiting.items() if model in {"", name}]
        given["order_id"] = given.get("order_id") or (meant[0] if len(meant) == 1 else "")
    free = given.pop("remedy", None) if tool == "order_remedy" else None
    if isinstance(given.get("facets"), str):
        given["facets"] = json.loads(given["facets"].replace("'", '"'))
    try:
        full = BY_NAME[tool].takes.model_validate(given | ({"remedy": "full"} if free else {})).model_dump(mode="json")
    except ValueError:
        return tool, (("invalid", str(sorted(given.items()))),)
    if free:
        full["remedy"] = free
    return tool, tuple(sorted((name, str(value).casefold()) for name, value in full.items() if name not in {"reason", "advice"}))


def _fits(calls: tuple[Call, ...], expected: list[Call], reply: str) -> bool:
    if any(tool == "list_models" for tool, _ in expected) and not all(model in reply for model in MODELS):
        return False
    wanted = [call for call in expected if call[0] != "list_models"]
    asked = {tool for tool, _ in wanted}
    done = [call for call in calls if (call[0] not in LOOK_UPS or call[0] in asked) and not _idle(call)]
    left = [call for call in done if not (call[0] == "remedy_options" and "order_remedy" in asked)]
    return len(left) == len(wanted) and all(any(_same(call, each) for each in left) for call in wanted)


def _idle(call: Call) -> bool:
    """Whether the tool did nothing but answer: arguments out of range, or a decision that names no single order."""
    return ("order_id", "") in call[1] or any(name == "invalid" for name, _ in call[1])


def _same(wanted: Call, done: Call) -> bool:
    """Whether a call is the wanted one; `*` stands for any remedy of the ladder."""
    if wanted[0] != done[0]:
        return False
    there = dict(done[1])
    return all(value in {"*", there.get(name)} for name, value in wanted[1]) and len(wanted[1]) == len(there)


def _unasked(ledger: Ledger, reading: list[Call]) -> Done:
    """Proposals beyond the expected ones, by tool and model, and decisions, by tool and order."""
    made = Counter((f"order_{proposal.kind}", proposal.model) for proposal in ledger.proposals)
    made.update(("approve_order" if each.approve else "reject_order", each.order_id) for each in ledger.decisions)
    wanted = (dict(arguments) | {"tool": tool} for tool, arguments in reading)
    return made - Counter((each["tool"], each.get("order_id") or each.get("model", "")) for each in wanted)
