"""How the year's chance of a false warning is shared out, and the thresholds that keep it.

Each signal gets an equal part. Those made of columns have thresholds by simulation (`marginals`); those on embeddings have
permutation p-values, which hold for each window, and divide their part by the number of windows a year (union bound).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import log10
from typing import Final

import numpy as np
from scipy.stats import norm

from models.facets import NUMERIC
from models.signature import QUALITY
from services.drift.marginals import ATOMS, Column, Numbers, Words, Year, YearlyStatistic, group_statistics, thresholds
from services.drift.performance import Confidence, LargestFall, temperature
from services.drift.sample import Reference, Sample

ANSWERS: Final = "answers"
STATISTICS: Final = "image statistics"
DESCRIPTIONS: Final = "descriptions"
CONFIDENCE: Final = "confidence"
EMBEDDINGS: Final = "embeddings"
EMBEDDINGS_LONG: Final = "embeddings, several windows"
FAULTS: Final = "known faults"
FEED: Final = "feed"
SIGNALS: Final = (ANSWERS, STATISTICS, DESCRIPTIONS, CONFIDENCE, EMBEDDINGS, EMBEDDINGS_LONG, FAULTS, FEED)
"""Everything that may warn; each has the same part of the budget."""
SEVERAL: Final = 3
"""Windows that the classifier test takes together: at least 500 cases."""
ALGORITHM: Final = "drift/1"


@dataclass(frozen=True)
class Budget:
    """The chance of a false warning in a year, and how often a year something is looked at."""

    chance: float
    looks: int

    @property
    def part(self) -> float:
        """One signal's part of the year's chance."""
        return self.chance / len(SIGNALS)

    @property
    def per_window(self) -> float:
        """Greatest p-value at which the embeddings of one window warn."""
        return self.part / self.looks

    @property
    def per_several(self) -> float:
        """The same for several windows together."""
        return self.part / max(self.looks // SEVERAL, 1)


def columns_of(sample: Sample, known: Sample) -> dict[str, list[Column]]:
    """A sample's columns by signal; `known` is the reference, which decides which facets there are and which words are rare."""
    answers: list[Column] = [Numbers(name, sample.probabilities[:, place]) for place, name in enumerate(sample.classes)]
    answers.append(Words.of("predicted class", sample.names, known.names))
    found: dict[str, list[Column]] = {ANSWERS: answers}
    if sample.images is not None and known.images is not None:
        found[STATISTICS] = [
            Numbers(name, sample.images.quality[:, place].astype(np.float64)) for place, name in enumerate(QUALITY)
        ]
    described = [name for name in facet_names(known) if _told(known, name)]
    if described:
        found[DESCRIPTIONS] = [_facet(name, sample, known) for name in described]
    return found


def facet_names(sample: Sample) -> list[str]:
    """Every facet that any of the studies has."""
    return sorted({name for facets in sample.facets for name in facets})


def fingerprint(reference: Reference, window: int, budget: Budget, seed: int) -> str:
    """Identity of a calibration: changes with the reference, the window, the budget or the algorithm."""
    answers = hashlib.sha256(np.ascontiguousarray(reference.sample.probabilities).tobytes()).hexdigest()
    facets = [sorted(each.items()) for each in reference.sample.facets]
    parts = [ALGORITHM, answers, facets, window, budget.chance, budget.looks, seed, reference.sample.images is None]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def calibrate(reference: Reference, window: int, budget: Budget, seed: int) -> dict[str, float]:
    """The level of each signal made of columns that a year without change exceeds with its part of the chance."""
    kept = np.sort(np.random.default_rng(seed).permutation(reference.sample.count)[:ATOMS]).tolist()
    few = reference.take(kept)
    statistics: dict[str, YearlyStatistic] = {
        name: partial(group_statistics, columns) for name, columns in columns_of(few.sample, few.sample).items()
    }
    statistics[CONFIDENCE] = largest_fall(few, window, seed)
    year = Year(len(kept), reference.sample.count, window, budget.looks)
    levels = thresholds(year, list(statistics.values()), budget.part, seed)
    found = dict(zip(statistics, levels, strict=True))
    # A reference that knows one scanner, or no doubt, never drew another: what holds without simulation is the least.
    if DESCRIPTIONS in found:
        found[DESCRIPTIONS] = max(found[DESCRIPTIONS], -log10(budget.per_window))
    found[CONFIDENCE] = max(found[CONFIDENCE], float(norm.isf(budget.per_window / len(reference.sample.classes))))
    return found


def largest_fall(reference: Reference, window: int, seed: int) -> LargestFall:
    """The statistic of the signal on confidence."""
    at = temperature(reference.sample.probabilities, reference.truth)
    return LargestFall(Confidence.of(reference.sample, at), window, seed)


def _told(known: Sample, name: str) -> bool:
    """Whether the reference says the facet of at least half of its studies."""
    return 2 * sum(name in facets for facets in known.facets) >= known.count


def _facet(name: str, sample: Sample, known: Sample) -> Column:
    values, usual = ([facets.get(name, "") for facets in each.facets] for each in (sample, known))
    if name in NUMERIC and all(_is_number(value) for value in (*values, *usual)):
        return Numbers(name, np.array([float(value) for value in values]))
    return Words.of(name, values, usual)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


Levels = Mapping[str, float]
