"""Batch consumers: one polled batch, one transaction, every event handled once (promises 2, 3, 10).

`process` is the whole algorithm without the bus, so that it is tested with records in a list.
"""

import gc
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Final, Generic, NamedTuple, TypeVar

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Link, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from sqlalchemy import select

from schemas.events import Event
from schemas.tables import Inbox
from schemas.topics import Topic
from services.runtime import telemetry
from services.runtime.database import Database
from services.runtime.errors import InvalidInput
from services.runtime.messages import Received, Record, decode
from services.runtime.transaction import Transaction

logger = logging.getLogger(__name__)
P = TypeVar("P")
TRACED: Final = 128
"""Most events of a batch that have a span each."""
Batch = Sequence[Received[Any]]


class BatchConsumer(ABC, Generic[P]):
    """A consumer of topics. `name` is its inbox name and, prefixed with `reclaim.`, its Kafka group."""

    name: ClassVar[str]
    topics: ClassVar[tuple[Topic, ...]]
    max_records: ClassVar[int] = 500
    polls_ahead: ClassVar[int] = 0
    """Polls that are read and decoded while the database writes the one before, until offsets are committed for all of them."""

    knows_repeats: ClassVar[bool] = False
    """Its own tables tell it which events come again: it is given all, its inbox is a page for each transaction (`InboxPage`),
    and it has `read` in place of `prepare`."""

    def prepare(self, batch: Batch) -> P:  # noqa: ARG002
        """Do the slow work outside the transaction; may run again for the same events, so it must have no effects."""
        return None  # type: ignore[return-value]

    def read(self, events: Iterable[Received[Any]]) -> P:  # noqa: ARG002
        """As `prepare`, for a consumer that knows repeats, while its events are decoded one after the other.

        It takes from each what it needs: `apply` has the same events in the same order, without their data. To keep thousands
        of them until the commit costs as much as to decode them.
        """
        return None  # type: ignore[return-value]

    @abstractmethod
    def apply(self, tx: Transaction, batch: Batch, prepared: P) -> None:
        """Write all effects of the batch into one transaction. Raise InvalidInput for data that can never be processed.

        A consumer that knows which events of the batch are invalid calls `tx.reject` for them instead and goes on.
        """


class _Collections:
    """Python's search for reference cycles, paused while a batch is in hand. Counts the batches of all threads.

    A batch has tens of thousands of live objects and no cycle; searching them again and again took a quarter of its time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._batches = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Until the last batch is done. Does nothing where somebody else has switched collections off."""
        with self._lock:
            mine = self._batches > 0 or gc.isenabled()
            self._batches += mine
            gc.disable()
        try:
            yield
        finally:
            with self._lock:
                self._batches -= mine
                if mine and not self._batches:
                    gc.enable()


_COLLECTIONS: Final = _Collections()
LIVE: Final = 200_000


def search_seldom() -> None:
    """Search for reference cycles after `LIVE` new objects instead of after Python's 700.

    For processes that poll ahead: at the end of a batch the next one is alive, 60,000 objects, and was searched each time.
    """
    gc.set_threshold(LIVE, *gc.get_threshold()[1:])


class _Overtaken(Exception):  # noqa: N818
    """Another process handled part of the batch between our look and our claim."""


_UNREAD: Final = object()


class Decoded(NamedTuple):
    """What records say: each event once, and the records that say nothing with the reason."""

    good: list[Received[Any]]
    bad: list[tuple[Record, InvalidInput]]
    records: int
    prepared: Any = _UNREAD
    """What a consumer that knows repeats has read from `good`, which is without data then."""


def process(database: Database, consumer: BatchConsumer[Any], records: Iterable[Record]) -> int:
    """Handle records; returns how many went to the dead letters. Raises Transient, or whatever bug a handler has."""
    with _COLLECTIONS.paused():
        return process_decoded(database, consumer, decode_for(consumer, records))


def process_decoded(
    database: Database, consumer: BatchConsumer[Any], decoded: Decoded, writing: Callable[[], object] = lambda: None
) -> int:
    """Handle what was decoded before; otherwise as `process`. Calls `writing` as `Transaction.writing` says."""
    started = time.monotonic()
    with _COLLECTIONS.paused():
        _reject_all(database, consumer, decoded.bad)
        if consumer.knows_repeats:
            rejected = len(decoded.bad) + _handle_all(database, consumer, decoded.good, writing, decoded.prepared)
        else:
            rejected = len(decoded.bad) + _handle(database, consumer, decoded.good, writing)
    telemetry.handled(consumer.name, decoded.records, rejected, time.monotonic() - started)
    return rejected


def decode_for(consumer: BatchConsumer[Any], records: Iterable[Record]) -> Decoded:
    """Validate records; a consumer that knows repeats reads them meanwhile."""
    decoding = _Decoding(records)
    with _COLLECTIONS.paused():
        if not consumer.knows_repeats:
            good = list(decoding.events())
            return Decoded(good, decoding.bad, decoding.seen)
        prepared = _UNREAD
        try:
            prepared = consumer.read(decoding.events())
        except Exception as error:  # noqa: BLE001 - it is raised again where the batch is handled, which says what becomes of it
            logger.debug("%s reads nothing ahead: %s", consumer.name, type(error).__name__)
        deque(decoding.events(), maxlen=0)  # what it did not ask for
    return Decoded(list(decoding.good.values()), decoding.bad, decoding.seen, prepared)


class _Decoding:
    """Records on their way to events. `good` are the events so far, without their data."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._records = iter(records)
        self.good: dict[str, Received[Any]] = {}
        self.bad: list[tuple[Record, InvalidInput]] = []
        self.seen = 0

    def events(self) -> Iterator[Received[Event]]:
        """The events that are left, each once, each made when it is asked for."""
        for record in self._records:
            self.seen += 1
            try:
                event = decode(record)
            except InvalidInput as error:
                self.bad.append((record, error))
                continue
            identity, topic, _, _, traceparent = event
            if identity not in self.good:
                self.good[identity] = Received(identity, topic, None, record, traceparent)
                yield event


def _reject_all(database: Database, consumer: BatchConsumer[Any], bad: Sequence[tuple[Record, InvalidInput]]) -> None:
    if not bad:
        return
    with database.transaction() as tx:
        for record, error in bad:
            tx.reject(consumer.name, record, type(error).__name__, error.reason)
            logger.warning("rejected %s at %s/%d: %s", record.topic, record.partition, record.offset, error.reason)


def _handle(
    database: Database, consumer: BatchConsumer[Any], batch: list[Received[Event]], writing: Callable[[], object] = lambda: None
) -> int:
    while batch:
        try:
            if not _prepares(consumer):
                return _handle_at_once(database, consumer, batch, writing)
            fresh = _unhandled(database, consumer.name, batch)
            return _handle_once(database, consumer, fresh) if fresh else 0
        except _Overtaken:
            continue
        except InvalidInput as error:
            return _isolate(database, consumer, batch, error)
    return 0


def _handle_all(
    database: Database, consumer: BatchConsumer[Any], batch: list[Received[Any]], writing: Callable[[], object], prepared: Any
) -> int:
    """For a consumer that knows repeats. Returns how many events it rejected by itself or one by one."""
    if not batch:
        return 0
    try:
        if prepared is _UNREAD:
            prepared = consumer.read(decode(event.record) for event in batch)
        with database.transaction() as tx:
            tx.writing = writing
            with _spans(consumer.name, batch) as traced:
                consumer.apply(tx, traced, prepared)
            tx.note(consumer.name, [event.event_id for event in batch])
    except InvalidInput as error:
        return _isolate(database, consumer, batch, error)
    return tx.rejected


def _prepares(consumer: BatchConsumer[Any]) -> bool:
    return type(consumer).prepare is not BatchConsumer.prepare


def _handle_at_once(
    database: Database, consumer: BatchConsumer[Any], batch: list[Received[Event]], writing: Callable[[], object]
) -> int:
    """For a consumer without slow work: what the claim itself finds to be new. Returns how many it rejected by itself."""
    with database.transaction() as tx:
        tx.writing = writing
        claimed = tx.claim(consumer.name, [event.event_id for event in batch])
        if claimed:
            fresh = batch if len(claimed) == len(batch) else [event for event in batch if event.event_id in claimed]
            with _spans(consumer.name, fresh) as traced:
                consumer.apply(tx, traced, None)
    return tx.rejected


def _handle_once(database: Database, consumer: BatchConsumer[Any], fresh: list[Received[Event]]) -> int:
    """Returns how many events the consumer rejected by itself."""
    with _spans(consumer.name, fresh) as traced:
        prepared = consumer.prepare(traced)
        with database.transaction() as tx:
            claimed = tx.claim(consumer.name, [event.event_id for event in traced])
            if len(claimed) < len(traced):
                raise _Overtaken
            consumer.apply(tx, traced, prepared)
        return tx.rejected


def _isolate(database: Database, consumer: BatchConsumer[Any], batch: list[Received[Event]], error: InvalidInput) -> int:
    """Find the invalid events by halving the batch, in its order; one that is left alone is a culprit."""
    if len(batch) > 1:
        middle = len(batch) // 2
        parts = (batch[:middle], batch[middle:])
        if consumer.knows_repeats:
            return sum(_handle_all(database, consumer, part, lambda: None, _UNREAD) for part in parts)
        return sum(_handle(database, consumer, part) for part in parts)
    event = batch[0]
    with database.transaction() as tx:
        if consumer.knows_repeats or tx.claim(consumer.name, [event.event_id]):
            tx.reject(consumer.name, event.record, type(error).__name__, error.reason)
    logger.warning("rejected %s %s: %s", event.topic.name, event.event_id, error.reason)
    return 1


def _unhandled(database: Database, consumer: str, batch: list[Received[Event]]) -> list[Received[Event]]:
    if not batch:
        return []
    with database.read() as session:
        ids = [event.event_id for event in batch]
        query = select(Inbox.event_id).where(Inbox.consumer == consumer, Inbox.event_id.in_(ids))  # type: ignore[call-overload,attr-defined]
        seen = set(session.execute(query).scalars())
    return [event for event in batch if event.event_id not in seen]


@contextmanager
def _spans(consumer: str, batch: list[Received[Event]]) -> Iterator[list[Received[Event]]]:
    """One consumer span per event, child of the event's producer, so that a study is one trace from C-STORE to report.

    Where nobody keeps spans, the events go on as they are, each with its producer's trace. So do those of a batch larger than
    `TRACED`, which has one span with links to some of them: a span each took longer than the work, and the exporter's queue
    (2,048) dropped many of them anyway.
    """
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        yield batch
        return
    tracer = trace.get_tracer("reclaim")
    if len(batch) > TRACED:
        attributes: dict[str, str | int] = {"messaging.system": "kafka", "messaging.batch.message_count": len(batch)}
        with tracer.start_as_current_span(f"{consumer} batch", Context(), SpanKind.CONSUMER, attributes, _links(batch)):
            yield batch
        return
    with ExitStack() as stack:
        yield [_start_span(stack, tracer, consumer, event) for event in batch]


def _links(batch: Sequence[Received[Event]]) -> list[Link]:
    """To the producers of the first events, as many as a span takes."""
    found = (trace.get_current_span(_parent(event)).get_span_context() for event in batch[:TRACED])
    return [Link(context) for context in found if context.is_valid]


def _parent(event: Received[Event]) -> Context:
    return TraceContextTextMapPropagator().extract({"traceparent": event.traceparent}, Context())


def _start_span(stack: ExitStack, tracer: trace.Tracer, consumer: str, event: Received[Event]) -> Received[Event]:
    attributes = {
        "messaging.system": "kafka",
        "messaging.destination.name": event.topic.name,
        "messaging.message.id": event.event_id,
    }
    span = tracer.start_span(f"{consumer} {event.topic.name}", _parent(event), SpanKind.CONSUMER, attributes)
    stack.callback(span.end)
    context = span.get_span_context()
    if not context.is_valid:
        return event
    return event.traced(f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}")
