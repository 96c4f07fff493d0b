"""Which class has fallen, by how much, since when, and how sure that is: what stands beside an alarm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import betaincc, betaincinv

from services.evaluation.cases import Floats
from services.evaluation.detector import Counts, log_bayes_factor, priors_of

MEANINGFUL_FALL: Final = 0.03
LIKELY: Final = 0.5
"""A fall is `small` where the posterior probability of 3 points or more is no higher than this."""
DRAWS: Final = 20_000
NODES: Final = 200
"""Quantiles of the reference's error rate over which a probability is averaged; exact to about 1e-4."""


Part = tuple[float, float]
"""Errors and cases of one class."""


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

    @property
    def small(self) -> bool:
        """Whether the fall is likelier than not smaller than 3 points, however certain it is that recall fell."""
        return self.probability <= LIKELY


@dataclass(frozen=True)
class Place:
    """Where the evidence for a fall is largest: class, first batch (from 0), and the log factors of all starts [T]."""

    label: int
    everywhere: bool
    start: int
    factors: Floats


def place(counts: Counts) -> Place:
    """The class and the first batch for which the Bayes factor of "since then worse" is largest, of one stream (R = 1)."""
    factors = _factors_by_start(counts)
    start, column = (int(part) for part in np.unravel_index(int(factors.argmax()), factors.shape))
    classes = counts.errors.shape[-1]
    return Place(int(factors[start, :classes].argmax()), column == classes, start, factors[:, column])


def size(counts: Counts) -> float:
    """The fall of recall since the likeliest start; 0 or less where recall is no lower than before."""
    found = place(counts)
    window, reference = parted(counts, found.label, found.start)
    return window[0] / max(window[1], 1) - reference[0] / max(reference[1], 1)


def supported(counts: Counts, least: float = MEANINGFUL_FALL) -> bool:
    """Whether the counts make a fall of `least` or more since the likeliest start likelier than not."""
    found = place(counts)
    window, reference = parted(counts, found.label, found.start)
    fell = window[0] * reference[1] > reference[0] * window[1]
    return fell and probability(window, reference, least) > LIKELY


def parted(counts: Counts, label: int, start: int) -> tuple[Part, Part]:
    """Errors and cases of a class from batch `start` (from 0) on, and of the baseline with the batches before."""
    errors, cases = counts.errors[0, :, label], counts.cases[0, :, label]
    base = float(counts.baseline_errors[0, label]), float(counts.baseline_cases[0, label])
    window = float(errors[start:].sum()), float(cases[start:].sum())
    return window, (base[0] + float(errors[:start].sum()), base[1] + float(cases[:start].sum()))


def probability(window: Part, reference: Part, least: float = MEANINGFUL_FALL) -> float:
    """Posterior probability that the window's error rate is at least `least` above the reference's (errors, cases of each).

    Both have their Jeffreys posterior, independent of each other. No draws: the same counts give the same number.
    """
    places = (np.arange(NODES) + 0.5) / NODES
    rates = betaincinv(reference[0] + 0.5, reference[1] - reference[0] + 0.5, places)
    above = betaincc(window[0] + 0.5, window[1] - window[0] + 0.5, np.minimum(rates + least, 1.0))
    return float(above.mean())


def locate(counts: Counts, classes: Sequence[str], generator: np.random.Generator) -> Fall:
    """Everything about the likeliest fall in one stream (R = 1); batches are numbered from 1.

    Recalls and drop are those since the likeliest start. The interval of the drop averages over all starts by their
    evidence: at the likeliest one alone the drop looks larger than it is, and its interval covers too rarely.
    """
    found = place(counts)
    span = _credible(found.factors)
    window, reference = parted(counts, found.label, found.start)
    low, high = np.quantile(_drops(counts, found, generator), [0.025, 0.975])
    recall, before = 1 - window[0] / max(window[1], 1), 1 - reference[0] / max(reference[1], 1)
    return Fall(
        label=classes[found.label],
        scope="all classes" if found.everywhere else "one class",
        start=found.start + 1,
        start_low=span[0] + 1,
        start_high=span[1] + 1,
        recall=recall,
        before=before,
        drop=before - recall,
        low=float(low),
        high=float(high),
        probability=probability(window, reference),
    )


def _drops(counts: Counts, found: Place, generator: np.random.Generator) -> Floats:
    """Draws of the drop: a start by its evidence, every batch being equally likely beforehand, then both error rates."""
    weights = np.exp(found.factors - found.factors.max())
    starts = generator.choice(len(weights), DRAWS, p=weights / weights.sum())
    errors, cases = (part[0, :, found.label] for part in (counts.errors, counts.cases))
    before_errors, before_cases = ((part.cumsum() - part)[starts] for part in (errors, cases))
    wrong, seen = errors.sum() - before_errors, cases.sum() - before_cases
    base_errors, base_cases = counts.baseline_errors[0, found.label], counts.baseline_cases[0, found.label]
    now = generator.beta(wrong + 0.5, seen - wrong + 0.5)
    then = generator.beta(base_errors + before_errors + 0.5, base_cases - base_errors + before_cases - before_errors + 0.5)
    drops: Floats = now - then
    return drops


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
