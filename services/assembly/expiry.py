"""All SQL of retention: which studies' images may go, and why the others may not."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, String, and_, cast, exists, func, or_
from sqlmodel import Session, col, select

from schemas.results import ResultJob
from schemas.tables import Case, DeadLetter, Inbox, Instance, Job, Study
from schemas.topics import STUDY_RECEIVED
from schemas.unscored import UnscoredStudy
from schemas.vocabulary import CaseRole, JobState, ResultState, StudyState

INFERENCE: Final = "inference"
"""Name under which the scoring consumer enters what it has dealt with."""


def kept_because(committed: bool) -> dict[str, ColumnElement[bool]]:
    """Reason to condition on a study, for everything that keeps an old study's images.

    - its study is open, or its last revision has not been dealt with by the scoring, or waits as a dead letter there,
    - a model that is stopped will score it when it is resumed,
    - a result of it is on its way to the PACS,
    - it is a case for repairs of a model for which a repair waits or runs,
    - a sender has asked storage commitment for it (unless `committed`): it may have deleted its own copy.
    """
    reasons = {
        "open": col(Study.state) != StudyState.COMPLETE,
        "unscored": and_(col(Study.revision) > 0, ~_dealt_with()) | _waits_as_dead_letter(),
        "waits for a model": exists().where(col(UnscoredStudy.study_key) == col(Study.study_key), col(UnscoredStudy.model) != ""),
        "result under way": _result_under_way(),
        "repair under way": _repair_under_way(),
    }
    return reasons if committed else {**reasons, "storage committed": col(Study.committed_at).is_not(None)}


def expired(before: datetime) -> ColumnElement[bool]:
    """Studies with images whose last one came before that time; one whose images are gone counts again when others came."""
    again = or_(col(Study.purged_at).is_(None), col(Study.purged_at) < col(Study.last_instance_at))
    return and_(col(Study.last_instance_at) < before, again)


def due(session: Session, before: datetime, limit: int, *, committed: bool) -> Sequence[Study]:
    """The oldest studies whose images may go, locked; those in use elsewhere are left out."""
    query = (
        select(Study)
        .where(expired(before), *(~reason for reason in kept_because(committed).values()))
        .order_by(col(Study.last_instance_at), col(Study.study_uid))
        .limit(limit)
        .with_for_update(skip_locked=True, of=Study)
    )
    return session.exec(query).all()


def count_due(session: Session, before: datetime, *, committed: bool) -> tuple[int, int, int]:
    """Studies, instances and bytes that may go now."""
    conditions = (expired(before), *(~reason for reason in kept_because(committed).values()))
    query = (
        select(func.count(func.distinct(Study.study_uid)), func.count(), func.coalesce(func.sum(Instance.size), 0))
        .join(Instance, col(Instance.study_uid) == col(Study.study_uid))
        .where(col(Instance.purged_at).is_(None), *conditions)
    )
    studies, instances, size = session.exec(query).one()
    return int(studies), int(instances), int(size)


def count_kept(session: Session, before: datetime, *, committed: bool) -> dict[str, int]:
    """Old studies that stay, by reason; one with several reasons counts in each."""
    counts = {}
    for name, reason in kept_because(committed).items():
        counts[name] = int(session.exec(select(func.count()).select_from(Study).where(expired(before), reason)).one())
    return {name: count for name, count in counts.items() if count}


def instances_of(session: Session, study_uid: str) -> Sequence[Instance]:
    """The study's instances that are in the archive."""
    query = select(Instance).where(col(Instance.study_uid) == study_uid, col(Instance.purged_at).is_(None))
    return session.exec(query.order_by(col(Instance.path))).all()


def purged_at_of_paths(session: Session, study_key: str, paths: Iterable[str]) -> dict[str, datetime | None]:
    """Path to when its instance was taken out, of those that the index knows; the study is locked."""
    study = session.exec(select(Study).where(Study.study_key == study_key).with_for_update()).first()
    if study is None:
        return {}
    query = select(Instance.path, Instance.purged_at).where(col(Instance.study_uid) == study.study_uid)
    wanted = set(paths)
    return {path: at for path, at in session.exec(query) if path in wanted}


def mark_present(session: Session, paths: Sequence[str], now: datetime) -> None:
    """Take back the mark of instances whose files are there again; their retention begins anew."""
    rows = session.exec(select(Instance).where(col(Instance.path).in_(paths), col(Instance.purged_at).is_not(None))).all()
    for row in rows:
        row.purged_at = None
    for study_uid in sorted({row.study_uid for row in rows}):
        study = session.get_one(Study, study_uid)
        study.last_instance_at = max(study.last_instance_at, now)
        session.add(study)
    session.add_all(rows)


def _dealt_with() -> ColumnElement[bool]:
    event_id = col(Study.study_key) + ":" + cast(col(Study.revision), String)
    return exists().where(col(Inbox.consumer) == INFERENCE, col(Inbox.event_id) == event_id)


def _waits_as_dead_letter() -> ColumnElement[bool]:
    waiting = (col(DeadLetter.replayed_at).is_(None), col(DeadLetter.discarded_at).is_(None))
    mine = (col(DeadLetter.consumer) == INFERENCE, col(DeadLetter.topic) == STUDY_RECEIVED.name)
    return exists().where(*mine, *waiting, col(DeadLetter.key) == col(Study.study_key))


def _result_under_way() -> ColumnElement[bool]:
    unfinished = col(ResultJob.state).in_([ResultState.QUEUED, ResultState.SENDING])
    return exists().where(col(ResultJob.study_key) == col(Study.study_key), unfinished)


def _repair_under_way() -> ColumnElement[bool]:
    at_work = and_(col(Job.model) == col(Case.model), col(Job.state).in_([JobState.QUEUED, JobState.RUNNING]))
    for_repairs = col(Case.role).in_([CaseRole.TUNE, CaseRole.GATE])
    return exists().where(col(Case.study_key) == col(Study.study_key), for_repairs, at_work)
