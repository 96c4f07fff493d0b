"""Rows as the index writer reads and writes them: tuples and statements of `statements`, past the ORM.

Times are aware UTC here and in PostgreSQL, and SQLAlchemy's texts without zone in SQLite. Errors are SQLAlchemy's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Final, NamedTuple

import orjson
from sqlmodel import Session

from schemas.vocabulary import StudyState
from services.assembly.statements import (
    CHANGED_COLUMNS,
    INSERT_INSTANCES,
    INSERT_STUDIES,
    INSTANCE_COLUMNS,
    KNOWN_INSTANCES,
    LOCKED_STUDIES,
    NEW_STUDY_COLUMNS,
    STUDIES_WITH_STEPS,
    UPDATE_STUDIES,
)
from services.runtime.rows import json_text, on_sqlite, several

_AT_ONCE: Final = tuple(2**power for power in range(9, -1, -1))
"""Rows of one statement on SQLite: few kinds of statements, each compiled once."""
_TIMES: Final = ("last_instance_at", "opened_at", "look_at")


class NewInstance(NamedTuple):
    """A row to be: the columns of `Instance` that reception fills. A mapped object would cost ten times as much."""

    sop_instance_uid: str
    study_uid: str
    series_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    modality: str
    body_part: str
    path: str
    size: int
    sha256: str
    received_at: datetime


class NewStudy(NamedTuple):
    """What a study starts with, and what every batch of instances brings up to date.

    `patients`: how many different patient IDs the batch's instances name; one that names none says nothing.
    """

    study_uid: str
    study_key: str
    patient_key: str
    acquired_at: datetime
    first_instance_at: datetime
    last_instance_at: datetime
    accession_key: str | None = None
    calling_ae: str = ""
    stated_instances: int = 0
    traceparent: str = ""
    patients: int = 0


class KnownInstance(NamedTuple):
    """What the index has of an instance, as far as a second sending is compared with it."""

    sop_instance_uid: str
    path: str
    size: int
    transfer_syntax_uid: str
    received_at: datetime
    purged_at: datetime | None


@dataclass(slots=True)
class StudyRow:
    """What a batch of instances reads of a study and changes in it: columns of `Study`."""

    study_uid: str
    study_key: str
    patient_key: str
    state: str
    revision: int
    instances: int
    last_instance_at: datetime
    opened_at: datetime | None
    stated_instances: int
    look_at: datetime | None
    ring_at: int | None
    accession_key: str | None
    calling_ae: str
    traceparent: str


def known_instances(session: Session, uids: Sequence[str]) -> dict[str, KnownInstance]:
    """The instances of these UIDs that the index has."""
    if on_sqlite(session):
        text = _run(session, KNOWN_INSTANCES["sqlite"], json_text(uids)).scalar_one()
        rows = [(*row[:4], _moment(row[4]), _moment(row[5])) for row in orjson.loads(text)]
    else:
        rows = _run(session, KNOWN_INSTANCES["postgresql"], list(uids)).cursor.fetchall()
    return {row[0]: KnownInstance(*row) for row in rows}


def insert_instances(session: Session, instances: Sequence[NewInstance]) -> None:
    """Enter instances; raises IntegrityError where somebody entered one of them meanwhile."""
    if on_sqlite(session):
        rows = [(*instance[:-1], _text(instance.received_at)) for instance in instances]
        _write_rows(session, INSERT_INSTANCES["sqlite"], len(INSTANCE_COLUMNS), rows)
    else:
        _run(session, INSERT_INSTANCES["postgresql"], json_text([instance._asdict() for instance in instances]))


def locked_studies(session: Session, uids: Sequence[str]) -> dict[str, StudyRow]:
    """The rows of these studies, locked in the order of their UIDs."""
    session.flush()
    if not on_sqlite(session):
        found = _run(session, LOCKED_STUDIES["postgresql"], list(uids)).cursor.fetchall()
        return {row[0]: StudyRow(*row) for row in found}
    rows = {row[0]: StudyRow(*row) for row in _run(session, LOCKED_STUDIES["sqlite"], json_text(uids)).cursor.fetchall()}
    for row in rows.values():
        for name in _TIMES:
            setattr(row, name, _moment(getattr(row, name)))
    return rows


def insert_studies(session: Session, studies: Sequence[NewStudy]) -> set[str]:
    """Enter open studies without instances; returns the UIDs of those that nobody has entered meanwhile."""
    rows = [{**study._asdict(), "state": StudyState.OPEN.value, "revision": 0, "instances": 0} for study in studies]
    if not on_sqlite(session):
        return {row[0] for row in _run(session, INSERT_STUDIES["postgresql"], json_text(rows)).cursor.fetchall()}
    stored = [tuple(_stored(row[name]) for name in NEW_STUDY_COLUMNS) for row in rows]
    return {row[0] for row in _write_rows(session, INSERT_STUDIES["sqlite"], len(NEW_STUDY_COLUMNS), stored)}


def studies_with_steps(session: Session, uids: Sequence[str]) -> set[str]:
    """Those of these studies that procedure steps name."""
    if not uids:
        return set()
    dialect, value = ("sqlite", json_text(uids)) if on_sqlite(session) else ("postgresql", list(uids))
    return {row[0] for row in _run(session, STUDIES_WITH_STEPS[dialect], value).cursor.fetchall()}


def update_studies(session: Session, studies: Iterable[StudyRow]) -> None:
    """Write back what `locked_studies` read and somebody changed."""
    if on_sqlite(session):
        rows = [tuple(_stored(getattr(study, name)) for name in CHANGED_COLUMNS) for study in studies]
        _write_rows(session, UPDATE_STUDIES["sqlite"], len(CHANGED_COLUMNS), rows)
    else:
        changed = [{name: getattr(study, name) for name in CHANGED_COLUMNS} for study in studies]
        _run(session, UPDATE_STUDIES["postgresql"], json_text(changed))


def _write_rows(session: Session, statement: str, columns: int, rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Run a statement for all rows; returns what it returns."""
    connection, start, left, returned = session.connection(), 0, len(rows), list[tuple[Any, ...]]()
    for size in _AT_ONCE:
        while size <= left:
            values = tuple(chain.from_iterable(rows[start : start + size]))
            result = connection.exec_driver_sql(several(statement, columns, size), values)
            if result.returns_rows:
                returned += result.cursor.fetchall()
            start, left = start + size, left - size
    return returned


def _run(session: Session, statement: str, value: Any) -> Any:
    return session.connection().exec_driver_sql(statement, (value,))


def _stored(value: Any) -> Any:
    return _text(value) if isinstance(value, datetime) else value


def _text(time: datetime) -> str:
    """A time as SQLAlchemy stores it in SQLite."""
    return time.astimezone(UTC).isoformat(" ", "microseconds")[:26]


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text).replace(tzinfo=UTC)
