"""Settles what a run proposed: guardrails, order rows, events, audit, reply, all inside the handler's transaction."""

from dataclasses import dataclass, field
from datetime import date

from sqlmodel import Session

from agents import repository
from agents.guardrails import LABELS_ONCE_IN, Accepted, Actor, Limits, NeedsApproval, Refused, Verdict, check
from agents.planner.language import parse
from agents.proposals import Cause, Decision, Proposal, idempotency_key, order_id
from agents.roles import may_decide, needs_another
from agents.runner import PRESSED, RULES, Run
from schemas.events import MaintenanceApproval, MaintenanceOrder
from schemas.settings import Settings
from schemas.tables import Order
from schemas.topics import APPROVAL, ORDER
from schemas.vocabulary import OrderKind, OrderState, Remedy, UserRole
from services.runtime import registry
from services.runtime.change_plans import plan_of, require_planned
from services.runtime.errors import InvalidInput
from services.runtime.transaction import Transaction
from services.runtime.words import TO_DO

STATES: dict[str, OrderState] = {
    "accepted": OrderState.ACCEPTED,
    "needs_approval": OrderState.AWAITING_APPROVAL,
    "refused": OrderState.REFUSED,
}


@dataclass
class Settlement:
    """What became of a run: order ids and one line of plain words for each."""

    order_ids: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def settle(tx: Transaction, run: Run, settings: Settings, past: tuple[tuple[str, str], ...] = ()) -> Settlement:
    """Judge every proposal and carry out every decision of a run. Idempotent per cause."""
    settlement = Settlement()
    asked = _Asked.of(tx.session, run, past)
    for proposal in run.ledger.proposals:
        actor = Actor(
            name=run.cause.actor,
            role=run.cause.role,
            cause_model=run.cause.model,
            asked=asked.order(proposal),
        )
        _settle_proposal(tx, run.cause, proposal, actor, settings, settlement)
    for decision in run.ledger.decisions:
        settlement.lines.append(_decide(tx, run.cause, decision, asked, settings, settlement))
    return settlement


@dataclass(frozen=True)
class _Asked:
    """What the person's own words ask for. For the rule planner, a button and without a person nothing has to be compared."""

    everything: bool
    requests: frozenset[tuple[str, str]] = frozenset()
    """Tool, and the model or the order that the words name; empty where they name none."""
    one_waits: bool = False

    @classmethod
    def of(cls, session: Session, run: Run, past: tuple[tuple[str, str], ...]) -> "_Asked":
        if run.cause.kind != "command" or run.planner.startswith((RULES, PRESSED)):
            return cls(everything=True)
        known = [row.name for row in registry.models(session)]
        found = (request for request in parse(run.cause.text, known, past) if not request.question)
        named = frozenset((item.tool, str(item.arguments.get("order_id") or item.arguments.get("model", ""))) for item in found)
        waiting = repository.orders(session, states=(OrderState.AWAITING_APPROVAL,), limit=2)
        return cls(False, named, one_waits=len(waiting) == 1)

    def order(self, proposal: Proposal) -> bool:
        """Whether the words ask for this kind of order for this model."""
        return self.everything or (f"order_{proposal.kind}", proposal.model) in self.requests

    def decision(self, decision: Decision) -> bool:
        """Whether the words decide so on this very order: they name it, or name none where only one waits."""
        tool = "approve_order" if decision.approve else "reject_order"
        return self.everything or (tool, decision.order_id) in self.requests or (self.one_waits and (tool, "") in self.requests)


def _settle_proposal(
    tx: Transaction, cause: Cause, proposal: Proposal, actor: Actor, settings: Settings, settlement: Settlement
) -> None:
    verdict = _judge(tx, proposal, actor, settings)
    row = _order_row(cause, proposal, verdict, tx)
    if isinstance(verdict, Refused) and verdict.instead is None and _refused_again(tx, cause, row, actor):
        settlement.lines.append(_line(row, verdict))
        return
    if not tx.insert_new(Order, [row], returning="order_id"):
        return
    tx.session.flush()
    tx.audit(cause.actor, f"order.{row.state}", row.order_id, kind=row.kind, model=row.model, cause=cause.event_id, **_why(verdict))
    settlement.order_ids.append(row.order_id)
    settlement.lines.append(_line(row, verdict))
    if isinstance(verdict, Accepted):
        _emit(tx, row, cause)
    if isinstance(verdict, NeedsApproval):
        _tell_approval(tx, row, cause)
    if isinstance(verdict, Refused) and verdict.instead is not None:
        _settle_proposal(tx, cause, verdict.instead, actor, settings, settlement)


def _judge(tx: Transaction, proposal: Proposal, actor: Actor, settings: Settings, but: str = "") -> Verdict:
    """The guardrails on today's facts; `but` is the order under judgement, which does not count."""
    now, behind = tx.clock.now(), proposal.evaluation_id
    after = now - LABELS_ONCE_IN
    facts = repository.facts(tx.session, proposal.model, now, label_request_after=after, evaluation_id=behind, but=but)
    facts = facts.model_copy(update={"outside_plan": _outside_plan(proposal, settings, now.date())})
    return check(proposal, actor, facts, Limits.of(settings))


def _outside_plan(proposal: Proposal, settings: Settings, today: date) -> str:
    """Why the model's change control plan does not cover an order, empty where it does or where there is no plan."""
    if proposal.kind != OrderKind.REMEDY or proposal.remedy is None:
        return ""
    try:
        require_planned(plan_of(settings, proposal.model, today), proposal.remedy, proposal.settings)
    except InvalidInput as error:
        return error.reason
    return ""


def _refused_again(tx: Transaction, cause: Cause, row: Order, actor: Actor) -> bool:
    """Whether the agents met the same refusal the last time: one order then stands for all of them, the audit has each."""
    earlier = repository.refused_alike(tx.session, row) if actor.role is None else None
    if earlier is None:
        return False
    earlier.explanation, earlier.updated_at = row.explanation, row.updated_at
    tx.session.add(earlier)
    detail = {"kind": row.kind, "model": row.model, "cause": cause.event_id, "reason": row.explanation}
    tx.audit(cause.actor, "order.refused_again", earlier.order_id, **detail)
    return True


def _why(verdict: Verdict) -> dict[str, str]:
    return {"reason": verdict.reason} if verdict.reason else {}


def _order_row(cause: Cause, proposal: Proposal, verdict: Verdict, tx: Transaction) -> Order:
    key, now = idempotency_key(cause.event_id, proposal.kind, proposal.model), tx.clock.now()
    return Order(
        order_id=order_id(key),
        idempotency_key=key,
        kind=proposal.kind,
        state=STATES[verdict.verdict],
        model=proposal.model[:64],
        version=proposal.version,
        remedy=proposal.remedy,
        settings=dict(proposal.settings),
        reason=(proposal.reason or "No reason was given.")[:1000],
        evaluation_id=proposal.evaluation_id,
        actor=cause.actor,
        thread=cause.thread,
        explanation=verdict.reason[:1000],
        created_at=now,
        updated_at=now,
    )


def _emit(tx: Transaction, row: Order, cause: Cause) -> None:
    """Send an accepted order out; its event id is the order's, so it goes out once."""
    order = MaintenanceOrder(
        order_id=row.order_id,
        kind=OrderKind(row.kind),
        model=row.model,
        version=row.version,
        remedy=Remedy(row.remedy) if row.remedy else None,
        settings=row.settings,
        reason=row.reason,
        evaluation_id=row.evaluation_id,
        actor=row.actor,
        ordered_at=tx.clock.now(),
    )
    tx.emit(ORDER, order, event_id=row.order_id, cause=cause.traceparent or None)


def _tell_approval(tx: Transaction, row: Order, cause: Cause, decided_by: str = "") -> None:
    """Tell that an order waits for a person, or that this person has decided."""
    event = MaintenanceApproval(
        order_id=row.order_id,
        kind=OrderKind(row.kind),
        model=row.model,
        version=row.version,
        what=describe(row),
        reason=row.reason,
        explanation=row.explanation,
        actor=row.actor,
        thread=row.thread,
        state=OrderState(row.state),
        decided_by=decided_by,
        at=tx.clock.now(),
    )
    moment = "decided" if decided_by else "asked"
    tx.emit(APPROVAL, event, event_id=f"{row.order_id}.{moment}", cause=cause.traceparent or None)


def _decide(tx: Transaction, cause: Cause, decision: Decision, asked: _Asked, settings: Settings, settlement: Settlement) -> str:
    row = tx.session.get(Order, decision.order_id, with_for_update=True)
    word = "approve" if decision.approve else "reject"
    if row is None or row.state != OrderState.AWAITING_APPROVAL:
        state = row.state.replace("_", " ") if row else "unknown"
        return f"Order {decision.order_id} does not wait for approval (it is {state})."
    refusal = _may_not_decide(cause, decision, row, settings)
    if refusal:
        detail = {"kind": row.kind, "model": row.model, "channel": cause.channel, "reason": refusal}
        tx.audit(cause.actor, "order.decision_refused", row.order_id, approve=decision.approve, cause=cause.event_id, **detail)
        return refusal
    if not asked.decision(decision):
        return f"Order {row.order_id} still waits; to {word} it, write: {word} {row.order_id}."
    settlement.order_ids.append(row.order_id)
    return _approve(tx, cause, row, settings) if decision.approve else _close(tx, cause, row, f"Rejected by {cause.actor}.")


def _may_not_decide(cause: Cause, decision: Decision, row: Order, settings: Settings) -> str:
    """Why this person may not decide on this order, empty when they may. A person may always take back the own order."""
    word = "approve" if decision.approve else "reject"
    if not may_decide(cause.role, OrderKind(row.kind)):
        return f"Your role {cause.role or 'agent'} may not {word} order {row.order_id}; this needs {_who_may(OrderKind(row.kind))}."
    four_eyes = settings.policy.four_eyes
    if decision.approve and needs_another(OrderKind(row.kind), row.actor, cause.actor, four_eyes=four_eyes):
        return f"You ordered {row.order_id} yourself; this site wants a second person to approve it."
    return ""


def _who_may(kind: OrderKind) -> str:
    """The roles that may decide on an order of this kind, in words."""
    return " or ".join(f"the role {role}" for role in UserRole if may_decide(role, kind))


def _approve(tx: Transaction, cause: Cause, row: Order, settings: Settings) -> str:
    """Judge the order anew, on today's facts and the approver's role; send it out when it still stands."""
    verdict = _judge(tx, _proposal_of(row), Actor(name=cause.actor, role=cause.role, approved=True), settings, but=row.order_id)
    if not isinstance(verdict, Accepted):
        return _close(tx, cause, row, verdict.reason)
    row.state, row.explanation, row.updated_at = OrderState.ACCEPTED, f"Approved by {cause.actor}.", tx.clock.now()
    tx.session.add(row)
    detail = {"kind": row.kind, "model": row.model, "cause": cause.event_id, "channel": cause.channel}
    tx.audit(cause.actor, "order.approved", row.order_id, **detail)
    _emit(tx, row, cause)
    _tell_approval(tx, row, cause, decided_by=cause.actor)
    return f"Order {row.order_id} ({describe(row)}) is approved and on its way."


def _close(tx: Transaction, cause: Cause, row: Order, reason: str) -> str:
    row.state, row.explanation, row.updated_at = OrderState.REFUSED, reason[:1000], tx.clock.now()
    tx.session.add(row)
    detail = {"kind": row.kind, "model": row.model, "cause": cause.event_id, "channel": cause.channel, "reason": reason}
    tx.audit(cause.actor, "order.rejected", row.order_id, **detail)
    _tell_approval(tx, row, cause, decided_by=cause.actor)
    return f"Order {row.order_id} ({describe(row)}) is refused: {reason}"


def _proposal_of(row: Order) -> Proposal:
    return Proposal(
        kind=OrderKind(row.kind),
        model=row.model,
        version=row.version,
        remedy=Remedy(row.remedy) if row.remedy else None,
        settings=row.settings,
        reason=row.reason,
        evaluation_id=row.evaluation_id,
    )


def _line(row: Order, verdict: Verdict) -> str:
    what = describe(row)
    if isinstance(verdict, NeedsApproval):
        return f"Order {row.order_id} ({what}) waits for approval. {verdict.reason} To let it go out, write: approve {row.order_id}"
    if isinstance(verdict, Refused):
        return f"Not ordered: {what}. {verdict.reason}"
    return f"Order {row.order_id} ({what}) is accepted and on its way."


def describe(row: Order) -> str:
    """An order in plain words."""
    if row.kind == OrderKind.REMEDY and row.remedy:
        settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row.settings.items())
        return f"{TO_DO.get(Remedy(row.remedy), row.remedy)} of {row.model}" + (f", {settings}" if settings else "")
    if row.kind == OrderKind.LABEL_REQUEST:
        return f"{row.settings.get('cases', 'more')} more labels for {row.model}"
    target = row.settings.get("to_version")
    return {
        OrderKind.REPORT: f"a report on {row.model}",
        OrderKind.ROLLBACK: f"roll {row.model} back to {f'version {target}' if target else 'its last version'}",
        OrderKind.STOP_SERVING: f"stop serving {row.model}",
        OrderKind.RESUME_SERVING: f"resume serving {row.model}",
    }.get(OrderKind(row.kind), f"{row.kind} of {row.model}")
