"""All SQL of the results: the jobs, and what the archive's index knows of a study."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, or_, update
from sqlmodel import Session, col, select

from models.spec import SelectionRule
from schemas.results import ResultJob
from schemas.tables import Instance, ModelVersion, RegisteredModel, Study
from schemas.vocabulary import Modality, ResultState
from services.results.finding import Reference
from services.runtime.errors import InvalidInput
from services.runtime.lease import is_over
from services.runtime.result_uids import is_result_uid
from services.runtime.transaction import Transaction


@dataclass(frozen=True)
class Subject:
    """What a result is about. `header_path` is relative to the archive."""

    study_uid: str
    images: tuple[Reference, ...]
    header_path: str
    weights: str


def insert(tx: Transaction, job: ResultJob) -> bool:
    """Enter a job; False when there is one of that id."""
    return bool(tx.insert_new(ResultJob, [job], returning="job_id"))


def locked(session: Session, job_id: str) -> ResultJob:
    """One job, locked."""
    return session.get_one(ResultJob, job_id, with_for_update=True)


def claimable(session: Session, now: datetime, owner: str, lease_s: float, longest_delay_s: float) -> ResultJob | None:
    """The job that is due for longest and that nobody works on, locked; those that others hold are skipped."""
    mine = col(ResultJob.owner) == owner
    free: ColumnElement[bool] = or_(
        and_(col(ResultJob.state) == ResultState.QUEUED, is_over(col(ResultJob.due_at), now, longest_delay_s)),
        and_(col(ResultJob.state) == ResultState.SENDING, or_(is_over(col(ResultJob.lease_until), now, lease_s), mine)),
    )
    query = select(ResultJob).where(free).order_by(col(ResultJob.due_at), col(ResultJob.created_at), col(ResultJob.job_id)).limit(1)
    return session.exec(query.with_for_update(skip_locked=True)).first()


def held(session: Session, job_id: str, owner: str, attempt: int) -> ResultJob | None:
    """The job, locked, if this attempt of this owner still holds it."""
    query = select(ResultJob).where(
        ResultJob.job_id == job_id, ResultJob.owner == owner, ResultJob.attempt == attempt, ResultJob.state == ResultState.SENDING
    )
    return session.exec(query.with_for_update()).first()


def hasten(tx: Transaction, destination: str) -> None:
    """Let everything that waits for a destination be due now, because it answers again."""
    waiting = (col(ResultJob.state) == ResultState.QUEUED, col(ResultJob.destination) == destination)
    tx.session.execute(update(ResultJob).where(*waiting, col(ResultJob.due_at) > tx.clock.now()).values(due_at=tx.clock.now()))


def subject(session: Session, study_key: str, model: str, version: int) -> Subject:
    """The study's images of the model's modalities. InvalidInput when archive or registry do not have what is needed."""
    study = session.exec(select(Study).where(Study.study_key == study_key)).first()
    owner, row = session.get(RegisteredModel, model), session.get(ModelVersion, (model, version))
    if owner is None or row is None:
        raise InvalidInput(f"the registry has no version {version} of model {model}")
    if study is None:
        raise InvalidInput(f"the archive has no study {study_key}")
    rule = SelectionRule.model_validate(owner.selection)
    images = [each for each in _instances(session, study.study_uid) if _is_image(each, rule)]
    if not images:
        raise InvalidInput(f"the archive has no images of study {study_key} that model {model} is meant for")
    references = tuple(Reference(each.sop_class_uid, each.sop_instance_uid, each.series_uid) for each in images)
    header = next((each for each in images if each.purged_at is None), images[0])
    return Subject(study.study_uid, references, header.path, row.sha256)


def _instances(session: Session, study_uid: str) -> Sequence[Instance]:
    """In a lasting order, so that the same study makes the same objects."""
    query = select(Instance).where(Instance.study_uid == study_uid)
    return session.exec(query.order_by(col(Instance.series_uid), col(Instance.sop_instance_uid))).all()


def _is_image(instance: Instance, rule: SelectionRule) -> bool:
    chosen = SelectionRule(modalities=rule.modalities or tuple(Modality))
    return chosen.matches(instance.modality) and not is_result_uid(instance.sop_instance_uid)
