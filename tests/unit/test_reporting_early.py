"""What a report says of the early warning: runs of windows, what stands, and nothing where nothing was measured."""

from datetime import UTC, datetime, timedelta

import pytest

from services.reporting import early
from services.reporting.facts import Cause, Facts, LabelCounts, Period, Sign, Window

BEGIN = datetime(2026, 1, 5, 6, 0, tzinfo=UTC)
WEEK = timedelta(days=7)


def window(number, *warned, kind="cases", version=1, suspected="covariate"):
    signs = tuple(
        Sign(name, 1.0, 2.0, 0.5, None, name in warned, f"{name}.") for name in ("answers", "image statistics", "descriptions")
    )
    looks = suspected if warned else "none"
    seen = Window(BEGIN + WEEK * number, kind, number, version, 200, bool(warned), looks, f"Window {number}.", signs)
    assert seen.warned == set(warned)
    return seen


def facts(*windows, period=None):
    cause = Cause("e", BEGIN + 20 * WEEK, "m")
    nothing = LabelCounts({}, {})
    return Facts(
        cause, "t", ("a", "b"), True, 1, 1, (), (), None, (), (), {}, (), (), None, nothing, period=period, windows=windows
    )


def test_windows_that_say_the_same_stand_in_one_row():
    told = facts(*map(window, (1, 2, 3)), window(4, "answers"), window(5, "answers"), window(6))
    [table, signals] = early.tables(told)
    assert [row[0] for row in table.rows] == ["6", "4 to 5", "1 to 3"]
    assert table.rows[1][1:5] == ("02 Feb to 09 Feb 2026", "400", "answers", "other images")
    assert table.rows[2][3] == "quiet"
    assert signals.title == "Signals of window 6, 16 February 2026"
    assert [row[0] for row in signals.rows] == ["answers", "image statistics", "descriptions"]


def test_only_windows_of_the_period_are_listed_and_versions_are_told_apart():
    period = Period(BEGIN + 3 * WEEK, BEGIN + 9 * WEEK)
    told = facts(*map(window, (1, 2, 3, 4)), window(5, version=2), period=period)
    assert [row[0] for row in early.tables(told)[0].rows] == ["version 2: 5", "version 1: 4"]
    assert [each["number"] for each in early.data(told)] == [4, 5]
    assert early.tables(facts()) == []
    assert early.data(facts()) == []


def test_a_warning_stands_until_a_window_is_quiet():
    stood = (window(1), window(2, "answers"), window(3, "image statistics"))
    [sentence] = early.standing(facts(*stood))
    assert (
        "since 19 January 2026 (2 windows of 400 studies). In the newest window image statistics; it looks like other images,"
        in sentence
    )
    assert early.standing(facts(*stood, window(4))) == []
    assert early.standing(facts(*stood, window(1, "answers", version=2)))[0] == sentence, (
        "another version's windows are not this one's"
    )


def test_a_fault_of_the_feed_is_told_beside():
    found = early.standing(facts(window(1), window(1, "answers", kind="feed", suspected="pipeline")))
    assert found == ["Since 12 January 2026 the early warning tells of a fault of the feed. Window 1."]


@pytest.mark.parametrize("quiet", [(), (3,)])
def test_each_time_that_a_warning_stood_is_a_stretch(quiet):
    windows = [window(number, *(() if number in quiet else ("answers",))) for number in (1, 2, 3, 4)]
    found = early.stretches(windows, 1, BEGIN)
    assert [(each.since - BEGIN) // WEEK for each in found] == ([1] if not quiet else [1, 4])
    assert [(each.until - BEGIN) // WEEK for each in found] == ([4] if not quiet else [2, 4])
    assert {each.word for each in found} == {"other images"}


def test_a_warning_that_stands_reaches_to_the_newest_batch():
    """Labels come later than studies: the window that warns may be older than the first batch that the chart shows."""
    stood, ended = (window(1), window(2, "answers")), (window(2, "answers"), window(3))
    [found] = early.stretches(stood, 1, BEGIN + 9 * WEEK)
    assert ((found.since - BEGIN) // WEEK, (found.until - BEGIN) // WEEK) == (2, 9)
    assert [(each.until - BEGIN) // WEEK for each in early.stretches(ended, 1, BEGIN + 9 * WEEK)] == [2]
    assert [(each.until - BEGIN) // WEEK for each in early.stretches(stood, 2, BEGIN + 9 * WEEK)] == [2], "of a version before"
    assert [(each.until - BEGIN) // WEEK for each in early.stretches(stood, 1, BEGIN)] == [2]
