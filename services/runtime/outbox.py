"""All SQL about the outbox: what is to send, what was sent to which broker, what a lost broker took with it, what may go."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, case, delete, exists, not_, or_, select, update
from sqlmodel import Session, col

from schemas.tables import DeadLetter, Inbox, Outbox
from schemas.topics import TOPICS
from services.runtime.pages import forget_pages, paged
from services.runtime.transaction import Transaction

RELAY = "relay"
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


def unsend_lost(tx: Transaction, broker: str, since: datetime) -> int:
    """Have everything sent again that went to another broker and is still of use; returns how many events.

    That is what one of our readers has not dealt with, however old, and what only strangers read from `since` on: they start
    anew on a new broker too.
    """
    elsewhere = and_(col(Outbox.sent_at).is_not(None), not_(col(Outbox.sent_to).in_([broker, broker + AGAIN])))
    of_use = or_(_unread_by_ours(tx.session), and_(_for_strangers(), col(Outbox.created_at) >= since))
    statement = update(Outbox).where(elsewhere, of_use).values(sent_at=None, sent_to="")
    return len(tx.session.execute(statement.returning(col(Outbox.id))).all())


def unsend_unread(tx: Transaction, broker: str, sent_before: datetime) -> int:
    """Have sent once more what this broker got long ago and a reader of ours has not dealt with; returns how many events."""
    waiting = and_(col(Outbox.sent_to) == broker, col(Outbox.sent_at) < sent_before)
    statement = update(Outbox).where(waiting, _unread_by_ours(tx.session)).values(sent_at=None)
    return len(tx.session.execute(statement.returning(col(Outbox.id))).all())


def forget_read(tx: Transaction, before: datetime, limit: int = 1000) -> int:
    """Delete sent events older than `before` that nobody of ours still has to read; returns how many, at most `limit`.

    The pages that say that such events were dealt with go too.
    """
    done = and_(col(Outbox.sent_at) < before, col(Outbox.created_at) < before, not_(_unread_by_ours(tx.session)))
    oldest = select(col(Outbox.id)).where(done).order_by(col(Outbox.id)).limit(limit)
    gone = len(tx.session.execute(delete(Outbox).where(col(Outbox.id).in_(oldest)).returning(col(Outbox.id))).all())
    forget_pages(tx.session, before)
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


def _unread_by_ours(session: Session) -> ColumnElement[bool]:
    """Some reader of ours is not done with the event: it stands in no inbox, nor is it a dead letter of one it could not decode."""
    waiting = [
        and_(col(Outbox.topic) == topic.name, not_(_dealt_with_by(session, reader))) for topic in TOPICS for reader in topic.readers
    ]
    ours = col(Outbox.headers)["ce_id"].as_string() == col(Outbox.event_id)  # a replayed message of a stranger has no inbox row
    return and_(ours, col(Outbox.sent_to) != REFUSED, or_(*waiting))


def _dealt_with_by(session: Session, reader: str) -> ColumnElement[bool]:
    handled = exists().where(col(Inbox.consumer) == reader, col(Inbox.event_id) == col(Outbox.event_id))
    rejected = exists().where(col(DeadLetter.consumer) == reader, col(DeadLetter.event_id) == col(Outbox.event_id))
    return or_(handled, rejected, paged(session, reader, col(Outbox.event_id)))


def _for_strangers() -> ColumnElement[bool]:
    read_by_ours = [topic.name for topic in TOPICS if topic.readers]
    return and_(col(Outbox.topic).not_in(read_by_ours), col(Outbox.sent_to) != REFUSED)
