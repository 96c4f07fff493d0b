"""All SQL of the join: set-based, the same statements on SQLite and PostgreSQL.

Lock order on PostgreSQL, always the same, so that consumers never wait in a circle: studies (sorted), their rows, then
model versions (sorted). Whoever holds a version skips locked rows instead of waiting for them. SQLite has one writer.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from sqlalchemy import ARRAY, BigInteger, Table, bindparam, func, or_, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, col, select

from schemas.events import Label, Prediction
from schemas.tables import OPEN_CASE, Batch, Case, GroundTruth, RegisteredModel
from schemas.vocabulary import CaseRole, CaseState
from services.ground_truth.domain import CaseKey, StoredLabel, StudyTask
from services.ground_truth.states import RESCORABLE

Version = tuple[str, int]
"""(model, version)"""
CHUNK = 1000
_CASE: Table = Case.__table__  # type: ignore[attr-defined]
_TRUTH: Table = GroundTruth.__table__  # type: ignore[attr-defined]


def classes_by_task(session: Session, tasks: Collection[str]) -> dict[str, list[str]]:
    """Classes of all registered models for each task that any of them knows."""
    known: dict[str, list[str]] = {}
    query = select(RegisteredModel).where(col(RegisteredModel.task).in_(tasks)).order_by(RegisteredModel.name)
    for model in session.exec(query):
        classes = known.setdefault(model.task, [])
        classes.extend(name for name in model.classes if name not in classes)
    return known


def known_tasks(session: Session) -> list[str]:
    """Tasks of all registered models, in order."""
    return sorted(set(session.exec(select(RegisteredModel.task))))


def lock_studies(session: Session, studies: Iterable[str]) -> None:
    """Let one transaction at a time join a study: else a prediction and its label, stored by two consumers, miss each other."""
    _lock(session, sorted(_lock_number(f"study\x1e{study}") for study in studies))


def lock_version(session: Session, version: Version) -> None:
    """Let one transaction at a time count and close batches of a model version."""
    _lock(session, [_lock_number(f"version\x1e{version[0]}\x1e{version[1]}")])


def _lock_number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def _lock(session: Session, numbers: Sequence[int]) -> None:
    if session.get_bind().dialect.name != "postgresql":
        return
    statement = text("SELECT count(pg_advisory_xact_lock(number)) FROM unnest(:numbers) AS wanted (number)")
    session.execute(statement.bindparams(bindparam("numbers", list(numbers), type_=ARRAY(BigInteger))))


def roles_of(session: Session, patients: Collection[str]) -> dict[str, CaseRole]:
    """Roles already given, which hold also after the shares in the settings have changed."""
    query = select(Case.patient_key, func.min(Case.role)).group_by(Case.patient_key)
    rows = (row for chunk in _chunks(patients) for row in session.exec(query.where(col(Case.patient_key).in_(chunk))))
    return {patient: CaseRole(role) for patient, role in rows}


def store_predictions(session: Session, predictions: Sequence[Prediction], roles: dict[str, CaseRole]) -> None:
    """Upsert scores: a higher revision replaces the score of a case that is in no batch yet."""
    insert = _insert(session, _CASE)
    new = insert.excluded
    kept = {"study_key", "model", "version", "state", "truth", "batch_id", "joined_at"}
    replaced = {column.name: new[column.name] for column in _CASE.columns if column.name not in kept}
    statement = insert.on_conflict_do_update(
        index_elements=["study_key", "model", "version"],
        set_=replaced,
        where=(new.revision > _CASE.c.revision) & or_(*(_CASE.c.state == state for state in sorted(RESCORABLE))),
    )
    if predictions:
        session.connection().execute(statement, [_case_row(item, roles[item.patient_key]) for item in predictions])


def _case_row(item: Prediction, role: CaseRole) -> dict[str, Any]:
    row = item.model_dump(include={*_CASE.columns.keys()})
    return row | {"findings": list(item.findings), "role": role, "state": CaseState.WAITING}


def store_labels(session: Session, labels: Sequence[Label], now: datetime) -> None:
    """Upsert each source's newest label; an older one than the stored is ignored."""
    insert = _insert(session, _TRUTH)
    new = insert.excluded
    statement = insert.on_conflict_do_update(
        index_elements=["study_key", "task", "source"],
        set_={"value": new.value, "labelled_at": new.labelled_at, "received_at": new.received_at},
        where=new.labelled_at >= _TRUTH.c.labelled_at,
    )
    if labels:
        session.connection().execute(statement, [item.model_dump() | {"received_at": now} for item in labels])


def _insert(session: Session, table: Table) -> Any:
    return postgresql.insert(table) if session.get_bind().dialect.name == "postgresql" else sqlite.insert(table)


def labels_of(session: Session, studies: Collection[str]) -> dict[StudyTask, list[StoredLabel]]:
    """The newest labels of all sources for these studies."""
    found: dict[StudyTask, list[StoredLabel]] = {}
    for chunk in _chunks(studies):
        for row in session.execute(_TRUTH.select().where(_TRUTH.c.study_key.in_(chunk))):
            found.setdefault((row.study_key, row.task), []).append(StoredLabel(row.value, row.source, row.labelled_at))
    return found


def cases_of(session: Session, studies: Collection[str]) -> Iterator[Any]:
    """Rows (study_key, model, version, task, state, role, serving, truth, batch_id) of these studies, locked, in key order."""
    names = ("study_key", "model", "version", "task", "state", "role", "serving", "truth", "batch_id")
    key = (_CASE.c.study_key, _CASE.c.model, _CASE.c.version)
    query = _CASE.select().with_only_columns(*(_CASE.c[name] for name in names)).order_by(*key).with_for_update()
    for chunk in _chunks(studies):
        yield from session.execute(query.where(_CASE.c.study_key.in_(chunk))).all()


def set_truths(session: Session, changes: Sequence[tuple[CaseKey, CaseState, str]], now: datetime) -> None:
    """Write the decided truths and the states that follow from them; the first truth sets `joined_at`."""
    statement = (
        _CASE.update()
        .where(_CASE.c.study_key == bindparam("k"), _CASE.c.model == bindparam("m"), _CASE.c.version == bindparam("v"))
        .values(
            truth=bindparam("t"),
            state=bindparam("s"),
            joined_at=func.coalesce(_CASE.c.joined_at, bindparam("j", type_=_CASE.c.joined_at.type)),
        )
    )
    rows = [{"k": key[0], "m": key[1], "v": key[2], "s": state, "t": truth, "j": now} for key, state, truth in changes]
    if rows:
        session.connection().execute(statement, rows)


def count_open(session: Session, version: Version) -> int:
    """Labelled trigger cases of this version that are in no batch."""
    query = select(func.count()).select_from(Case).where(Case.model == version[0], Case.version == version[1], OPEN_CASE)
    return int(session.exec(query).one())


def open_studies(session: Session, version: Version, limit: int) -> list[str]:
    """Studies of the open cases that were acquired first. Cases that another transaction is changing are left for it."""
    query = (
        select(Case.study_key)
        .where(Case.model == version[0], Case.version == version[1], OPEN_CASE)
        .order_by(col(Case.acquired_at), col(Case.study_key))
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return list(session.exec(query))


def overdue_versions(session: Session, now: datetime, max_age_s: float) -> list[Version]:
    """Versions with an open case that has waited for longer than the maximal age."""
    # The order is the index's: it makes SQLite walk the small index of open cases instead of all cases.
    order = (col(Case.model), col(Case.version), col(Case.joined_at))
    limit = now - timedelta(seconds=max_age_s)
    open_cases = session.exec(select(*order).where(OPEN_CASE).order_by(*order))
    return sorted({(model, version) for model, version, joined_at in open_cases if joined_at is not None and joined_at <= limit})


def next_number(session: Session, version: Version) -> int:
    """Number of the version's next batch."""
    query = select(func.max(Batch.number)).where(Batch.model == version[0], Batch.version == version[1])
    return int(session.exec(query).one() or 0) + 1


def enter_batch(session: Session, version: Version, batch: Batch, studies: Collection[str], state: CaseState) -> None:
    """Store the batch and put its cases into it."""
    session.add(batch)
    session.flush()
    update = _CASE.update().values(state=state, batch_id=batch.batch_id)
    for chunk in _chunks(studies):
        mine = _CASE.c.study_key.in_(chunk)
        session.execute(update.where(_CASE.c.model == version[0], _CASE.c.version == version[1], mine))


def batches(session: Session, batch_ids: Collection[str]) -> Sequence[Batch]:
    """Batches by id, in id order."""
    return session.exec(select(Batch).where(col(Batch.batch_id).in_(batch_ids)).order_by(Batch.batch_id)).all()


def _chunks(values: Collection[str]) -> Iterator[list[str]]:
    iterator = iter(sorted(values))
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
