"""All SQL of remediation: orders, jobs and the cases that a repair uses."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, exists, or_
from sqlmodel import Session, col, select

from schemas.events import MaintenanceOrder
from schemas.tables import BaselineCase, Case, Evaluation, Instance, Job, Order, RegisteredModel, Study, TrainingPatient
from schemas.vocabulary import CaseRole, JobState, OrderState, Remedy
from services.remediation.options import PLAN
from services.remediation.plan import LabelledCase
from services.runtime.lease import is_over
from services.runtime.transaction import Transaction


def order_row(tx: Transaction, order: MaintenanceOrder) -> Order:
    """The order's row, locked; entered when the order came from outside, so that every order has its outcome on record."""
    now = tx.clock.now()
    row = Order(
        order_id=order.order_id,
        idempotency_key=f"event:{order.order_id}",
        kind=order.kind,
        state=OrderState.ACCEPTED,
        model=order.model,
        version=order.version,
        remedy=order.remedy,
        settings=dict(order.settings),
        reason=order.reason[:1000],
        evaluation_id=order.evaluation_id,
        actor=order.actor,
        created_at=order.ordered_at,
        updated_at=now,
    )
    tx.insert_new(Order, [row], returning="order_id")
    return tx.session.get_one(Order, order.order_id, with_for_update=True)


def close_order(tx: Transaction, order_id: str, state: OrderState, explanation: str) -> None:
    """Say what came of an order."""
    row = tx.session.get_one(Order, order_id, with_for_update=True)
    row.state, row.explanation, row.updated_at = state, explanation[:1000], tx.clock.now()
    tx.session.add(row)


def order(session: Session, order_id: str) -> Order:
    """One order."""
    return session.get_one(Order, order_id)


def enqueue(tx: Transaction, row: Order, traceparent: str) -> bool:
    """Enter the order's job; False when it is there already."""
    now = tx.clock.now()
    job = Job(
        job_id=row.order_id,
        order_id=row.order_id,
        model=row.model,
        remedy=row.remedy or "",
        settings=dict(row.settings),
        traceparent=traceparent,
        created_at=now,
        updated_at=now,
    )
    return bool(tx.insert_new(Job, [job], returning="job_id"))


def claimable(session: Session, now: datetime, owner: str, lease_s: float) -> Job | None:
    """The oldest job that nobody works on, locked. PostgreSQL skips rows that another claimer holds; SQLite has one writer."""
    free: ColumnElement[bool] = or_(
        col(Job.state) == JobState.QUEUED,
        and_(col(Job.state) == JobState.RUNNING, or_(is_over(col(Job.lease_until), now, lease_s), col(Job.owner) == owner)),
    )
    query = select(Job).where(free).order_by(col(Job.created_at), col(Job.job_id)).limit(1)
    return session.exec(query.with_for_update(skip_locked=True)).first()


def held_job(session: Session, job_id: str, owner: str, attempt: int) -> Job | None:
    """The job, locked, if this attempt of this owner still holds it."""
    query = select(Job).where(Job.job_id == job_id, Job.owner == owner, Job.attempt == attempt, Job.state == JobState.RUNNING)
    return session.exec(query.with_for_update()).first()


def job(session: Session, job_id: str) -> Job:
    """One job."""
    return session.get_one(Job, job_id)


def lock_model(session: Session, name: str) -> RegisteredModel:
    """The model's row, locked: version numbers and the champion change under this lock."""
    return session.exec(select(RegisteredModel).where(RegisteredModel.name == name).with_for_update()).one()


def lock_known_model(session: Session, name: str) -> None:
    """Lock the model's row where there is one."""
    session.exec(select(RegisteredModel).where(RegisteredModel.name == name).with_for_update()).first()


def labelled_cases(session: Session, model: str, version: int, role: CaseRole) -> list[LabelledCase]:
    """A version's cases of one role whose truth is known and whose images retention has not taken out of the archive."""
    query = select(Case.study_key, Case.patient_key, Case.truth, Case.acquired_at).where(
        Case.model == model, Case.version == version, Case.role == role, col(Case.truth).is_not(None), ~_is_purged()
    )
    return [LabelledCase(*row) for row in session.exec(query)]


def recent_cases(session: Session, model: str, version: int, role: CaseRole) -> list[LabelledCase]:
    """A version's cases of one role, labelled or not, whose images are still in the archive; without their truth."""
    query = select(Case.study_key, Case.patient_key, Case.acquired_at).where(
        Case.model == model, Case.version == version, Case.role == role, ~_is_purged()
    )
    return [LabelledCase(study, patient, "", at) for study, patient, at in session.exec(query)]


def _is_purged() -> ColumnElement[bool]:
    gone = (col(Instance.study_uid) == col(Study.study_uid), col(Instance.purged_at).is_not(None))
    return exists().where(col(Study.study_key) == col(Case.study_key), col(Study.purged_at).is_not(None), *gone)


def gates_before(session: Session, model: str, job_id: str, champion: int) -> list[set[str]]:
    """Patients of the gates of this champion's other runs that have judged or are under way.

    A run that failed judged nothing, nor did one whose repair promised too little to be judged; and one whose repair left the
    champion as it is could not have passed whatever the cases.
    """
    query = select(Job.settings, Job.result).where(Job.model == model, Job.job_id != job_id, Job.state != JobState.FAILED)
    spared = ((settings, result.get("unchanged") or not result.get("judged", True)) for settings, result in session.exec(query))
    plans = [settings[PLAN] for settings, spare in spared if PLAN in settings and not spare]
    return [{case["patient_key"] for case in plan["gate"]} for plan in plans if plan["champion"] == champion]


def enter_judgement(tx: Transaction, run_id: str, model: str, plan: dict[str, Any]) -> None:
    """A judgement without a repair, so that later gates on the same patients count it. No worker takes it up."""
    now = tx.clock.now()
    job = Job(
        job_id=run_id, order_id=run_id, model=model, remedy=Remedy.NONE, state=JobState.SUCCEEDED, created_at=now, updated_at=now
    )
    job.settings = {PLAN: plan}
    tx.session.add(job)


def close_judgement(tx: Transaction, run_id: str, result: dict[str, Any]) -> None:
    """What came of it."""
    job = tx.session.get_one(Job, run_id)
    job.result, job.updated_at = result, tx.clock.now()
    tx.session.add(job)


def replace_baseline(tx: Transaction, model: str, version: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """A promoted version is compared with the cases that it was judged on (decision 0007)."""
    tx.session.execute(delete(BaselineCase).where(col(BaselineCase.model) == model, col(BaselineCase.version) == version))
    tx.session.add_all(BaselineCase(model=model, version=version, **row) for row in rows)


def trigger_patients(session: Session, model: str) -> set[str]:
    """Patients whose cases may raise this model's alarm."""
    query = select(Case.patient_key).where(Case.model == model, Case.role == CaseRole.TRIGGER).distinct()
    return set(session.exec(query))


def baseline_patients(session: Session, model: str) -> set[str]:
    """Patients in the baseline of any version of the model, the gates of earlier promotions among them."""
    return set(session.exec(select(BaselineCase.patient_key).where(BaselineCase.model == model).distinct()))


def taught_patients(session: Session, model: str) -> set[str]:
    """Patients whom any version of the model was trained on: what a version was made from, its successors know too."""
    return set(session.exec(select(TrainingPatient.patient_key).where(TrainingPatient.model == model)))


def evidence(session: Session, evaluation_id: str | None) -> dict[str, Any]:
    """Evidence of the evaluation behind an order, empty when there is none."""
    row = session.get(Evaluation, evaluation_id) if evaluation_id else None
    return dict(row.evidence) if row else {}
