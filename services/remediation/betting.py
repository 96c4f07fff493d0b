"""Is the mean of bounded differences above zero? A test by betting, valid for any number of patients and any shape.

Waudby-Smith & Ramdas 2024, Estimating means of bounded random variables by betting. Probabilities that were made sharper gain a
little in nearly every case and lose much in a rare one that a small sample may not hold: t-tests and bootstraps are fooled by
that, a bet that would have to survive the rare loss is not.
"""

import math
from collections.abc import Sequence

import numpy as np

ORDERS = 200
"""Random orders of the patients that the evidence is averaged over: a mean of e-values is an e-value."""
BOLDEST = 0.75
"""Largest share of the capital at risk, so that no single loss ruins it."""


def evidence_of_gain(differences: Sequence[float], seed: int) -> float:
    """E-value against "the mean of these independent differences, each in [-1, 1], is zero or less"; its inverse is a p-value."""
    values = np.asarray(differences, dtype=np.float64)
    if len(values) == 0 or not np.any(values):
        return 1.0
    random = np.random.default_rng(seed)
    orders = np.stack([random.permutation(values) for _ in range(ORDERS)])
    before = np.arange(len(values))[None]
    # What is known before each bet, with one even observation of spread one half to begin with.
    means = (np.cumsum(orders, axis=1) - orders) / (before + 1)
    squares = (np.cumsum(orders**2, axis=1) - orders**2 + 0.25) / (before + 1)
    stakes = np.clip(means / np.maximum(squares, 1e-12), 0.0, BOLDEST)
    return float(np.exp(np.log1p(stakes * orders).sum(axis=1)).mean())


def cases_for(evidence: float, cases: int, level: float) -> int:
    """Cases with which evidence that goes on growing as it did would reach 1 / level; 0 where it does not grow."""
    if evidence <= 1:
        return 0
    return max(cases + 1, math.ceil(cases * math.log(1 / level) / math.log(evidence)))
