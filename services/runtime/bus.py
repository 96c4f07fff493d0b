"""From batch consumers to FastStream subscribers, with settings that were measured.

An offset is committed only after the batch's transaction: at least once on the wire, once in the database (inbox).
"""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import chain, groupby
from operator import attrgetter
from typing import Any, Final, NamedTuple, NoReturn

from aiokafka import ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import ConsumerStoppedError, IllegalStateError, KafkaError
from faststream import AckPolicy
from faststream.exceptions import NackMessage
from faststream.kafka import KafkaBroker
from faststream.kafka.message import KafkaAckableMessage, KafkaMessage
from faststream.kafka.security import parse_security
from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512

from schemas.settings import KafkaSettings, Settings
from services.runtime.backoff import backoff
from services.runtime.consumer import BatchConsumer, Decoded, decode_for, process_decoded, search_seldom
from services.runtime.database import Database
from services.runtime.errors import Transient
from services.runtime.guard import OffsetGuard, Run
from services.runtime.health import EX_DATAERR, EX_SOFTWARE, Health
from services.runtime.limits import DeadLetterLimit
from services.runtime.messages import Headers, Record, text_of

logger = logging.getLogger(__name__)
MAX_BATCH_BYTES = 1_048_576
MAX_PARTITION_FETCH_BYTES = 4_194_304
GAP_PAUSE_S = 0.02
STOPPING_PAUSE_S = 0.2
_PLACE: Final = attrgetter("topic", "partition")
_OFFSET: Final = attrgetter("offset")


def security(settings: KafkaSettings) -> BaseSecurity | None:
    """TLS and SASL as configured; None for a plain connection."""
    protocol = settings.security_protocol
    if protocol == "PLAINTEXT":
        return None
    encrypted = protocol.endswith("SSL")
    context = ssl.create_default_context(cafile=settings.ca_file) if encrypted else None
    if not protocol.startswith("SASL"):
        return BaseSecurity(ssl_context=context, use_ssl=encrypted)
    kinds = {"PLAIN": SASLPlaintext, "SCRAM-SHA-256": SASLScram256, "SCRAM-SHA-512": SASLScram512}
    password = settings.sasl_password.get_secret_value()
    return kinds[settings.sasl_mechanism](settings.sasl_username, password, ssl_context=context, use_ssl=encrypted)


def connection_options(settings: KafkaSettings) -> dict[str, Any]:
    """How aiokafka's own clients reach the brokers."""
    return {"bootstrap_servers": settings.servers, "client_id": "reclaim", **parse_security(security(settings))}


def make_broker(settings: KafkaSettings, *, produces: bool) -> KafkaBroker:
    """The FastStream broker. Without `produces` it only reads, and needs no right to write."""
    return KafkaBroker(
        settings.servers,
        client_id="reclaim",
        consumer_only=not produces,
        allow_auto_create_topics=False,
        acks="all",
        enable_idempotence=not settings.embedded,  # the embedded broker refuses InitProducerId v0
        linger_ms=5,
        max_batch_size=MAX_BATCH_BYTES,
        graceful_timeout=settings.graceful_timeout_s,
        security=security(settings),
        logger=_framework_logger(),
        log_level=logging.DEBUG,
        apply_types=False,
    )


def _framework_logger() -> logging.Logger:
    """FastStream's lines: its errors, among them commits that failed, and not its remarks on every message."""
    quiet = logging.getLogger(f"{__name__}.faststream")
    quiet.setLevel(logging.ERROR)
    return quiet


def group_id(name: str, settings: KafkaSettings) -> str:
    """Kafka group of a consumer. An embedded broker's offsets start at zero with each life, and so does the group."""
    suffix = f".{settings.incarnation[:12]}" if settings.embedded and settings.incarnation else ""
    return f"reclaim.{name}{suffix}"


def subscribe(
    broker: KafkaBroker, database: Database, consumer: BatchConsumer[Any], settings: Settings, health: Health | None = None
) -> "Subscription":
    """Have `broker` feed batches to `consumer`; `health` learns when the process has to end because of it."""
    kafka = settings.kafka
    if consumer.polls_ahead:
        search_seldom()
    subscription = Subscription(database, consumer, settings, health or Health())
    subscriber = broker.subscriber(
        *[topic.name for topic in consumer.topics],
        group_id=group_id(consumer.name, kafka),
        group_instance_id=f"{kafka.group_instance_id}.{consumer.name}" if kafka.group_instance_id else None,
        batch=True,
        max_records=consumer.max_records,
        batch_timeout_ms=100,
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.NACK_ON_ERROR,
        no_reply=True,
        parser=_parser_for(lambda: subscriber.consumer),
        decoder=_keep_raw,
        listener=subscription,
        partition_assignment_strategy=(RangePartitionAssignor,),  # partition i of all topics of a join in one process
        fetch_max_wait_ms=kafka.fetch_max_wait_ms,
        max_partition_fetch_bytes=MAX_PARTITION_FETCH_BYTES,
        session_timeout_ms=kafka.session_timeout_ms,
        heartbeat_interval_ms=kafka.heartbeat_interval_ms,
        max_poll_interval_ms=kafka.max_poll_interval_ms,
    )

    subscriber(subscription.handle)
    return subscription


class Subscription(ConsumerRebalanceListener):  # type: ignore[misc]
    """The way of one consumer's batches from the wire to its transaction, with what happens when it fails."""

    def __init__(self, database: Database, consumer: BatchConsumer[Any], settings: Settings, health: Health) -> None:
        self._database = database
        self._consumer = consumer
        self._health = health
        self._limit = DeadLetterLimit(settings.dead_letters)
        self._failures = 0
        self.guard = OffsetGuard() if settings.kafka.embedded else None

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Part of aiokafka's contract; the assignment that follows says all we need."""

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Partitions may have been read by another member in between: start their bookkeeping anew."""
        if self.guard:
            self.guard.forget((place.topic, place.partition) for place in assigned)

    async def handle(self, message: KafkaMessage) -> None:
        """Handle one polled batch, and those that were polled meanwhile. Returning commits the offsets of all of them.

        Raising has all of them delivered again, of which the inbox leaves what was not handled.
        """
        runs = _runs_of(message.raw_message)
        poll: _Poll | None = _Poll(runs)
        # FastStream's messages lie in a reference cycle, so what they hold stays until Python looks for cycles: up to 90 MB of
        # polls that were handled long ago.
        message.raw_message = _earliest(runs)
        del runs
        for left in reversed(range(self._consumer.polls_ahead + 1)):
            if poll is None:
                return
            if self._health.stop.is_set:
                await asyncio.sleep(STOPPING_PAUSE_S)
                raise NackMessage
            writing = asyncio.Event()
            ahead = asyncio.create_task(self._poll_ahead(message, writing)) if left else None
            await self._handle_poll(message.consumer, poll, writing, ahead)
            poll = await ahead if ahead else None

    async def _handle_poll(
        self, client: Any, poll: "_Poll", writing: asyncio.Event, ahead: "asyncio.Task[_Poll | None] | None"
    ) -> None:
        """Raises only after `ahead` is done: what it has polled has to be delivered again too."""
        loop = asyncio.get_running_loop()
        try:
            runs = await _without_gaps(self.guard, client, poll.runs) if self.guard else poll.runs
            if _size(runs) < _size(poll.runs):
                poll = _Poll(runs)
            tell = partial(loop.call_soon_threadsafe, writing.set)
            rejected = await asyncio.to_thread(poll.process, self._database, self._consumer, tell)
            self._finish(runs, rejected)
        except Exception as error:  # noqa: BLE001 - sorted by `_failed`
            writing.set()
            if ahead:
                await asyncio.wait([ahead])
            await self._failed(error)
        finally:
            writing.set()

    async def _failed(self, error: Exception) -> NoReturn:
        if isinstance(error, Transient):
            await self._wait_before_retry(error)
        elif not isinstance(error, NackMessage):
            self._health.fail(EX_SOFTWARE, f"consumer {self._consumer.name} has a bug", error)
        raise NackMessage from error

    async def _poll_ahead(self, message: KafkaMessage, writing: asyncio.Event) -> "_Poll | None":
        """What lies ready, decoded; None for nothing. From here on a refusal of `message` refuses it too."""
        await writing.wait()
        try:
            found = await message.consumer.getmany(timeout_ms=0, max_records=self._consumer.max_records)  # type: ignore[attr-defined]
        except (KafkaError, ConsumerStoppedError) as error:
            logger.debug("nothing is polled ahead: %s", error)  # whoever polls next meets it again
            return None
        poll = _Poll([run for run in found.values() if run])
        if not poll.runs:
            return None
        message.raw_message = _earliest([*_runs_of(message.raw_message), *poll.runs])
        return poll._replace(decoded=await asyncio.to_thread(decode_for, self._consumer, poll.records()))

    def _finish(self, runs: Sequence[Run], rejected: int) -> None:
        self._failures = 0
        reason = self._limit.exceeded_by(_size(runs), rejected)
        if reason:
            # Not committed: after a repair the same messages are read again.
            self._health.fail(EX_DATAERR, f"consumer {self._consumer.name} is stopped: {reason}; see `reclaim dead-letters list`")
            raise NackMessage
        if self.guard:
            self.guard.advance(runs)

    async def _wait_before_retry(self, error: Transient) -> None:
        delay = backoff(self._failures)
        self._failures += 1
        logger.warning("%s: %s; trying again in %.1f s", self._consumer.name, error, delay)
        await self._health.pause(delay)


class _Poll(NamedTuple):
    """Messages of the client library (`ConsumerRecord`), and what they say if that is known."""

    runs: Sequence[Run]
    decoded: Decoded | None = None

    def records(self) -> Iterable[Record]:
        """The messages as ours, each made when its turn comes."""
        return map(to_record, chain.from_iterable(self.runs))

    def process(self, database: Database, consumer: BatchConsumer[Any], writing: Callable[[], object]) -> int:
        """As `consumer.process_decoded`."""
        return process_decoded(database, consumer, self.decoded or decode_for(consumer, self.records()), writing)


def _runs_of(messages: Iterable["ConsumerRecord[Any, Any]"]) -> list[Run]:
    return [list(run) for _, run in groupby(messages, _PLACE)]


def _size(runs: Iterable[Run]) -> int:
    return sum(map(len, runs))


def _earliest(runs: Iterable[Run]) -> tuple["ConsumerRecord[Any, Any]", ...]:
    """The first message of each partition, which is all that FastStream needs to go back."""
    first: dict[tuple[str, int], ConsumerRecord[Any, Any]] = {}
    for run in runs:
        message = min(run, key=_OFFSET)
        known = first.setdefault(_PLACE(message), message)
        if message.offset < known.offset:
            first[_PLACE(message)] = message
    return tuple(first.values())


def to_record(raw: "ConsumerRecord[Any, Any]") -> Record:
    """A message of the client library as ours. Never fails: what no database takes becomes replacement characters.

    That is bytes which are not UTF-8, and the NUL character, which PostgreSQL refuses.
    """
    return Record(raw.topic, raw.partition, raw.offset, text_of(raw.key)[:255], Headers(raw.headers), raw.value or b"")


async def _without_gaps(guard: OffsetGuard, consumer: Any, runs: Sequence[Run]) -> Sequence[Run]:
    for topic, partition in guard.unknown(runs):
        guard.expect((topic, partition), await _first_offset(consumer, TopicPartition(topic, partition)))
    admission = guard.admit(runs)
    for (topic, partition), offset in admission.rewinds.items():
        try:
            consumer.seek(TopicPartition(topic, partition), offset)
        except IllegalStateError:
            logger.debug("%s/%d was taken away while its batch waited", topic, partition)
    if admission.rewinds:
        await asyncio.sleep(GAP_PAUSE_S)  # the broker is storing what is missing
    return admission.runs


async def _first_offset(consumer: Any, place: TopicPartition) -> int:
    committed = await consumer.committed(place)
    if committed is not None:
        return int(committed)
    return int((await consumer.beginning_offsets([place]))[place])


def _parser_for(client: Callable[[], Any]) -> Callable[[Any], Awaitable[KafkaAckableMessage]]:
    """FastStream's own parser decodes headers as UTF-8 and fails on others before any handler could put them aside."""

    async def parse(raw: tuple[Any, ...]) -> KafkaAckableMessage:
        identity = f"{raw[0].topic}/{raw[0].partition}/{raw[0].offset}"
        return KafkaAckableMessage(body=b"", raw_message=raw, consumer=client(), message_id=identity, correlation_id=identity)

    return parse


async def _keep_raw(message: KafkaMessage) -> KafkaMessage:
    return message
