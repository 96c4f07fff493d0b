"""The smallest fall that a year at a site's volume can show, by simulation with the model's own test set and thresholds."""

from dataclasses import replace
from typing import Final

import numpy as np

from services.evaluation.cases import Integers
from services.evaluation.detector import Counts, Thresholds, statistics
from services.evaluation.dispersion import steadied
from services.evaluation.sufficiency import USUAL_SHARE
from services.runtime.conventions import POWER

STREAMS: Final = 120
STABLE: Final = 13
"""Stable batches before the fall, a quarter of a year of one a week."""
LONGEST: Final = 104
"""Batches that are followed at most: where there are more in a year, the answer is on the safe side."""
WORST: Final = 0.98
"""Error rates are not taken further than this."""


def with_smallest_fall(thresholds: Thresholds, errors: Integers, cases: Integers, batch_size: int, seed: int) -> Thresholds:
    """The thresholds of a baseline with `errors` and `cases` [K], with the smallest fall that they show.

    By bisection over whole points: the smallest fall at once of one class that alarms within a year in 80 % of simulated
    streams, in the usual class that needs the largest. True error rates are drawn from the Jeffreys posterior.
    """
    usual = [k for k in range(len(cases)) if cases[k] >= max(USUAL_SHARE * cases.sum(), 1)]
    low, high = 0, 100
    while high - low > 1 and usual:
        points = (low + high) // 2
        enough = all(_power(thresholds, errors, cases, batch_size, seed, k, points / 100) >= POWER for k in usual)
        low, high = (low, points) if enough else (points, high)
    return replace(thresholds, smallest_fall=high / 100)


def _power(thresholds: Thresholds, errors: Integers, cases: Integers, batch_size: int, seed: int, label: int, drop: float) -> float:
    """Share of streams that alarm within a year after the class has fallen by `drop`, of those without an alarm before."""
    generator = np.random.default_rng([seed, label, batch_size])
    batches = STABLE + min(thresholds.per_year, LONGEST)
    rates = np.repeat(generator.beta(errors + 0.5, cases - errors + 0.5, size=(STREAMS, 1, len(cases))), batches, 1)
    rates[:, STABLE:, label] = np.minimum(rates[:, STABLE:, label] + drop, WORST)
    seen = generator.multinomial(batch_size, (cases + 0.5) / (cases + 0.5).sum(), size=(STREAMS, batches))
    base = [np.broadcast_to(part, (STREAMS, len(part))) for part in (errors, cases)]
    found = statistics(steadied(Counts(base[0], base[1], generator.binomial(seen, rates), seen)), batch_size)
    alarmed = (found[..., 0] >= thresholds.a) | (found[..., 1] >= thresholds.b)
    later = alarmed[~alarmed[:, :STABLE].any(1), STABLE:]
    return float(later.any(1).mean()) if len(later) else 1.0
