"""More variation from block to block than chance explains: estimated from the stream, and taken out of the counts.

Scanners, readers and case mix vary by the week, so that recall wanders about a level that does not fall. Counts of such
blocks say less than their number, by the factor phi (the variance of a block's error count over its binomial variance;
quasi-likelihood, Wedderburn 1974; McCullagh and Nelder 1989, section 4.5). Dividing errors and cases by phi keeps the rates
and gives the counts the information that they have. It is done only where the blocks before show the variation: dividing by
what chance alone makes of an estimate would delay every alarm.

Assumed: the level is the same in adjacent blocks except at falls, so differences of adjacent blocks (von Neumann 1941) show
the variation and not a fall; phi is the same for all classes; blocks vary independently of each other.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np

from services.evaluation.cases import Floats
from services.evaluation.detector import Counts

PRIOR_PAIRS: Final = 20.0
"""Pairs of blocks without extra variation that the estimate starts from: few blocks cannot show it."""
CAP: Final = 10.0
"""A pair counts for at most this many times the variation estimated before, or one fall would pass for variation."""
SHOWN: Final = 1.645
"""Standard errors by which the mean has to exceed 1 before it counts: one-sided 5 %."""
PAIR_VARIANCE: Final = 3.0
"""Variance of a mean of squared differences times their number: 2 of each, and 1/2 of either neighbour, which shares a block."""
LONGEST_MEMORY: Final = 104.0
"""Pairs of an earlier version that a version starts with at most: a site may change."""


class Variation(NamedTuple):
    """What is known of the variation from block to block: the sum of the standardised squared differences, and their number."""

    total: float = 0.0
    pairs: float = 0.0

    def remembered(self) -> "Variation":
        """What a later version of the model starts with: the same mean, of at most `LONGEST_MEMORY` pairs."""
        share = min(1.0, LONGEST_MEMORY / self.pairs) if self.pairs else 0.0
        return Variation(self.total * share, self.pairs * share)

    @classmethod
    def of(cls, evidence: Mapping[str, Any]) -> "Variation":
        """As an evaluation's evidence tells it; unknown where it tells nothing."""
        mean, pairs = evidence.get("variation_seen"), evidence.get("variation_pairs")
        if not isinstance(mean, int | float) or not isinstance(pairs, int | float):
            return cls()
        return cls(float(mean) * float(pairs), float(pairs))

    def evidence(self) -> dict[str, float]:
        """The factor that the next block is divided by, the mean squared difference (1 by chance) and the number of pairs."""
        if not self.pairs:
            return {}
        return {"variation_factor": self.factor, "variation_seen": self.total / self.pairs, "variation_pairs": self.pairs}

    @property
    def factor(self) -> float:
        """The phi that follows from it."""
        return float(_phi(np.array([self.total]), np.array([self.pairs]))[0])


UNKNOWN: Final = Variation()


def factors(counts: Counts, known: Variation = UNKNOWN) -> Floats:
    """[R, T] phi of each block, at least 1, from what was `known` and the blocks before it: no block changes its own weight."""
    return _estimated(counts, known)[0]


def variation(counts: Counts, known: Variation = UNKNOWN) -> Variation:
    """What is known of the variation after the last block of one stream (R = 1)."""
    _, totals, pairs = _estimated(counts, known)
    return Variation(float(totals[0]), float(pairs[0]))


def _estimated(counts: Counts, known: Variation) -> tuple[Floats, Floats, Floats]:
    """The phi [R, T], and sums and numbers [R] of all pairs."""
    squares = _squared_differences(counts)
    replicates, pairs = squares.shape
    total, number = np.full(replicates, known.total), np.full(replicates, known.pairs)
    found = np.tile(_phi(total, number)[:, None], (1, pairs + 2))
    seen, squares = np.isfinite(squares), np.nan_to_num(squares)
    for pair in range(pairs):
        total = total + np.minimum(squares[:, pair], CAP * np.maximum(_drawn(total, number), 1.0))
        number = number + seen[:, pair]
        found[:, pair + 2] = _phi(total, number)
    return found[:, : pairs + 1], total, number


def _phi(total: Floats, number: Floats) -> Floats:
    """1 where the mean is not beyond chance, else the mean drawn towards 1 by the prior pairs."""
    least = number + SHOWN * np.sqrt(PAIR_VARIANCE * number)
    found: Floats = np.where(total > least, _drawn(total, number), 1.0)
    return found


def _drawn(total: Floats, number: Floats) -> Floats:
    """The mean squared difference, drawn towards 1 by the prior pairs."""
    found: Floats = (PRIOR_PAIRS + total) / (PRIOR_PAIRS + number)
    return found


def _squared_differences(counts: Counts) -> Floats:
    """[R, T - 1] standardised squared difference of the error rates of adjacent blocks, all classes together.

    Classes are weighted by the harmonic size of their two blocks, so that prevalence moves nothing; NaN where no class has
    cases in both. The binomial variance is taken at the pooled rate of baseline and stream so far.
    """
    errors, cases = np.asarray(counts.errors, np.float64), np.asarray(counts.cases, np.float64)
    rate = (counts.baseline_errors[:, None] + errors.cumsum(1) + 0.5) / (counts.baseline_cases[:, None] + cases.cumsum(1) + 1)
    own = errors / np.maximum(cases, 1e-9)
    both = (cases[:, 1:] > 0) & (cases[:, :-1] > 0)
    weight = both * cases[:, 1:] * cases[:, :-1] / np.maximum(cases[:, 1:] + cases[:, :-1], 1e-9)
    difference = (weight * (own[:, 1:] - own[:, :-1])).sum(-1)
    variance = (weight * (rate * (1 - rate))[:, 1:]).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = np.where(variance > 0, difference**2 / variance, np.nan)
    return found


def steadied(counts: Counts, known: Variation = UNKNOWN) -> Counts:
    """The counts with each block's errors and right answers divided by its phi, the running sums rounded to halves."""
    phi = factors(counts, known)[..., None]
    if (phi == 1).all():
        return counts
    errors, right = (_rounded(part / phi) for part in (counts.errors, counts.cases - counts.errors))
    return replace(counts, errors=errors, cases=errors + right)


def _rounded(values: Floats) -> Floats:
    """Differences of the running sums rounded to halves: no window is off by more than a half, however long."""
    sums = np.rint(2 * values.cumsum(1)) / 2
    found: Floats = np.diff(sums, axis=1, prepend=0.0)
    return found
