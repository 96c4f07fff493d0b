"""One database transaction with the promises built in: inbox, outbox, dead letters and audit commit together or not at all.

Promises 2, 3, 8 and 10 (docs/promises.md).
"""

import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, Final

import orjson
from opentelemetry import trace
from sqlalchemy import ARRAY, Insert, String, Table, bindparam, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, SQLModel, col

from schemas.events import Event
from schemas.inbox_pages import InboxPage
from schemas.tables import Audit, DeadLetter, Inbox, Outbox
from schemas.topics import Topic
from services.runtime.clock import Clock
from services.runtime.messages import Received, Record, headers_of

RELAY_BELL: Final = "relay"
_NOW: Final = bindparam("now", type_=Inbox.__table__.c.handled_at.type)  # type: ignore[attr-defined]
_SEEN_SQLITE: Final = text(
    "SELECT event_id FROM json_each(:ids) AS wanted CROSS JOIN inbox ON consumer = :consumer AND event_id = wanted.value"
)
_CLAIM_SQLITE: Final = text(
    "INSERT INTO inbox (consumer, event_id, handled_at) SELECT :consumer, value, :now FROM json_each(:ids) WHERE true "
    "ON CONFLICT DO NOTHING"
).bindparams(_NOW)
_CLAIM_POSTGRESQL: Final = text(
    "WITH claimed AS (INSERT INTO inbox (consumer, event_id, handled_at) "
    "SELECT :consumer, wanted.id, :now FROM unnest(:ids) AS wanted (id) ON CONFLICT DO NOTHING RETURNING event_id) "
    "SELECT seen.id FROM unnest(:ids) AS seen (id) WHERE seen.id NOT IN (SELECT event_id FROM claimed)"
).bindparams(_NOW, bindparam("ids", type_=ARRAY(String)))
"""The events that were there already: they are few, and every row that comes back takes as long as it took to enter it."""
_PAGE: Final = InboxPage.__table__.insert()  # type: ignore[attr-defined]


class Transaction:
    """What a handler may do with the database while its batch is open. `session` is a plain SQLModel session.

    `rejected` counts the messages that went to the dead letters in it, `refused` names them, those that were there already
    among them; `rings` names the bells to ring once it is committed.
    A handler may call `writing` when from now on mostly the database works and not the interpreter: it is time to decode what
    comes next.
    """

    def __init__(self, session: Session, clock: Clock) -> None:
        self.session = session
        self.clock = clock
        self.rejected = 0
        self.refused: set[str] = set()
        self.rings: set[str] = set()
        self.writing: Callable[[], object] = lambda: None
        self._claims: list[dict[str, Any]] = []

    def emit(self, topic: Topic, data: Event, *, event_id: str | None = None, cause: Received[Event] | str | None = None) -> str:
        """Put an event into the outbox and return its id.

        With a natural `event_id` (at most 64 characters) the same event is put in only once, however often this is
        called. `cause` is the event (or a traceparent) that led here: its trace goes on.
        """
        identity = event_id or str(uuid.uuid4())
        now = self.clock.now()
        traceparent = cause if isinstance(cause, str) else cause.traceparent if cause else ""
        self._put_out(
            event_id=identity,
            topic=topic.name,
            key=str(getattr(data, topic.key)),
            headers=headers_of(topic, identity, now, traceparent or current_traceparent()),
            body=data.model_dump_json().encode(),
            created_at=now,
        )
        return identity

    def claim(self, consumer: str, event_ids: Iterable[str]) -> set[str]:
        """Enter events into the inbox; returns those that were not there yet."""
        wanted = sorted(set(event_ids))  # the order of the table: fewer pages are touched, and nobody waits in a circle
        if not wanted:
            return set()
        if self.session.get_bind().dialect.name == "sqlite":
            self.finish()
            ids = orjson.dumps(wanted).decode()
            seen = self.session.execute(_SEEN_SQLITE, {"consumer": consumer, "ids": ids}).scalars().all()
            # Nobody else writes until the end: a writing transaction on SQLite is alone from its begin.
            self._claims.append({"consumer": consumer, "ids": ids, "now": self.clock.now()})
        else:
            values = {"consumer": consumer, "ids": wanted, "now": self.clock.now()}
            seen = self.session.execute(_CLAIM_POSTGRESQL, values).scalars().all()
        return set(wanted).difference(seen)

    def note(self, consumer: str, event_ids: Iterable[str]) -> None:
        """Enter events of this transaction, but for those it refused, that nobody needs to tell from new ones (`InboxPage`)."""
        handled = [event_id for event_id in event_ids if event_id not in self.refused]
        if handled:
            page = {"consumer": consumer, "handled_at": self.clock.now(), "event_ids": orjson.dumps(handled).decode()}
            self.session.execute(_PAGE, page)

    def finish(self) -> None:
        """Write what was put off until the commit: the database does it while the interpreter does something else."""
        while self._claims:
            self.session.execute(_CLAIM_SQLITE, self._claims.pop())

    def reject(self, consumer: str, record: Record, error: str, reason: str) -> None:
        """Record a message that cannot be processed and announce it on the topic's dead-letter topic."""
        now = self.clock.now()
        identity = record.event_id
        self.refused.add(identity)
        letter = DeadLetter(
            consumer=consumer,
            event_id=identity,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            key=record.key,
            headers=dict(record.headers),
            body=record.body,
            error=error[:64],
            reason=reason[:1000],
            created_at=now,
        )
        if self.insert_new(DeadLetter, [letter], returning="event_id"):
            self.rejected += 1
            self._announce_rejection(consumer, record, error, reason, replays=0)
        elif (replays := self._reopen(letter)) is not None:
            self.rejected += 1
            self._announce_rejection(consumer, record, error, reason, replays)

    def _reopen(self, letter: DeadLetter) -> int | None:
        """A replayed letter failed again: make it a waiting one with the new reason. None when it was not replayed."""
        statement = (
            update(DeadLetter)
            .where(
                col(DeadLetter.consumer) == letter.consumer,
                col(DeadLetter.event_id) == letter.event_id,
                col(DeadLetter.replayed_at).is_not(None),
            )
            .values(replayed_at=None, error=letter.error, reason=letter.reason, created_at=letter.created_at)
        )
        return self.session.execute(statement.returning(col(DeadLetter.replays))).scalar_one_or_none()

    def _announce_rejection(self, consumer: str, record: Record, error: str, reason: str, replays: int) -> None:
        origin = {"dlq_topic": record.topic, "dlq_partition": str(record.partition), "dlq_offset": str(record.offset)}
        why = {"dlq_consumer": consumer, "dlq_error": error[:64], "dlq_reason": reason[:1000]}
        self._put_out(
            event_id=uuid.uuid5(uuid.NAMESPACE_URL, f"{consumer}|{record.event_id}|{replays}").hex,
            topic=f"{record.topic}.dlq",
            key=record.key,
            headers={**record.headers, **origin, **why},
            body=record.body,
            created_at=self.clock.now(),
        )

    def ring(self, bell: str) -> None:
        """Wake who listens to `bell` after the commit (see `services.runtime.bells`)."""
        self.rings.add(bell)

    def _put_out(self, **values: Any) -> None:
        """As columns and not as an `Outbox`: to make one and to take it apart again would be a third of the time."""
        self._insert_new(Outbox, [values], "event_id")
        self.ring(RELAY_BELL)

    def audit(self, actor: str, action: str, subject: str, **detail: Any) -> None:
        """Append a decision to the audit record; `detail` holds ids, hashes, seeds, evidence, never identities."""
        context = trace.get_current_span().get_span_context()
        trace_id = format(context.trace_id, "032x") if context.is_valid else ""
        self.session.add(Audit(at=self.clock.now(), actor=actor, action=action, subject=subject, detail=detail, trace_id=trace_id))

    def insert_new(self, table: type[SQLModel], rows: Sequence[SQLModel], *, returning: str) -> list[Any]:
        """INSERT … ON CONFLICT DO NOTHING RETURNING: values of `returning` of the rows that were really inserted.

        The driver's row count is not used: it is -1 on PostgreSQL.
        """
        return self._insert_new(table, [_values(row) for row in rows], returning)

    def _insert_new(self, table: type[SQLModel], rows: list[dict[str, Any]], returning: str) -> list[Any]:
        statement = _insert(table.__table__, self.session.get_bind().dialect.name, returning)  # type: ignore[attr-defined]
        inserted: list[Any] = []
        for chunk in _chunks(rows, 500):
            # As parameters and not as .values(), so that the statement is compiled once and not for every call.
            inserted.extend(self.session.connection().execute(statement, chunk).scalars())
        return inserted


@cache
def _insert(table: Table, dialect: str, returning: str) -> Insert:
    """Made once: composing it takes longer than the database needs to run it."""
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return insert(table).on_conflict_do_nothing().returning(table.c[returning])


def _values(row: SQLModel) -> dict[str, Any]:
    return {name: value for name, value in row.model_dump().items() if not (name == "id" and value is None)}


def _chunks(values: list[dict[str, Any]], size: int) -> Iterable[list[dict[str, Any]]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def current_traceparent() -> str:
    """W3C traceparent of the current span, empty when there is none."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
