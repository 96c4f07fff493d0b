"""Runs the agents for one cause: the configured LLM first, the rule planner whenever the LLM does not deliver.

Nothing here has effects beyond reading: what a run proposes lies in its ledger until the handler settles it.
"""

import asyncio
import contextvars
import logging
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final

from llama_index.core.agent.workflow import AgentOutput, ToolCallResult
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.function_calling import FunctionCallingLLM
from opentelemetry import trace

from agents.ladder import ADVICE
from agents.planner.choice import ChoicePlanner
from agents.proposals import Cause, Decision, Ledger
from agents.redaction import without_uids
from agents.roles import AGENT_KINDS
from agents.telemetry import count_run, note_proposals, planner_span, run_span, run_traceparent
from agents.tools.catalogue import BY_NAME
from agents.tools.desk import Desk
from agents.workflow import MAX_ITERATIONS, build_workflow, endpoint, memory_for, rule_planner
from schemas.events import EvaluationCompleted
from schemas.settings import Settings
from schemas.vocabulary import OrderKind, Status, Verdict
from services.runtime.clock import Clock
from services.runtime.database import Database
from services.runtime.words import small

logger = logging.getLogger(__name__)

RULES: Final = "rules"
PRESSED: Final = "button"
AS_TEXT: Final = "it wrote a tool call as text"
RULES_TIMEOUT_S: Final = 30.0
SHORT: Final = 600
OBSERVED: Final = 4000
"""Characters of a tool's answer that are kept: enough to tell it to a person in words later."""
Past = Sequence[tuple[str, str]]


class Undelivered(Exception):  # noqa: N818 - named for what happened to the answer
    """The planner's run ended without anything that may be used."""


@dataclass
class Habits:
    """What a process has learned about its endpoint. `chooses`: it does not call tools, but chooses under a schema."""

    chooses: bool = False


@dataclass(frozen=True)
class Run:
    """What a run left behind, with its own trace and what it used.

    `planner` is `rules`, the LLM's name, `rules (after NAME)`, or `button`.
    """

    cause: Cause
    planner: str
    reply: str
    ledger: Ledger
    steps: tuple[dict[str, Any], ...] = ()
    traceparent: str = ""
    usage: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Runner:
    """Runs causes. `make_llm` is the way to the configured endpoint, None where there is none."""

    database: Database
    clock: Clock
    settings: Settings
    make_llm: Callable[[], FunctionCallingLLM] | None = None
    habits: Habits = field(default_factory=Habits)
    choose: Callable[[FunctionCallingLLM], ChoicePlanner] = ChoicePlanner

    @classmethod
    def of(cls, database: Database, clock: Clock, settings: Settings) -> "Runner":
        """A runner for the configured endpoint."""
        llm = settings.llm
        return cls(database, clock, settings, (lambda: endpoint(llm)) if llm.base_url else None)

    def run(self, cause: Cause, past: Past = ()) -> Run:
        """Run the agents to the end; falls back to the rule planner. Raises only faults of ours (Transient, bugs).

        A pressed button says by itself what is wanted: no planner reads it.
        """
        with run_span(cause, content=self.settings.telemetry.content) as meter:
            begun = self.clock.monotonic()
            run = self._run(cause, past)
            note_proposals(trace.get_current_span(), cause, [(each.kind, each.model) for each in run.ledger.proposals])
            count_run(run.planner, cause.kind, meter, self.settings.llm)
            usage = {"seconds": round(self.clock.monotonic() - begun, 3), "llm_calls": meter.calls}
            if meter.calls:
                usage |= {"input_tokens": meter.input_tokens, "output_tokens": meter.output_tokens}
                usage |= {"cost": round(meter.cost(self.settings.llm), 6)}
            return replace(run, traceparent=run_traceparent(), usage=usage)

    def _run(self, cause: Cause, past: Past) -> Run:
        if cause.pressed is not None:
            return _pressed(cause, cause.pressed)
        if self.make_llm is None:
            return self._attempt(cause, past, rule_planner(), RULES, RULES_TIMEOUT_S)
        return self._with_fallback(cause, past, self.make_llm)

    def _with_fallback(self, cause: Cause, past: Past, make_llm: Callable[[], FunctionCallingLLM]) -> Run:
        name, why = (self.settings.llm.model or "llm")[:40], ""
        for choosing in self._ways(cause):
            try:
                run = self._delivered(cause, past, make_llm(), name, choosing=choosing)
            except _OursError as fault:
                raise fault.error from fault
            except Exception as error:  # noqa: BLE001 - whatever an endpoint does, the event is decided by the rules
                why = _reason(error)
                logger.warning("the LLM did not deliver (%s)", why)
                trace.get_current_span().add_event("fallback", {"reason": why})
                self.habits.chooses = self.habits.chooses or _calls_no_tools(error)
                if not _may_choose(error):
                    break
            else:
                return run if run.planner == name else _after(run, name, why)
        return _after(self._attempt(cause, past, rule_planner(), RULES, RULES_TIMEOUT_S), name, why)

    def _ways(self, cause: Cause) -> tuple[bool, ...]:
        """The ways in which the endpoint is asked in turn: False to call tools, True to choose.

        Choosing serves people's commands alone: evaluations and verdicts are decided by the policy anyway.
        """
        calls = self.settings.llm.calls
        chooses = calls == "choice" or (calls == "auto" and self.habits.chooses)
        if cause.kind != "command":
            return () if chooses else (False,)
        return (True,) if chooses else (False, True) if calls == "auto" else (False,)

    def _delivered(self, cause: Cause, past: Past, llm: FunctionCallingLLM, name: str, *, choosing: bool) -> Run:
        """A run that may be used; raises what keeps it from that. A command that the rules understood is theirs."""
        planner = self.choose(llm) if choosing else llm
        run = self._attempt(cause, past, planner, name, self.settings.llm.run_timeout_s)
        _make_sure(run)
        self._compare(run)
        return replace(run, planner=RULES) if isinstance(planner, ChoicePlanner) and not planner.asked else run

    def _compare(self, run: Run) -> None:
        """On an event the policy decides and the LLM words it: a decision that is not the policy's own is not used."""
        if run.cause.kind == "command":
            return
        own = self._attempt(run.cause, (), rule_planner(), RULES, RULES_TIMEOUT_S)
        if _decision(run) != _decision(own):
            raise Undelivered("it decided other than the policy")

    def _attempt(self, cause: Cause, past: Past, llm: FunctionCallingLLM, planner: str, timeout_s: float) -> Run:
        desk = Desk(self.database, self.clock, self.settings, cause)
        steps: list[dict[str, Any]] = []
        with planner_span(planner, cause, content=self.settings.telemetry.content):
            try:
                reply = _in_own_loop(lambda: _converse(desk, past, llm, timeout_s, steps))
            except Exception:
                if desk.fault is not None:
                    raise _OursError(desk.fault) if planner != RULES else desk.fault from None
                raise
            if desk.fault is not None:
                raise _OursError(desk.fault) if planner != RULES else desk.fault
        return Run(cause, planner, reply.strip(), desk.ledger, tuple(steps))


def _pressed(cause: Cause, decision: Decision) -> Run:
    ledger = Ledger()
    ledger.decide(decision)
    step = {"act": "approve_order" if decision.approve else "reject_order", "arguments": {"order_id": decision.order_id}}
    return Run(cause, PRESSED, "", ledger, ({"agent": PRESSED, **step, "observe": "pressed by a person"},))


class _OursError(Exception):
    """Carries a fault of ours past the handling of the LLM's faults."""

    def __init__(self, error: Exception) -> None:
        super().__init__(type(error).__name__)
        self.error = error


async def _converse(desk: Desk, past: Past, llm: FunctionCallingLLM, timeout_s: float, steps: list[dict[str, Any]]) -> str:
    """One conversation with the agents, bounded in time and steps; returns the closing words."""
    history = [
        ChatMessage(role=role, content=text) for pair in past for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    workflow = build_workflow(llm, desk, timeout_s)
    handler = workflow.run(
        user_msg=desk.cause.prompt, chat_history=history or None, memory=memory_for(llm), max_iterations=MAX_ITERATIONS
    )
    try:
        async with asyncio.timeout(timeout_s + 5):
            async for event in handler.stream_events():
                steps.extend(_steps_of(event))
            output: AgentOutput = await handler
    finally:
        await _let_go(llm)
    return str(output.response.content or "")


async def _let_go(llm: FunctionCallingLLM) -> None:
    """Close a planner's connections, where it has any: they belong to this run's event loop."""
    closing = getattr(llm, "aclose", None)
    if closing is not None:
        await closing()


def _steps_of(event: Any) -> list[dict[str, Any]]:
    """Thinking, acting, observing: what a person later reads of the run."""
    if isinstance(event, AgentOutput):
        text = without_uids(event.response.content or "")[:SHORT]
        return [{"agent": event.current_agent_name, "think": text}] if text else []
    if isinstance(event, ToolCallResult):
        observed = without_uids(str(event.tool_output.content))[:OBSERVED]
        act = {"act": event.tool_name, "arguments": _plain(event.tool_kwargs), "observe": observed}
        return [act | ({"error": True} if event.tool_output.is_error else {})]
    return []


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        str(name)[:60]: value if isinstance(value, (int, float, bool)) else str(value)[:1000] for name, value in arguments.items()
    }


def _decision(run: Run) -> list[tuple[str, str, str, str]]:
    """What a run proposes, without its words, in one order."""
    return sorted(
        (each.kind, each.model, str(each.remedy or ""), str(sorted(each.settings.items()))) for each in run.ledger.proposals
    )


def _make_sure(run: Run) -> None:
    unusable = _unusable(run)
    if unusable:
        raise Undelivered(unusable)


def _unusable(run: Run) -> str:
    """Why an LLM's finished run may not be used, empty when it may."""
    tools = [step["act"] for step in run.steps if "act" in step]
    known = [name for name in tools if name in BY_NAME]
    if tools and not known and "handoff" not in tools:
        return "it called only tools that do not exist"
    if not run.reply and not run.ledger.proposals and not run.ledger.decisions:
        return "it answered nothing"
    if not known and run.cause.kind == "command" and _figures(run.reply) - _figures(run.cause.text):
        return "it told figures that it had not read"
    if run.reply.startswith(("{", "[", "```", "<tool")):
        return AS_TEXT
    if run.cause.promotion is not None:
        return _helpless(run.cause, run.ledger)
    return _undecided(run.cause.evaluation, run.ledger) if run.cause.evaluation is not None else ""


def _figures(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:[.,]\d+)?", text))


def _after(run: Run, name: str, why: str) -> Run:
    """A run of the rules, marked with what kept the endpoint from it."""
    return replace(run, planner=f"rules (after {name})", steps=({"fallback": why}, *run.steps)) if why else run


def _calls_no_tools(error: Exception) -> bool:
    """Whether the endpoint has shown that it does not call tools: it writes the call as text, or refuses a request with tools."""
    return str(error) == AS_TEXT if isinstance(error, Undelivered) else getattr(error, "status_code", 0) in {400, 422, 501}


def _may_choose(error: Exception) -> bool:
    """Whether the endpoint answered at all, so that it may be worth asking it for a choice."""
    return isinstance(error, Undelivered) or getattr(error, "status_code", 0) in {400, 422, 500, 501}


def _undecided(evaluation: EvaluationCompleted, ledger: Ledger) -> str:
    """Why an LLM's proposals are no decision on an evaluation: they go beyond it, or leave a degraded model without help."""
    kinds = {proposal.kind for proposal in ledger.proposals}
    if _beyond(evaluation.model, ledger):
        return "it proposed what this evaluation cannot cause"
    if evaluation.status != Status.DEGRADED:
        return ""
    if OrderKind.REPORT not in kinds:
        return "it proposed no report on a degraded model"
    helped = kinds & {OrderKind.REMEDY, OrderKind.LABEL_REQUEST}
    needless = evaluation.diagnosis in ADVICE or small(evaluation.evidence)
    return "" if helped or needless else "it proposed no help for a degraded model"


def _beyond(model: str, ledger: Ledger) -> bool:
    return any(proposal.kind not in AGENT_KINDS or proposal.model != model for proposal in ledger.proposals)


def _helpless(cause: Cause, ledger: Ledger) -> str:
    """Why an LLM's proposals are no answer to the gate's verdict."""
    if _beyond(cause.model or "", ledger):
        return "it proposed what this verdict cannot cause"
    if cause.promotion is not None and cause.promotion.verdict == Verdict.PROMOTE and ledger.proposals:
        return "it proposed something after a promotion"
    helped = any(proposal.kind in {OrderKind.REMEDY, OrderKind.LABEL_REQUEST} for proposal in ledger.proposals)
    return "" if helped or not cause.needs_help else "it proposed no help after a rejected repair"


def _reason(error: Exception) -> str:
    """The fault in words of ours; an endpoint's own text might repeat the prompt."""
    return str(error) if isinstance(error, Undelivered) else type(error).__name__


def _in_own_loop(work: Callable[[], Any]) -> str:
    """Run async work to its end in a thread of its own, whether or not the calling thread has a running loop."""
    context = contextvars.copy_context()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="agents") as pool:
        return str(pool.submit(context.run, lambda: asyncio.run(work())).result())
