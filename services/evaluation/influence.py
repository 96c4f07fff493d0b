"""Metrics as estimates: the value, and how much each case moves it.

The influence of a case is the derivative of the metric by the case's weight at equal weights; influences add up to zero. All
are exact for weighted scikit-learn metrics, ties included, and cost one sort a class at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.evaluation.cases import Floats, Integers
from services.evaluation.intervals import UNDEFINED, Interval, Spread, matched, spread

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Estimate:
    """A metric from 0 to `scale`. `value` is None where the cases do not define it; then nothing else counts.

    `units` are the patients that carry it, `independent` those who bound it where it is exactly 0 or 1, `alone` a variance
    that no influence shows (of a class at the boundary), `usual` as in `intervals.spread`.
    """

    value: float | None
    influence: Floats
    units: float
    independent: int
    cases: int
    alone: float = 0.0
    usual: float | None = None
    scale: float = 1.0

    def known(self, patients: Integers) -> Spread:
        """Variance of the value with `patients` [n] as clusters."""
        if self.value is None:
            return Spread(0.0, 1.0, np.inf)
        found = spread(self.influence, patients, units=self.units, usual=self.usual)
        return found._replace(alone=found.alone + self.alone / found.effect)

    def interval(self, patients: Integers) -> Interval:
        """95 % limits with `patients` [n] as clusters."""
        if self.value is None:
            return UNDEFINED
        known = self.known(patients)
        found = matched(self.value / self.scale, known._replace(alone=known.alone / self.scale**2), self.independent)
        return Interval(self.value, *(None if limit is None else limit * self.scale for limit in found[1:]))


def undefined(cases: int = 0) -> Estimate:
    """A metric that these cases do not define."""
    return Estimate(None, np.zeros(0), 0, 0, cases)


def people(patients: Integers, chosen: Flags) -> int:
    """Patients of the chosen cases."""
    return int(np.count_nonzero(np.bincount(patients[chosen])))


def ratio(part: Floats, whole: Floats, patients: Integers, independent: int | None = None, cases: int | None = None) -> Estimate:
    """Sum of `part` over sum of `whole`, each [n]: a proportion, or twice the hits over truths and predictions (F1)."""
    total = float(whole.sum())
    if total == 0:
        return undefined(cases or 0)
    value = float(part.sum()) / total
    units = people(patients, whole > 0)
    count = int(np.count_nonzero(whole)) if cases is None else cases
    return Estimate(value, (part - value * whole) / total, units, units if independent is None else independent, count)


def mean_of(found: Sequence[Estimate], cases: int) -> Estimate:
    """Mean over the defined ones. One at 0 or 1 shows no variance: it adds that of its patients' proportion and half a hit."""
    defined = [each for each in found if each.value is not None]
    if not defined:
        return undefined(cases)
    many = len(defined)
    values = [each.value for each in defined if each.value is not None]
    influence = np.add.reduce([each.influence for each in defined]) / many
    return Estimate(
        value=sum(values) / many,
        influence=influence,
        units=1 + _freedom(defined),
        independent=min(each.independent for each in defined),
        cases=cases,
        alone=sum(_at_boundary(each) for each in defined) / many**2,
        usual=_of_mean([each.usual for each in defined]),
    )


def _of_mean(variances: Sequence[float | None]) -> float | None:
    """Variance of a mean whose parts may move together, as the two areas of a binary task do."""
    known = [variance for variance in variances if variance is not None]
    return (sum(variance**0.5 for variance in known) / len(variances)) ** 2 if known else None


def _at_boundary(estimate: Estimate) -> float:
    if estimate.value not in {0.0, 1.0}:
        return 0.0
    share = 0.5 / (estimate.independent + 1)
    return share * (1 - share) / (estimate.independent + 1)


def _freedom(found: Sequence[Estimate]) -> float:
    """Degrees of freedom of a sum of independent variances (Satterthwaite 1946)."""
    parts = [(float(each.influence @ each.influence), max(each.units - 1, 1)) for each in found]
    total = sum(variance for variance, _ in parts)
    squares = sum(variance**2 / freedom for variance, freedom in parts)
    return total**2 / squares if squares else float(min(freedom for _, freedom in parts))


@dataclass(frozen=True)
class Ranked:
    """Cases in groups of equal score, from the lowest score: which group each is in, positives and all of each group."""

    group: Integers
    positive: Flags
    inside: Floats
    total: Floats

    @classmethod
    def of(cls, score: Floats, positive: Flags) -> "Ranked":
        """Sort once for both curves."""
        _, group = np.unique(score, return_inverse=True)
        return cls(group, positive, np.bincount(group, positive).astype(float), np.bincount(group).astype(float))


def area(ranked: Ranked, patients: Integers) -> Estimate:
    """Area under the ROC curve, ties counting one half (DeLong 1988; a patient's cases together: Obuchowski 1997)."""
    inside, outside = ranked.inside, ranked.total - ranked.inside
    positives, negatives = float(inside.sum()), float(outside.sum())
    cases = int(positives)
    if positives == 0 or negatives == 0:
        return undefined(cases)
    below = (np.cumsum(outside) - outside / 2) / negatives
    above = 1 - (np.cumsum(inside) - inside / 2) / positives
    value = float((inside * below).sum()) / positives
    each = np.where(ranked.positive, (below[ranked.group] - value) / positives, (above[ranked.group] - value) / negatives)
    rarer = min(people(patients, ranked.positive), people(patients, ~ranked.positive))
    return Estimate(value, each, rarer, rarer, cases, usual=_usual_variance(value, cases, int(negatives)))


def _usual_variance(area: float, positives: int, negatives: int) -> float:
    """Of an area under exponential scores (Hanley and McNeil 1982, with the mean size in place of both, Newcombe 2006)."""
    mean = (positives + negatives) / 2
    both = (1 - area) / (2 - area) + area / (1 + area)
    return area * (1 - area) * (1 + (mean - 1) * both) / (positives * negatives)


def average_precision(ranked: Ranked, patients: Integers) -> Estimate:
    """Sum over thresholds of precision times the rise of recall, as scikit-learn has it (no interpolation)."""
    positives = float(ranked.inside.sum())
    if positives == 0 or positives == float(ranked.total.sum()):
        return undefined(int(positives))
    hits, said = np.cumsum(ranked.inside[::-1])[::-1], np.cumsum(ranked.total[::-1])[::-1]
    precision = hits / said
    value = float((ranked.inside * precision).sum()) / positives
    lost = np.cumsum(ranked.inside * precision / said) / positives
    won = np.cumsum(ranked.inside * (1 - precision) / said) / positives
    own = (precision - value) / positives
    each = np.where(ranked.positive, (own + won)[ranked.group], -lost[ranked.group])
    units = people(patients, ranked.positive)
    return Estimate(value, each, units, units, int(positives), usual=value * (1 - value) / positives)
