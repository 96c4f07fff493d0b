"""More variation from block to block than chance explains: estimated from the stream, and taken out of the counts.

Scanners, readers and case mix vary by the week, so that recall wanders about a level that does not fall. Counts of such
blocks say less than their number, by the factor phi (the variance of a block's error count over its binomial variance;
quasi-likelihood, Wedderburn 1974; McCullagh and Nelder 1989, section 4.5). Dividing errors and cases by phi keeps the rates
and gives the counts the information that they have.

Assumed: the level is the same in adjacent blocks except at falls, so differences of adjacent blocks (von Neumann 1941) show
the variation and not a fall; phi is the same for all classes; blocks vary independently of each other.
"""

from dataclasses import replace
from typing import Final

import numpy as np

from services.evaluation.cases import Floats
from services.evaluation.detector import Counts

PRIOR_PAIRS: Final = 20.0
"""Pairs of blocks without extra variation that the estimate starts from: few blocks cannot show it."""
CAP: Final = 6.0
"""A pair counts for at most this many times the variation known before, or one fall would pass for variation."""


def factors(counts: Counts) -> Floats:
    """[R, T] phi of each block, at least 1, estimated from the blocks before it alone: no block changes its own weight."""
    squares = _squared_differences(counts)
    replicates, pairs = squares.shape
    found = np.ones((replicates, pairs + 1))
    total, number = np.full(replicates, PRIOR_PAIRS), np.full(replicates, PRIOR_PAIRS)
    seen, squares = np.isfinite(squares), np.nan_to_num(squares)
    for pair in range(pairs - 1):
        total = total + np.minimum(squares[:, pair], CAP * found[:, pair + 1])
        number = number + seen[:, pair]
        found[:, pair + 2] = np.maximum(total / number, 1.0)
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


def steadied(counts: Counts) -> Counts:
    """The counts with each block's errors and right answers divided by its phi, the running sums rounded to halves."""
    phi = factors(counts)[..., None]
    if (phi == 1).all():
        return counts
    errors, right = (_rounded(part / phi) for part in (counts.errors, counts.cases - counts.errors))
    return replace(counts, errors=errors, cases=errors + right)


def _rounded(values: Floats) -> Floats:
    """Differences of the running sums rounded to halves: no window is off by more than a half, however long."""
    sums = np.rint(2 * values.cumsum(1)) / 2
    found: Floats = np.diff(sums, axis=1, prepend=0.0)
    return found
