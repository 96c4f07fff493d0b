"""Tools that order. Each only records a proposal or a decision in the run's ledger; none executes anything."""

from sqlmodel import Session

from agents import repository
from agents.guardrails import Facts, Limits, shortfall
from agents.proposals import Decision, Proposal, Setting
from agents.redaction import plain
from agents.tools.answers import Answer, Problem, Recorded
from agents.tools.arguments import (
    DecideArguments,
    LabelArguments,
    OrderArguments,
    RemedyArguments,
    ReportArguments,
    RollbackArguments,
)
from agents.tools.desk import Desk, resolve
from schemas.tables import Evaluation, Order
from schemas.vocabulary import CaseRole, OrderKind, OrderState, Remedy, Status
from services.remediation.plan import labels_for
from services.runtime import registry

SETTINGS = ("epochs", "batch_size", "head_learning_rate", "body_learning_rate", "rehearsal_share")


def order_report(desk: Desk, args: ReportArguments) -> Answer:
    """Propose a monitoring report. `advice` names the remedy that a person has to carry out."""
    settings: dict[str, Setting] = {"kind": "monitoring"}
    return _propose(desk, OrderKind.REPORT, args, settings, Remedy(args.advice) if args.advice else None)


def order_remedy(desk: Desk, args: RemedyArguments) -> Answer:
    """Propose to repair the version in service; the gate decides later whether the result may serve."""
    settings: dict[str, Setting] = {name: value for name in SETTINGS if (value := getattr(args, name)) is not None}
    return _propose(desk, OrderKind.REMEDY, args, settings, args.remedy)


def order_label_request(desk: Desk, args: LabelArguments) -> Answer:
    """Propose to ask the radiologists for more labels."""
    with desk.database.read() as session:
        needed = args.cases or _labels_needed(session, desk, args.model)
    return _propose(desk, OrderKind.LABEL_REQUEST, args, {"cases": needed})


def _labels_needed(session: Session, desk: Desk, model: str) -> int:
    name = resolve(session, model)
    champion = None if isinstance(name, Problem) else registry.model(session, name).champion
    if champion is None:
        return desk.settings.join.batch_size
    undecided = _to_decide(repository.latest(session, str(name), champion), desk)
    if undecided:
        return undecided
    since = repository.began(session, desk.cause.evaluation_id or repository.behind_orders(session, str(name), champion))
    facts = Facts(
        now=desk.clock.now(),
        tune_cases=repository.labelled(session, str(name), champion, CaseRole.TUNE, since),
        gate_cases=repository.labelled(session, str(name), champion, CaseRole.GATE, since),
        gate_cases_needed=repository.gate_cases_needed(session, str(name), champion),
    )
    return shortfall(facts, Limits.of(desk.settings), by_agent=True).studies or desk.settings.join.batch_size


def _to_decide(newest: Evaluation | None, desk: Desk) -> int:
    """Labelled studies until an undecided version can be judged: only the trigger's share of the patients counts for that."""
    more = newest.evidence.get("more_cases_needed") if newest is not None and newest.status == Status.UNDECIDED else None
    join = desk.settings.join
    return labels_for(int(more), 1 - join.tune_share - join.gate_share) if isinstance(more, int | float) else 0


def order_rollback(desk: Desk, args: RollbackArguments) -> Answer:
    """Propose to bring the last champion back."""
    settings: dict[str, Setting] = {"to_version": args.to_version} if args.to_version else {}
    return _propose(desk, OrderKind.ROLLBACK, args, settings)


def order_stop_serving(desk: Desk, args: OrderArguments) -> Answer:
    """Propose that the model scores no more studies."""
    return _propose(desk, OrderKind.STOP_SERVING, args, {})


def order_resume_serving(desk: Desk, args: OrderArguments) -> Answer:
    """Propose that the model scores studies again."""
    return _propose(desk, OrderKind.RESUME_SERVING, args, {})


def approve_order(desk: Desk, args: DecideArguments) -> Answer:
    """Record that the person approves an order that waits."""
    return _decide(desk, args, approve=True)


def reject_order(desk: Desk, args: DecideArguments) -> Answer:
    """Record that the person rejects an order that waits."""
    return _decide(desk, args, approve=False)


def _propose(
    desk: Desk, kind: OrderKind, args: OrderArguments, settings: dict[str, Setting], remedy: Remedy | None = None
) -> Answer:
    with desk.database.read() as session:
        name = resolve(session, args.model)
        if isinstance(name, Problem):
            return name
        champion = registry.model(session, name).champion
        behind = desk.cause.evaluation_id or repository.behind_orders(session, name, champion)
    reason = plain(args.reason, 800) or f"asked for by {desk.cause.actor}"
    proposal = Proposal(kind=kind, model=name, version=champion, remedy=remedy, settings=settings, reason=reason)
    if kind == OrderKind.REMEDY:
        proposal = proposal.model_copy(update={"evaluation_id": behind})
    return Recorded(recorded=desk.propose(proposal))


def _decide(desk: Desk, args: DecideArguments, *, approve: bool) -> Answer:
    with desk.database.read() as session:
        order = _waiting(session, args.order_id.strip().lower(), args.model)
    if isinstance(order, Problem):
        return order
    desk.ledger.decide(Decision(order_id=order.order_id, approve=approve))
    return Recorded(recorded=f"{'approval' if approve else 'rejection'} of {order.order_id}")


def _waiting(session: Session, prefix: str, model: str) -> Order | Problem:
    if prefix:
        found = repository.order_like(session, prefix)
        return found[0] if len(found) == 1 else _unclear(session, f"There is no single order {plain(prefix, 40)!r}.")
    name = resolve(session, model) if model else ""
    if isinstance(name, Problem):
        return name
    waiting = repository.orders(session, name, (OrderState.AWAITING_APPROVAL,))
    if len(waiting) == 1:
        return waiting[0]
    which = f" of {name}" if name else ""
    return _unclear(session, f"Which order{which} do you mean?" if waiting else f"No order{which} waits for approval.")


def _unclear(session: Session, error: str) -> Problem:
    waiting = repository.orders(session, states=(OrderState.AWAITING_APPROVAL,))
    return Problem(error=error, known=tuple(order.order_id for order in waiting))
