"""When routine reports are due: every week once, wherever the clock stands, and once after a downtime."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.report_settings import ReportSettings
from services.reporting.calendar import WEEK, Slot, latest_slot, period_of

MOMENTS = st.integers(0, 20 * 365 * 86_400).map(lambda seconds: datetime(2020, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds))
DAYS = st.sampled_from(["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"])
SETTINGS = st.builds(lambda day, hour: ReportSettings(weekday=day, hour=hour), DAYS, st.integers(0, 23))


@pytest.mark.parametrize(
    ("now", "slot"),
    [
        (datetime(2026, 3, 9, 5, 59, 59, tzinfo=UTC), datetime(2026, 3, 2, 6, tzinfo=UTC)),
        (datetime(2026, 3, 9, 6, 0, tzinfo=UTC), datetime(2026, 3, 9, 6, tzinfo=UTC)),
        (datetime(2026, 3, 15, 23, 59, tzinfo=UTC), datetime(2026, 3, 9, 6, tzinfo=UTC)),
        # The night in which clocks change in Europe: a week of UTC has 168 hours all the same.
        (datetime(2026, 3, 30, 6, 0, tzinfo=UTC), datetime(2026, 3, 30, 6, tzinfo=UTC)),
        (datetime(2027, 1, 1, 12, 0, tzinfo=UTC), datetime(2026, 12, 28, 6, tzinfo=UTC)),
    ],
)
def test_the_default_is_monday_at_six(now, slot):
    assert latest_slot(now, ReportSettings()).at == slot


@given(MOMENTS, SETTINGS)
def test_the_slot_is_the_newest_one_not_in_the_future(now, settings):
    slot = latest_slot(now, settings).at
    assert timedelta() <= now - slot < WEEK
    assert (slot.hour, slot.minute, slot.second) == (settings.hour, 0, 0)
    assert f"{slot:%A}".lower() == settings.weekday


@given(MOMENTS, SETTINGS, st.lists(st.integers(1, 60 * 24 * 40), min_size=1, max_size=40))
def test_the_periods_join_without_gap_or_overlap(made, settings, minutes):
    now, covered, periods = made, None, []
    for step in minutes:
        now += timedelta(minutes=step)
        period = period_of(latest_slot(now, settings), made, covered)
        if period is not None:
            periods.append(period)
            covered = period.until
    assert all(later.since == earlier.until for earlier, later in pairwise(periods))
    assert all(each.until <= now and each.until > each.since for each in periods)
    slot = latest_slot(now, settings).at
    assert (covered == slot) == (slot > made), "what is due is covered, after whatever downtime"


def test_a_model_younger_than_the_slot_is_not_reported_on():
    slot = Slot(datetime(2026, 3, 9, 6, tzinfo=UTC))
    assert period_of(slot, slot.at, None) is None
    assert period_of(slot, slot.at - timedelta(seconds=1), None) is not None


def test_the_week_is_the_calendars():
    assert Slot(datetime(2026, 12, 28, 6, tzinfo=UTC)).week == "2026-W53"
    assert Slot(datetime(2027, 1, 4, 6, tzinfo=UTC)).week == "2027-W01"
