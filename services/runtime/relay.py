"""The relay: from the outbox to the bus, one process at a time, in the order the events were put in.

At most one batch is in flight and a later one starts only when every event of it is acknowledged, so the order per key
holds through failures: after one, the first event without acknowledgement is sent again together with all that follow.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta

from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from faststream.kafka import KafkaBroker

from schemas.settings import KafkaSettings
from services.runtime import lease, outbox
from services.runtime.backoff import backoff
from services.runtime.bus import make_broker
from services.runtime.database import Database
from services.runtime.errors import Transient
from services.runtime.health import pause
from services.runtime.outbox import RELAY, Unsent
from services.runtime.service import Context, Service, StopSignal, Worker
from services.runtime.topics_admin import cluster_id, ensure_topics
from services.runtime.transaction import RELAY_BELL

logger = logging.getLogger(__name__)
IDLE_FIRST_S = 0.05
IDLE_MAX_S = 0.25
HOUSEKEEPING_S = 60.0
HOUSEKEEPING_AGAIN_S = 1.0
STANDBY_S = 1.0


def build(context: Context) -> Service:
    """The relay as a service; run it in one process (a second one waits until the first is gone)."""
    relay = Relay(context)
    return Service(name=RELAY, workers=(Worker(RELAY, relay.run),))


class LeaseLost(Exception):  # noqa: N818 - says what happened
    """Another relay has taken over; what it may have sent twice, the inboxes sort out."""


class Relay:
    """One relay. Every commit that puts events out rings for it; without a ring it looks after `IDLE_MAX_S` at the latest."""

    def __init__(self, context: Context) -> None:
        self._database: Database = context.database
        self._settings = context.settings
        self._clock = context.clock
        self._owner = lease.new_owner()
        self._awake = asyncio.Event()
        self._broker_name = ""
        self._next_housekeeping = 0.0
        self._reconciled: datetime | None = None
        self._next_renewal = 0.0
        self._failures = 0

    async def run(self, stop: StopSignal) -> None:
        """Relay until `stop` is set; database and broker may come and go."""
        while not stop.is_set:
            try:
                await self._serve(stop)
            except (Transient, LeaseLost) as error:
                delay = backoff(self._failures)
                self._failures += 1
                logger.warning("relay: %s; trying again in %.1f s", error or type(error).__doc__, delay)
                await pause(stop, delay)

    async def _serve(self, stop: StopSignal) -> None:
        if not await self._become_the_one(stop):
            return
        kafka = self._settings.kafka
        await ensure_topics(kafka)
        self._broker_name = await broker_name(kafka)
        async with _connected(kafka) as broker:
            try:
                await self._prepare()
                with self._database.listen(RELAY_BELL, self._awake):
                    await self._loop(stop, broker)
            finally:
                with contextlib.suppress(Transient):
                    await asyncio.to_thread(self._release)

    async def _become_the_one(self, stop: StopSignal) -> bool:
        told = False
        while not stop.is_set:
            if await asyncio.to_thread(self._hold):
                return True
            if not told:
                logger.info("relay: another relay is at work; waiting until it is gone")
                told = True
            await pause(stop, STANDBY_S)
        return False

    async def _prepare(self) -> None:
        lost = await asyncio.to_thread(self._unsend_lost)
        if lost:
            logger.warning("relay: %d events went to a broker that is gone and are sent again", lost)
        logger.info("relay: at work for broker %s", self._broker_name)

    async def _loop(self, stop: StopSignal, broker: KafkaBroker) -> None:
        idle = IDLE_FIRST_S
        while not stop.is_set:
            self._awake.clear()
            sent = await self.step(broker)
            idle = IDLE_FIRST_S if sent else min(IDLE_MAX_S, idle * 1.25)
            await self._keep_lease()
            await self._keep_house()
            if not sent:
                await pause(stop, idle, self._awake)

    async def step(self, broker: KafkaBroker) -> int:
        """Send one batch; returns how many events it had. Raises Transient when one could not be sent, LeaseLost."""
        rows = await asyncio.to_thread(self._read)
        if not rows:
            return 0
        acknowledged, refused, failure = await _publish(broker, rows)
        await asyncio.to_thread(self._record, acknowledged, refused)
        if failure is not None:
            raise Transient(f"the broker does not take events ({type(failure).__name__}: {failure})") from failure
        self._failures = 0
        return len(rows)

    async def _keep_lease(self) -> None:
        now = self._clock.monotonic()
        if now < self._next_renewal:
            return
        self._next_renewal = now + self._settings.outbox.lease_s / 4
        if not await asyncio.to_thread(self._hold):
            raise LeaseLost

    async def _keep_house(self) -> None:
        now = self._clock.monotonic()
        if now < self._next_housekeeping:
            return
        self._next_housekeeping = now + min(HOUSEKEEPING_S, self._settings.outbox.reconcile_s / 2)
        again = await asyncio.to_thread(self._tidy)
        if again:
            logger.warning("relay: %d events were not read in time and are sent once more", again)

    def _hold(self) -> bool:
        with self._database.transaction() as tx:
            return lease.hold(tx, RELAY, self._owner, self._settings.outbox.lease_s)

    def _release(self) -> None:
        with self._database.transaction() as tx:
            lease.release(tx, RELAY, self._owner)

    def _read(self) -> list[Unsent]:
        with self._database.read() as session:
            return outbox.unsent(session, self._settings.outbox.batch)

    def _record(self, acknowledged: Sequence[int], refused: Sequence[tuple[Unsent, Exception]]) -> None:
        with self._database.transaction() as tx:
            if not lease.hold(tx, RELAY, self._owner, self._settings.outbox.lease_s):
                raise LeaseLost
            outbox.mark_sent(tx, acknowledged, self._broker_name)
            for row, error in refused:
                outbox.put_aside(tx, row, type(error).__name__, str(error))
                logger.error("relay: %s %s can never be sent: %s", row.topic, row.event_id, error)

    def _unsend_lost(self) -> int:
        since = self._clock.now() - timedelta(seconds=self._settings.outbox.retention_s)
        return outbox.unsend_lost(self._database, self._broker_name, since)

    def _tidy(self) -> int:
        """Returns how many events are sent once more. Where more may be forgotten than at once, that goes on soon."""
        now, settings = self._clock.now(), self._settings.outbox
        if outbox.forget_read(self._database, now - timedelta(seconds=settings.retention_s)) >= outbox.MOST_FORGOTTEN:
            self._next_housekeeping = self._clock.monotonic() + HOUSEKEEPING_AGAIN_S
        if not self._settings.kafka.embedded:
            return 0
        until = now - timedelta(seconds=settings.reconcile_s)
        seen = self._reconciled if self._reconciled is not None and self._reconciled <= until else None  # not by a clock set back
        self._reconciled = until
        return outbox.unsend_unread(self._database, self._broker_name, until, seen)


async def broker_name(settings: KafkaSettings) -> str:
    """What tells one broker's memory from another's: the embedded broker's life, or the Kafka cluster's id."""
    return (settings.incarnation if settings.embedded else "") or await cluster_id(settings) or "kafka"


@contextlib.asynccontextmanager
async def _connected(settings: KafkaSettings) -> AsyncIterator[KafkaBroker]:
    broker = make_broker(settings, produces=True)
    try:
        await broker.connect()
    except (KafkaError, OSError) as error:
        await broker.stop()
        raise Transient(f"no Kafka broker answers at {settings.bootstrap} ({error})") from error
    try:
        yield broker
    finally:
        await broker.stop()


async def _publish(
    broker: KafkaBroker, rows: Sequence[Unsent]
) -> tuple[list[int], list[tuple[Unsent, Exception]], Exception | None]:
    """Pipeline rows to the broker: (acknowledged before the first failure, those it will never take, the first failure)."""
    pending: list[tuple[Unsent, asyncio.Future[object]]] = []
    refused: list[tuple[Unsent, Exception]] = []
    failure: Exception | None = None
    for row in rows:
        try:
            pending.append((row, await _send(broker, row)))
        except MessageSizeTooLargeError as error:
            refused.append((row, error))
        except (KafkaError, OSError) as error:
            failure = error
            break
    acknowledged: list[int] = []
    outcomes = await asyncio.gather(*(future for _, future in pending), return_exceptions=True)
    for (row, _), outcome in zip(pending, outcomes, strict=True):
        if isinstance(outcome, MessageSizeTooLargeError):
            refused.append((row, outcome))
        elif isinstance(outcome, BaseException):
            if not isinstance(outcome, (KafkaError, OSError)):
                raise outcome
            return acknowledged, refused, outcome
        else:
            acknowledged.append(row.id)
    return acknowledged, refused, failure


async def _send(broker: KafkaBroker, row: Unsent) -> "asyncio.Future[object]":
    future: asyncio.Future[object] = await broker.publish(
        row.body,
        row.topic,
        key=row.key.encode() or None,
        headers=dict(row.headers),
        correlation_id=row.event_id,
        no_confirm=True,
    )
    return future
