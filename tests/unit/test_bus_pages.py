"""A consumer that knows repeated events by itself: it is given all, and its inbox is one page for each transaction."""

import json
from datetime import UTC, datetime

import pytest
from sqlmodel import col, select

from schemas.inbox_pages import InboxPage
from schemas.tables import DeadLetter, Inbox
from schemas.topics import LABEL
from services.runtime.consumer import Batch, BatchConsumer, decode_for, process, process_decoded
from services.runtime.database import Database
from services.runtime.errors import InvalidInput
from services.runtime.messages import Record, headers_of
from services.runtime.transaction import Transaction
from tests.bus_world import label

AT = datetime(2026, 3, 2, tzinfo=UTC)


class Knower(BatchConsumer[list[str]]):
    """Prepares the ids of a batch; raises for one that it cannot use, at the stage it is told."""

    name, topics, knows_repeats = "knower", (LABEL,), True

    def __init__(self, prepares: type[Exception] | None = None) -> None:
        self.prepares, self.prepared, self.applied = prepares, 0, list[list[str]]()

    def prepare(self, batch: Batch) -> list[str]:
        self.prepared += 1
        events = [event.event_id for event in batch]
        if self.prepares and "bad" in events:
            raise self.prepares("no")
        return events

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


@pytest.mark.parametrize("prepares", [None, InvalidInput])
def test_one_that_cannot_be_used_goes_to_the_dead_letters_and_into_no_page(
    sqlite_database: Database, prepares: type[Exception] | None
) -> None:
    assert process(sqlite_database, Knower(prepares), records("a", "bad", "b", "c")) == 1
    assert sorted(event for page in kept(sqlite_database) for event in page) == ["a", "b", "c"]
    with sqlite_database.read() as session:
        assert [letter.event_id for letter in session.exec(select(DeadLetter))] == ["bad"]


def test_what_was_prepared_ahead_is_not_prepared_again(sqlite_database: Database) -> None:
    """In a poll of some size: where telemetry is on, a few events get a trace each, with which they are prepared anew."""
    consumer, ids = Knower(), [f"event-{number}" for number in range(200)]
    decoded = decode_for(consumer, records(*ids))
    assert consumer.prepared == 1
    process_decoded(sqlite_database, consumer, decoded)
    assert (consumer.prepared, consumer.applied) == (1, [ids])


def test_a_bug_in_what_is_prepared_ahead_shows_where_the_batch_is_handled(sqlite_database: Database) -> None:
    consumer = Knower(ZeroDivisionError)
    decoded = decode_for(consumer, records("a", "bad"))
    assert decoded.prepared is None
    with pytest.raises(ZeroDivisionError):
        process_decoded(sqlite_database, consumer, decoded)
    assert kept(sqlite_database) == []
