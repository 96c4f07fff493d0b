"""All SQL of the chat: threads, messages and their delivery."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import and_, delete, exists, or_, update
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from listeners.chat.cards import Card
from schemas.chat import ChatMessage, ChatThread
from schemas.chat_settings import ChatSettings
from schemas.tables import Audit
from schemas.vocabulary import MessageState
from services.runtime.backoff import doubled
from services.runtime.lease import is_over
from services.runtime.transaction import Transaction

BELL: Final = "chat"
ACTOR: Final = "service:chat"
SAID: Final = "chat.command"
"""The audit record's action for a command that was taken."""
LOOKED_AT: Final = 5_000
DELIVERED: Final = frozenset({"slack", "teams"})
"""Channels to which messages are brought; the others look for theirs."""
PATIENCE: Final = 8
"""Attempts (some eight minutes with the default delays) after which a message holds up those behind it in its thread no more."""
UNFINISHED: Final = (MessageState.QUEUED, MessageState.SENDING)


class DeliveryLost(Exception):  # noqa: N818 - named for what happened
    """Another attempt has taken over; this one must not write."""


@dataclass(frozen=True)
class Claim:
    """One attempt at bringing a message to its thread. `uncertain`: an earlier attempt may have arrived."""

    message_id: str
    thread: str
    kind: str
    card: Card
    reference: dict[str, Any]
    external_id: str
    revision: int
    uncertain: bool
    attempt: int
    owner: str
    created_at: datetime
    traceparent: str


def remember(tx: Transaction, thread: str, channel: str, reference: dict[str, Any]) -> None:
    """Keep where a thread is to be answered; a later message refreshes what changes (Teams' service address)."""
    now = tx.clock.now()
    row = ChatThread(thread=thread, channel=channel, reference=reference, used_at=now)
    if tx.insert_new(ChatThread, [row], returning="thread"):
        return
    known = tx.session.get(ChatThread, thread, with_for_update=True)
    if known is not None:
        known.reference, known.used_at = known.reference | reference, now
        tx.session.add(known)


def thread(session: Session, name: str) -> ChatThread | None:
    """A thread that was written in, None for one that nobody knows."""
    return session.get(ChatThread, name) if name else None


def message_id(thread_name: str, key: str) -> str:
    """The same news in the same thread is the same message."""
    return f"msg-{hashlib.sha256(f'{thread_name}|{key}'.encode()).hexdigest()[:40]}"


def card_of(session: Session, identity: str) -> Card | None:
    """What a message says, None when there is none."""
    row = session.exec(select(ChatMessage).where(ChatMessage.message_id == identity)).first()
    return Card.model_validate(row.content) if row is not None else None


def put(
    tx: Transaction, to: ChatThread, key: str, kind: str, card: Card, *, traceparent: str = "", not_before_s: float = 0.0
) -> str:
    """Have a message stand in a thread: a new one, or an edit of the one with this key. Returns its id.

    An edit is sent `not_before_s` after the last sending at the earliest, so that many changes are one edit.
    """
    identity, now, content = message_id(to.thread, key), tx.clock.now(), card.model_dump(mode="json")
    brought = to.channel in DELIVERED
    row = ChatMessage(
        message_id=identity,
        thread=to.thread,
        kind=kind,
        content=content,
        state=MessageState.QUEUED if brought else MessageState.SENT,
        due_at=now,
        traceparent=traceparent[:64],
        created_at=now,
    )
    if not tx.insert_new(ChatMessage, [row], returning="message_id"):
        _edit(tx, identity, content, brought=brought, not_before_s=not_before_s)
    if brought:
        tx.ring(BELL)
    return identity


def _edit(tx: Transaction, identity: str, content: dict[str, Any], *, brought: bool, not_before_s: float) -> None:
    row = tx.session.exec(select(ChatMessage).where(ChatMessage.message_id == identity).with_for_update()).one()
    if row.content == content:
        return
    row.content, row.revision = content, row.revision + 1
    if brought and row.state == MessageState.SENT:
        earliest = (row.sent_at or tx.clock.now()) + timedelta(seconds=not_before_s)
        row.state, row.attempt, row.due_at = MessageState.QUEUED, 0, max(tx.clock.now(), earliest)
    elif brought and row.state == MessageState.QUEUED and not_before_s == 0 and row.attempt == 0:
        row.due_at = tx.clock.now()
    tx.session.add(row)


def claim_next(tx: Transaction, owner: str, channel: str, settings: ChatSettings) -> Claim | None:
    """Take the oldest message of a channel that is due and has none before it in its thread; None when there is none."""
    now, earlier = tx.clock.now(), aliased(ChatMessage)
    blocked = exists().where(
        col(earlier.thread) == col(ChatMessage.thread),
        col(earlier.id) < col(ChatMessage.id),
        col(earlier.state).in_(UNFINISHED),
        col(earlier.sent_revision) == 0,
        col(earlier.attempt) < PATIENCE,
    )
    due = or_(
        and_(col(ChatMessage.state) == MessageState.QUEUED, col(ChatMessage.due_at) <= now),
        and_(
            col(ChatMessage.state) == MessageState.SENDING,
            or_(is_over(col(ChatMessage.lease_until), now, settings.lease_s), col(ChatMessage.owner) == owner),
        ),
    )
    query = (
        select(ChatMessage, ChatThread)
        .join(ChatThread, col(ChatThread.thread) == ChatMessage.thread)
        .where(ChatThread.channel == channel, due, ~blocked)
        .order_by(col(ChatMessage.due_at), col(ChatMessage.id))
        .limit(1)
        .with_for_update(skip_locked=True, of=ChatMessage)
    )
    found = tx.session.exec(query).first()
    if found is None:
        return None
    row, home = found
    uncertain = row.uncertain
    row.state, row.owner, row.attempt, row.uncertain = MessageState.SENDING, owner, row.attempt + 1, True
    row.lease_until = now + timedelta(seconds=settings.lease_s)
    tx.session.add(row)
    return Claim(
        row.message_id, row.thread, row.kind, Card.model_validate(row.content), dict(home.reference), row.external_id,
        row.revision, uncertain, row.attempt, owner, row.created_at, row.traceparent,
    )  # fmt: skip


def sent(tx: Transaction, claim: Claim, external_id: str, reference: dict[str, Any]) -> None:
    """The channel has it. `reference` is what was learned about the thread by that. A newer revision is queued again."""
    row, now = _held(tx, claim), tx.clock.now()
    row.external_id, row.sent_revision, row.sent_at = external_id[:255], claim.revision, now
    row.uncertain, row.error, row.attempt = False, "", 0
    row.state = MessageState.SENT if row.revision == claim.revision else MessageState.QUEUED
    row.due_at = now
    _let_go(tx, row)
    if reference:
        remember(tx, claim.thread, "", reference)


def postpone(tx: Transaction, claim: Claim, reason: str, settings: ChatSettings, *, wait_s: float | None, uncertain: bool) -> bool:
    """Try again later, after `wait_s` where the channel has said so; True when it was given up instead."""
    if claim.attempt >= settings.max_attempts:
        give_up(tx, claim, f"given up after {claim.attempt} attempts; the last one: {reason}")
        return True
    row = _held(tx, claim)
    delay = wait_s if wait_s is not None else doubled(claim.attempt - 1, settings.first_delay_s, settings.longest_delay_s)
    row.state, row.error, row.uncertain = MessageState.QUEUED, reason[:1000], uncertain or claim.uncertain
    row.due_at = tx.clock.now() + timedelta(seconds=delay)
    _let_go(tx, row)
    return False


def hold_channel(tx: Transaction, channel: str, wait_s: float) -> None:
    """The channel wants quiet: nothing of it is due before that."""
    until = tx.clock.now() + timedelta(seconds=wait_s)
    of_channel = select(ChatThread.thread).where(ChatThread.channel == channel)
    early = and_(
        col(ChatMessage.state) == MessageState.QUEUED, col(ChatMessage.due_at) < until, col(ChatMessage.thread).in_(of_channel)
    )
    tx.session.execute(update(ChatMessage).where(early).values(due_at=until))


def give_up(tx: Transaction, claim: Claim, reason: str) -> None:
    """No further attempt can help."""
    row = _held(tx, claim)
    row.state, row.error = MessageState.GIVEN_UP, reason[:1000]
    _let_go(tx, row)
    tx.audit(ACTOR, "chat.given_up", row.message_id, kind=row.kind, reason=reason[:500])


def release(tx: Transaction, claim: Claim) -> None:
    """Put it back because this process ends; the attempt does not count."""
    row = _held(tx, claim)
    row.state, row.attempt, row.uncertain = MessageState.QUEUED, row.attempt - 1, claim.uncertain
    _let_go(tx, row)


def _let_go(tx: Transaction, row: ChatMessage) -> None:
    row.owner, row.lease_until = "", None
    tx.session.add(row)


def _held(tx: Transaction, claim: Claim) -> ChatMessage:
    query = select(ChatMessage).where(
        ChatMessage.message_id == claim.message_id,
        ChatMessage.owner == claim.owner,
        ChatMessage.attempt == claim.attempt,
        ChatMessage.state == MessageState.SENDING,
    )
    row = tx.session.exec(query.with_for_update()).first()
    if row is None:
        raise DeliveryLost(f"message {claim.message_id}: attempt {claim.attempt} no longer holds the lease")
    return row


def next_due(session: Session, channel: str) -> datetime | None:
    """When the next queued message of a channel is due, None when there is none."""
    query = select(ChatMessage.due_at).join(ChatThread, col(ChatThread.thread) == ChatMessage.thread)
    query = query.where(ChatThread.channel == channel, ChatMessage.state == MessageState.QUEUED)
    return session.exec(query.order_by(col(ChatMessage.due_at)).limit(1)).first()


def messages_of(session: Session, thread_name: str, after: int = 0, limit: int = 100) -> Sequence[ChatMessage]:
    """A thread's messages with a higher number than `after`, in their order."""
    query = select(ChatMessage).where(ChatMessage.thread == thread_name, col(ChatMessage.id) > after)
    return session.exec(query.order_by(col(ChatMessage.id)).limit(limit)).all()


def said_between(session: Session, actor: str, since: datetime, until: datetime) -> list[datetime]:
    """When a person's commands after `since` were taken, newest first; looked for among the newest `LOOKED_AT` audit rows."""
    last = session.exec(select(Audit.id).order_by(col(Audit.id).desc()).limit(1)).first() or 0
    query = select(Audit.at).where(
        col(Audit.id) > last - LOOKED_AT, Audit.actor == actor, Audit.action == SAID, col(Audit.at) > since, col(Audit.at) <= until
    )
    return list(session.exec(query.order_by(col(Audit.id).desc())))


def newest(session: Session, thread_name: str, limit: int = 200) -> list[ChatMessage]:
    """A thread's newest messages, in their order."""
    query = select(ChatMessage).where(ChatMessage.thread == thread_name).order_by(col(ChatMessage.id).desc()).limit(limit)
    return list(session.exec(query))[::-1]


def waiting(session: Session) -> tuple[int, int]:
    """How many messages wait for their channel, and how many were given up."""
    rows = session.exec(select(ChatMessage.state).where(col(ChatMessage.state).in_((*UNFINISHED, MessageState.GIVEN_UP)))).all()
    given_up = sum(state == MessageState.GIVEN_UP for state in rows)
    return len(rows) - given_up, given_up


def forget(tx: Transaction, before: datetime) -> int:
    """Delete finished messages older than `before`, and threads that are unused since and have none; returns how many messages."""
    old = and_(col(ChatMessage.state).not_in(UNFINISHED), col(ChatMessage.created_at) < before)
    gone = tx.session.execute(delete(ChatMessage).where(old).returning(col(ChatMessage.id))).all()
    has_messages = exists().where(col(ChatMessage.thread) == col(ChatThread.thread))
    tx.session.execute(delete(ChatThread).where(col(ChatThread.used_at) < before, ~has_messages))
    return len(gone)
