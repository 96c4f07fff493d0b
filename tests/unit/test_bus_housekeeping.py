"""What the relay's housekeeping forgets and what it has sent again, however events and pages are spread; on both databases."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import select

from schemas.inbox_pages import InboxPage
from schemas.tables import Outbox
from services.runtime import outbox, pages
from services.runtime.database import Database
from tests.bus_world import emit, handle, send_all


def _pages_left(database: Database, before: datetime) -> int:
    outbox.forget_read(database, before)
    with database.read() as session:
        return len(session.exec(select(InboxPage)).all())


def test_a_page_goes_with_the_last_of_its_events(database: Database, clock: Any) -> None:
    (first,), (unread,) = emit(database), emit(database)
    send_all(database, "one")
    clock.advance(100)
    (second,) = emit(database)
    send_all(database, "one")
    handle(database, first, second, by="page")
    clock.advance(100)
    handle(database, unread, by="page")
    assert _pages_left(database, clock.now() - timedelta(seconds=100)) == 2, "the second event is too new"
    assert _pages_left(database, clock.now() - timedelta(seconds=10)) == 1, "the other page is too new"
    clock.advance(100)
    assert _pages_left(database, clock.now()) == 0


@pytest.mark.parametrize("behind", [timedelta(seconds=2), timedelta(days=3)])
def test_pages_of_a_consumer_whose_clock_was_behind_count_and_go(database: Database, clock: Any, behind: timedelta) -> None:
    """Else their events would stay unread for ever, and every later page with them."""
    made = clock.now()
    (event_id,) = emit(database)
    send_all(database, "one")
    clock.set(made - behind)
    handle(database, event_id, by="page")
    clock.set(made + timedelta(seconds=1))
    assert _pages_left(database, made - timedelta(seconds=1)) == 1, "the event is still there"
    assert _pages_left(database, made + timedelta(seconds=1)) == 0
    with database.read() as session:
        assert session.exec(select(Outbox)).all() == []


def test_one_page_of_many_events_is_told_from_many_pages_of_one(database: Database, clock: Any, monkeypatch: Any) -> None:
    """However the events are spread over pages and portions, exactly the unread ones are unread."""
    monkeypatch.setattr(outbox, "PORTION", 7)
    monkeypatch.setattr(pages, "AT_ONCE", 3)
    monkeypatch.setattr(pages, "ASKED", 2)
    names = emit(database, 40)
    send_all(database, "one")
    unread = {names[place] for place in (0, 5, 13, 39)}
    read = [name for name in names if name not in unread]
    for part in (*([name] for name in read[:10]), read[10:30], *([name] for name in read[30:])):
        clock.advance(1)
        handle(database, *part, by="page")
    clock.advance(1000)
    assert outbox.forget_read(database, clock.now() - timedelta(seconds=10), limit=20) == 20
    assert outbox.unsend_lost(database, "two", clock.now() - timedelta(days=1)) == 4
    assert _pages_left(database, clock.now() - timedelta(seconds=10)) == 0
    with database.read() as session:
        assert {row.event_id for row in outbox.unsent(session, 100)} == unread


def test_what_was_entered_again_meanwhile_is_not_forgotten(database: Database, clock: Any, monkeypatch: Any) -> None:
    (event_id,) = emit(database)
    send_all(database, "one")
    handle(database, event_id)
    clock.advance(1000)
    looked = outbox._portions

    def entered_again(session: Any, *chosen: Any, **how: bool) -> Any:
        found = list(looked(session, *chosen, **how))
        with database.transaction() as tx:
            tx.session.execute(update(Outbox).values(sent_at=None))
        return found

    monkeypatch.setattr(outbox, "_portions", entered_again)
    assert outbox.forget_read(database, clock.now() - timedelta(seconds=10)) == 0
    with database.read() as session:
        assert [row.event_id for row in outbox.unsent(session, 10)] == [event_id]


def test_only_what_was_sent_since_the_last_look_is_looked_at_again(database: Database, clock: Any) -> None:
    emit(database)
    send_all(database, "one")
    clock.advance(10)
    (later,) = emit(database)
    send_all(database, "one")
    assert outbox.unsend_unread(database, "one", clock.now() + timedelta(seconds=1), clock.now()) == 1
    with database.read() as session:
        assert [row.event_id for row in outbox.unsent(session, 10)] == [later]
