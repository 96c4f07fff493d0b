"""All SQL of the join: set-based, the same on SQLite and PostgreSQL (`services.ground_truth.statements`).

Lock order on PostgreSQL, always the same, so that consumers never wait in a circle: studies (sorted), their rows, then
model versions (sorted). Whoever holds a version skips locked rows instead of waiting for them. SQLite has one writer.
"""

import hashlib
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import chain, islice
from typing import Any, Final, NamedTuple

import orjson
from sqlalchemy import ARRAY, BigInteger, Table, and_, bindparam, func, text, type_coerce
from sqlalchemy.dialects.sqlite import VARCHAR
from sqlalchemy.types import TIMESTAMP
from sqlmodel import Session, col, select

from schemas.events import Label, Prediction
from schemas.tables import OPEN_CASE, Batch, Case, ModelVersion, RegisteredModel
from schemas.vocabulary import CaseRole, CaseState, VersionState
from services.ground_truth.domain import CaseKey, StoredLabel
from services.ground_truth.statements import (
    CASE_COLUMNS,
    KNOWN_CASES,
    KNOWN_LABELS,
    LABEL_COLUMNS,
    ROLES,
    SET_TRUTHS,
    STORE_CASES,
    STORE_LABELS,
    TRUTH_COLUMNS,
)

Version = tuple[str, int]
"""(model, version)"""
CHUNK: Final = 1000
AT_ONCE: Final = tuple(2**power for power in range(10, -1, -1))
"""Rows of one statement on SQLite: compiled once each, and run without the interpreter's lock, which takes long to get back."""
STUDY_LOCKS: Final = 512
_CASE: Table = Case.__table__  # type: ignore[attr-defined]
_BATCH_ENTRY: Final = Batch.__table__.insert()  # type: ignore[attr-defined]
_AS_STORED: Final = TIMESTAMP(timezone=True).with_variant(VARCHAR(), "sqlite")
"""Times as texts on SQLite: they are only compared, and thousands of them take long to convert."""
Values = tuple[Any, ...]
Truth = tuple[CaseState, str | None, str | None]
"""State, truth and batch of a case."""


class KnownCase(NamedTuple):
    """A case that is stored or about to be. `acquired_at` is as stored: comparable with others and nothing else."""

    study_key: str
    model: str
    version: int
    task: str
    state: str
    role: str
    serving: bool
    truth: str | None
    batch_id: str | None
    acquired_at: Any


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
    if not _on_sqlite(session):
        session.execute(text("SELECT set_config('enable_seqscan', 'off', true)"))


def lock_studies(session: Session, studies: Iterable[str]) -> None:
    """Let one transaction at a time join a study: else a prediction and its label, stored by two consumers, miss each other.

    Studies share `STUDY_LOCKS` locks, because PostgreSQL has room for some thousands and a batch has thousands of studies.
    """
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
    return {patient: CaseRole(role) for patient, role in _rows(session, ROLES, patients)}


def known_cases(session: Session, studies: Collection[str]) -> list[KnownCase]:
    """The stored cases of these studies, locked, in key order."""
    return [*map(KnownCase._make, _rows(session, KNOWN_CASES, studies))]


def known_labels(session: Session, studies: Collection[str]) -> dict[tuple[str, str], list[StoredLabel]]:
    """The newest label of each source, by study and task."""
    found: dict[tuple[str, str], list[StoredLabel]] = {}
    for study, task, value, source, labelled_at in _rows(session, KNOWN_LABELS, studies):
        found.setdefault((study, task), []).append(StoredLabel(value, source, labelled_at))
    return found


def score_rows(session: Session, predictions: Sequence[Prediction], roles: Mapping[str, CaseRole]) -> list[Values]:
    """Scores in the order of `SCORE_COLUMNS`, as they are stored."""
    on_sqlite = _on_sqlite(session)
    document = _json if on_sqlite else _same
    times = [time for item in predictions for time in (item.acquired_at, item.scored_at)]
    # In one time zone, as the database has them: comparing times of different ones takes several times as long.
    stored = iter(texts_of(times) if on_sqlite else [time.astimezone(UTC) for time in times])
    nothing = "[]" if on_sqlite else ()
    return [
        (
            item.study_key,
            item.model,
            item.version,
            item.task,
            item.patient_key,
            roles[item.patient_key],
            item.revision,
            item.serving,
            item.predicted,
            document(item.probabilities),
            document(item.facets),
            document(item.findings) if item.findings else nothing,
            next(stored),
            next(stored),
        )
        for item in predictions
    ]


def store_cases(session: Session, scores: Sequence[Values], truths: Sequence[Truth], now: datetime) -> None:
    """Enter cases with their truth, if it is known; a higher revision replaces the score of a case that is in no batch yet."""
    joined = _time(session, now)
    rows = [(*score, *truth, None if truth[1] is None else joined) for score, truth in zip(scores, truths, strict=True)]
    _store(session, STORE_CASES, CASE_COLUMNS, rows)


def store_labels(session: Session, labels: Sequence[Label], now: datetime) -> None:
    """Upsert each source's newest label, a withdrawal as one without a value; an older one than the stored is ignored.

    A time in the future counts as now: where a source's clock runs ahead, its labels do not outlive later corrections.
    """
    received, given = _time(session, now), [item.labelled_at for item in labels]
    # As texts they compare in a tenth of the time.
    times = [min(time, received) for time in (texts_of(given) if _on_sqlite(session) else given)]
    rows = [
        (item.study_key, item.task, item.source, None if item.withdrawn else item.value, time, received)
        for item, time in zip(labels, times, strict=True)
    ]
    _store(session, STORE_LABELS, LABEL_COLUMNS, rows)


def set_truths(session: Session, changes: Sequence[tuple[CaseKey, Truth]], now: datetime) -> None:
    """Write the decided truths with the states and batches that follow from them; the first truth sets `joined_at`."""
    joined = _time(session, now)
    rows = [(truth, state, batch, joined, *key) for key, (state, truth, batch) in changes]
    _store(session, SET_TRUTHS, TRUTH_COLUMNS, rows)


def clear_truths(session: Session, cases: Mapping[CaseKey, CaseState]) -> None:
    """Take the truth from cases, which get these states and stay in their batches. Withdrawals are few: case by case."""
    for (study, model, version), state in sorted(cases.items()):
        same = (_CASE.c.study_key == study, _CASE.c.model == model, _CASE.c.version == version)
        session.execute(_CASE.update().where(*same).values(truth=None, joined_at=None, state=state))


def _store(session: Session, statement: Mapping[str, str], columns: Sequence[str], rows: Sequence[Values]) -> None:
    if not _on_sqlite(session):
        if rows:
            _run(session, statement, (_records(columns, rows),))
        return
    connection, width, start = session.connection(), len(columns), 0
    for size in AT_ONCE:
        while start + size <= len(rows):
            values = tuple(chain.from_iterable(rows[start : start + size]))
            connection.exec_driver_sql(_several(statement["sqlite"], width, size), values)
            start += size


@cache
def _several(statement: str, columns: int, rows: int) -> str:
    """The statement for so many rows."""
    row = f"({', '.join('?' * columns)})"
    return statement.replace("{rows}", ", ".join([row] * rows))


def _records(columns: Sequence[str], rows: Sequence[Values]) -> str:
    return _json([dict(zip(columns, row, strict=True)) for row in rows])


def _rows(session: Session, statement: Mapping[str, str], keys: Collection[str]) -> Sequence[Values]:
    """Rows of these studies or patients, as the database has them."""
    if not keys:
        return ()
    found = _run(session, statement, (_json(sorted(keys)),))
    rows: Sequence[Values] = orjson.loads(found.scalar_one()) if _on_sqlite(session) else found.cursor.fetchall()
    return rows


def _run(session: Session, statement: Mapping[str, str], values: Values) -> Any:
    dialect = "sqlite" if _on_sqlite(session) else "postgresql"
    return session.connection().exec_driver_sql(statement[dialect], values)


def _on_sqlite(session: Session) -> bool:
    return session.get_bind().dialect.name == "sqlite"


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _same(value: Any) -> Any:
    return value


def _time(session: Session, value: datetime) -> Any:
    return texts_of([value])[0] if _on_sqlite(session) else value


def texts_of(times: Sequence[datetime]) -> list[str]:
    """As SQLAlchemy stores them on SQLite, so that times compare as texts."""
    return [_text(time) for time in orjson.loads(orjson.dumps(times))]


def _text(time: str) -> str:
    """From RFC 3339; what is in UTC is only cut, which takes a quarter of the time."""
    if time[-6:] != "+00:00":
        return datetime.fromisoformat(time).astimezone(UTC).isoformat(" ", "microseconds")[:26]
    fraction = time[20:26] if len(time) == len("2026-03-02T08:00:00.000000+00:00") else "000000"
    return f"{time[:10]} {time[11:19]}.{fraction}"


def count_open(session: Session, version: Version) -> int:
    """Labelled trigger cases of this version that are in no batch."""
    query = select(func.count()).select_from(Case).where(Case.model == version[0], Case.version == version[1], OPEN_CASE)
    return int(session.exec(query).one())


def open_cases(session: Session, version: Version, limit: int) -> list[tuple[Any, str]]:
    """(acquired_at as stored, study) of the open cases acquired first. Cases another transaction is changing are left for it."""
    query = (
        select(type_coerce(_CASE.c.acquired_at, _AS_STORED), Case.study_key)
        .where(Case.model == version[0], Case.version == version[1], OPEN_CASE)
        .order_by(col(Case.acquired_at), col(Case.study_key))
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [(acquired_at, study) for acquired_at, study in session.execute(query)]


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
