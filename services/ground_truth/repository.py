"""All SQL of the join: set-based, the same on SQLite and PostgreSQL (`services.ground_truth.statements`).

Lock order on PostgreSQL, always the same, so that consumers never wait in a circle: studies (sorted), their rows, then
model versions (sorted). Whoever holds a version skips locked rows instead of waiting for them. SQLite has one writer.
"""

import hashlib
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final, NamedTuple

import orjson
from sqlalchemy import ARRAY, BigInteger, Table, and_, bindparam, func, text, type_coerce
from sqlalchemy.dialects.sqlite import VARCHAR
from sqlalchemy.types import TIMESTAMP
from sqlmodel import Session, col, select

from schemas.tables import OPEN_CASE, Batch, Case, Inbox, ModelVersion, RegisteredModel
from schemas.vocabulary import CaseRole, CaseState, VersionState
from services.ground_truth.domain import CaseKey
from services.ground_truth.reading import texts_of
from services.ground_truth.sayings import Said, SourceKey
from services.ground_truth.statements import (
    CASE_COLUMNS,
    DOCUMENTS,
    KNOWN_CASES,
    KNOWN_LABELS,
    LABEL_COLUMNS,
    ROLES,
    SET_TRUTHS,
    STORE_CASES,
    STORE_LABELS,
    TRUTH_COLUMNS,
)
from services.runtime.rows import json_text, on_sqlite, several

Version = tuple[str, int]
"""(model, version)"""
CHUNK: Final = 1000
MOST_AT_ONCE: Final = 1024
"""Rows of one statement on SQLite: a power of two, so that few are compiled; it may have 32,766 values."""
STUDY_LOCKS: Final = 512
_CASE: Table = Case.__table__  # type: ignore[attr-defined]
_BATCH_ENTRY: Final = Batch.__table__.insert()  # type: ignore[attr-defined]
_AS_STORED: Final = TIMESTAMP(timezone=True).with_variant(VARCHAR(), "sqlite")
"""Times as texts on SQLite: they are only compared, and thousands of them take long to convert."""
Values = tuple[Any, ...]
Truth = tuple[CaseState, str | None, str | None]
"""State, truth and batch of a case."""


class KnownCase(NamedTuple):
    """A stored case. `acquired_at` is a text that sorts as the times do."""

    study_key: str
    model: str
    version: int
    task: str
    state: str
    role: str
    serving: bool
    truth: str | None
    batch_id: str | None
    revision: int
    acquired_at: str


def classes_by_task(session: Session, tasks: Collection[str]) -> dict[str, list[str]]:
    """Classes of all registered models for each task that any of them knows, those of versions that do not serve among them.

    A version with a new class can pass the gate only when labels of that class have come before it serves.
    """
    known: dict[str, list[str]] = {}
    query = (
        select(RegisteredModel.task, RegisteredModel.classes, ModelVersion.classes)
        .join(
            ModelVersion,
            and_(col(ModelVersion.model) == col(RegisteredModel.name), col(ModelVersion.state) != VersionState.RETIRED),
            isouter=True,
        )
        .where(col(RegisteredModel.task).in_(tasks))
        .order_by(RegisteredModel.name, col(ModelVersion.version))
    )
    for task, *listed in session.exec(query):
        classes = known.setdefault(task, [])
        classes.extend(dict.fromkeys(name for names in listed for name in names or () if name not in classes))
    return known


def known_tasks(session: Session) -> list[str]:
    """Tasks of all registered models, in order."""
    return sorted(set(session.exec(select(RegisteredModel.task))))


def look_up_by_key(session: Session) -> None:
    """Have PostgreSQL find the rows of this transaction by index.

    Its statistics lag behind a table that grows by thousands of rows a transaction; by them a scan of all rows for every
    row looks cheap, which makes the join a hundred times slower until the next ANALYZE.
    """
    if not on_sqlite(session):
        session.execute(text("SELECT set_config('enable_seqscan', 'off', true)"))


def lock_studies(session: Session, studies: Collection[str]) -> None:
    """Let one transaction at a time join a study: else a prediction and its label, stored by two consumers, miss each other.

    Studies share `STUDY_LOCKS` locks, because PostgreSQL has room for some thousands and a batch has thousands of studies.
    """
    if not on_sqlite(session):
        _lock(session, sorted({zlib.crc32(study.encode()) % STUDY_LOCKS for study in studies}))


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
    return {patient: CaseRole(role) for patient, role in _rows(session, ROLES, sorted(patients))}


def known_cases(session: Session, studies: Sequence[str]) -> list[KnownCase]:
    """The stored cases of these studies, locked."""
    return [*map(KnownCase._make, _timed(session, _rows(session, KNOWN_CASES, studies)))]


def known_labels(session: Session, studies: Sequence[str]) -> dict[SourceKey, Said]:
    """The newest label of each source."""
    return {row[:3]: Said._make(row) for row in map(tuple, _timed(session, _rows(session, KNOWN_LABELS, studies)))}


def remembered(session: Session, consumer: str, identities: Collection[str]) -> set[str]:
    """Those of the statements that are remembered."""
    query = select(Inbox.event_id).where(Inbox.consumer == consumer)
    return {found for chunk in _chunks(identities) for found in session.exec(query.where(col(Inbox.event_id).in_(chunk)))}


def store_cases(session: Session, rows: Sequence[Values]) -> None:
    """Enter cases (`CASE_COLUMNS`); a higher revision replaces the score of a case that is in no batch yet."""
    _store(session, STORE_CASES, CASE_COLUMNS, rows)


def store_labels(session: Session, labels: Sequence[Said], received: str) -> None:
    """Enter what sources say, in place of what they said; a withdrawal is a label without a value."""
    rows = [(*label, received) for label in labels]
    _store(session, STORE_LABELS, LABEL_COLUMNS, rows)


def set_truths(session: Session, changes: Sequence[tuple[CaseKey, Truth]], joined_at: str) -> None:
    """Write the decided truths with the states and batches that follow from them; the first truth sets `joined_at`."""
    rows = [(truth, state, batch, joined_at, *key) for key, (state, truth, batch) in changes]
    _store(session, SET_TRUTHS, TRUTH_COLUMNS, rows)


def clear_truths(session: Session, cases: Mapping[CaseKey, CaseState]) -> None:
    """Take the truth from cases, which get these states and stay in their batches. Withdrawals are few: case by case."""
    for (study, model, version), state in sorted(cases.items()):
        same = (_CASE.c.study_key == study, _CASE.c.model == model, _CASE.c.version == version)
        session.execute(_CASE.update().where(*same).values(truth=None, joined_at=None, state=state))


def _store(session: Session, statement: Mapping[str, str], columns: Sequence[str], rows: Sequence[Values]) -> None:
    if not on_sqlite(session):
        if rows:
            _run(session, statement, (_records(columns, rows),))
        return
    connection, start = session.connection(), 0
    while start < len(rows):
        size = _at_once(len(rows) - start)
        part = rows[start : start + size]
        if len(part) < size:
            part = [*part, *[part[-1]] * (size - len(part))]
        values: list[Any] = []
        for row in part:
            values += row  # little more than half the time of a chain
        connection.exec_driver_sql(several(statement["sqlite"], len(columns), size), tuple(values))
        start += size


def _at_once(rows: int) -> int:
    """Rows of the next statement: rather some more, as repetitions of the last row, than another statement.

    They change nothing, and after each statement the interpreter's lock has to be waited for.
    """
    more = 1 << (rows - 1).bit_length()
    return min(MOST_AT_ONCE, more if rows * 4 >= more * 3 else more // 2)


def _records(columns: Sequence[str], rows: Sequence[Values]) -> str:
    documents = [place for place, column in enumerate(columns) if column in DOCUMENTS]
    return json_text([dict(zip(columns, _embedded(row, documents), strict=True)) for row in rows])


def _embedded(row: Values, documents: Sequence[int]) -> Sequence[Any]:
    """A row with its JSON texts as parts of a document."""
    if not documents:
        return row
    values = list(row)
    for place in documents:
        values[place] = orjson.Fragment(values[place])
    return values


def _rows(session: Session, statement: Mapping[str, str], keys: Sequence[str]) -> Sequence[Values]:
    """Rows of these studies or patients, as the database has them."""
    if not keys:
        return ()
    found = _run(session, statement, (json_text(keys),))
    rows: Sequence[Values] = orjson.loads(found.scalar_one()) if on_sqlite(session) else found.cursor.fetchall()
    return rows


def _run(session: Session, statement: Mapping[str, str], values: Values) -> Any:
    dialect = "sqlite" if on_sqlite(session) else "postgresql"
    return session.connection().exec_driver_sql(statement[dialect], values)


def _timed(session: Session, rows: Sequence[Values]) -> Sequence[Values]:
    """Rows with their time, which stands last, as the text that SQLite has."""
    if on_sqlite(session):
        return rows
    return [(*row[:-1], time) for row, time in zip(rows, texts_of([row[-1] for row in rows]), strict=True)]


def count_open(session: Session, version: Version) -> int:
    """Labelled trigger cases of this version that are in no batch."""
    query = select(func.count()).select_from(Case).where(Case.model == version[0], Case.version == version[1], OPEN_CASE)
    return int(session.exec(query).one())


def open_cases(session: Session, version: Version, limit: int) -> list[tuple[str, str]]:
    """(acquired_at as text, study) of the open cases acquired first. Cases another transaction is changing are left for it."""
    query = (
        select(type_coerce(_CASE.c.acquired_at, _AS_STORED), Case.study_key)
        .where(Case.model == version[0], Case.version == version[1], OPEN_CASE)
        .order_by(col(Case.acquired_at), col(Case.study_key))
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [(at, study) for study, at in _timed(session, [(study, at) for at, study in session.execute(query)])]


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


def store_batch(session: Session, batch: Batch) -> None:
    """Enter a batch."""
    session.execute(_BATCH_ENTRY, batch.model_dump())


def enter_batch(session: Session, batch: Batch, studies: Collection[str], state: CaseState) -> None:
    """Put these cases of the batch's version into it."""
    update = _CASE.update().values(state=state, batch_id=batch.batch_id)
    mine = (_CASE.c.model == batch.model, _CASE.c.version == batch.version)
    for chunk in _chunks(studies):
        session.execute(update.where(*mine, _CASE.c.study_key.in_(chunk)))


def batches(session: Session, batch_ids: Collection[str]) -> Sequence[Batch]:
    """Batches by id, in id order."""
    return session.exec(select(Batch).where(col(Batch.batch_id).in_(batch_ids)).order_by(Batch.batch_id)).all()


def _chunks(values: Collection[str]) -> Iterator[list[str]]:
    iterator = iter(sorted(values))
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
