"""A wrong clock deletes nothing: after a leap retention waits for a day."""

from datetime import timedelta

import pytest
from sqlmodel import select

from schemas.clocks import ClockLook
from schemas.tables import Lease
from services.assembly.app import build
from services.runtime.service import Context
from services.runtime.steady_clock import is_steady
from tests.retained_archive import DAYS, Archive

MINUTE, DAY = 60, 86_400


def look(database):
    with database.transaction() as tx:
        return is_steady(tx, "retention", "image")


def test_a_clock_that_goes_on_is_believed(database, clock):
    for seconds in (0, MINUTE, DAY - 1, MINUTE, DAY):
        clock.advance(seconds)
        assert look(database)


@pytest.mark.parametrize("days", [2, 4000, -4000])
def test_after_a_leap_nothing_is_deleted_for_a_day(database, clock, caplog, days):
    look(database)
    clock.at += timedelta(days=days)
    held = [look(database)]
    for _ in range(25):
        clock.advance(3600)
        held.append(look(database))
    assert held == [False] * 24 + [True] * 2
    assert caplog.text.count("RET-204") == 1


def test_a_clock_that_is_put_right_costs_a_day_from_then_on(database, clock):
    look(database)
    clock.at += timedelta(days=4000)
    assert not look(database)
    clock.at -= timedelta(days=4000)
    assert not look(database)
    clock.advance(DAY)
    assert look(database)


def test_each_job_has_a_row_of_its_own_and_no_lease(database, clock):
    began = clock.now()
    look(database)
    clock.at += timedelta(days=30)
    look(database)
    with database.transaction() as tx:
        assert is_steady(tx, "drift", "signature")
    with database.read() as session:
        assert session.exec(select(Lease)).all() == []
        rows = {row.job: (row.looked_at, row.held_until) for row in session.exec(select(ClockLook))}
    now = began + timedelta(days=30)
    assert rows == {"retention": (now, now + timedelta(days=1)), "drift": (now, None)}


def test_retention_waits_for_it(sqlite_context, clock):
    """What a wrong clock makes too old is there when the clock is right again, and goes where it stays so."""
    settings = sqlite_context.settings.model_copy(update={"retention": DAYS})
    context = Context(settings, sqlite_context.database, clock, sqlite_context.pseudonyms)
    (tick,) = [ticker.run for ticker in build(context).tickers if ticker.name == "assembly.retention"]
    archive = Archive(context)
    archive.receive(1)
    archive.settle(1)

    def look_for(minutes):
        for _ in range(0, minutes, 10):
            with context.database.transaction() as tx:
                tick(tx)
            clock.advance(600)

    look_for(10)
    clock.at += timedelta(days=4000)
    look_for(60)
    assert archive.present(1) == [True]
    look_for(25 * 60)
    assert archive.on_disk() == []
    archive.files.close()
