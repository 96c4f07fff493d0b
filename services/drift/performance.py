"""What confidence alone says of a model: estimated recalls (CBPE) and class shares (BBSE), each with its own uncertainty.

Sources: NannyML's CBPE; Li et al., class-specific confidence scores (MICCAI 2022); Lipton et al., black-box shift estimation
(ICML 2018). Both assume something: the first that confidence means what it meant on the baseline, the second that images of a
class look as before. Neither can see a change of what the labels mean.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import binom

from services.drift.sample import Array, Reference, Sample

DRAWS: Final = 400
LARGEST_CONDITION: Final = 50.0
"""Of the confusion matrix, above which class shares cannot be told from the predictions."""
UNEXPLAINED: Final = 0.01
"""P-value below which no mix of classes is taken to explain the answers."""
DISAGREEMENT: Final = 0.01
"""P-value of the true recall under the estimated one below which a class's estimate is switched off."""
MATTERS: Final = 0.05


@dataclass(frozen=True)
class Estimate:
    """A share with its 95 % interval, and what it is on the baseline."""

    name: str
    value: float
    low: float
    high: float
    baseline: float


def temperature(probabilities: Array, truth: NDArray[np.int64]) -> float:
    """The temperature at which confidence fits the truth best (Guo et al. 2017); 1 where there is nothing to fit."""
    if not len(truth):
        return 1.0
    logits = np.log(np.maximum(probabilities, 1e-12))

    def loss(log_t: float) -> float:
        scaled = logits / np.exp(log_t)
        scaled = scaled - scaled.max(1, keepdims=True)
        return float((np.log(np.exp(scaled).sum(1)) - scaled[np.arange(len(truth)), truth]).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.2), np.log(10)), method="bounded")
    return float(np.exp(found.x))


def tempered(probabilities: Array, at: float) -> Array:
    """Probabilities at another temperature."""
    powered = np.maximum(probabilities, 1e-12) ** (1 / at)
    found: Array = powered / powered.sum(1, keepdims=True)
    return found


@dataclass(frozen=True)
class Confidence:
    """Expected hits and expected cases of each class in each study, [n, K]; their sums' ratio is the expected recall."""

    hits: Array
    cases: Array

    @classmethod
    def of(cls, sample: Sample, at: float) -> "Confidence":
        """By the tempered probabilities."""
        shares = tempered(sample.probabilities, at)
        return cls(shares * np.eye(len(sample.classes))[sample.predicted], shares)

    def recalls(self, counts: NDArray[np.floating]) -> Array:
        """[W, K] expected recalls of windows [W, n] given as counts of the studies."""
        found: Array = counts @ self.hits / np.maximum(counts @ self.cases, 1e-9)
        return found


class LargestFall:
    """The largest fall of a class's expected recall, in standard deviations of what chance moves; counts as `marginals`."""

    def __init__(self, confidence: Confidence, window: int, seed: int) -> None:
        rows = len(confidence.cases)
        counts = np.random.default_rng(seed).multinomial(window, np.full(rows, 1 / rows), size=DRAWS).astype(np.float64)
        self._confidence = confidence
        # Where the reference is nearly perfect its few rows know nothing of rare doubts: never less than a binomial's spread.
        cases = confidence.cases.sum(0)
        rate = (confidence.hits.sum(0) + 0.5) / (cases + 1)
        binomial = np.sqrt(rate * (1 - rate) * (1 + rows / window) / np.maximum(cases, 1.0))
        self.spread = np.maximum(confidence.recalls(counts).std(0), binomial)

    def __call__(self, reference: NDArray[np.floating], windows: NDArray[np.floating]) -> Array:
        """[W] statistics of windows [n, W] against a reference [n, 1]."""
        falls = self._confidence.recalls(reference.T) - self._confidence.recalls(windows.T)
        return np.asarray((falls / self.spread).max(1), np.float64)


def estimated_recalls(reference: Reference, window: Sample, seed: int) -> list[Estimate]:
    """Each class's recall in the window: the true one on the baseline, moved as far as the expected one has moved."""
    generator = np.random.default_rng(seed)
    at = temperature(reference.sample.probabilities, reference.truth)
    usual, now = Confidence.of(reference.sample, at), Confidence.of(window, at)
    hits = (reference.truth == reference.sample.predicted).astype(np.float64)
    shown = np.eye(len(window.classes))[reference.truth]

    def moved(before: Array, after: Array) -> Array:
        true = (before * hits) @ shown / np.maximum(before @ shown, 1e-9)
        return np.asarray(np.clip(true + now.recalls(after) - usual.recalls(before), 0, 1), np.float64)

    value = moved(np.ones((1, reference.sample.count)), np.ones((1, window.count)))[0]
    draws = moved(*(_resampled(generator, size) for size in (reference.sample.count, window.count)))
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    true = hits @ shown / np.maximum(shown.sum(0), 1)
    known = np.flatnonzero(shown.sum(0) > 0)
    return [Estimate(window.classes[k], float(value[k]), float(low[k]), float(high[k]), float(true[k])) for k in known]


def _resampled(generator: np.random.Generator, size: int) -> Array:
    """[DRAWS, size] how often each row is drawn."""
    return generator.multinomial(size, np.full(size, 1 / size), size=DRAWS).astype(np.float64)


def estimated_shares(reference: Reference, window: Sample, seed: int) -> list[Estimate]:
    """Each class's share of the window's studies, by the predictions and the baseline's confusion.

    None where that is singular, and where no mix explains the predictions: then images of a class no longer look as before.
    """
    generator, width = np.random.default_rng(seed), len(window.classes)
    table, seen = _counted(reference, window)
    if _singular(table) or unexplained(reference, window, seed):
        return []
    value = _shares(table, seen)
    draws = []
    for _ in range(DRAWS):
        columns = np.stack([generator.dirichlet(table[:, k] + 0.5) for k in range(width)], 1)
        draws.append(_shares(columns, generator.dirichlet(seen + 0.5)))
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    usual = table.sum(0) / table.sum()
    return [
        Estimate(name, float(value[k]), float(low[k]), float(high[k]), float(usual[k])) for k, name in enumerate(window.classes)
    ]


def unexplained(reference: Reference, window: Sample, seed: int) -> bool:
    """Whether no mix of classes gives such predictions: they are farther from the nearest mix's than chance moves them."""
    generator = np.random.default_rng([seed, 1])
    table, seen = _counted(reference, window)
    if _singular(table):
        return False

    def distance(predicted: Array) -> float:
        return float(np.abs(table / table.sum(0) @ _shares(table, predicted) - predicted / predicted.sum()).sum())

    found, mix, farther = distance(seen), _shares(table, seen), 0
    for _ in range(DRAWS if found > 1e-9 else 0):
        columns = np.stack([generator.dirichlet(table[:, k] + 0.5) for k in range(len(mix))], 1)
        farther += distance(generator.multinomial(window.count, columns @ mix).astype(np.float64)) >= found
    return found > 1e-9 and farther < UNEXPLAINED * DRAWS


def _counted(reference: Reference, window: Sample) -> tuple[Array, Array]:
    """The baseline's counts by prediction (row) and truth (column), and the window's by prediction."""
    width = len(window.classes)
    table = np.zeros((width, width))
    np.add.at(table, (reference.sample.predicted, reference.truth), 1)
    return table, np.bincount(window.predicted, minlength=width).astype(np.float64)


def _singular(table: Array) -> bool:
    return bool((table.sum(0) == 0).any() or np.linalg.cond(table / table.sum(0)) > LARGEST_CONDITION)


def _shares(table: Array, seen: Array) -> Array:
    """Shares by which the columns of `table` (predicted given true) make up what is seen; clipped to be shares."""
    found, *_ = np.linalg.lstsq(table / table.sum(0), seen / seen.sum(), rcond=None)
    kept = np.maximum(found, 0)
    return np.asarray(kept / max(kept.sum(), 1e-9), np.float64)


def contradicted(estimate: float, cases: int, hits: int) -> bool:
    """Whether the truth, once it came, says something else than the estimate did."""
    if cases == 0 or abs(hits / cases - estimate) < MATTERS:
        return False
    tail = min(float(binom.cdf(hits, cases, estimate)), float(binom.sf(hits - 1, cases, estimate)))
    return 2 * tail < DISAGREEMENT
