"""Topics are made at start-up with a stated number of partitions; nothing creates one by naming it.

An existing topic with another number of partitions is an error, not something to repair: adding partitions moves keys
and so breaks the order per key, and a join needs equal counts on both sides.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError, KafkaError

from schemas.settings import KafkaSettings
from schemas.topics import TOPICS, Topic
from services.runtime.bus import connection_options
from services.runtime.errors import Transient

logger = logging.getLogger(__name__)
TOPIC_ALREADY_EXISTS = 36


class TopicsDiffer(Exception):  # noqa: N818 - says what is the matter
    """Topics on the broker have another number of partitions than configured."""


def wanted_partitions(settings: KafkaSettings, topics: Sequence[Topic] = TOPICS) -> dict[str, int]:
    """Partitions of every topic and its dead-letter topic. All topics get the same count, so joins find their partners."""
    names = [name for topic in topics for name in (topic.name, topic.dead_letter)]
    return dict.fromkeys(names, settings.partitions)


async def ensure_topics(settings: KafkaSettings, topics: Sequence[Topic] = TOPICS) -> None:
    """Create what is missing, then check partitions. Raises Transient when the broker is away, TopicsDiffer when counts differ."""
    wanted = wanted_partitions(settings, topics)
    async with _admin(settings) as admin:
        missing = [name for name in wanted if name not in set(await admin.list_topics())]
        if missing:
            await _create(admin, {name: wanted[name] for name in missing}, settings.replication)
        await _verify(admin, wanted)


async def cluster_id(settings: KafkaSettings) -> str:
    """The broker's own identity; raises Transient when it is away."""
    async with _admin(settings) as admin:
        described = await admin.describe_cluster()
    return str(described.get("cluster_id") or "")


@contextlib.asynccontextmanager
async def _admin(settings: KafkaSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**connection_options(settings), request_timeout_ms=10_000)
    try:
        await admin.start()
        yield admin
    except (KafkaConnectionError, KafkaError, OSError, TimeoutError) as error:
        raise Transient(f"no Kafka broker answers at {settings.bootstrap or '(nothing configured)'} ({error})") from error
    finally:
        await admin.close()


async def _create(admin: AIOKafkaAdminClient, missing: Mapping[str, int], replication: int) -> None:
    response = await admin.create_topics([NewTopic(name, count, replication) for name, count in missing.items()])
    for name, code, *message in response.topic_errors:
        if code not in (0, TOPIC_ALREADY_EXISTS):
            raise Transient(f"topic {name} cannot be created: error {code} {' '.join(filter(None, message))}".rstrip())
    logger.info("created %d topics", len(missing))


async def _verify(admin: AIOKafkaAdminClient, wanted: Mapping[str, int]) -> None:
    for _ in range(50):  # a new topic takes a moment to reach the metadata of a real cluster
        described = await admin.describe_topics(list(wanted))
        found = {item["topic"]: len(item["partitions"]) for item in described if not item["error_code"]}
        if set(found) == set(wanted):
            break
        await asyncio.sleep(0.1)
    else:
        raise Transient(f"topics are not in the metadata yet: {', '.join(sorted(set(wanted) - set(found)))}")
    wrong = [f"{name} has {found[name]}, wanted {count}" for name, count in wanted.items() if found[name] != count]
    if wrong:
        raise TopicsDiffer(
            f"partitions differ ({'; '.join(wrong)}). Set RECLAIM_KAFKA_PARTITIONS to what exists; or let the consumers read "
            "everything, stop all services, delete these topics and start again"
        )
