"""All SQL about the outbox: what is to send, what was sent to which broker, what a lost broker took with it, what may go."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

import sqlalchemy
from sqlalchemy import ColumnElement, and_, case, delete, literal, not_, text, tuple_, update
from sqlmodel import Session, col, select

from schemas.tables import DeadLetter, Outbox
from schemas.topics import BY_NAME, TOPICS
from services.runtime.database import Database
from services.runtime.pages import forget_pages, keepers, standing
from services.runtime.rows import json_text
from services.runtime.transaction import Transaction

RELAY = "relay"
_ABSENT: Final = (
    "SELECT wanted.value FROM {ids} AS wanted{name} "
    "WHERE NOT EXISTS (SELECT 1 FROM {table} WHERE consumer = :consumer AND event_id = wanted.value)"
)
ABSENT: Final = {
    (dialect, table): text(_ABSENT.format(ids=ids, name=name, table=table))
    for dialect, ids, name in (
        ("sqlite", "json_each(:ids)", ""),
        ("postgresql", "json_array_elements_text(CAST(:ids AS json))", " (value)"),
    )
    for table in ("inbox", "dead_letter")
}
"""Those of some events that are not in a table under a consumer's name: they are few."""
READERS: Final = tuple(dict.fromkeys(reader for topic in TOPICS for reader in topic.readers))
PORTION: Final = 10_000
"""Events that are looked at, or changed, together."""
MOST_FORGOTTEN: Final = 2000
"""Events that are deleted in one go, so that sending does not wait for long."""
REFUSED = "refused"
"""`sent_to` of an event that no broker will take; it lies in the dead letters."""
AGAIN = "+"
"""Ends `sent_to` of an event that was already sent once more to the same broker."""


@dataclass(frozen=True)
class Unsent:
    """An event on its way to the bus."""

    id: int
    event_id: str
    topic: str
    key: str
    headers: dict[str, str]
    body: bytes


def unsent(session: Session, limit: int) -> list[Unsent]:
    """The oldest events that no broker has, in the order they were put in."""
    columns = (Outbox.id, Outbox.event_id, Outbox.topic, Outbox.key, Outbox.headers, Outbox.body)
    query = sqlalchemy.select(*columns).where(col(Outbox.sent_at).is_(None)).order_by(col(Outbox.id)).limit(limit)  # type: ignore[call-overload]
    return [Unsent(*row) for row in session.execute(query)]


def mark_sent(tx: Transaction, ids: Sequence[int], broker: str) -> None:
    """The broker has acknowledged these events. One that it was sent for the second time is marked so (see `unread`)."""
    again = case((col(Outbox.sent_to) == broker, broker + AGAIN), else_=broker)
    tx.session.execute(update(Outbox).where(col(Outbox.id).in_(ids)).values(sent_at=tx.clock.now(), sent_to=again))


def unsend_lost(database: Database, broker: str, since: datetime) -> int:
    """Have everything sent again that went to another broker and is still of use; returns how many events.

    That is what one of our readers has not dealt with, however old, and what only strangers read from `since` on: they start
    anew on a new broker too.
    """
    elsewhere = and_(col(Outbox.sent_at).is_not(None), not_(col(Outbox.sent_to).in_([broker, broker + AGAIN])))
    lost = _unread(database, elsewhere)
    with database.read() as session:
        strangers = select(Outbox.id).where(elsewhere, _for_strangers(), col(Outbox.created_at) >= since)
        lost += [identity for identity in session.exec(strangers) if identity is not None]
    return _change(database, lost, sent_at=None, sent_to="")


def unsend_unread(database: Database, broker: str, sent_before: datetime, sent_from: datetime | None = None) -> int:
    """Have sent once more what this broker got long ago and a reader of ours has not dealt with; returns how many events.

    With `sent_from` only what was sent since then: what was read when it was looked at before is read.
    """
    waiting = and_(col(Outbox.sent_to) == broker, col(Outbox.sent_at) < sent_before)
    if sent_from is not None:
        waiting = and_(waiting, col(Outbox.sent_at) >= sent_from)
    return _change(database, _unread(database, waiting), sent_at=None)


def forget_read(database: Database, before: datetime, limit: int = MOST_FORGOTTEN) -> int:
    """Delete sent events older than `before` that nobody of ours still has to read; returns how many, at most `limit`.

    The pages that say that such events were dealt with go too.
    """
    due = (col(Outbox.sent_at) < before, col(Outbox.created_at) < before)
    done: list[int] = []
    with database.read() as session:
        names = keepers(session, READERS)
        for portion in _portions(session, *due, anywhere=True):
            done += portion.read
            if len(done) >= limit:
                break
    gone = 0
    for part in _parts(done[:limit]):
        with database.transaction() as tx:
            # Not what was entered again meanwhile: it is unsent.
            entries = delete(Outbox).where(col(Outbox.id).in_(part), col(Outbox.sent_at) < before)
            gone += len(tx.session.execute(entries.returning(col(Outbox.id))).all())
    for name in names:
        with database.transaction() as tx:
            forget_pages(tx.session, name, before)
    return gone


def put_aside(tx: Transaction, row: Unsent, error: str, reason: str) -> None:
    """An event that the broker will never take: into the dead letters of the relay, out of the way of those behind it."""
    letter = DeadLetter(
        consumer=RELAY,
        event_id=row.event_id,
        topic=row.topic,
        partition=-1,
        offset=row.id,
        key=row.key,
        headers=row.headers,
        body=row.body,
        error=error[:64],
        reason=reason[:1000],
        created_at=tx.clock.now(),
    )
    tx.insert_new(DeadLetter, [letter], returning="event_id")
    tx.session.execute(update(Outbox).where(col(Outbox.id) == row.id).values(sent_at=tx.clock.now(), sent_to=REFUSED))


class _Portion(NamedTuple):
    """Ids of some events: those that a reader of ours still has to read, and those that it has not to."""

    unread: list[int]
    read: list[int]


def _portions(session: Session, *chosen: ColumnElement[bool], anywhere: bool = False) -> Iterator[_Portion]:
    """The chosen ones of the sent events, in the order of an index. `anywhere` as of `pages.standing`."""
    named, order = col(Outbox.headers)["ce_id"].as_string(), (col(Outbox.sent_at), col(Outbox.id))
    columns: tuple[Any, ...] = (*order, Outbox.event_id, Outbox.topic, Outbox.created_at, Outbox.sent_to, named)
    query = sqlalchemy.select(*columns).where(*chosen, col(Outbox.sent_at).is_not(None)).order_by(*order).limit(PORTION)
    rows = session.execute(query).all()
    while rows:
        unread = _waiting(session, [row[2:] for row in rows], anywhere=anywhere)
        parts: tuple[list[int], list[int]] = ([], [])
        for _, identity, event_id, *_ in rows:
            parts[event_id not in unread].append(identity)
        yield _Portion(*parts)
        rows = session.execute(query.where(tuple_(*order) > tuple_(*map(literal, rows[-1][:2])))).all()


def _waiting(session: Session, rows: Sequence[Sequence[Any]], *, anywhere: bool) -> set[str]:
    """Events that some reader of ours is not done with: they stand in no inbox, and among no dead letters."""
    wanted: dict[str, dict[str, datetime]] = {}
    for event_id, topic, at, sent_to, named in rows:
        # A replayed message of a stranger has another name than its row, and no inbox row.
        if topic in BY_NAME and named == event_id and sent_to != REFUSED:
            for reader in BY_NAME[topic].readers:
                wanted.setdefault(reader, {})[event_id] = at
    return {event_id for reader, events in wanted.items() for event_id in _undone(session, reader, events, anywhere=anywhere)}


def _undone(session: Session, reader: str, events: dict[str, datetime], *, anywhere: bool) -> set[str]:
    """Pages before the inbox: who keeps pages has next to nothing there."""
    taken = _absent(session, "dead_letter", reader, list(events))
    kept = standing(session, reader, {event_id: events[event_id] for event_id in taken}, anywhere=anywhere)
    return set(_absent(session, "inbox", reader, [event_id for event_id in taken if event_id not in kept]))


def _absent(session: Session, table: str, reader: str, event_ids: Sequence[str]) -> Sequence[str]:
    statement = ABSENT[session.get_bind().dialect.name, table]
    return session.execute(statement, {"consumer": reader, "ids": json_text(event_ids)}).scalars().all() if event_ids else ()


def _unread(database: Database, *chosen: ColumnElement[bool]) -> list[int]:
    with database.read() as session:
        return [identity for portion in _portions(session, *chosen) for identity in portion.unread]


def _change(database: Database, ids: Sequence[int], **values: Any) -> int:
    """Portion by portion, so that nobody who writes has to wait for long."""
    for part in _parts(ids):
        with database.transaction() as tx:
            tx.session.execute(update(Outbox).where(col(Outbox.id).in_(part)).values(**values))
    return len(ids)


def _parts(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + PORTION] for start in range(0, len(ids), PORTION))


def _for_strangers() -> ColumnElement[bool]:
    read_by_ours = [topic.name for topic in TOPICS if topic.readers]
    return and_(col(Outbox.topic).not_in(read_by_ours), col(Outbox.sent_to) != REFUSED)
