"""Polled batches between the client library and the consumer, with those that are read while the database writes the one before:
what is kept of them, and where a refusal goes back to.
"""

import asyncio
import gc
import sys
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import ConsumerStoppedError
from faststream.exceptions import NackMessage
from faststream.kafka.message import KafkaAckableMessage

from schemas.settings import KafkaSettings, Settings
from schemas.topics import LABEL
from services.runtime.bus import Subscription, make_broker, subscribe
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
    """Keeps the ids of what it is given, and fails at one event if told to."""

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


def message(client: Client, polled: list[Any]) -> KafkaAckableMessage:
    return KafkaAckableMessage(body=b"", raw_message=tuple(polled), consumer=client, message_id="m", correlation_id="m")  # type: ignore[arg-type]


@pytest.fixture
def no_collections() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collections")
async def test_a_handled_poll_is_let_go_although_its_message_lives_on(sqlite_database: Database, health: Health) -> None:
    polled = records(0, 7, 8, 9) + records(1, 4, 5)
    alive = [weakref.ref(record) for record in polled]
    taken, reader = message(Client(), polled), Reader()
    del polled
    await subscription(sqlite_database, reader, health).handle(taken)
    assert reader.batches == [["0/7", "0/8", "0/9", "1/4", "1/5"]]
    for _ in range(500):  # the worker's thread lets go a moment after it has told that it is done
        if sum(found() is not None for found in alive) == 2:
            break
        await asyncio.sleep(0.01)
    assert [found().offset for found in alive if found()] == [7, 4]  # type: ignore[union-attr]


async def test_a_refused_poll_goes_back_to_its_first_record_in_each_partition(sqlite_database: Database, health: Health) -> None:
    client = Client()
    refused = message(client, records(1, 4, 5) + records(0, 9, 8, 7))
    with pytest.raises(NackMessage):
        await subscription(sqlite_database, Reader("1/5"), health).handle(refused)
    await refused.nack()
    assert client.sought == {0: 7, 1: 4}


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


async def test_what_comes_again_after_a_failure_is_handled_once(sqlite_database: Database, health: Health) -> None:
    reader, first, second = Reader("1/8"), records(0, 5, 6), records(1, 8) + records(0, 7)
    with pytest.raises(NackMessage):
        await subscription(sqlite_database, reader, health).handle(message(Client(second), first))
    reader.fails_at = ""
    await subscription(sqlite_database, reader, health).handle(message(Client(second), first))
    assert reader.batches == [["0/5", "0/6"], ["1/8", "0/7"]]


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


async def test_threads_take_turns_as_usual_after_a_poll_ahead(sqlite_database: Database, health: Health) -> None:
    usual = sys.getswitchinterval()
    with pytest.raises(NackMessage):
        await subscription(sqlite_database, Reader("0/1"), health).handle(message(Client(records(0, 1)), records(0, 0)))
    assert sys.getswitchinterval() == usual


@pytest.mark.parametrize(("polls_ahead", "seldom"), [(2, True), (0, False)])
def test_cycles_are_searched_seldom_where_the_next_poll_lives_beside_this_one(
    sqlite_database: Database, polls_ahead: int, seldom: bool
) -> None:
    usual, settings, reader = gc.get_threshold(), Settings(kafka=KafkaSettings(embedded=True)), Reader()
    reader.polls_ahead = polls_ahead  # type: ignore[misc]
    try:
        gc.set_threshold(700, *usual[1:])
        subscribe(make_broker(settings.kafka, produces=False), sqlite_database, reader, settings)
        assert (gc.get_threshold()[0] > 100_000) is seldom
        assert gc.get_threshold()[1:] == usual[1:]
    finally:
        gc.set_threshold(*usual)
