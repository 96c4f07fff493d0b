"""Counts and exact intervals behind the figures. Pure numpy and scipy."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from services.reporting.facts import ScoredCase

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Rate:
    """`right` of `total` with the exact 95 % interval of Clopper and Pearson (1934); `total` is at least 1."""

    right: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share itself."""
        return self.right / self.total


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions of similar confidence: their mean confidence and how many of them were right."""

    confidence: float
    rate: Rate


def rate(right: int, total: int) -> Rate:
    """A share with its interval; `total` must be positive."""
    tail = (1 - CONFIDENCE) / 2
    low = float(beta.ppf(tail, right, total - right + 1)) if right else 0.0
    high = float(beta.ppf(1 - tail, right + 1, total - right)) if right < total else 1.0
    return Rate(right, total, low, high)


def recalls(cases: Sequence[ScoredCase], classes: Sequence[str]) -> dict[str, Rate]:
    """Recall of every class that occurs."""
    found: dict[str, Rate] = {}
    for name in classes:
        own = [case for case in cases if case.truth == name]
        if own:
            found[name] = rate(sum(case.predicted == name for case in own), len(own))
    return found


def confusion(cases: Sequence[ScoredCase], classes: Sequence[str]) -> NDArray[np.int64]:
    """Counts [truth, predicted]; cases of a class that the model does not know are left out."""
    place = {name: index for index, name in enumerate(classes)}
    matrix = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for case in cases:
        if case.truth in place and case.predicted in place:
            matrix[place[case.truth], place[case.predicted]] += 1
    return matrix


def reliability(cases: Sequence[ScoredCase], bins: int = 8) -> list[ReliabilityBin]:
    """Groups of about equal size by the confidence of the predicted class, lowest first, of at least ten cases each."""
    groups = min(bins, len(cases) // 10)
    if groups < 1:
        return []
    ordered = sorted(cases, key=_confidence)
    edges = [round(index * len(ordered) / groups) for index in range(groups + 1)]
    return [_bin(ordered[start:end]) for start, end in pairwise(edges)]


def cases_for_half_width(share: float, half_width: float) -> int:
    """Cases at which the 95 % interval of a share is about ± `half_width` (normal approximation, share kept off 0 and 1)."""
    kept = min(max(share, 0.05), 0.95)
    return ceil(1.96**2 * kept * (1 - kept) / half_width**2)


def baseline_rates(counts: Mapping[tuple[int, str], tuple[int, int]]) -> dict[tuple[int, str], Rate]:
    """(version, class) to its baseline recall."""
    return {key: rate(right, total) for key, (right, total) in counts.items() if total}


def _confidence(case: ScoredCase) -> float:
    return case.probabilities.get(case.predicted, 0.0)


def _bin(cases: Sequence[ScoredCase]) -> ReliabilityBin:
    confidence = float(np.mean([_confidence(case) for case in cases]))
    return ReliabilityBin(confidence, rate(sum(case.truth == case.predicted for case in cases), len(cases)))


def digest(cases: Sequence[ScoredCase]) -> str:
    """SHA-256 of cases in any order: truth, answer and probabilities, and nothing that points at a patient."""
    lines = sorted(json.dumps([case.truth, case.predicted, sorted(case.probabilities.items())]) for case in cases)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
