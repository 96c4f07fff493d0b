"""All SQL of the agents: facts for tools and guardrails, orders and runs."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlmodel import Session, col, func, select

from agents.guardrails import Facts
from schemas.tables import AgentRun, Case, Evaluation, Job, ModelVersion, Order, RegisteredModel, Report
from schemas.vocabulary import CaseRole, Diagnosis, OrderKind, OrderState, Remedy, Status, VersionState
from services.runtime import registry

ACTIVE = (OrderState.AWAITING_APPROVAL, OrderState.ACCEPTED, OrderState.RUNNING)
STARTED = (OrderState.ACCEPTED, OrderState.RUNNING, OrderState.DONE, OrderState.FAILED)


def evaluations(session: Session, model: str, version: int | None = None, limit: int = 1) -> Sequence[Evaluation]:
    """A model's newest evaluations, newest first; of one version where it is named."""
    query = select(Evaluation).where(Evaluation.model == model)
    if version is not None:
        query = query.where(Evaluation.version == version)
    return session.exec(query.order_by(col(Evaluation.evaluated_at).desc(), col(Evaluation.evaluation_id)).limit(limit)).all()


def latest(session: Session, model: str, version: int | None) -> Evaluation | None:
    """The newest evaluation of a version, None when there is none."""
    return next(iter(evaluations(session, model, version)), None) if version is not None else None


def last_decline(session: Session, model: str) -> Evaluation | None:
    """The newest degraded evaluation of any version of a model."""
    query = select(Evaluation).where(Evaluation.model == model, Evaluation.status == Status.DEGRADED)
    return session.exec(query.order_by(col(Evaluation.evaluated_at).desc()).limit(1)).first()


def remedies_since(session: Session, model: str, since: datetime | None) -> Sequence[Order]:
    """The remedies that went out for a model since a moment, oldest first."""
    if since is None:
        return []
    query = select(Order).where(Order.model == model, Order.kind == OrderKind.REMEDY, col(Order.state).in_(STARTED))
    return session.exec(query.where(col(Order.created_at) >= since).order_by(col(Order.created_at)).limit(5)).all()


def orders(session: Session, model: str = "", states: Sequence[OrderState] = (), limit: int = 10) -> Sequence[Order]:
    """Newest orders first, of one model and of some states where they are named."""
    query = select(Order)
    if model:
        query = query.where(Order.model == model)
    if states:
        query = query.where(col(Order.state).in_(states))
    return session.exec(query.order_by(col(Order.created_at).desc(), col(Order.order_id)).limit(limit)).all()


def order_like(session: Session, prefix: str) -> Sequence[Order]:
    """Orders whose id starts with `prefix` (with or without `ord-`)."""
    start = prefix if prefix.startswith("ord-") else f"ord-{prefix}"
    return session.exec(select(Order).where(col(Order.order_id).startswith(start, autoescape=True)).limit(5)).all()


def reports(session: Session, model: str = "", limit: int = 5) -> Sequence[Report]:
    """Newest reports first."""
    query = select(Report)
    if model:
        query = query.where(Report.model == model)
    return session.exec(query.order_by(col(Report.written_at).desc(), col(Report.report_id)).limit(limit)).all()


def job_of(session: Session, order_id: str) -> Job | None:
    """The job that carries out an order."""
    return session.exec(select(Job).where(Job.order_id == order_id)).first()


def labelled(session: Session, model: str, version: int, role: CaseRole) -> int:
    """Labelled cases of a version whose patients have this role."""
    query = select(func.count()).where(
        Case.model == model, Case.version == version, Case.role == role, col(Case.truth).is_not(None)
    )
    return int(session.exec(query).one())


def unlabelled(session: Session, model: str, version: int) -> int:
    """Scored cases of a version that wait for their label."""
    query = select(func.count()).where(Case.model == model, Case.version == version, col(Case.truth).is_(None))
    return int(session.exec(query).one())


def rejected_challengers(session: Session, model: str, champion: int) -> int:
    """Challengers made from this champion that the gate turned down."""
    query = select(func.count()).where(
        ModelVersion.model == model, ModelVersion.parent == champion, ModelVersion.state == VersionState.REJECTED
    )
    return int(session.exec(query).one())


def tried_remedies(session: Session, model: str, champion: int) -> set[Remedy]:
    """Remedies that were carried out on this champion."""
    done = (OrderState.DONE, OrderState.FAILED)
    query = select(Order.remedy).where(
        Order.model == model, Order.version == champion, Order.kind == OrderKind.REMEDY, col(Order.state).in_(done)
    )
    return {Remedy(remedy) for remedy in session.exec(query) if remedy}


def open_order(session: Session, model: str, kind: OrderKind, states: Sequence[OrderState] = ACTIVE, but: str = "") -> str | None:
    """Id of the newest order of a kind that is not finished; `but` names one that does not count."""
    query = select(Order.order_id).where(Order.model == model, Order.kind == kind, col(Order.state).in_(states))
    return session.exec(query.where(Order.order_id != but).order_by(col(Order.created_at).desc()).limit(1)).first()


def facts(session: Session, model: str, now: datetime, *, label_request_after: datetime, but: str = "") -> Facts:
    """Everything the guardrails need about a model. Locks the model's row, so that two orders are judged one after the other.

    A label request counts as open while it is younger than `label_request_after`; `but` is the order under judgement.
    """
    known = tuple(row.name for row in registry.models(session))
    row = session.exec(select(RegisteredModel).where(RegisteredModel.name == model).with_for_update()).first()
    if row is None or row.champion is None:
        return Facts(now=now, models=known)
    champion = session.get_one(ModelVersion, (model, row.champion))
    newest = latest(session, model, row.champion)
    return Facts(
        now=now,
        models=known,
        versions=tuple(version.version for version in registry.versions(session, model)),
        champion=row.champion,
        champion_before=champion.champion_before,
        serving=row.serving,
        status=Status(newest.status) if newest else None,
        diagnosis=Diagnosis(newest.diagnosis) if newest else Diagnosis.NONE,
        tune_cases=labelled(session, model, row.champion, CaseRole.TUNE),
        gate_cases=labelled(session, model, row.champion, CaseRole.GATE),
        active_remedy=open_order(session, model, OrderKind.REMEDY, but=but),
        last_remedy_at=_last_remedy(session, model),
        remedies_last_day=_remedies_since(session, model, now - timedelta(days=1)),
        open_label_request=_label_request_since(session, model, label_request_after),
    )


def _last_remedy(session: Session, model: str) -> datetime | None:
    query = select(func.max(Order.created_at)).where(
        Order.model == model, Order.kind == OrderKind.REMEDY, col(Order.state).in_(STARTED)
    )
    return session.exec(query).one()


def _remedies_since(session: Session, model: str, since: datetime) -> int:
    query = select(func.count()).where(
        Order.model == model, Order.kind == OrderKind.REMEDY, col(Order.state).in_(STARTED), col(Order.created_at) >= since
    )
    return int(session.exec(query).one())


def _label_request_since(session: Session, model: str, since: datetime) -> str | None:
    query = select(Order.order_id).where(
        Order.model == model,
        Order.kind == OrderKind.LABEL_REQUEST,
        col(Order.state).in_(ACTIVE),
        col(Order.created_at) >= since,
    )
    return session.exec(query.limit(1)).first()


def talk_of(session: Session, thread: str, limit: int = 6) -> Sequence[AgentRun]:
    """The newest runs of a thread, oldest first."""
    query = select(AgentRun).where(AgentRun.thread == thread).order_by(col(AgentRun.created_at).desc()).limit(limit)
    return list(reversed(session.exec(query).all()))
