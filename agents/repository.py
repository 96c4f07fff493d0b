"""All SQL of the agents: facts for tools and guardrails, orders and runs."""

import re
from collections.abc import Collection, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, NamedTuple

from sqlalchemy import and_, or_
from sqlmodel import Session, col, func, select

from agents.guardrails import Facts, Situation
from agents.ladder import cases_for_another_round, next_rung
from schemas.agent_runs import AgentRun
from schemas.tables import BaselineCase, Case, Evaluation, Job, ModelVersion, Order, RegisteredModel, Report, TrainingPatient
from schemas.vocabulary import CaseRole, Diagnosis, OrderKind, OrderState, Remedy, Status, Verdict, VersionState
from services.remediation.plan import start_of_decline
from services.runtime import registry
from services.runtime.lease import MOST_APART_S
from services.runtime.words import small

ACTIVE = (OrderState.AWAITING_APPROVAL, OrderState.ACCEPTED, OrderState.RUNNING)
_STREAM = (col(Evaluation.stream_cases), col(Evaluation.evaluated_at), col(Evaluation.evaluation_id))
"""Order of a version's evaluations: by the stream that they judge, however late they were made."""
CLOCKS_APART = timedelta(seconds=MOST_APART_S)
"""Clocks of two hosts that are further apart are not in order."""
STARTED = (OrderState.ACCEPTED, OrderState.RUNNING, OrderState.DONE, OrderState.FAILED)


Days = tuple[date | None, date | None]
"""First and last day, both included, in UTC; None is open."""


def _within(column: Any, days: Days) -> list[Any]:
    """The conditions that a moment lies on one of the days."""
    first, last = (datetime.combine(day, time(), UTC) if day else None for day in days)
    return [*([column >= first] if first else []), *([column < last + timedelta(days=1)] if last else [])]


def evaluations(
    session: Session, model: str, version: int | None = None, limit: int = 1, days: Days = (None, None)
) -> Sequence[Evaluation]:
    """A model's newest evaluations, newest first; of one version and of some days where they are named."""
    query = select(Evaluation).where(Evaluation.model == model, *_within(Evaluation.evaluated_at, days))
    if version is not None:
        query = query.where(Evaluation.version == version)
        # Of one version the evaluation of the longest stream is the newest, whenever it was made.
        query = query.order_by(col(Evaluation.stream_cases).desc())
    return session.exec(query.order_by(col(Evaluation.evaluated_at).desc(), col(Evaluation.evaluation_id)).limit(limit)).all()


def latest(session: Session, model: str, version: int | None) -> Evaluation | None:
    """The newest evaluation of a version, None when there is none."""
    return next(iter(evaluations(session, model, version)), None) if version is not None else None


def last_decline(session: Session, model: str) -> Evaluation | None:
    """The newest degraded evaluation of the version that declined last; one that is delivered again makes no version newer."""
    degraded = (Evaluation.model == model, Evaluation.status == Status.DEGRADED)
    first = select(Evaluation.version).where(*degraded).group_by(col(Evaluation.version), col(Evaluation.batch_id))
    version = session.exec(first.order_by(func.min(Evaluation.evaluated_at).desc()).limit(1)).first()
    query = select(Evaluation).where(*degraded, Evaluation.version == version)
    return session.exec(query.order_by(*(column.desc() for column in _STREAM)).limit(1)).first()


def noticed_at(session: Session, model: str, version: int) -> datetime | None:
    """When the last decline of a version was found: its first degraded evaluation after the last healthy one, in the stream."""
    cases, at = col(Evaluation.stream_cases), col(Evaluation.evaluated_at)
    own = select(cases, at).where(Evaluation.model == model, Evaluation.version == version)
    well = own.where(Evaluation.status == Status.HEALTHY).order_by(*(column.desc() for column in _STREAM)).limit(1)
    healthy = session.exec(well).first()
    ill = own.where(Evaluation.status == Status.DEGRADED).order_by(*_STREAM).limit(1)
    if healthy is not None:
        ill = ill.where(or_(cases > healthy[0], and_(cases == healthy[0], at > healthy[1])))
    found = session.exec(ill).first()
    return found[1] if found is not None else None


def orders_since(session: Session, model: str, kind: OrderKind, since: datetime | None) -> Sequence[Order]:
    """The orders of a kind that went out for a model since a moment, oldest first."""
    if since is None:
        return []
    query = select(Order).where(Order.model == model, Order.kind == kind, col(Order.state).in_(STARTED))
    return session.exec(query.where(col(Order.created_at) >= since).order_by(col(Order.created_at)).limit(5)).all()


def last_remedy(session: Session, model: str) -> Order | None:
    """The newest repair of a model that went out, if there is one."""
    query = select(Order).where(Order.model == model, Order.kind == OrderKind.REMEDY, col(Order.state).in_(STARTED))
    return session.exec(query.order_by(col(Order.created_at).desc()).limit(1)).first()


def orders(
    session: Session, model: str = "", states: Sequence[OrderState] = (), limit: int = 10, days: Days = (None, None)
) -> Sequence[Order]:
    """Newest orders first, of one model, of some states and of some days where they are named."""
    query = select(Order).where(*_within(Order.created_at, days))
    if model:
        query = query.where(Order.model == model)
    if states:
        query = query.where(col(Order.state).in_(states))
    return session.exec(query.order_by(col(Order.created_at).desc(), col(Order.order_id)).limit(limit)).all()


def order_like(session: Session, prefix: str) -> Sequence[Order]:
    """Orders whose id starts with `prefix` (with or without `ord-`)."""
    start = prefix if prefix.startswith("ord-") else f"ord-{prefix}"
    return session.exec(select(Order).where(col(Order.order_id).startswith(start, autoescape=True)).limit(5)).all()


def reports(session: Session, model: str = "", limit: int = 5, days: Days = (None, None)) -> Sequence[Report]:
    """Newest reports first, of one model and of some days where they are named."""
    query = select(Report).where(*_within(Report.written_at, days))
    if model:
        query = query.where(Report.model == model)
    return session.exec(query.order_by(col(Report.written_at).desc(), col(Report.report_id)).limit(limit)).all()


def job_of(session: Session, order_id: str) -> Job | None:
    """The job that carries out an order."""
    return session.exec(select(Job).where(Job.order_id == order_id)).first()


def labelled(session: Session, model: str, version: int, role: CaseRole, since: datetime | None = None) -> int:
    """Cases that a repair may use in this role: since the decline began, of a class of the model, of patients who are new to it.

    Not new are the patients of any baseline and those whom the model was trained on.
    """
    registered = session.get(RegisteredModel, model)
    baseline = select(BaselineCase.patient_key).where(BaselineCase.model == model)
    query = select(func.count()).where(
        Case.model == model,
        Case.version == version,
        Case.role == role,
        col(Case.truth).in_(registered.classes if registered else ()),
        col(Case.patient_key).not_in(baseline),
        col(Case.patient_key).not_in(select(TrainingPatient.patient_key).where(TrainingPatient.model == model)),
    )
    return int(session.exec(query.where(col(Case.acquired_at) >= since) if since else query).one())


def began(session: Session, evaluation_id: str | None) -> datetime | None:
    """When the decline began that an evaluation has found, None where it names no start."""
    row = session.get(Evaluation, evaluation_id) if evaluation_id else None
    return start_of_decline(row.evidence) if row is not None else None


def behind_orders(session: Session, model: str, version: int | None) -> str | None:
    """The evaluation that a repair of this version refers to: the newest, where it names the start of a decline."""
    newest = latest(session, model, version)
    return newest.evaluation_id if newest is not None and start_of_decline(newest.evidence) else None


def unlabelled(session: Session, model: str, version: int) -> int:
    """Scored cases of a version that wait for their label."""
    query = select(func.count()).where(Case.model == model, Case.version == version, col(Case.truth).is_(None))
    return int(session.exec(query).one())


class Turned(NamedTuple):
    """A remedy that the gate turned down: when, and with how many labelled cases it was made and judged (0: not known)."""

    order_id: str
    remedy: Remedy | None
    at: datetime
    cases: int


def turned_down(session: Session, model: str, champion: int, cases: int) -> list[Turned]:
    """The remedies of this champion's present decline that the gate turned down, oldest first.

    A verdict is left out once there are so many more labelled `cases` that it is out of date.
    """
    since = noticed_at(session, model, champion)
    if since is None:
        return []
    query = select(Order, Job).join(Job, col(Job.order_id) == Order.order_id)
    query = query.where(Order.model == model, Order.version == champion, Order.kind == OrderKind.REMEDY)
    rows = session.exec(query.where(col(Order.created_at) >= since).order_by(col(Order.created_at), Order.order_id))
    found = [_turned(order, job) for order, job in rows if job.result.get("verdict") == Verdict.REJECT]
    return [each for each in found if not each.cases or cases_for_another_round(each.cases, cases)]


def _turned(order: Order, job: Job) -> Turned:
    taught, judged = job.result.get("tune_cases"), (job.result.get("numbers") or {}).get("gate_cases")
    used = int(taught) + int(judged) if taught and judged else 0
    return Turned(order.order_id, Remedy(order.remedy) if order.remedy else None, job.updated_at, used)


def _diagnosis(newest: Evaluation | None) -> Diagnosis:
    return Diagnosis(newest.diagnosis) if newest else Diagnosis.NONE


def _used_up(tune: int, rejected: Sequence[Turned], diagnosis: Diagnosis) -> bool:
    """Whether no rung is left that so many labels allow."""
    return next_rung(tune, 1, [each.remedy for each in rejected if each.remedy], diagnosis) is None


def told_that_used_up(session: Session, model: str, turned: Sequence[Turned]) -> str | None:
    """Id of the agents' label request since the last of these verdicts: with it they said that no rung is left."""
    if not turned:
        return None
    query = select(Order.order_id).where(Order.model == model, Order.kind == OrderKind.LABEL_REQUEST, col(Order.state).in_(STARTED))
    query = query.where(col(Order.actor).startswith("agent:"), col(Order.created_at) >= turned[-1].at)
    return session.exec(query.order_by(col(Order.created_at).desc()).limit(1)).first()


def refused_alike(session: Session, row: Order) -> Order | None:
    """The last order of this kind by the same actor for the same version, if it was refused in the same words.

    Numbers and dates in the words may differ.
    """
    query = select(Order).where(Order.model == row.model, Order.kind == row.kind, Order.actor == row.actor)
    last = session.exec(query.order_by(col(Order.created_at).desc(), col(Order.order_id)).limit(1)).first()
    if last is None or (last.state, last.version, last.remedy) != (OrderState.REFUSED, row.version, row.remedy):
        return None
    return last if _words(last.explanation) == _words(row.explanation) else None


def _words(text: str) -> str:
    return re.sub(r"\d+", "#", re.sub(r"ord-\w+", "#", text))


def gate_cases_needed(session: Session, model: str, champion: int) -> int:
    """Gate cases that the newest challenger of this champion waits for in the shadow, 0 when none waits."""
    query = select(ModelVersion.metrics).where(
        ModelVersion.model == model, ModelVersion.parent == champion, ModelVersion.state == VersionState.CHALLENGER
    )
    metrics = session.exec(query.order_by(col(ModelVersion.version).desc()).limit(1)).first() or {}
    return int(metrics.get("gate_cases_needed") or 0)


def remedy_of(session: Session, order_id: str | None) -> str:
    """The remedy that an order named, empty when there is no such order."""
    row = session.get(Order, order_id) if order_id else None
    return (row.remedy or "") if row is not None else ""


def open_order(session: Session, model: str, kind: OrderKind, states: Sequence[OrderState] = ACTIVE, but: str = "") -> str | None:
    """Id of the newest order of a kind that is not finished; `but` names one that does not count."""
    query = select(Order.order_id).where(Order.model == model, Order.kind == kind, col(Order.state).in_(states))
    return session.exec(query.where(Order.order_id != but).order_by(col(Order.created_at).desc()).limit(1)).first()


def facts(
    session: Session, model: str, now: datetime, *, label_request_after: datetime, evaluation_id: str | None = None, but: str = ""
) -> Facts:
    """Everything the guardrails need about a model. Locks the model's row, so that two orders are judged one after the other.

    `evaluation_id` is the one behind the proposal. A label request counts while it is younger than `label_request_after`;
    `but` is the order under judgement.
    """
    known = tuple(row.name for row in registry.models(session))
    row = session.exec(select(RegisteredModel).where(RegisteredModel.name == model).with_for_update()).first()
    if row is None or row.champion is None:
        return Facts(now=now, models=known)
    newest, since = latest(session, model, row.champion), began(session, evaluation_id)
    reported, reported_at = _reported(session, model)
    tune, gate = (labelled(session, model, row.champion, role, since) for role in (CaseRole.TUNE, CaseRole.GATE))
    rejected = turned_down(session, model, row.champion, tune + gate)
    return Facts(
        now=now,
        models=known,
        versions=tuple(version.version for version in registry.versions(session, model)),
        champion=row.champion,
        champion_before=registry.last_champion(session, model),
        served=tuple(registry.served_versions(session, model)),
        serving=row.serving,
        status=Status(newest.status) if newest else None,
        diagnosis=_diagnosis(newest),
        small_fall=newest is not None and small(newest.evidence),
        situation=situation(session.get(Evaluation, evaluation_id) if evaluation_id else newest),
        reported=reported,
        reported_at=reported_at,
        since=since,
        tune_cases=tune,
        gate_cases=gate,
        gate_cases_needed=gate_cases_needed(session, model, row.champion),
        active_remedy=open_order(session, model, OrderKind.REMEDY, but=but),
        remedies_last_day=_remedies_between(session, model, now - timedelta(days=1), now + CLOCKS_APART),
        open_label_request=label_request_between(session, model, row.champion, label_request_after, now),
        told_that_used_up=told_that_used_up(session, model, rejected) if _used_up(tune, rejected, _diagnosis(newest)) else None,
        **_last_remedy(session, model, {each.order_id for each in rejected}, now),
    )


def situation(row: Evaluation | None) -> Situation | None:
    """What a report on this evaluation would tell."""
    return Situation(version=row.version, status=Status(row.status), diagnosis=Diagnosis(row.diagnosis)) if row else None


def _reported(session: Session, model: str) -> tuple[Situation | None, datetime | None]:
    """What the agents' last report on a model told, and when it was ordered."""
    query = (
        select(Evaluation, Order.created_at)
        .join(Order, col(Order.evaluation_id) == Evaluation.evaluation_id)
        .where(Order.model == model, Order.kind == OrderKind.REPORT, col(Order.state).in_(STARTED))
        .where(col(Order.actor).startswith("agent:"))
    )
    found = session.exec(query.order_by(col(Order.created_at).desc()).limit(1)).first()
    return (situation(found[0]), found[1]) if found is not None else (None, None)


def reported(session: Session, model: str) -> Situation | None:
    """What the agents' last report on a model told."""
    return _reported(session, model)[0]


def _last_remedy(session: Session, model: str, rejected: Collection[str], now: datetime) -> dict[str, Any]:
    """The fields of Facts on the last remedy that did not fail; `rejected` are the orders that the gate turned down.

    When it was is not known where a clock that ran ahead, and was put right since, has dated it.
    """
    query = select(Order).where(Order.model == model, Order.kind == OrderKind.REMEDY, col(Order.state).in_(STARTED))
    query = query.where(Order.state != OrderState.FAILED)
    last = session.exec(query.order_by(col(Order.created_at).desc()).limit(1)).first()
    if last is None:
        return {}
    remedy = Remedy(last.remedy) if last.remedy else None
    at = last.created_at if last.created_at <= now + CLOCKS_APART else None
    return {"last_remedy": remedy, "last_remedy_at": at, "last_remedy_rejected": last.order_id in rejected}


def _remedies_between(session: Session, model: str, since: datetime, until: datetime) -> int:
    query = select(func.count()).where(Order.model == model, Order.kind == OrderKind.REMEDY, col(Order.state).in_(STARTED))
    return int(session.exec(query.where(col(Order.created_at).between(since, until))).one())


def label_request_between(session: Session, model: str, version: int, since: datetime, now: datetime) -> str | None:
    """Id of a label request younger than `since` for which fewer labels have arrived than it asked for.

    The request's own state does not tell: it is done when its report is written. One that is dated later than `now` was made
    while a clock ran ahead: whether labels have come since is not known, and it would stand in the way for years.
    """
    query = select(Order).where(
        Order.model == model,
        Order.kind == OrderKind.LABEL_REQUEST,
        col(Order.state).in_((*ACTIVE, OrderState.DONE)),
        col(Order.created_at).between(since, now + CLOCKS_APART),
    )
    request = session.exec(query.order_by(col(Order.created_at).desc()).limit(1)).first()
    if request is None:
        return None
    arrived = select(func.count()).where(
        Case.model == model, Case.version == version, col(Case.joined_at).is_not(None), col(Case.joined_at) >= request.created_at
    )
    return request.order_id if session.exec(arrived).one() < int(request.settings.get("cases") or 1) else None


def talk_of(session: Session, thread: str, limit: int = 6) -> Sequence[AgentRun]:
    """The newest runs of a thread, oldest first."""
    query = select(AgentRun).where(AgentRun.thread == thread).order_by(col(AgentRun.created_at).desc()).limit(limit)
    return list(reversed(session.exec(query).all()))


def runs(session: Session, limit: int, thread: str = "") -> Sequence[AgentRun]:
    """The newest runs, newest first; of one thread where it is named."""
    query = select(AgentRun)
    if thread:
        query = query.where(AgentRun.thread == thread)
    return session.exec(query.order_by(col(AgentRun.created_at).desc(), col(AgentRun.run_id)).limit(limit)).all()


def run_like(session: Session, name: str) -> Sequence[AgentRun]:
    """Runs whose id starts with `name` (with or without `run-`), or that this event caused."""
    start = name if name.startswith("run-") else f"run-{name}"
    like = col(AgentRun.run_id).startswith(start, autoescape=True)
    return session.exec(select(AgentRun).where(or_(like, col(AgentRun.cause) == name)).limit(5)).all()


def run_of_order(session: Session, order_id: str) -> AgentRun | None:
    """The run that made an order: the first that names it, among those since it was made."""
    order = session.get(Order, order_id)
    if order is None:
        return None
    query = select(AgentRun).where(col(AgentRun.created_at) >= order.created_at).order_by(col(AgentRun.created_at)).limit(50)
    return next((row for row in session.exec(query) if order_id in row.order_ids), None)
