"""The agents' consumer: the run happens before the transaction and has no effects; the transaction settles what it proposed."""

import json
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from sqlmodel import Session

from agents import repository
from agents.causes import command_cause, evaluation_cause, promotion_cause
from agents.planner.commands import PASSED_ON
from agents.proposals import Cause, reply_event_id
from agents.runner import Past, Run, Runner
from agents.settlement import Settlement, settle
from agents.telemetry import settlement_span, under
from schemas.agent_runs import AgentRun
from schemas.events import AgentCommand, AgentReply, EvaluationCompleted, MaintenancePromotion
from schemas.settings import Settings
from schemas.topics import AGENT_COMMAND, AGENT_REPLY, EVALUATION_COMPLETED, PROMOTION
from services.runtime.consumer import Batch, BatchConsumer
from services.runtime.messages import Received
from services.runtime.transaction import Transaction

PAST_RUNS = 3
_TO_APPROVE = re.compile(r"approve (ord-[0-9a-f]{12})\b")


@dataclass(frozen=True)
class Handled:
    """A finished run with the exchanges of the thread that it saw."""

    run: Run
    past: tuple[tuple[str, str], ...] = ()


class AgentsConsumer(BatchConsumer[list[Handled]]):
    """Evaluations, the gate's verdicts and commands in; orders, replies and run records out.

    One event at a time: a run with a slow endpoint may take minutes, and the poll interval bounds the whole batch.
    """

    name: ClassVar[str] = "agents"
    topics = (EVALUATION_COMPLETED, PROMOTION, AGENT_COMMAND)
    max_records: ClassVar[int] = 1

    def __init__(self, runner: Runner, settings: Settings) -> None:
        self._runner = runner
        self._settings = settings

    def prepare(self, batch: Batch) -> list[Handled]:
        """Run the agents for each event. Raises Transient when the database is away."""
        return [self._run(event) for event in batch]

    def _run(self, event: Received[Any]) -> Handled:
        data = event.data
        if isinstance(data, AgentCommand):
            with self._runner.database.read() as session:
                past = _past(session, data)
            run = self._runner.run(command_cause(event), _as_prompts(past))
            return Handled(run, past)
        with self._runner.database.read() as session:
            cause = self._cause(session, event)
        return Handled(self._runner.run(cause))

    def _cause(self, session: Session, event: Received[Any]) -> Cause:
        if isinstance(event.data, EvaluationCompleted):
            return evaluation_cause(session, event)
        if isinstance(event.data, MaintenancePromotion):
            return promotion_cause(session, event, self._runner.clock.now())
        raise TypeError(f"{event.topic.name} is not a topic of the agents")

    def apply(self, tx: Transaction, batch: Batch, prepared: list[Handled]) -> None:
        """Settle each run and record it."""
        for event, handled in zip(batch, prepared, strict=True):
            with under(event.traceparent), settlement_span(handled.run.traceparent) as span:
                settlement = settle(tx, handled.run, self._settings, handled.past)
                span.set_attribute("reclaim.orders", settlement.order_ids)
                reply = _reply(handled.run, settlement)
                _record(tx, event, handled.run, settlement, reply)
                if isinstance(event.data, AgentCommand):
                    _answer(tx, event, settlement, reply)


def _past(session: Session, command: AgentCommand) -> tuple[tuple[str, str], ...]:
    """The last exchanges of this person in this thread; other people's words lend nobody their role."""
    rows = repository.talk_of(session, command.thread[:128], limit=4 * PAST_RUNS)
    own = [row for row in rows if row.steps and row.steps[0].get("user") == command.user]
    return tuple((row.text, _without_foreign_orders(row)) for row in own[-PAST_RUNS:])


def _without_foreign_orders(row: AgentRun) -> str:
    """The reply with nothing to say yes to but orders of that very run.

    A text of a scanner's or a language model's own words may name any order that waits; a bare yes must not approve that.
    """
    return _TO_APPROVE.sub(lambda found: found[0] if found[1] in row.order_ids else f"approval of {found[1]}", row.reply)


def _as_prompts(past: tuple[tuple[str, str], ...]) -> Past:
    return [(json.dumps({"kind": "command", "text": text}, ensure_ascii=False), reply) for text, reply in past]


def _reply(run: Run, settlement: Settlement) -> str:
    """The agent's words, then what was really recorded: the words alone prove nothing."""
    said = "" if run.reply == PASSED_ON and settlement.lines else run.reply
    parts = [said, "\n".join(settlement.lines)]
    return "\n\n".join(part for part in parts if part)[:8000]


def _record(tx: Transaction, event: Received[Any], run: Run, settlement: Settlement, reply: str) -> None:
    asked = {"user": event.data.user, "role": str(event.data.user_role)} if isinstance(event.data, AgentCommand) else {}
    row = AgentRun(
        run_id=f"run-{reply_event_id(event.event_id)[6:38]}",
        cause=event.event_id,
        thread=run.cause.thread,
        planner=run.planner[:64],
        text=run.cause.text[:4000],
        reply=reply,
        steps=[asked or {"event": run.cause.event}, *run.steps],
        order_ids=settlement.order_ids,
        usage=run.usage | {"trace_id": run.traceparent[3:35]},
        created_at=tx.clock.now(),
    )
    tx.insert_new(AgentRun, [row], returning="run_id")
    actor = run.cause.actor if asked else "agent:orchestrator"
    tx.audit(actor, "agents.run", row.run_id, cause=event.event_id, planner=row.planner, orders=list(settlement.order_ids))


def _answer(tx: Transaction, event: Received[AgentCommand], settlement: Settlement, reply: str) -> None:
    answer = AgentReply(
        command_id=event.data.command_id, thread=event.data.thread, text=reply, order_ids=tuple(settlement.order_ids)
    )
    tx.emit(AGENT_REPLY, answer, event_id=reply_event_id(event.data.command_id), cause=event.traceparent or None)
