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
LONGEST: Final = 208
"""Batches of a simulated span: four a week for a year."""
SAFETY: Final = 0.9
"""Tuning meets its target only on average over test sets; aiming at 0.9 of the budget keeps the budget."""
ALGORITHM: Final = "paired-e-detector/4"


def fingerprint(errors: Integers, cases: Integers, batch_size: int, budget: float, seed: int, per_year: int = YEAR) -> str:
    """Identity of a calibration: changes with test set, batch size, budget, seed, volume and algorithm."""
    parts = [ALGORITHM, errors.tolist(), cases.tolist(), batch_size, budget, seed, STREAMS, per_year]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def bound(budget: float, per_year: int = YEAR) -> Thresholds:
    """What theory gives without simulation: half the budget for the baseline's limits, a quarter for each statistic."""
    level = float(np.log(per_year / (budget / 4)))
    return Thresholds(level, level, "bound", per_year)


def calibrate(errors: Integers, cases: Integers, batch_size: int, budget: float, seed: int, per_year: int = YEAR) -> Thresholds:
    """Thresholds for a baseline with `errors` and `cases` per class [K]: P(false alarm in a year) is at most `budget`.

    A year has `per_year` batches. Two years are simulated and the worse one counts. Of a year of more than 208 batches two
    spans of 208 are, each with its part of the budget: the union of the spans keeps the whole. Both statistics get the same
    chance to fire. Never above the bound, which holds without simulation.
    """
    span = min(per_year, LONGEST)
    generator = np.random.default_rng([seed, batch_size, *cases.tolist()])
    maxima = [_spans_maxima(errors, cases, batch_size, span, generator) for _ in range(max(STREAMS // CHUNK, 1))]
    tuned = balance(np.concatenate(maxima), SAFETY * (1 - (1 - budget) ** (span / per_year)))
    ceiling = bound(budget, per_year)
    return Thresholds(min(float(tuned[0]), ceiling.a), min(float(tuned[1]), ceiling.b), "simulation", per_year)


def _spans_maxima(errors: Integers, cases: Integers, batch_size: int, span: int, generator: np.random.Generator) -> Floats:
    """[CHUNK, 2 spans, 2 statistics] of streams in which nothing changes."""
    prevalence = generator.dirichlet(cases + 0.5, size=CHUNK)
    rates = generator.beta(errors + 0.5, cases - errors + 0.5, size=(CHUNK, len(cases)))
    sizes = generator.multinomial(batch_size, prevalence[:, None], size=(CHUNK, 2 * span))
    wrong = generator.binomial(sizes, rates[:, None])
    baseline = (np.broadcast_to(errors, (CHUNK, len(errors))), np.broadcast_to(cases, (CHUNK, len(cases))))
    found = statistics(steadied(Counts(*baseline, wrong, sizes)), batch_size)
    return np.stack([found[:, :span].max(1), found[:, span:].max(1)], 1)


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
