"""Thresholds that keep the yearly probability of a false alarm: by simulation from the baseline, else by the bound.

A simulated world repeats the model's own test set: error rates and prevalence are drawn from the Jeffreys posterior of
its counts, so that a lucky or unlucky test set is part of what the thresholds allow for.
"""

import hashlib
import json
from typing import Final

import numpy as np

from services.evaluation.cases import Floats, Integers
from services.evaluation.detector import YEAR, Counts, Thresholds, statistics
from services.evaluation.dispersion import steadied

STREAMS: Final = 1000
CHUNK: Final = 25
SAFETY: Final = 0.9
"""Tuning meets its target only on average over test sets; aiming at 0.9 of the budget keeps the budget."""
ALGORITHM: Final = "paired-e-detector/3"


def fingerprint(errors: Integers, cases: Integers, batch_size: int, budget: float, seed: int) -> str:
    """Identity of a calibration: changes with the test set, the usual batch size, the budget, the seed or the algorithm."""
    parts = [ALGORITHM, errors.tolist(), cases.tolist(), batch_size, budget, seed, STREAMS]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def bound(budget: float) -> Thresholds:
    """What theory gives without simulation: half the budget for the baseline's limits, a quarter for each statistic."""
    level = float(np.log(YEAR / (budget / 4)))
    return Thresholds(level, level, "bound")


def calibrate(errors: Integers, cases: Integers, batch_size: int, budget: float, seed: int) -> Thresholds:
    """Thresholds for a baseline with `errors` and `cases` per class [K]: P(false alarm) in the worse of two years is `budget`.

    Both statistics get the same chance to fire. Never above the bound, which holds without simulation.
    """
    generator = np.random.default_rng([seed, batch_size, *cases.tolist()])
    maxima = [_yearly_maxima(errors, cases, batch_size, generator) for _ in range(STREAMS // CHUNK)]
    tuned = balance(np.concatenate(maxima), SAFETY * budget)
    ceiling = bound(budget)
    return Thresholds(min(float(tuned[0]), ceiling.a), min(float(tuned[1]), ceiling.b), "simulation")


def _yearly_maxima(errors: Integers, cases: Integers, batch_size: int, generator: np.random.Generator) -> Floats:
    """[CHUNK, 2 years, 2 statistics] of streams in which nothing changes."""
    prevalence = generator.dirichlet(cases + 0.5, size=CHUNK)
    rates = generator.beta(errors + 0.5, cases - errors + 0.5, size=(CHUNK, len(cases)))
    sizes = generator.multinomial(batch_size, prevalence[:, None], size=(CHUNK, 2 * YEAR))
    wrong = generator.binomial(sizes, rates[:, None])
    baseline = (np.broadcast_to(errors, (CHUNK, len(errors))), np.broadcast_to(cases, (CHUNK, len(cases))))
    found = statistics(steadied(Counts(*baseline, wrong, sizes)), batch_size)
    return np.stack([found[:, :YEAR].max(1), found[:, YEAR:].max(1)], 1)


def balance(maxima: Floats, budget: float) -> Floats:
    """Thresholds [2] of equal exceedance such that the share of streams that alarm in the worse year is at most `budget`.

    `maxima` [streams, years, 2] under no change. The number of streams each statistic may alarm in is found by bisection.
    """
    ordered, streams = np.sort(maxima, 0), len(maxima)
    low, high = 0, int(streams * budget) + 1
    best = np.nextafter(ordered[-1].max(0), np.inf)
    while low <= high:
        allowed = (low + high) // 2
        thresholds = np.nextafter(ordered[streams - 1 - allowed].max(0), np.inf)
        if (maxima >= thresholds).any(2).mean(0).max() <= budget:
            best, low = thresholds, allowed + 1
        else:
            high = allowed - 1
    found: Floats = best
    return found
