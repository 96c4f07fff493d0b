"""All SQL about what modalities say of their instances: performed procedure steps and storage commitment requests.

Lock order is step or request, then study, as nobody who holds a study takes one of the others.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import Final

from sqlalchemy import ColumnElement, Select, and_, delete, distinct, func, or_, select, update
from sqlalchemy.orm import Mapped, aliased
from sqlmodel import Session, col

from schemas.announcements import Commitment, NamedInstance, PerformedStep, StepStudy
from schemas.tables import Instance, Study
from schemas.vocabulary import CommitmentState, CompletedBy, StepState, StudyState
from services.assembly.commitments import LONGEST_RETRY_S, Reference, Request, Stored
from services.assembly.conflict_repository import set_aside_of
from services.assembly.repository import ASSEMBLY_BELL
from services.assembly.rules import Named
from services.runtime.lease import is_over
from services.runtime.transaction import Transaction

_UIDS_AT_ONCE: Final = 500
REPORTER_BELL: Final = "commitment"
"""Rung when a report is owed."""


@dataclass(frozen=True)
class OwedReport:
    """A report that is due, claimed by the caller."""

    transaction_uid: str
    peer_ae: str
    own_ae: str
    attempts: int
    created_at: datetime


@dataclass(frozen=True)
class KnownStep:
    """A performed procedure step as the last request left it. `calling_ae` is the title that created it."""

    state: StepState
    calling_ae: str


def step_of(tx: Transaction, step_uid: str) -> KnownStep | None:
    """A step, which stays locked; None when there is none."""
    columns = (col(PerformedStep.state), col(PerformedStep.calling_ae))
    row = tx.session.execute(select(*columns).where(col(PerformedStep.sop_instance_uid) == step_uid).with_for_update()).first()
    return KnownStep(StepState(row[0]), row[1]) if row else None


def insert_step(tx: Transaction, step_uid: str, studies: Iterable[str], calling_ae: str) -> bool:
    """Enter a new step in progress; False when there is one of this UID."""
    now = tx.clock.now()
    step = PerformedStep(sop_instance_uid=step_uid, calling_ae=calling_ae, created_at=now, updated_at=now)
    if not tx.insert_new(PerformedStep, [step], returning="sop_instance_uid"):
        return False
    links = [StepStudy(step_uid=step_uid, study_uid=study) for study in dict.fromkeys(studies)]
    tx.insert_new(StepStudy, links, returning="study_uid")
    return True


def save_step(tx: Transaction, step_uid: str, state: StepState) -> None:
    """Write a step's state. One that has ended may complete its studies: they are looked at at once."""
    values = {"state": state, "updated_at": tx.clock.now()}
    tx.session.execute(update(PerformedStep).where(col(PerformedStep.sop_instance_uid) == step_uid).values(**values))
    if state is not StepState.IN_PROGRESS:
        _look_at(tx, col(Study.study_uid).in_(select(col(StepStudy.study_uid)).where(col(StepStudy.step_uid) == step_uid)))


def replace_named(tx: Transaction, kind: CompletedBy, source: str, references: Iterable[Reference]) -> None:
    """Write which instances a step or a request names, instead of those that it named before."""
    named = (col(NamedInstance.kind) == kind, col(NamedInstance.source) == source)
    tx.session.execute(delete(NamedInstance).where(*named))
    rows = [
        NamedInstance(kind=kind, source=source, sop_instance_uid=item.sop_instance_uid, sop_class_uid=item.sop_class_uid)
        for item in references
    ]
    tx.insert_new(NamedInstance, rows, returning="sop_instance_uid")


def studies_with_steps(session: Session, study_uids: Sequence[str]) -> set[str]:
    """Which of some studies a modality has announced a step of."""
    query = select(col(StepStudy.study_uid)).where(col(StepStudy.study_uid).in_(study_uids)).distinct()
    return set(session.scalars(query))


def named_by_steps(session: Session, study: Study, now: datetime, longest_open: timedelta) -> Named:
    """What the performed procedure steps of a study name. A step that has been in progress for too long does not count."""
    query = (
        select(col(PerformedStep.state), col(PerformedStep.updated_at))
        .join(StepStudy, col(StepStudy.step_uid) == col(PerformedStep.sop_instance_uid))
        .where(col(StepStudy.study_uid) == study.study_uid)
    )
    steps = [(StepState(state), at) for state, at in session.execute(query)]
    in_progress = sum(state is StepState.IN_PROGRESS and at >= now - longest_open for state, at in steps)
    ended = [at for state, at in steps if state is StepState.COMPLETED]
    if not ended:
        return Named(in_progress)
    named, stored, last = session.execute(_named_and_stored(study.study_uid)).one()
    since = study.announced_at
    return Named(in_progress, named, named - stored, since is None or max(*ended, last or since) > since)


def _named_and_stored(study_uid: str) -> Select[int, int, datetime]:
    """How many instances the completed steps of a study name, how many of them are stored in it, and when the last came.

    Those of a group case that lie in another study of the same step are not counted; any other study's are missing here.
    """
    siblings, elsewhere = aliased(StepStudy), aliased(Instance)
    in_sibling = (
        select(col(elsewhere.sop_instance_uid))
        .join(siblings, col(siblings.study_uid) == col(elsewhere.study_uid))
        .where(
            col(elsewhere.sop_instance_uid) == col(NamedInstance.sop_instance_uid),
            col(elsewhere.study_uid) != study_uid,
            col(siblings.step_uid) == col(StepStudy.step_uid),
        )
        .correlate(NamedInstance, StepStudy)
    )
    stored = and_(col(Instance.sop_instance_uid) == col(NamedInstance.sop_instance_uid), col(Instance.study_uid) == study_uid)
    return (
        select(
            func.count(distinct(col(NamedInstance.sop_instance_uid))),
            func.count(distinct(col(Instance.sop_instance_uid))),
            func.max(col(Instance.received_at)),
        )
        .select_from(StepStudy)
        .join(PerformedStep, col(PerformedStep.sop_instance_uid) == col(StepStudy.step_uid))
        .join(NamedInstance, col(NamedInstance.source) == col(StepStudy.step_uid))
        .outerjoin(Instance, stored)
        .where(
            ~in_sibling.exists(),
            col(StepStudy.study_uid) == study_uid,
            col(NamedInstance.kind) == CompletedBy.MPPS,
            col(PerformedStep.state) == StepState.COMPLETED,
        )
    )


def count_uncommitted(session: Session, study_uid: str) -> int:
    """Stored instances of a study for which nobody has asked commitment."""
    asked = select(col(NamedInstance.sop_instance_uid)).where(
        col(NamedInstance.kind) == CompletedBy.STORAGE_COMMITMENT,
        col(NamedInstance.sop_instance_uid) == col(Instance.sop_instance_uid),
    )
    query = select(func.count()).select_from(Instance).where(col(Instance.study_uid) == study_uid, ~asked.exists())
    return int(session.execute(query).scalar_one())


def digest_of(session: Session, transaction_uid: str) -> str | None:
    """Digest of the request of this Transaction UID, if there is one."""
    return session.execute(
        select(col(Commitment.digest)).where(col(Commitment.transaction_uid) == transaction_uid)
    ).scalar_one_or_none()


def insert_commitment(tx: Transaction, request: Request) -> bool:
    """Enter a request; its report is owed from now on. False when there is one of this Transaction UID."""
    now = tx.clock.now()
    row = Commitment(
        transaction_uid=request.transaction_uid,
        digest=request.digest,
        peer_ae=request.peer_ae,
        own_ae=request.own_ae,
        next_at=now,
        created_at=now,
        updated_at=now,
    )
    if not tx.insert_new(Commitment, [row], returning="transaction_uid"):
        return False
    replace_named(tx, CompletedBy.STORAGE_COMMITMENT, request.transaction_uid, request.references)
    mark_committed(tx, request.transaction_uid)
    tx.ring(REPORTER_BELL)
    return True


def owe_again(tx: Transaction, transaction_uid: str) -> None:
    """The peer has asked once more: the report is owed anew, unless it still is."""
    now = tx.clock.now()
    anew = {"state": CommitmentState.OWED, "attempts": 0, "next_at": now, "created_at": now, "updated_at": now}
    done = (col(Commitment.transaction_uid) == transaction_uid, col(Commitment.state) != CommitmentState.OWED)
    tx.session.execute(update(Commitment).where(*done).values(**anew))


def mark_committed(tx: Transaction, transaction_uid: str) -> None:
    """Note at the studies of which the request names stored instances that we have answered for them; look at the open ones.

    Retention keeps what is noted, so a study that is complete already is noted too.
    """
    theirs = (
        select(col(Instance.study_uid))
        .join(NamedInstance, col(NamedInstance.sop_instance_uid) == col(Instance.sop_instance_uid))
        .where(col(NamedInstance.kind) == CompletedBy.STORAGE_COMMITMENT, col(NamedInstance.source) == transaction_uid)
    )
    named = col(Study.study_uid).in_(theirs)
    noting = update(Study).where(named).values(committed_at=tx.clock.now())
    tx.session.execute(noting.execution_options(synchronize_session=False))
    _look_at(tx, named)


def has_reports_due(session: Session, now: datetime) -> bool:
    """Whether there is anything to claim."""
    return session.execute(select(col(Commitment.transaction_uid)).where(*_is_due(now)).limit(1)).first() is not None


def _is_due(now: datetime) -> tuple[ColumnElement[bool], ...]:
    return col(Commitment.state) == CommitmentState.OWED, is_over(col(Commitment.next_at), now, LONGEST_RETRY_S)


def claim_reports(tx: Transaction, lease: timedelta, limit: int) -> list[OwedReport]:
    """Reports that are due; nobody else gets them before the lease is over."""
    now = tx.clock.now()
    query = (
        select(Commitment)
        .where(*_is_due(now))
        .order_by(col(Commitment.next_at), col(Commitment.transaction_uid))
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    claimed = []
    for row in tx.session.scalars(query):
        row.next_at = now + lease
        claimed.append(OwedReport(row.transaction_uid, row.peer_ae, row.own_ae, row.attempts, row.created_at))
    tx.session.flush()
    return claimed


def postpone(tx: Transaction, transaction_uid: str, until: datetime, attempts: int) -> None:
    """Try to deliver a report again later."""
    _save_commitment(tx, transaction_uid, next_at=until, attempts=attempts)


def settle(tx: Transaction, transaction_uid: str, state: CommitmentState, attempts: int) -> None:
    """A report has been delivered, or given up."""
    _save_commitment(tx, transaction_uid, state=state, attempts=attempts)


def _save_commitment(tx: Transaction, transaction_uid: str, **values: object) -> None:
    values["updated_at"] = tx.clock.now()
    tx.session.execute(update(Commitment).where(col(Commitment.transaction_uid) == transaction_uid).values(**values))


def references_of(session: Session, transaction_uid: str) -> list[Reference]:
    """The instances that a commitment request names, in order of their UID."""
    query = (
        select(col(NamedInstance.sop_class_uid), col(NamedInstance.sop_instance_uid))
        .where(col(NamedInstance.kind) == CompletedBy.STORAGE_COMMITMENT, col(NamedInstance.source) == transaction_uid)
        .order_by(col(NamedInstance.sop_instance_uid))
    )
    return [Reference(*row) for row in session.execute(query)]


def stored_of(session: Session, sop_instance_uids: Sequence[str]) -> dict[str, Stored]:
    """What the index knows of some instances."""
    columns = (Instance.sop_instance_uid, Instance.sop_class_uid, Instance.path, Instance.size)
    found: dict[str, Stored] = {}
    for start in range(0, len(sop_instance_uids), _UIDS_AT_ONCE):
        wanted = sop_instance_uids[start : start + _UIDS_AT_ONCE]
        rows = session.execute(select(*columns).where(col(Instance.sop_instance_uid).in_(wanted)))  # type: ignore[call-overload]
        known = [(uid, sop_class, PurePosixPath(path), size) for uid, sop_class, path, size in rows]
        aside = set_aside_of(session, [path.stem for _, _, path, _ in known])
        found |= {uid: Stored(sop_class, path, size, tuple(aside.get(path.stem, ()))) for uid, sop_class, path, size in known}
    return found


def forget(tx: Transaction, before: datetime, limit: int = 1000) -> int:
    """Delete steps and settled requests that nobody has touched since `before`, at most `limit` of each; returns how many."""
    old_steps = select(col(PerformedStep.sop_instance_uid)).where(col(PerformedStep.updated_at) < before).limit(limit)
    settled = (col(Commitment.state) != CommitmentState.OWED, col(Commitment.updated_at) < before)
    old_requests = select(col(Commitment.transaction_uid)).where(*settled).limit(limit)
    steps, requests = list(tx.session.scalars(old_steps)), list(tx.session.scalars(old_requests))
    for kind, sources in ((CompletedBy.MPPS, steps), (CompletedBy.STORAGE_COMMITMENT, requests)):
        _delete(tx, NamedInstance, (col(NamedInstance.kind) == kind, _among(col(NamedInstance.source), sources)))
    _delete(tx, StepStudy, (_among(col(StepStudy.step_uid), steps),))
    _delete(tx, PerformedStep, (_among(col(PerformedStep.sop_instance_uid), steps),))
    _delete(tx, Commitment, (_among(col(Commitment.transaction_uid), requests),))
    return len(steps) + len(requests)


def _delete(tx: Transaction, table: type, where: tuple[ColumnElement[bool], ...]) -> None:
    tx.session.execute(delete(table).where(*where))


def _among(column: Mapped[str], values: Collection[str]) -> ColumnElement[bool]:
    chunks = [list(values)[start : start + _UIDS_AT_ONCE] for start in range(0, len(values), _UIDS_AT_ONCE)] or [[]]
    return or_(*(column.in_(chunk) for chunk in chunks))


def _look_at(tx: Transaction, which: ColumnElement[bool]) -> None:
    statement = update(Study).where(which, col(Study.state) == StudyState.OPEN).values(look_at=None)
    tx.session.execute(statement.execution_options(synchronize_session=False))
    tx.ring(ASSEMBLY_BELL)
