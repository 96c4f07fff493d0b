"""Polls that are read while the database writes the one before: handled in order, and delivered again with it."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import ConsumerStoppedError
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
    """A reader with these polls in its buffer. Notes where it is sent back to."""

    def __init__(self, *polls: list[Any]) -> None:
        self.polls = list(polls)
        self.sought: dict[int, int] = {}

    async def getmany(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Any]]:
        if not self.polls:
            return {}
        poll = self.polls.pop(0)
        return {
            TopicPartition(LABEL.name, record.partition): [r for r in poll if r.partition == record.partition] for record in poll
        }

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.sought[partition.partition] = offset

    async def committed(self, place: TopicPartition) -> int:
        return 0


class Reader(BatchConsumer[None]):
    """Keeps what it is given, and fails at one event if told to."""

    name, topics, polls_ahead = "reader", (LABEL,), 2

    def __init__(self, fails_at: str = "", error: type[Exception] = Transient) -> None:
        self.fails_at, self.error = fails_at, error
        self.batches: list[list[str]] = []

    def apply(self, tx: Transaction, batch: Batch, prepared: None) -> None:
        events = [event.event_id for event in batch]
        tx.writing()
        if self.fails_at in events:
            raise self.error
        self.batches.append(events)


@pytest.fixture
def health(monkeypatch: pytest.MonkeyPatch) -> Health:
    found = Health()
    monkeypatch.setattr(found, "pause", lambda *_: asyncio.sleep(0))
    return found


def subscription(database: Database, reader: Reader, health: Health, *, embedded: bool = False) -> Subscription:
    return Subscription(database, reader, Settings(kafka=KafkaSettings(embedded=embedded)), health)


def message(client: Client, first: list[Any]) -> KafkaAckableMessage:
    return KafkaAckableMessage(body=b"", raw_message=tuple(first), consumer=client, message_id="m", correlation_id="m")


async def test_what_was_polled_meanwhile_is_handled_before_offsets_are_committed(sqlite_database: Database, health: Health) -> None:
    client, reader = Client(records(0, 2), records(1, 0), records(0, 3)), Reader()
    await subscription(sqlite_database, reader, health).handle(message(client, records(0, 0, 1)))
    assert reader.batches == [["0/0", "0/1"], ["0/2"], ["1/0"]]
    assert len(client.polls) == 1


async def test_a_reader_that_does_not_ask_for_it_polls_nothing_ahead(sqlite_database: Database, health: Health) -> None:
    client, reader = Client(records(0, 1)), Reader()
    reader.polls_ahead = 0  # type: ignore[misc]
    await subscription(sqlite_database, reader, health).handle(message(client, records(0, 0)))
    assert reader.batches == [["0/0"]]
    assert len(client.polls) == 1


@pytest.mark.parametrize(("fails_at", "handled"), [("0/5", []), ("1/8", [["0/5", "0/6"]])])
async def test_a_failure_sends_back_all_that_was_polled(
    sqlite_database: Database, health: Health, fails_at: str, handled: list[list[str]]
) -> None:
    client, reader = Client(records(1, 8) + records(0, 7), records(2, 4)), Reader(fails_at)
    refused = message(client, records(0, 5, 6))
    with pytest.raises(NackMessage):
        await subscription(sqlite_database, reader, health).handle(refused)
    await refused.nack()
    assert reader.batches == handled
    assert client.sought == {0: 5, 1: 8} | ({2: 4} if handled else {})
    assert health.exit_code == 0


async def test_a_bug_in_a_later_poll_ends_the_process(sqlite_database: Database, health: Health) -> None:
    client, reader = Client(records(0, 1)), Reader("0/1", ZeroDivisionError)
    with pytest.raises(NackMessage):
        await subscription(sqlite_database, reader, health).handle(message(client, records(0, 0)))
    assert reader.batches == [["0/0"]]
    assert health.exit_code != 0
    assert health.stop.is_set


async def test_a_gap_in_a_later_poll_is_gone_back_to(sqlite_database: Database, health: Health) -> None:
    client, reader = Client(records(0, 2, 4, 5), records(0, 3, 4, 5)), Reader()
    await subscription(sqlite_database, reader, health, embedded=True).handle(message(client, records(0, 0, 1)))
    assert reader.batches == [["0/0", "0/1"], ["0/2"], ["0/3", "0/4", "0/5"]]
    assert client.sought == {0: 3}


async def test_a_reader_that_is_being_closed_ends_the_call_without_a_fault(sqlite_database: Database, health: Health) -> None:
    class Closing(Client):
        async def getmany(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Any]]:
            raise ConsumerStoppedError

    reader = Reader()
    await subscription(sqlite_database, reader, health).handle(message(Closing(), records(0, 0)))
    assert reader.batches == [["0/0"]]


async def test_a_stop_refuses_what_was_polled_ahead(sqlite_database: Database, health: Health) -> None:
    class Stopping(Reader):
        def apply(self, tx: Transaction, batch: Batch, prepared: None) -> None:
            super().apply(tx, batch, prepared)
            health.stop.set()

    client, reader = Client(records(0, 1)), Stopping()
    refused = message(client, records(0, 0))
    with pytest.raises(NackMessage):
        await subscription(sqlite_database, reader, health).handle(refused)
    await refused.nack()
    assert reader.batches == [["0/0"]]
    assert client.sought == {0: 0}
