"""The consumers of one process on the bus: waiting for the broker, subscribing, an orderly end."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from faststream.kafka import KafkaBroker

from schemas.settings import KafkaSettings
from services.runtime.backoff import backoff
from services.runtime.bus import make_broker, subscribe
from services.runtime.consumer import BatchConsumer
from services.runtime.errors import Transient
from services.runtime.health import EX_CONFIG, EX_UNAVAILABLE, Health
from services.runtime.service import Context
from services.runtime.topics_admin import TopicsDiffer, ensure_topics

logger = logging.getLogger(__name__)
EMBEDDED_PATIENCE_S = 60.0


@contextlib.asynccontextmanager
async def subscribed(consumers: Sequence[BatchConsumer[Any]], context: Context, health: Health) -> AsyncIterator[None]:
    """The broker with all subscribers, for as long as the body runs; without them when the process has to end before."""
    if not await _topics_ready(context.settings.kafka, health):
        yield
        return
    broker = make_broker(context.settings.kafka, produces=False)
    for consumer in consumers:
        subscribe(broker, context.database, consumer, context.settings, health)
    starting = asyncio.create_task(_start(broker))
    stopping = asyncio.create_task(health.stop.wait())
    try:
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if starting.done() and (error := starting.exception()):
            health.fail(EX_UNAVAILABLE, f"the consumers cannot start at {context.settings.kafka.bootstrap}", error)
        yield
    finally:
        starting.cancel()
        stopping.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
        await broker.stop()


async def _start(broker: KafkaBroker) -> None:
    """Start subscribers at the same time: each waits for its group, and the broker delays a first join by seconds."""
    await broker.connect()
    await asyncio.gather(*(subscriber.start() for subscriber in broker.subscribers))
    broker.running = True


async def _topics_ready(kafka: KafkaSettings, health: Health) -> bool:
    """Wait for the broker and its topics. False when the process has to end instead."""
    loop = asyncio.get_running_loop()
    started, failures = loop.time(), 0
    while not health.stop.is_set:
        try:
            await ensure_topics(kafka)
        except TopicsDiffer as error:
            health.fail(EX_CONFIG, str(error))
        except Transient as error:
            if kafka.embedded and loop.time() - started > EMBEDDED_PATIENCE_S:
                health.fail(EX_UNAVAILABLE, f"{error}; an embedded broker that went away does not come back at the same place")
                return False
            delay = backoff(failures)
            failures += 1
            logger.warning("%s; trying again in %.1f s", error, delay)
            await health.pause(delay)
        else:
            return True
    return False
