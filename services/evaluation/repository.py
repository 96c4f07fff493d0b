"""All SQL of the evaluation, and the reading functions for those who show or use evaluations."""

from collections.abc import Sequence
from datetime import datetime

from sqlmodel import Session, and_, col, func, select

from schemas.tables import (
    BaselineCase,
    Batch,
    Case,
    DetectorCalibration,
    Evaluation,
    ModelVersion,
    RegisteredModel,
    Study,
    TrainingPatient,
)
from schemas.vocabulary import CaseRole, CaseState
from services.evaluation.detector import Thresholds
from services.evaluation.dispersion import UNKNOWN, Variation
from services.evaluation.lateness import Pending
from services.evaluation.stream import StreamCase
from services.evaluation.subgroups import with_site
from services.runtime import registry

_NEWEST_FIRST = (col(Evaluation.stream_cases).desc(), col(Evaluation.evaluated_at).desc(), col(Evaluation.evaluation_id))
"""Of one version the evaluation of the longest stream is the newest, whenever it was made; a withdrawal makes none shorter."""


def latest(session: Session, model: str, version: int | None = None) -> Evaluation | None:
    """The newest evaluation of a model, or of one of its versions; None before the first."""
    query = select(Evaluation).where(Evaluation.model == model)
    if version is not None:
        query = query.where(Evaluation.version == version)
    else:
        newest = select(Evaluation.version).where(Evaluation.model == model)
        query = query.where(Evaluation.version == newest.order_by(col(Evaluation.evaluated_at).desc()).limit(1).scalar_subquery())
    return session.exec(query.order_by(*_NEWEST_FIRST).limit(1)).first()


def history(session: Session, model: str, limit: int = 50) -> Sequence[Evaluation]:
    """Evaluations of a model over all versions, newest first."""
    query = select(Evaluation).where(Evaluation.model == model)
    order = (col(Evaluation.evaluated_at).desc(), *_NEWEST_FIRST)
    return session.exec(query.order_by(*order).limit(limit)).all()


def evaluation(session: Session, evaluation_id: str) -> Evaluation | None:
    """One evaluation; None when there is none of that id."""
    return session.get(Evaluation, evaluation_id)


def batch(session: Session, batch_id: str) -> Batch | None:
    """One batch; None when there is none of that id."""
    return session.get(Batch, batch_id)


def last_number(session: Session, model: str, version: int) -> int:
    """Number of the version's newest batch, 0 before the first."""
    query = select(func.max(Batch.number)).where(Batch.model == model, Batch.version == version)
    return int(session.exec(query).one() or 0)


def last_judged(session: Session, model: str, version: int) -> int:
    """Number of the version's newest batch that has an evaluation, 0 before the first."""
    query = select(func.max(Batch.number)).join(Evaluation, col(Evaluation.batch_id) == col(Batch.batch_id))
    return int(session.exec(query.where(Batch.model == model, Batch.version == version)).one() or 0)


def batches(session: Session, model: str) -> Sequence[Batch]:
    """All batches of a model by version and number."""
    query = select(Batch).where(Batch.model == model).order_by(col(Batch.version), col(Batch.number))
    return session.exec(query).all()


def stream(session: Session, model: str, version: int, up_to: int) -> list[StreamCase]:
    """All batched cases of a version that have a truth, batches 1 to `up_to` in order, within a batch by acquisition.

    A case whose label was withdrawn is in its batch still, and counts for nothing.
    """
    columns = (Case.patient_key, Case.truth, Case.predicted, Case.probabilities)
    query = (
        select(Batch.number, *columns, Case.acquired_at, Case.facets, Case.findings, Study.calling_ae, Case.study_key)  # type: ignore[call-overload]
        .join(Case, col(Case.batch_id) == col(Batch.batch_id))
        .join(Study, col(Study.study_key) == col(Case.study_key), isouter=True)
        .where(Batch.model == model, Batch.version == version, Batch.number <= up_to)
        .where(col(Case.truth).is_not(None))
        .order_by(col(Batch.number), col(Case.acquired_at), col(Case.study_key))
    )
    rows = session.execute(query)
    return [
        StreamCase._make((*known, with_site(facets, title), findings, study)) for (*known, facets, findings, title, study) in rows
    ]


def pending(session: Session, model: str, version: int) -> list[Pending]:
    """Predictions of the version that would raise the alarm and have no label yet, by acquisition."""
    query = (
        select(Case.patient_key, Case.predicted, Case.acquired_at)
        .where(Case.model == model, Case.version == version, Case.role == CaseRole.TRIGGER)
        .where(
            col(Case.state).in_((CaseState.WAITING, CaseState.WITHDRAWN)), col(Case.serving).is_(True), col(Case.truth).is_(None)
        )
        .order_by(col(Case.acquired_at), col(Case.study_key))
    )
    return [Pending(*row) for row in session.exec(query)]


def withdrawn(session: Session, model: str, version: int) -> int:
    """Cases in the version's batches that have no truth any more."""
    query = select(func.count()).where(Case.model == model, Case.version == version, Case.state == CaseState.WITHDRAWN)
    return int(session.exec(query.where(col(Case.batch_id).is_not(None))).one())


def last_closed(session: Session, batch: Batch) -> datetime:
    """When the newest batch of this batch's version was closed."""
    query = select(func.max(Batch.closed_at)).where(Batch.model == batch.model, Batch.version == batch.version)
    return session.exec(query).one() or batch.closed_at


def earlier_variation(session: Session, model: str, version: int, block_size: int) -> Variation:
    """What the version before this one, judged in blocks of the same size, had shown of the variation from block to block.

    As it was known when this version's first batch closed: labels that come later do not change a verdict.
    """
    began = session.exec(select(func.min(Batch.closed_at)).where(Batch.model == model, Batch.version == version)).one()
    query = select(Evaluation.evidence).where(Evaluation.model == model, Evaluation.version < version)
    query = query.where(Evaluation.evaluated_at <= began) if began is not None else query
    evidence = session.exec(query.order_by(col(Evaluation.version).desc(), *_NEWEST_FIRST).limit(1)).first() or {}
    return Variation.of(evidence).remembered() if evidence.get("block_size") == block_size else UNKNOWN


def taught(session: Session, model: str) -> frozenset[str]:
    """Patients whom the model was trained on."""
    return frozenset(session.exec(select(TrainingPatient.patient_key).where(TrainingPatient.model == model)))


def task_of(session: Session, batch_id: str) -> str:
    """The task of a batch's cases, empty for a batch without cases."""
    return session.exec(select(Case.task).where(Case.batch_id == batch_id).limit(1)).first() or ""


def baseline(session: Session, model: str, version: int) -> list[BaselineCase]:
    """A version's baseline with the truths of today: a case whose label was withdrawn is left out, a corrected one is corrected.

    Only a promoted version's baseline has cases of the site (decision 0007); a development test set stays as it was registered.
    """
    same = and_(col(Case.study_key) == col(BaselineCase.case_key), col(Case.model) == col(BaselineCase.model))
    query = (
        select(Case.study_key, Case.truth)
        .join(BaselineCase, same)
        .where(BaselineCase.model == model, BaselineCase.version == version)
        .where(col(Case.truth).is_distinct_from(col(BaselineCase.truth)))
    )
    changed = dict(session.execute(query).tuples().all())
    rows = registry.baseline(session, model, version)
    today = ((row, changed.get(row.case_key, row.truth)) for row in rows)
    return [row if row.truth == truth else _with_truth(row, truth) for row, truth in today if truth is not None]


def _with_truth(row: BaselineCase, truth: str) -> BaselineCase:
    """Another row, which no session knows: the stored one stays what the gate judged."""
    return BaselineCase(**row.model_dump() | {"truth": truth})


def classes(session: Session, model: str, version: int) -> tuple[str, ...]:
    """Classes of a version in the order of its outputs, empty for an unknown one."""
    owner, row = session.get(RegisteredModel, model), session.get(ModelVersion, (model, version))
    return tuple((row.classes if row else ()) or owner.classes) if owner else ()


def without_thresholds(session: Session) -> list[tuple[str, int]]:
    """Champions, serving or stopped, for which no thresholds were ever made."""
    known = select(DetectorCalibration.model).where(
        DetectorCalibration.model == RegisteredModel.name, DetectorCalibration.version == RegisteredModel.champion
    )
    query = select(RegisteredModel).where(col(RegisteredModel.champion).is_not(None), ~known.exists())
    return [(row.name, row.champion) for row in session.exec(query.order_by(RegisteredModel.name)) if row.champion is not None]


def calibration(session: Session, model: str, version: int) -> DetectorCalibration | None:
    """The newest thresholds of a version; None before the first."""
    query = select(DetectorCalibration).where(DetectorCalibration.model == model, DetectorCalibration.version == version)
    return session.exec(query.order_by(col(DetectorCalibration.made_at).desc()).limit(1)).first()


def thresholds(session: Session, model: str, version: int, fingerprint: str) -> Thresholds | None:
    """Thresholds kept from an earlier calibration for exactly these conditions."""
    row = session.get(DetectorCalibration, (model, version, fingerprint))
    return Thresholds(row.threshold_a, row.threshold_b, row.origin, row.batches_per_year, row.smallest_fall) if row else None
