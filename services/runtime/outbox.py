"""All SQL about the outbox: what is to send, what was sent to which broker, what a lost broker took with it, what may go."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

import sqlalchemy
from sqlalchemy import ColumnElement, and_, case, delete, exists, false, not_, or_, update
from sqlmodel import Session, col, select

from schemas.tables import DeadLetter, Inbox, Outbox
from schemas.topics import TOPICS
from services.runtime.database import Database
from services.runtime.pages import forget_pages, keepers, standing
from services.runtime.transaction import Transaction

RELAY = "relay"
READERS: Final = tuple(dict.fromkeys(reader for topic in TOPICS for reader in topic.readers))
PORTION: Final = 10_000
"""Events that are looked at, or changed, together."""
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
    query = select(*columns).where(col(Outbox.sent_at).is_(None)).order_by(col(Outbox.id)).limit(limit)  # type: ignore[call-overload]
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
        lost += session.exec(strangers).all()
    return _change(database, lost, sent_at=None, sent_to="")


def unsend_unread(database: Database, broker: str, sent_before: datetime, sent_from: datetime | None = None) -> int:
    """Have sent once more what this broker got long ago and a reader of ours has not dealt with; returns how many events.

    With `sent_from` only what was sent since then: what was read when it was looked at before is read.
    """
    waiting = and_(col(Outbox.sent_to) == broker, col(Outbox.sent_at) < sent_before)
    if sent_from is not None:
        waiting = and_(waiting, col(Outbox.sent_at) >= sent_from)
    return _change(database, _unread(database, waiting), sent_at=None)


def forget_read(database: Database, before: datetime, limit: int = 2000) -> int:
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
    """The chosen events in the order they were put in. `anywhere` as of `pages.standing`."""
    names = keepers(session, READERS)
    columns = (Outbox.id, Outbox.event_id, Outbox.created_at, _waits(set(READERS) - set(names)), *(_waits({name}) for name in names))
    query = sqlalchemy.select(*columns).where(*chosen).order_by(col(Outbox.id)).limit(PORTION)  # type: ignore[arg-type]
    last = 0
    while rows := session.execute(query.where(col(Outbox.id) > last)).all():
        last = rows[-1][0]
        unread = {row[0] for row in rows if row[3]}
        for place, name in enumerate(names, 4):
            doubtful = {event_id: (identity, at) for identity, event_id, at, *said in rows if said[place - 3] and identity not in unread}
            found = standing(session, name, {event_id: at for event_id, (_, at) in doubtful.items()}, anywhere=anywhere)
            unread.update(identity for event_id, (identity, _) in doubtful.items() if event_id not in found)
        yield _Portion(sorted(unread), [row[0] for row in rows if row[0] not in unread])


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


def _waits(readers: Collection[str]) -> ColumnElement[bool]:
    """One of these readers of ours has not noted the event: it stands in no inbox, nor is it a dead letter of one that could not
    decode it. Whether it stands in a page is asked apart.
    """
    waiting = [
        and_(col(Outbox.topic) == topic.name, not_(_noted_by(reader)))
        for topic in TOPICS
        for reader in topic.readers
        if reader in readers
    ]
    ours = col(Outbox.headers)["ce_id"].as_string() == col(Outbox.event_id)  # a replayed message of a stranger has no inbox row
    return and_(ours, col(Outbox.sent_to) != REFUSED, or_(false(), *waiting))


def _noted_by(reader: str) -> ColumnElement[bool]:
    handled = exists().where(col(Inbox.consumer) == reader, col(Inbox.event_id) == col(Outbox.event_id))
    rejected = exists().where(col(DeadLetter.consumer) == reader, col(DeadLetter.event_id) == col(Outbox.event_id))
    return or_(handled, rejected)


def _for_strangers() -> ColumnElement[bool]:
    read_by_ours = [topic.name for topic in TOPICS if topic.readers]
    return and_(col(Outbox.topic).not_in(read_by_ours), col(Outbox.sent_to) != REFUSED)
