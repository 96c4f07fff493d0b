"""Dead letters: list them, enter one again for the consumer that rejected it once the cause is mended, or discard it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import and_, delete, update
from sqlmodel import Session, col, func, select

from schemas.tables import DeadLetter, Inbox, Outbox
from services.runtime.database import Database
from services.runtime.errors import InvalidInput
from services.runtime.pages import standing
from services.runtime.transaction import Transaction

WAITING = and_(col(DeadLetter.replayed_at).is_(None), col(DeadLetter.discarded_at).is_(None))
"""Neither entered again, or failed again since, nor discarded."""
LISTED: Final = 8


def list_letters(
    session: Session, *, include_replayed: bool = False, consumer: str | None = None, limit: int = 100
) -> Sequence[DeadLetter]:
    """Dead letters, newest first; without those that were discarded, or entered again and have not failed since."""
    query = select(DeadLetter).order_by(col(DeadLetter.id).desc()).limit(limit)
    if not include_replayed:
        query = query.where(WAITING)
    if consumer is not None:
        query = query.where(DeadLetter.consumer == consumer)
    return session.exec(query).all()


def waiting(session: Session) -> int:
    """How many letters wait for somebody."""
    return int(session.exec(select(func.count()).select_from(DeadLetter).where(WAITING)).one())


def letter(session: Session, identity: int) -> DeadLetter:
    """One letter; InvalidInput names those that wait when there is none of that id."""
    found = session.get(DeadLetter, identity)
    if found is None:
        raise InvalidInput(f"no dead letter has the id {identity}{_those_that_wait(session)}")
    return found


def discard(database: Database, ids: Sequence[int], *, actor: str, reason: str) -> int:
    """Say that letters will not be processed; returns how many. The letters stay, and can still be replayed by id.

    InvalidInput without a reason, for unknown ids, and for letters that do not wait.
    """
    if not reason.strip():
        raise InvalidInput("say why: the reason goes into the audit record")
    with database.transaction() as tx:
        letters = _chosen(tx.session, sorted(set(ids)), None)
        done = [str(row.id) for row in letters if row.replayed_at or row.discarded_at]
        if done:
            raise InvalidInput(f"dead letter {', '.join(done)} does not wait: it was replayed or discarded")
        for row in letters:
            row.discarded_at = tx.clock.now()
            tx.session.add(row)
            detail = {"event_id": row.event_id, "topic": row.topic, "error": row.error, "why": reason}
            tx.audit(actor, "dead_letter.discarded", f"{row.consumer}:{row.id}", **detail)
        return len(letters)


def _those_that_wait(session: Session) -> str:
    rows = list_letters(session, limit=LISTED)
    return f"; waiting are {', '.join(str(row.id) for row in rows)}" if rows else "; none waits"


def outcome(session: Session, identity: int) -> str:
    """What came of a letter that was entered again: `failed again`, `dealt with`, or `on its way`; its state otherwise."""
    row = letter(session, identity)
    if row.discarded_at is not None:
        return "discarded"
    if row.replayed_at is None:
        return "failed again" if row.replays else "waits"
    names = [row.event_id, f"replay-{row.id}-{row.replays}"]
    in_inbox = select(Inbox.event_id).where(Inbox.consumer == row.consumer, col(Inbox.event_id).in_(names))
    handled = session.exec(in_inbox).first() or standing(session, row.consumer, {row.event_id: row.replayed_at})
    return "dealt with" if handled else "on its way"


def replay(database: Database, *, ids: Sequence[int] | None = None, consumer: str | None = None, actor: str) -> int:
    """Enter letters again, all waiting ones when no ids are given; returns how many. One transaction for all of them.

    Only the consumer that rejected a message handles it again: the inboxes of the others still hold it. A message that
    fails again is a waiting letter again. InvalidInput names ids that do not exist.
    """
    with database.transaction() as tx:
        letters = _chosen(tx.session, ids, consumer)
        for letter in letters:
            _enter_again(tx, letter, actor)
        return len(letters)


def _chosen(session: Session, ids: Sequence[int] | None, consumer: str | None) -> Sequence[DeadLetter]:
    query = select(DeadLetter).order_by(col(DeadLetter.id))
    query = query.where(col(DeadLetter.id).in_(ids)) if ids is not None else query.where(WAITING)
    if consumer is not None:
        query = query.where(DeadLetter.consumer == consumer)
    letters = session.exec(query).all()
    unknown = sorted(set(ids or ()) - {letter.id or 0 for letter in letters})
    if unknown:
        where = f" for {consumer}" if consumer else ""
        raise InvalidInput(f"no dead letter has the id {', '.join(map(str, unknown))}{where}{_those_that_wait(session)}")
    return letters


def _enter_again(tx: Transaction, letter: DeadLetter, actor: str) -> None:
    now = tx.clock.now()
    tx.session.execute(delete(Inbox).where(col(Inbox.consumer) == letter.consumer, col(Inbox.event_id) == letter.event_id))
    if not _send_again(tx, letter):
        _put_anew(tx, letter, now)
    letter.replayed_at, letter.discarded_at, letter.replays = now, None, letter.replays + 1
    tx.session.add(letter)
    tx.session.flush()
    detail = {"event_id": letter.event_id, "topic": letter.topic, "replays": letter.replays, "error": letter.error}
    tx.audit(actor, "dead_letter.replayed", f"{letter.consumer}:{letter.id}", **detail)


def _send_again(tx: Transaction, letter: DeadLetter) -> bool:
    """Use the event's own outbox row while it is still there and is the same message; False when it is not."""
    same = (col(Outbox.event_id) == letter.event_id, col(Outbox.topic) == letter.topic, col(Outbox.body) == letter.body)
    statement = update(Outbox).where(*same).values(sent_at=None, sent_to="")
    return tx.session.execute(statement.returning(col(Outbox.id))).first() is not None


def _put_anew(tx: Transaction, letter: DeadLetter, now: datetime) -> None:
    """A message that came from outside, or whose outbox row is gone."""
    row = Outbox(
        event_id=f"replay-{letter.id}-{letter.replays + 1}",
        topic=letter.topic,
        key=letter.key,
        headers=dict(letter.headers),
        body=letter.body,
        created_at=now,
    )
    tx.insert_new(Outbox, [row], returning="event_id")
