"""A polled batch between the client library and the consumer: what is kept of it, and where a refusal goes back to."""

import asyncio
import weakref
from datetime import UTC, datetime
from typing import Any

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from faststream.exceptions import NackMessage
from faststream.kafka.message import KafkaAckableMessage

from schemas.settings import KafkaSettings, Settings
from schemas.topics import LABEL
from services.runtime.bus import Subscription
from services.runtime.consumer import Batch, BatchConsumer
from services.runtime.database import Database
from services.runtime.errors import Transient
from services.runtime.health import Health
from services.runtime.messages import headers_of
from services.runtime.transaction import Transaction
from tests.bus_world import label

AT = datetime(2026, 3, 2, tzinfo=UTC)


def records(partition: int, *offsets: int) -> list[Any]:
    """Labels whose event id is their place."""
    made = []
    for offset in offsets:
        headers = [(name, value.encode()) for name, value in headers_of(LABEL, f"{partition}/{offset}", AT).items()]
        body = label().model_dump_json().encode()
        made.append(ConsumerRecord(LABEL.name, partition, offset, 0, 0, b"k", body, None, 1, len(body), headers))
    return made


class Client:
    """A reader that notes where it is sent back to."""

    def __init__(self) -> None:
        self.sought: dict[int, int] = {}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.sought[partition.partition] = offset


class Reader(BatchConsumer[None]):
    """Keeps the ids of what it is given, and fails at one event if told to."""

    name, topics = "reader", (LABEL,)

    def __init__(self, fails_at: str = "") -> None:
        self.fails_at = fails_at
        self.batches: list[list[str]] = []

    def apply(self, tx: Transaction, batch: Batch, prepared: None) -> None:
        events = [event.event_id for event in batch]
        if self.fails_at in events:
            raise Transient("the disk is full")
        self.batches.append(events)


@pytest.fixture
def health(monkeypatch: pytest.MonkeyPatch) -> Health:
    found = Health()
    monkeypatch.setattr(found, "pause", lambda *_: asyncio.sleep(0))
    return found


def subscription(database: Database, reader: Reader, health: Health) -> Subscription:
    return Subscription(database, reader, Settings(kafka=KafkaSettings(embedded=False)), health)


def message(client: Client, polled: list[Any]) -> KafkaAckableMessage:
    return KafkaAckableMessage(body=b"", raw_message=tuple(polled), consumer=client, message_id="m", correlation_id="m")  # type: ignore[arg-type]


async def test_a_handled_poll_is_let_go_although_its_message_lives_on(sqlite_database: Database, health: Health) -> None:
    polled = records(0, 7, 8, 9) + records(1, 4, 5)
    alive = [weakref.ref(record) for record in polled]
    taken, reader = message(Client(), polled), Reader()
    del polled
    await subscription(sqlite_database, reader, health).handle(taken)
    assert reader.batches == [["0/7", "0/8", "0/9", "1/4", "1/5"]]
    assert [found().offset for found in alive if found()] == [7, 4]  # type: ignore[union-attr]


async def test_a_refused_poll_goes_back_to_its_first_record_in_each_partition(sqlite_database: Database, health: Health) -> None:
    client = Client()
    refused = message(client, records(1, 4, 5) + records(0, 9, 8, 7))
    with pytest.raises(NackMessage):
        await subscription(sqlite_database, Reader("1/5"), health).handle(refused)
    await refused.nack()
    assert client.sought == {0: 7, 1: 4}
