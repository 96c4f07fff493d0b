"""Days in plain words, counted from a given today."""

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.planner.dates import marked, slots
from agents.planner.language import parse

TODAY = date(2026, 3, 18)


@pytest.mark.parametrize(
    ("words", "since", "until"),
    [
        ("since monday", "2026-03-16", None),
        ("since wednesday", "2026-03-11", None),
        ("last week", "2026-03-09", "2026-03-15"),
        ("this month", "2026-03-01", None),
        ("last month", "2026-02-01", "2026-02-28"),
        ("between 1 and 10 march", "2026-03-01", "2026-03-10"),
        ("from 2026-02-01 to 2026-02-28", "2026-02-01", "2026-02-28"),
        ("in february", "2026-02-01", "2026-02-28"),
        ("since 12 november", "2025-11-12", None),
        ("over the last 30 days", "2026-02-16", None),
        ("in the past 3 months", "2025-12-18", None),
        ("from yesterday", "2026-03-17", "2026-03-17"),
        ("until 1 march 2026", None, "2026-03-01"),
        ("since the beginning of the year", "2026-01-01", None),
        ("over the last 200 cases", None, None),
        ("since 31 february", None, None),
    ],
)
def test_days_are_counted_from_today(words, since, until):
    expected = {name: day for name, day in (("since", since), ("until", until)) if day}
    assert slots(marked(f"trend of @model {words}", TODAY)) == expected


@given(st.text(alphabet="abcdefghijklmnoprstuy 0123456789-./", max_size=60), st.dates(date(2000, 1, 1), date(2100, 1, 1)))
def test_any_text_is_read_and_what_is_found_is_a_day(text, today):
    for day in slots(marked(f"since {text}", today)).values():
        assert date.fromisoformat(day)


@given(st.dates(date(2001, 1, 1), date(2100, 1, 1)))
def test_a_weekday_lies_within_the_week_before(today):
    found = date.fromisoformat(slots(marked("since friday", today))["since"])
    assert found.weekday() == 4
    assert timedelta(0) < today - found <= timedelta(7)


def test_an_order_for_a_day_is_not_given():
    found = parse("stop serving brain until monday", ["brain_mri"], (), TODAY)
    assert [(item.tool, bool(item.question)) for item in found] in (
        [("", True)],
        [("model_status", False)],
        [("metric_history", False)],
    )
