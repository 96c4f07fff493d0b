"""From the detector's statistics to a status a person can act on, with the evidence and what cannot be seen yet."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from schemas.vocabulary import Status
from services.evaluation.cases import Floats
from services.evaluation.detector import LOG_CAP, Counts, Thresholds, log_bayes_factor, priors_of, statistics
from services.evaluation.sufficiency import smallest_fall, sufficiency

MEANINGFUL_FALL: Final = 0.03
WATCH_BATCHES: Final = 4
WATCH_DOUBT: Final = 0.02
LIKELY: Final = 0.5
"""An alarm stands only where the posterior probability of a fall of 3 points or more is above this."""
DRAWS: Final = 20_000


@dataclass(frozen=True)
class Fall:
    """A fall of one class's recall since a batch, with 95 % limits; `probability` is that of a fall of 3 points or more."""

    label: str
    scope: str
    start: int
    start_low: int
    start_high: int
    recall: float
    before: float
    drop: float
    low: float
    high: float
    probability: float


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


def assess(counts: Counts, classes: Sequence[str], thresholds: Thresholds, batch_size: int, seed: int) -> Assessment:
    """Judge one stream (R = 1) after its last batch. An alarm stands until the recall is back (see `_recovered`)."""
    generator = np.random.default_rng(seed)
    first, alarm, found = _episode(counts, classes, thresholds, batch_size, generator)
    fall = _located(counts, first, classes, generator) if alarm or _watch(counts, generator) else None
    fall = fall if fall and fall.drop > 0 else None
    watched = alarm is None and fall is not None
    known = sufficiency(counts, classes, first)
    return Assessment(
        status=_status(alarm is not None, watched, bool(known.blocking)),
        a=float(found[-1, 0]),
        b=float(found[-1, 1]),
        thresholds=thresholds,
        alarm=alarm,
        fall=fall,
        more_cases=known.more_cases,
        unproven=tuple(known.missing),
        own_baseline=known.own_cases,
        restarted_after=first,
        smallest_fall=smallest_fall(counts, known.own_counts, thresholds, batch_size),
    )


def _episode(
    counts: Counts, classes: Sequence[str], thresholds: Thresholds, batch_size: int, generator: np.random.Generator
) -> tuple[int, int | None, Floats]:
    """Where the detector's clock started (batches before it), the alarm that stands, and the statistics since that start.

    An alarm without a fall that its own counts bear out is none. After a recovery the clock starts anew, compared with
    the baseline alone, so that the bad batches neither hold the alarm nor count as usual.
    """
    first, judged, batches = 0, 0, counts.errors.shape[1]
    while True:
        # No independent case yet: the logarithm of no evidence at all is not a number that can be stored.
        found = np.maximum(statistics(_part(counts, first, batches), batch_size)[0], -LOG_CAP)
        fired = first + np.flatnonzero((found[:, 0] >= thresholds.a) | (found[:, 1] >= thresholds.b)) + 1
        falls = ((int(end), _located(_part(counts, 0, int(end)), first, classes, generator)) for end in fired if end > judged)
        alarm, fall = next(((end, fall) for end, fall in falls if _supported(fall)), (None, None))
        if alarm is None or fall is None:
            return first, None, found
        ends = range(alarm + 1, batches + 1)
        closed = next((end for end in ends if _recovered(counts, first, end, alarm, fall, classes, generator)), None)
        if closed is None:
            return first, alarm, found
        first, judged = max(first, closed - WATCH_BATCHES), closed


def _part(counts: Counts, first: int, end: int) -> Counts:
    return Counts(counts.baseline_errors, counts.baseline_cases, counts.errors[:, first:end], counts.cases[:, first:end])


def _supported(fall: Fall) -> bool:
    """Whether the counts make a fall of 3 points or more likelier than not."""
    return fall.drop > 0 and fall.probability > LIKELY


def _recovered(
    counts: Counts, first: int, end: int, alarm: int, fall: Fall, classes: Sequence[str], generator: np.random.Generator
) -> bool:
    """Whether after batch `end` nothing speaks for the fall any more, or not the last batches, all made after the alarm."""
    seen = _part(counts, 0, end)
    if not _supported(_located(seen, first, classes, generator)):
        return True
    if end - alarm < WATCH_BATCHES:
        return False
    label = classes.index(fall.label)
    now = _sums(counts, label, end - WATCH_BATCHES, end)
    errors, cases = _sums(counts, label, first, fall.start - 1)
    then = (int(counts.baseline_errors[0, label]) + errors, int(counts.baseline_cases[0, label]) + cases)
    drops = _posterior(now, generator) - _posterior(then, generator)
    return bool((drops >= MEANINGFUL_FALL).mean() <= LIKELY) and not _watch(seen, generator)


def _sums(counts: Counts, label: int, first: int, end: int) -> tuple[int, int]:
    """Errors and cases of a class in batches `first` + 1 to `end`."""
    return int(counts.errors[0, first:end, label].sum()), int(counts.cases[0, first:end, label].sum())


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


def locate(counts: Counts, classes: Sequence[str], generator: np.random.Generator) -> Fall:
    """Where and since when: the class and the first batch for which the Bayes factor of "since then worse" is largest."""
    batches = counts.errors.shape[1]
    factors = _factors_by_start(counts)
    best = np.unravel_index(int(factors.argmax()), factors.shape)
    column, start = int(best[1]), int(best[0])
    label = int(factors[start, : len(classes)].argmax())
    span = _credible(factors[:, column])
    errors, cases = counts.errors[0, :, label], counts.cases[0, :, label]
    window = (int(errors[start:].sum()), int(cases[start:].sum()))
    earlier = (int(errors[:start].sum()), int(cases[:start].sum()))
    reference = (int(counts.baseline_errors[0, label]) + earlier[0], int(counts.baseline_cases[0, label]) + earlier[1])
    drops = _posterior(window, generator) - _posterior(reference, generator)
    low, high = np.quantile(drops, [0.025, 0.975])
    recall, before = 1 - window[0] / max(window[1], 1), 1 - reference[0] / max(reference[1], 1)
    assert start < batches
    return Fall(
        label=classes[label],
        scope="all classes" if column == len(classes) else "one class",
        start=start + 1,
        start_low=span[0] + 1,
        start_high=span[1] + 1,
        recall=recall,
        before=before,
        drop=before - recall,
        low=float(low),
        high=float(high),
        probability=float((drops >= MEANINGFUL_FALL).mean()),
    )


def _factors_by_start(counts: Counts) -> Floats:
    """[T, K + 1] log Bayes factor of "worse from batch t on" against the baseline and all before t."""
    errors, cases = counts.errors.cumsum(1), counts.cases.cumsum(1)
    before_errors, before_cases = errors - counts.errors, cases - counts.cases
    window = (errors[:, -1:] - before_errors, cases[:, -1:] - before_cases)
    reference = (counts.baseline_errors[:, None] + before_errors, counts.baseline_cases[:, None] + before_cases)
    found: Floats = log_bayes_factor(window, reference, priors_of(counts))[0]
    return found


def _credible(factors: Floats) -> tuple[int, int]:
    """First and last batch of the 95 % credible set of the start, every batch being equally likely beforehand."""
    weights = np.exp(factors - factors.max())
    order = np.argsort(-weights)
    enough = int(np.searchsorted(np.cumsum(weights[order]) / weights.sum(), 0.95)) + 1
    kept = order[:enough]
    return int(kept.min()), int(kept.max())


def _posterior(counts: tuple[int, int], generator: np.random.Generator) -> Floats:
    """Draws of an error rate from its Jeffreys posterior."""
    errors, cases = counts
    return generator.beta(errors + 0.5, cases - errors + 0.5, DRAWS)


def _watch(counts: Counts, generator: np.random.Generator) -> bool:
    """Whether some class's recall over the last batches is very probably 3 points or more below the baseline's."""
    errors, cases = counts.errors[0, -WATCH_BATCHES:].sum(0), counts.cases[0, -WATCH_BATCHES:].sum(0)
    needed = 1 - WATCH_DOUBT / len(errors)
    for label in np.flatnonzero((cases > 0) & (counts.baseline_cases[0] > 0)):
        now = _posterior((int(errors[label]), int(cases[label])), generator)
        then = _posterior((int(counts.baseline_errors[0, label]), int(counts.baseline_cases[0, label])), generator)
        if (now - then >= MEANINGFUL_FALL).mean() >= needed:
            return True
    return False
