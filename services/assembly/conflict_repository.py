"""All SQL about objects under `conflicts/`: other bytes, another study or series for a SOP Instance UID that the archive has."""

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Final

from sqlalchemy import delete, select, update
from sqlmodel import Session, col

from schemas.announcements import SetAside
from services.runtime.transaction import Transaction

_AT_ONCE: Final = 500


def insert_set_aside(tx: Transaction, row: SetAside) -> bool:
    """Note an object set aside; False when it is noted already. One that was ever acknowledged stays so."""
    if tx.insert_new(SetAside, [row], returning="kept_as"):
        return True
    if row.acknowledged:
        tx.session.execute(update(SetAside).where(col(SetAside.kept_as) == row.kept_as).values(acknowledged=True))
    return False


def set_aside_of(session: Session, names: Sequence[str]) -> dict[str, list[PurePosixPath]]:
    """Files under `conflicts/` by the name that goes with their SOP Instance UID, relative to the archive's root.

    Some may be gone: that settles them.
    """
    found: dict[str, list[PurePosixPath]] = {}
    for wanted in _chunks(names):
        columns = (col(SetAside.name), col(SetAside.kept_as))
        for name, kept_as in session.execute(select(*columns).where(columns[0].in_(wanted))):
            found.setdefault(name, []).append(PurePosixPath(kept_as))
    return found


def noted_among(session: Session, paths: Sequence[str]) -> set[str]:
    """Which of some files under `conflicts/` are noted."""
    noted: set[str] = set()
    for wanted in _chunks(paths):
        noted |= set(session.scalars(select(col(SetAside.kept_as)).where(col(SetAside.kept_as).in_(wanted))))
    return noted


def refused_among(session: Session, paths: Sequence[str]) -> set[str]:
    """Which files under `conflicts/` their sender was told are not stored, so that nobody relies on them."""
    refused: set[str] = set()
    for wanted in _chunks(paths):
        mine = (col(SetAside.kept_as).in_(wanted), col(SetAside.acknowledged).is_(False))
        refused |= set(session.scalars(select(col(SetAside.kept_as)).where(*mine)))
    return refused


def forget_set_aside(tx: Transaction, paths: Sequence[str]) -> None:
    """Drop the rows of files that are deleted."""
    for gone in _chunks(paths):
        tx.session.execute(delete(SetAside).where(col(SetAside.kept_as).in_(gone)))


def _chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]
