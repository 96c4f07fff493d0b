"""Do studies still arrive, and are they scored? An empty feed is a fault, not health.

Arrivals are taken for a Poisson process whose rate depends on the hour of the week. A silence is a fault when the studies that
should have come in it are more than log(N / chance): with N studies a year the chance of one such silence in a year is `chance`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import log
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

HOURS: Final = 168
LEAST_ARRIVALS: Final = 50
LEAST_DAYS: Final = 14
YEAR_DAYS: Final = 365.25
DAY: Final = timedelta(days=1)
Rates = NDArray[np.float64]


@dataclass(frozen=True)
class Feed:
    """A model's studies: when they were scored in the past (oldest first), and what arrived since then.

    `announced` and `scored` are the studies of the last day that are old enough to have been scored, and how many were.
    `usual_share` is the share that used to be; `since_last` studies were announced after the last one that was scored.
    """

    scored_at: Sequence[datetime]
    began: datetime
    now: datetime
    announced: int
    scored: int
    since_last: int
    usual_share: float | None


@dataclass(frozen=True)
class Arrival:
    """What the feed shows: expected and found numbers, the threshold, and whether it is a fault."""

    statistic: float
    threshold: float
    warning: bool
    sentence: str
    p_value: float | None = None


def judge_feed(feed: Feed, chance: float) -> Arrival | None:
    """Judge a feed at a yearly chance of a false warning; None while too little is known of its usual rate."""
    days = (feed.now - feed.began) / DAY
    if days < LEAST_DAYS or len(feed.scored_at) < LEAST_ARRIVALS:
        return None
    share = _share(feed, chance / 2)
    if share is not None and share.warning:
        return share
    silence = _silence(feed, chance / 2, days)
    return silence if silence.warning or share is None else share


def judge_nothing(since: datetime, now: datetime, announced: int, *, is_new: bool) -> Arrival | None:
    """Judge a serving model that has scored no study since a time, of `announced` ones that arrived; None for two weeks.

    `is_new`: that time is the model's registration. Nothing is known of its usual rate, so there is no chance of a false warning to
    keep: that nothing comes is told as it is.
    """
    days = (now - since) / DAY
    if days < LEAST_DAYS:
        return None
    span = f"In the {days:.0f} days since it was registered" if is_new else f"In the last {days:.0f} days"
    return Arrival(days, LEAST_DAYS, True, f"{span} no study has been scored, and {announced or 'none'} have arrived.")


def _silence(feed: Feed, chance: float, days: float) -> Arrival:
    last = feed.scored_at[-1]
    # The silence itself must not lower the rate that it is compared with.
    rates = hourly_rates(feed.scored_at, feed.began, last)
    expected = expected_between(rates, last, feed.now)
    threshold = log(max(len(feed.scored_at) / days * YEAR_DAYS, 1.0) / chance)
    warning = expected > threshold
    hours = (feed.now - last).total_seconds() / 3600
    if not warning:
        return Arrival(expected, threshold, False, "Studies arrive and are scored at the usual rate.")
    arrived = f"{feed.since_last} studies have arrived, but none of them is scored" if feed.since_last else "no study has arrived"
    return Arrival(expected, threshold, True, f"For {hours:.0f} hours {arrived}; usually {expected:.0f} would have been.")


def _share(feed: Feed, chance: float) -> Arrival | None:
    """Studies that arrive and are not scored, over the last day; None where nothing is known of them."""
    if feed.usual_share is None or not feed.announced:
        return None
    p_value = float(binom.cdf(feed.scored, feed.announced, min(feed.usual_share, 0.995)))
    level = chance / YEAR_DAYS
    warning = p_value <= level
    sentence = f"Of {feed.announced} studies of the last day {feed.scored} are scored, usually {feed.usual_share:.0%} are."
    return Arrival(feed.scored / feed.announced, level, warning, sentence, p_value)


def hourly_rates(times: Sequence[datetime], began: datetime, ended: datetime) -> Rates:
    """[168] studies an hour by hour of the week, half a week's mean added to each so that no hour is impossible."""
    weeks = max((ended - began) / timedelta(weeks=1), 1e-9)
    counts = np.bincount([_hour_of_week(time) for time in times], minlength=HOURS)
    return np.asarray((counts + 0.5 * len(times) / HOURS / weeks) / (weeks + 0.5), np.float64)


def expected_between(rates: Rates, first: datetime, last: datetime) -> float:
    """Studies that the rates lead to expect between two times."""
    total, time = 0.0, first
    while time < last:
        end = min(time.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1), last)
        total += float(rates[_hour_of_week(time)]) * (end - time).total_seconds() / 3600
        time = end
    return total


def _hour_of_week(time: datetime) -> int:
    return time.weekday() * 24 + time.hour
