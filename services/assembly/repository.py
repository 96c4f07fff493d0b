"""All SQL of the archive's index, for SQLite and PostgreSQL alike.

Lock order is study, then instance, everywhere; the ticker skips studies that a C-STORE holds. So there is no deadlock, and
a study's list of series is read under the same lock that its instances are counted under.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, TypeAlias

import sqlalchemy
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, func, select

from schemas.tables import Audit, Instance, Study
from schemas.vocabulary import StudyState
from services.assembly.batch_rows import (
    KnownInstance,
    NewInstance,
    NewStudy,
    StudyRow,
    insert_instances,
    insert_studies,
    known_instances,
    locked_studies,
    studies_with_steps,
    update_studies,
)
from services.assembly.studies import Progress, on_instances
from services.runtime.result_uids import is_result_uid
from services.runtime.transaction import Transaction

logger = logging.getLogger(__name__)
RESENT_AFTER: Final = timedelta(hours=1)
"""A file that comes again so long after its first receipt counts as new for retention."""
PATIENTS_DIFFER: Final = "study.patients_differ"
"""Action in the audit record."""
ASSEMBLY_BELL: Final = "assembly"
"""Rung when a study may be complete."""


class Recorded(StrEnum):
    """What became of an instance in the index."""

    NEW = "new"
    KNOWN = "known"
    CONFLICT = "conflict"


class LostRaceError(Exception):
    """Another transaction entered the same instance first: roll back and look again."""


@dataclass(frozen=True)
class SeriesRow:
    """One series of a study as the index has it."""

    series_uid: str
    modality: str
    body_part: str
    instances: int


def find_instance(session: Session, sop_instance_uid: str) -> Instance | None:
    """The row of an instance, if the index has it."""
    return session.get(Instance, sop_instance_uid)


Batch: TypeAlias = tuple[NewStudy, Sequence[NewInstance]]
"""Instances of one study, and what the study starts with."""


def record_batches(tx: Transaction, batches: Sequence[Batch]) -> list[list[Recorded]]:
    """Enter stored instances, of one batch per study, and move the studies on; what the index has changes nothing but retention.

    A handful of statements for all: they are what costs, not the rows. Raises LostRaceError when the transaction has to be
    rolled back and tried again.
    """
    known = known_instances(tx.session, [instance.sop_instance_uid for _, instances in batches for instance in instances])
    fresh: dict[str, NewInstance] = {}
    outcomes = [[_compare(tx.session, instance, known, fresh) for instance in instances] for _, instances in batches]
    resent = _resent(batches, known)
    if fresh or resent:
        added: dict[str, list[NewInstance]] = {uid: [] for uid in resent}
        for instance in fresh.values():
            added.setdefault(instance.study_uid, []).append(instance)
        studies = [study for study, _ in batches if study.study_uid in added]
        rows, new = _studies_of(tx.session, studies)
        with_steps = studies_with_steps(tx.session, [uid for uid, row in rows.items() if not row.instances])
        if fresh:
            _insert(tx.session, list(fresh.values()))
        for study in studies:
            uid = study.study_uid
            _move_on(tx, rows[uid], study, added[uid], is_new=uid in new, has_steps=uid in with_steps)
            _refresh(rows[uid], resent.get(uid))
        update_studies(tx.session, rows.values())
    return outcomes


def _compare(
    session: Session, instance: NewInstance, known: Mapping[str, KnownInstance], fresh: dict[str, NewInstance]
) -> Recorded:
    """What an instance is to the index; a new one goes to `fresh`."""
    row = known.get(instance.sop_instance_uid)
    present = row or fresh.get(instance.sop_instance_uid)
    if present is None:
        fresh[instance.sop_instance_uid] = instance
        return Recorded.NEW
    if present.path != instance.path:
        return Recorded.CONFLICT
    if row is not None:
        _correct(session, row, instance)
    return Recorded.KNOWN


def _resent(batches: Sequence[Batch], known: Mapping[str, KnownInstance]) -> dict[str, datetime]:
    """Study to when an instance of it came again that the index has had for long."""
    found: dict[str, datetime] = {}
    if not known:
        return found
    for instance in (instance for _, instances in batches for instance in instances):
        row = known.get(instance.sop_instance_uid)
        if row is not None and row.path == instance.path and instance.received_at - row.received_at > RESENT_AFTER:
            found[instance.study_uid] = max(instance.received_at, found.get(instance.study_uid, instance.received_at))
    return found


def _refresh(row: StudyRow, resent_at: datetime | None) -> None:
    """Have retention count from a repetition. In an open study it is no news: the quiet period counts new instances only."""
    if resent_at is not None and row.state == StudyState.COMPLETE:
        row.last_instance_at = max(row.last_instance_at, resent_at)


def _correct(session: Session, known: KnownInstance, instance: NewInstance) -> None:
    """A file that was lost, or deleted by retention, came again: the file is the truth. Otherwise there is nothing to correct."""
    same = (known.size, known.transfer_syntax_uid) == (instance.size, instance.transfer_syntax_uid)
    if same and known.purged_at is None:
        return
    present = session.get_one(Instance, known.sop_instance_uid)
    if present.purged_at is not None:
        study = _locked_study(session, present.study_uid)
        study.last_instance_at = max(study.last_instance_at, instance.received_at)
        present.purged_at, present.received_at = None, instance.received_at
        session.add(study)
    if not same:
        present.size, present.transfer_syntax_uid = instance.size, instance.transfer_syntax_uid
        present.sha256 = instance.sha256
    session.add(present)


def _move_on(
    tx: Transaction, row: StudyRow, study: NewStudy, added: Sequence[NewInstance], *, is_new: bool, has_steps: bool
) -> None:
    """Count new instances in their study, which our own results neither open nor count for.

    `has_steps`: procedure steps named the study before anything of it came.
    """
    counted = [instance for instance in added if not is_result_uid(instance.sop_instance_uid)]
    if not counted:
        if is_new:  # by auto-routing: a study that has nothing else yet has nothing to announce
            row.state = StudyState.COMPLETE
        return
    if study.patients > 1 or (study.patients and row.patient_key != study.patient_key):
        _tell_of_patients(tx, row)
    is_first = row.instances == 0
    was = StudyState(row.state)
    _apply(row, on_instances(progress_of(row), [instance.received_at for instance in counted]))
    if has_steps:
        row.ring_at = row.instances
    _mind_signals(tx, row, study.stated_instances, opened=is_first or was is StudyState.COMPLETE)
    row.accession_key = row.accession_key or study.accession_key
    row.calling_ae = study.calling_ae or row.calling_ae
    row.traceparent = study.traceparent or row.traceparent


def _tell_of_patients(tx: Transaction, row: StudyRow) -> None:
    """Once a study: what is scored and sent back as one patient's may be another's."""
    told = select(Audit.id).where(Audit.subject == row.study_key, Audit.action == PATIENTS_DIFFER).limit(1)
    if tx.session.exec(told).first() is None:
        tx.audit("dicom", PATIENTS_DIFFER, row.study_key)
        logger.warning(
            "ASM-316 study %s has objects with different patient IDs; it counts for the first one: compare them, ask the sender",
            row.study_key,
        )


def _insert(session: Session, instances: Sequence[NewInstance]) -> None:
    try:
        insert_instances(session, instances)
    except IntegrityError:
        raise LostRaceError from None


def _mind_signals(tx: Transaction, row: StudyRow, stated: int, *, opened: bool) -> None:
    """Have the study looked at: soon when it has just been opened, at once when this instance may be the last one awaited."""
    if stated > row.stated_instances:
        row.stated_instances = stated
        row.ring_at = min(stated, row.ring_at or stated)
    awaited = row.ring_at is not None and row.instances >= row.ring_at
    # Without a time to look at, somebody wanted it looked at while another transaction held it, and had to leave it out.
    passed_over = row.look_at is None and not opened
    if opened or awaited:
        row.look_at = None
    if awaited or passed_over:
        tx.ring(ASSEMBLY_BELL)


def studies_to_look_at(tx: Transaction, limit: int) -> Sequence[Study]:
    """Open studies whose time to be looked at has come, locked; those in use elsewhere are left out.

    One whose last instance is still to come had a wrong clock, and so has its time to be looked at.
    """
    now = tx.clock.now()
    due = sqlalchemy.or_(col(Study.look_at).is_(None), col(Study.look_at) <= now, col(Study.last_instance_at) > now)
    query = (
        select(Study)
        .where(col(Study.state) == StudyState.OPEN, due)
        .order_by(col(Study.look_at).nulls_first(), col(Study.study_uid))
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return tx.session.exec(query).all()


def save_progress(tx: Transaction, study: Study, progress: Progress) -> None:
    """Write a study's new state."""
    _apply(study, progress)
    tx.session.add(study)


def series_of(session: Session, study_uid: str) -> list[SeriesRow]:
    """Series of a study in order of their first instance; those of our own results are left out."""
    return series_of_studies(session, [study_uid]).get(study_uid, [])


def series_of_studies(session: Session, study_uids: Sequence[str]) -> dict[str, list[SeriesRow]]:
    """The same for several studies at once; one without series is left out."""
    uid, study, modality, body_part = (
        col(column) for column in (Instance.series_uid, Instance.study_uid, Instance.modality, Instance.body_part)
    )
    query = (
        sqlalchemy.select(study, uid, func.max(modality), func.max(body_part), func.count())
        .where(study.in_(study_uids))
        .group_by(study, uid)
        .order_by(func.min(col(Instance.received_at)), uid)
    )
    found: dict[str, list[SeriesRow]] = {}
    for row in session.execute(query):
        if not is_result_uid(row[1]):
            found.setdefault(row[0], []).append(SeriesRow(*row[1:]))
    return found


def paths_of_studies(session: Session, study_keys: Iterable[str]) -> set[str]:
    """Paths of all indexed files of some studies, without those that retention took out."""
    query = (
        select(Instance.path)
        .join(Study, col(Study.study_uid) == col(Instance.study_uid))
        .where(col(Study.study_key).in_(list(study_keys)), col(Instance.purged_at).is_(None))
    )
    return set(session.exec(query))


def paths_after(session: Session, sop_instance_uid: str, limit: int) -> list[tuple[str, str]]:
    """(SOPInstanceUID, path) of the next instances in order of their UID, to walk through the whole index."""
    query = (
        select(Instance.sop_instance_uid, Instance.path)
        .where(col(Instance.sop_instance_uid) > sop_instance_uid, col(Instance.purged_at).is_(None))
        .order_by(col(Instance.sop_instance_uid))
        .limit(limit)
    )
    return [(uid, path) for uid, path in session.exec(query)]


def has_purged_instances(session: Session, study_uid: str) -> bool:
    """Whether retention has taken some of the study's images out of the archive, which have not come again."""
    query = select(Instance.study_uid).where(col(Instance.study_uid) == study_uid, col(Instance.purged_at).is_not(None)).limit(1)
    return session.exec(query).first() is not None


def progress_of(study: Study | StudyRow) -> Progress:
    """The state machine's view of a row."""
    return Progress(StudyState(study.state), study.revision, study.instances, study.last_instance_at, study.opened_at)


def _apply(study: Study | StudyRow, progress: Progress) -> None:
    study.state = progress.state
    study.revision = progress.revision
    study.instances = progress.instances
    study.last_instance_at = progress.last_instance_at
    study.opened_at = progress.opened_at


def _studies_of(session: Session, studies: Sequence[NewStudy]) -> tuple[dict[str, StudyRow], set[str]]:
    """Rows of studies, locked in the order of their UIDs, and the UIDs of those that are new."""
    uids = [study.study_uid for study in studies]
    rows = locked_studies(session, uids)
    missing = [study for study in studies if study.study_uid not in rows]
    if not missing:
        return rows, set()
    new = insert_studies(session, missing)
    return locked_studies(session, uids), new


def _locked_study(session: Session, study_uid: str) -> Study:
    return session.exec(select(Study).where(col(Study.study_uid) == study_uid).with_for_update()).one()
