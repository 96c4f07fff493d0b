"""A consumer that knows repeated events by itself: it is given all, and its inbox is one page for each transaction."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlmodel import col, select

from schemas.inbox_pages import InboxPage
from schemas.tables import DeadLetter, Inbox
from schemas.topics import LABEL
from services.runtime.consumer import Batch, BatchConsumer, decode_for, process, process_decoded
from services.runtime.database import Database
from services.runtime.errors import InvalidInput
from services.runtime.messages import Received, Record, headers_of
from services.runtime.transaction import Transaction
from tests.bus_world import label

AT = datetime(2026, 3, 2, tzinfo=UTC)


class Knower(BatchConsumer[list[str]]):
    """Reads the ids of events; raises for one that it cannot use, at the stage it is told."""

    name, topics, knows_repeats = "knower", (LABEL,), True

    def __init__(self, refuses: type[Exception] | None = None) -> None:
        self.refuses, self.reads, self.applied = refuses, 0, list[list[str]]()

    def read(self, events: Iterable[Received[Any]]) -> list[str]:
        self.reads += 1
        found = [event.event_id for event in events]
        if self.refuses and "bad" in found:
            raise self.refuses("no")
        return found

    def apply(self, tx: Transaction, batch: Batch, prepared: list[str]) -> None:
        assert prepared == [event.event_id for event in batch]
        if "bad" in prepared:
            raise InvalidInput("no")
        self.applied.append(prepared)


def records(*ids: str) -> list[Record]:
    body = label().model_dump_json().encode()
    return [Record(LABEL.name, 0, place, "k", headers_of(LABEL, name, AT), body) for place, name in enumerate(ids)]


def kept(database: Database) -> list[list[str]]:
    with database.read() as session:
        assert session.exec(select(Inbox)).all() == []
        return [json.loads(page.event_ids) for page in session.exec(select(InboxPage).order_by(col(InboxPage.id)))]


def test_it_is_given_what_comes_again_and_keeps_a_page_each_time(sqlite_database: Database) -> None:
    consumer = Knower()
    for ids in (("a", "b", "a"), ("b", "c")):
        assert process(sqlite_database, consumer, records(*ids)) == 0
    assert consumer.applied == kept(sqlite_database) == [["a", "b"], ["b", "c"]]


@pytest.mark.parametrize("refuses", [None, InvalidInput])
def test_one_that_cannot_be_used_goes_to_the_dead_letters_and_into_no_page(
    sqlite_database: Database, refuses: type[Exception] | None
) -> None:
    assert process(sqlite_database, Knower(refuses), records("a", "bad", "b", "c")) == 1
    assert sorted(event for page in kept(sqlite_database) for event in page) == ["a", "b", "c"]
    with sqlite_database.read() as session:
        assert [letter.event_id for letter in session.exec(select(DeadLetter))] == ["bad"]


@pytest.mark.parametrize("events", [2, 200])
def test_what_was_read_ahead_is_not_read_again(sqlite_database: Database, events: int) -> None:
    consumer, ids = Knower(), [f"event-{number}" for number in range(events)]
    decoded = decode_for(consumer, records(*ids))
    assert consumer.reads == 1
    process_decoded(sqlite_database, consumer, decoded)
    assert (consumer.reads, consumer.applied) == (1, [ids])


def test_a_bug_in_what_is_read_ahead_shows_where_the_batch_is_handled(sqlite_database: Database) -> None:
    consumer = Knower(ZeroDivisionError)
    decoded = decode_for(consumer, records("a", "bad"))
    assert [event.event_id for event in decoded.good] == ["a", "bad"]
    with pytest.raises(ZeroDivisionError):
        process_decoded(sqlite_database, consumer, decoded)
    assert kept(sqlite_database) == []


class Sceptic(Knower):
    """Stops reading at the first event that it cannot use, in the middle of a poll."""

    def read(self, events: Iterable[Received[Any]]) -> list[str]:
        found = []
        for event in events:
            if event.event_id == "bad":
                raise InvalidInput("no")
            found.append(event.event_id)
        return found


def test_what_comes_after_one_that_cannot_be_read_is_decoded_too(sqlite_database: Database) -> None:
    consumer, found = Sceptic(), records("a", "bad", "b", "a")
    rubbish = found[0]._replace(body=b"{", headers={"ce_id": "rubbish"})
    assert process(sqlite_database, consumer, [*found, rubbish]) == 2
    assert sorted(event for batch in consumer.applied for event in batch) == ["a", "b"]
    with sqlite_database.read() as session:
        assert sorted(letter.event_id for letter in session.exec(select(DeadLetter))) == ["bad", "rubbish"]


class Forgetful(BatchConsumer[None]):
    """Reads nothing."""

    name, topics, knows_repeats = "forgetful", (LABEL,), True

    def __init__(self) -> None:
        self.applied: list[tuple[str, object]] = []

    def apply(self, tx: Transaction, batch: Batch, prepared: None) -> None:
        self.applied += [(event.event_id, event.data) for event in batch]


def test_one_that_reads_nothing_is_given_all_events_without_their_data(sqlite_database: Database) -> None:
    consumer = Forgetful()
    assert process(sqlite_database, consumer, records("a", "b", "a")) == 0
    assert consumer.applied == [("a", None), ("b", None)]
