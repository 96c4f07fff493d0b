"""From the detector's statistics to a status a person can act on, with the evidence and what cannot be seen yet."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from schemas.vocabulary import Status
from services.evaluation.cases import Floats
from services.evaluation.detector import LOG_CAP, Counts, Thresholds, statistics
from services.evaluation.dispersion import UNKNOWN, Variation, steadied, variation
from services.evaluation.fall import LIKELY, MEANINGFUL_FALL, Fall, locate, parted, place, probability, size, supported
from services.evaluation.sufficiency import Sufficiency, smallest_fall, sufficiency

__all__ = ["Assessment", "Episode", "Episodes", "Fall", "assess", "episodes", "first_alarm"]

WATCH_BATCHES: Final = 4
WATCH_DOUBT: Final = 0.02


@dataclass(frozen=True)
class Assessment:
    """The detector's verdict on a stream. `alarm` is the batch that raised the alarm which still stands, None without one."""

    status: Status
    a: float
    b: float
    thresholds: Thresholds
    alarm: int | None
    fall: Fall | None
    more_cases: int | None
    """Labelled cases still needed before a fall of 20 points would show; None when no number of cases would do."""
    unproven: tuple[str, ...]
    own_baseline: int
    """The version's own first cases that complete a baseline too small to compare with; 0 with one that is large enough."""
    restarted_after: int
    """The batch after which the detector's clock was started anew by a recovery, 0 without one."""
    smallest_fall: float | None
    """The smallest fall of one usual class that a year at this volume can show; None when there is none."""
    variation: Variation = UNKNOWN
    """What this stream and the versions before it show of the variation from batch to batch."""


@dataclass(frozen=True)
class Episode:
    """An alarm by the number of the batch that raised it, and the batch that closed it; None while it stands."""

    alarm: int
    closed: int | None


@dataclass(frozen=True)
class Episodes:
    """All alarms of a stream, the batches before the detector's last start, and its statistics [T - restarted, 2] since."""

    found: tuple[Episode, ...]
    restarted_after: int
    statistics: Floats

    @property
    def standing(self) -> int | None:
        """The batch that raised the alarm which still stands, None without one."""
        last = self.found[-1] if self.found else None
        return last.alarm if last and last.closed is None else None


def assess(
    counts: Counts, classes: Sequence[str], thresholds: Thresholds, batch_size: int, seed: int, known: Variation = UNKNOWN
) -> Assessment:
    """Judge one stream (R = 1) after its last batch. An alarm stands until the recall is back (see `episodes`).

    Where recall varies more from batch to batch than chance explains, the counts are divided by that first; `known` is what
    earlier versions of the model showed of it. A fall that
    the detector is sure of raises the alarm whatever its size; `Fall.small` tells one that is probably below 3 points.
    """
    raw, counts = counts, steadied(counts, known)
    history = episodes(counts, thresholds, batch_size)
    first, alarm = history.restarted_after, history.standing
    generator = np.random.default_rng(seed)
    crossed = bool(history.statistics[-1, 0] >= thresholds.a or history.statistics[-1, 1] >= thresholds.b)
    watch = alarm is not None or _watch(counts)
    fall = _located(counts, first, classes, generator) if watch or crossed else None
    fall = fall if fall and fall.drop > 0 and (watch or fall.low > 0) else None
    watched = alarm is None and fall is not None
    enough = sufficiency(raw, classes, first)
    return Assessment(
        status=_status(alarm is not None, watched, bool(enough.blocking)),
        a=float(history.statistics[-1, 0]),
        b=float(history.statistics[-1, 1]),
        thresholds=thresholds,
        alarm=alarm,
        fall=fall,
        more_cases=enough.more_cases,
        unproven=tuple(enough.missing),
        own_baseline=enough.own_cases,
        restarted_after=first,
        smallest_fall=_smallest_fall(raw, enough, thresholds, batch_size),
        variation=variation(raw, known),
    )


def _smallest_fall(counts: Counts, known: Sufficiency, thresholds: Thresholds, batch_size: int) -> float | None:
    """As simulated with the thresholds; where it was not, by the formula, which errs to the safe side."""
    if thresholds.smallest_fall is not None:
        return thresholds.smallest_fall if thresholds.smallest_fall < 1 else None
    return smallest_fall(counts, known.own_counts, thresholds, batch_size)


def episodes(counts: Counts, thresholds: Thresholds, batch_size: int) -> Episodes:
    """The alarms of one stream (R = 1) as they rose and closed; what is found does not depend on what follows.

    An alarm without a lower recall is none; how large the fall is delays none. After a recovery the clock starts anew,
    compared with the baseline alone, so that the bad batches neither hold the alarm nor count as usual.
    """
    first, judged, alarms = 0, 0, list[Episode]()
    while True:
        alarm, found = first_alarm(counts, thresholds, batch_size, first, judged)
        if alarm is None:
            return Episodes(tuple(alarms), first, found)
        closed = _closed(counts, first, alarm)
        alarms.append(Episode(alarm, closed))
        if closed is None:
            return Episodes(tuple(alarms), first, found)
        first, judged = max(first, closed - WATCH_BATCHES), closed


def first_alarm(
    counts: Counts, thresholds: Thresholds, batch_size: int, first: int = 0, judged: int = 0
) -> tuple[int | None, Floats]:
    """The first batch after `judged` that raises an alarm, the clock starting after `first` ones; and the statistics since."""
    # No independent case yet: the logarithm of no evidence at all is not a number that can be stored.
    found = np.maximum(statistics(_part(counts, first, counts.errors.shape[1]), batch_size)[0], -LOG_CAP)
    return raised(counts, found, thresholds, first, judged), found


def raised(counts: Counts, found: Floats, thresholds: Thresholds, first: int = 0, judged: int = 0) -> int | None:
    """The batch of `first_alarm`, from the statistics `found` [T - first, 2] of one stream (R = 1)."""
    fired = first + np.flatnonzero((found[:, 0] >= thresholds.a) | (found[:, 1] >= thresholds.b)) + 1
    return next((int(end) for end in fired if end > judged and size(_part(counts, first, int(end))) > 0), None)


def _part(counts: Counts, first: int, end: int) -> Counts:
    return Counts(counts.baseline_errors, counts.baseline_cases, counts.errors[:, first:end], counts.cases[:, first:end])


def _closed(counts: Counts, first: int, alarm: int) -> int | None:
    """The batch after which nothing speaks for the fall any more, or not the last batches, all made after the alarm.

    Recall is back where it is likelier than not less than half the fall below what it was: for a fall of 6 points or more
    less than 3 points.
    """
    before = _part(counts, first, alarm)
    spot, least = place(before), min(MEANINGFUL_FALL, size(before) / 2)
    then = parted(before, spot.label, spot.start)[1]
    for end in range(alarm + 1, counts.errors.shape[1] + 1):
        if not supported(_part(counts, first, end), least):
            return end
        now = _sums(counts, spot.label, end - WATCH_BATCHES, end)
        if end - alarm >= WATCH_BATCHES and probability(now, then, least) <= LIKELY and not _watch(_part(counts, 0, end)):
            return end
    return None


def _sums(counts: Counts, label: int, first: int, end: int) -> tuple[float, float]:
    """Errors and cases of a class in batches `first` + 1 to `end`."""
    return float(counts.errors[0, first:end, label].sum()), float(counts.cases[0, first:end, label].sum())


def _located(counts: Counts, first: int, classes: Sequence[str], generator: np.random.Generator) -> Fall:
    """The fall in the batches after the first `first` ones, numbered as in the whole stream."""
    fall = locate(_part(counts, first, counts.errors.shape[1]), classes, generator)
    return replace(fall, start=fall.start + first, start_low=fall.start_low + first, start_high=fall.start_high + first)


def _status(alarm: bool, watched: bool, blocked: bool) -> Status:
    if alarm:
        return Status.DEGRADED
    if watched:
        return Status.WATCH
    return Status.UNDECIDED if blocked else Status.HEALTHY


def _watch(counts: Counts) -> bool:
    """Whether some class's recall over the last batches is very probably 3 points or more below the baseline's."""
    errors, cases = counts.errors[0, -WATCH_BATCHES:].sum(0), counts.cases[0, -WATCH_BATCHES:].sum(0)
    needed = 1 - WATCH_DOUBT / len(errors)
    for label in np.flatnonzero((cases > 0) & (counts.baseline_cases[0] > 0)):
        now = float(errors[label]), float(cases[label])
        then = float(counts.baseline_errors[0, label]), float(counts.baseline_cases[0, label])
        if probability(now, then, MEANINGFUL_FALL) >= needed:
            return True
    return False
