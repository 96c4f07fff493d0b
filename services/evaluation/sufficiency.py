"""Whether the cases suffice to call a version healthy: what it takes before a fall of one class's recall would show.

A fall is the difference of two error rates, so both have to be known well enough. Where the baseline is too small for
that, as the gate's cases of a promoted version may be, the version's own first batches complete it (decision 0008). The
statistics are the same with and without: A compares each window with the baseline and with all earlier batches, so it has
these cases as a reference anyway, and thresholds and false alarms stay as they are calibrated.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.stats import norm

from services.evaluation.cases import Floats, Integers
from services.evaluation.detector import Counts, Thresholds
from services.runtime.conventions import LEVEL, POWER

SEEN_FALL: Final = 0.20
"""A status other than `undecided` says that a fall of this size in any usual class would have shown."""
USUAL_SHARE: Final = 0.05
"""Classes rarer than this in the baseline do not keep a version undecided; they are named as unproven."""
_POWER: Final = float(norm.ppf(1 - LEVEL) + norm.ppf(POWER))
"""Normal quantiles of level and power."""


@dataclass(frozen=True)
class Need:
    """Cases of each class [K] before a fall shows: `own` first ones that complete the baseline, then `later` ones.

    Infinite for a class that the baseline does not have: nothing is known that it could fall from.
    """

    own: Floats
    later: Floats


@dataclass(frozen=True)
class Sufficiency:
    """What a stream has and lacks. `own_cases`: labelled cases of its first batches that count as baseline too.

    `missing`: class to labelled cases of any class that it still takes; empty when all falls of 20 points would show.
    """

    own_cases: int
    own_counts: tuple[Integers, Integers]
    """Errors and cases per class [K] of these first batches."""
    missing: Mapping[str, float]
    blocking: Mapping[str, float]
    """Those of `missing` that are usual classes."""

    @property
    def more_cases(self) -> int | None:
        """Labelled cases until nothing blocks; None when no number would do."""
        worst = max(self.blocking.values(), default=0.0)
        return math.ceil(worst) if math.isfinite(worst) else None


def shares(counts: Counts) -> Floats:
    """[K] class shares of the baseline."""
    cases = counts.baseline_cases[0]
    found: Floats = cases / max(int(cases.sum()), 1)
    return found


def cases_for_fall(counts: Counts, drop: float) -> Need:
    """Cases of each class that show a fall of `drop` with 80 % power at 5 %, from the baseline's error rates.

    A baseline that is large enough is left alone. A smaller one is completed to the size at which both parts together are
    smallest: cases before and after in proportion to the standard deviations (Neyman 1934).
    """
    errors, cases = counts.baseline_errors[0], counts.baseline_cases[0]
    rate = (errors + 0.5) / (cases + 1)
    worse = np.minimum(rate + drop, 0.98)
    known, seen, precision = rate * (1 - rate), worse * (1 - worse), (drop / _POWER) ** 2
    both = (np.sqrt(known) + np.sqrt(seen)) / precision
    own = np.maximum(np.ceil(np.sqrt(known) * both) - cases, 0)
    room = precision - known / np.maximum(cases, 0.5)
    later = np.where(own > 0, np.ceil(np.sqrt(seen) * both), np.ceil(seen / np.where(room > 0, room, 1)))
    return Need(np.where(cases > 0, own, np.inf), later)


def sufficiency(counts: Counts, classes: Sequence[str], restarted_after: int) -> Sufficiency:
    """Judge one stream (R = 1). After a recovery only the batches after `restarted_after` count: those before were worse."""
    need, share = cases_for_fall(counts, SEEN_FALL), shares(counts)
    usual = share >= USUAL_SHARE
    errors, cases = (part[0, restarted_after:].cumsum(0) for part in (counts.errors, counts.cases))
    own = _batches_for(need.own[usual], cases[:, usual]) if need.own[usual].any() else 0
    taken = (errors[own - 1], cases[own - 1]) if own else (np.zeros_like(errors[0]),) * 2
    missing = np.maximum(need.own - taken[1], 0) + np.maximum(need.later - (cases[-1] - taken[1]), 0)
    wanting = {name: float(missing[k] / share[k]) if share[k] else math.inf for k, name in enumerate(classes) if missing[k] > 0}
    blocking = {name: cost for name, cost in wanting.items() if usual[classes.index(name)]}
    return Sufficiency(int(taken[1].sum()), taken, wanting, blocking)


def _batches_for(wanted: Floats, cases: Integers) -> int:
    """How many first batches hold the `wanted` cases of each class [K]; all when they do not. `cases` [T, K] are running sums."""
    enough = (cases >= wanted).all(1)
    return int(enough.argmax()) + 1 if enough.any() else len(cases)


def smallest_fall(counts: Counts, own: tuple[Integers, Integers], thresholds: Thresholds, batch_size: int) -> float | None:
    """The smallest fall that a year of batches is expected to lift above A's threshold, in the usual class that needs most.

    Expected evidence is cases times the Kullback-Leibler divergence of the two error rates, the cases being halved by an
    equally large baseline (harmonic mean), to which the `own` first cases belong; it has to pay for the threshold and for
    averaging over streams and drops.
    """
    share = shares(counts)
    usual = share >= USUAL_SHARE
    if not usual.any():
        return None
    errors, cases = counts.baseline_errors[0] + own[0], counts.baseline_cases[0] + own[1]
    rate = ((errors + 0.5) / (cases + 1))[usual]
    volume = (thresholds.per_year * batch_size * share)[usual]
    effective = volume * cases[usual] / (volume + cases[usual])
    price = thresholds.a + math.log(2 * (len(share) + 1) * 5)
    for points in range(1, 96):
        worse = np.minimum(rate + points / 100, 0.99)
        gain = worse * np.log(worse / rate) + (1 - worse) * np.log((1 - worse) / (1 - rate))
        if (effective * gain >= price).all():
            return points / 100
    return None
