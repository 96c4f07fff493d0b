"""95 % intervals of a metric from the influence of each case on it, a patient's cases being one cluster.

The variance of a smooth statistic is the sum of squared influences (infinitesimal jackknife, Efron 1982, Jaeckel 1972); summed
per patient first it is the clustered one (for ratios Rao and Scott 1992, for areas under the ROC curve Obuchowski 1997, with
one case a patient DeLong 1988). Limits are those of a proportion with that variance (Jeffreys, Brown, Cai and DasGupta 2001),
its sample size reduced for an estimated variance as Korn and Graubard (1998) have it: skewed near 0 and 1, never beyond them.
"""

from typing import Final, NamedTuple

import numpy as np
from scipy.special import betaincinv, ndtri, stdtrit

from services.evaluation.cases import Floats, Integers

LEVEL: Final = 0.95
_TAIL: Final = (1 - LEVEL) / 2
PRIOR_PATIENTS: Final = 1.0
"""Weight of the prior in shrinking variances and design effects, which few errors hardly tell; chosen by simulated coverage."""


class Interval(NamedTuple):
    """A value with its limits; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


UNDEFINED: Final = Interval(None, None, None)


class Spread(NamedTuple):
    """What is known of an estimate's variance.

    `alone`: with independent cases. `effect`: clustered variance over it, at least 1. `freedom`: degrees of freedom of that
    factor, infinite where every patient has one case and the variance follows from the value itself.
    """

    alone: float
    effect: float
    freedom: float

    @property
    def variance(self) -> float:
        """The clustered variance."""
        return self.alone * self.effect


def spread(influence: Floats, patients: Integers, *, units: float, usual: float | None = None) -> Spread:
    """From the influence of each case [n], and its patient. `units` patients carry the estimate.

    `usual`: of a metric that is no proportion (areas, scores) the variance is not known from its value; it is shrunk by
    `PRIOR_PATIENTS` towards this one and has `units` - 1 degrees of freedom also with one case a patient. The design effect
    is shrunk towards that of patients whose cases all agree. The data weigh as many patients as they rest on (`_resting_on`).
    """
    alone = float(influence @ influence)
    if alone == 0.0:
        return Spread(0.0, 1.0, np.inf)
    if usual is not None:
        weight = _resting_on(influence)
        alone = (alone * units / max(units - 1, 1) * weight + usual * PRIOR_PATIENTS) / (weight + PRIOR_PATIENTS)
    carrying = influence != 0
    of_patient = np.bincount(patients[carrying])
    largest = float((of_patient**2).sum() / of_patient.sum())
    if largest == 1.0:
        return Spread(alone, 1.0, np.inf if usual is None else max(units - 1, 1))
    together: Floats = np.bincount(patients, influence).astype(float)
    effect = float(together @ together) * units / max(units - 1, 1) / float(influence @ influence)
    weight = _resting_on(together)
    shrunk = (min(max(effect, 1.0), largest) * weight + largest * PRIOR_PATIENTS) / (weight + PRIOR_PATIENTS)
    return Spread(alone, shrunk, max(units - 1, 1))


def _resting_on(influence: Floats) -> float:
    """How many equal influences would give the same variance as well known (inverse participation ratio)."""
    squares = influence * influence
    total = float(squares.sum())
    return total**2 / float(squares @ squares) if total else 0.0


def matched(value: float | None, known: Spread, independent: int) -> Interval:
    """Limits of a value from 0 to 1; at exactly 0 or 1 those of `independent` observations that all agree.

    These are patients, as a patient's cases are one observation where they are all right or all wrong.
    """
    if value is None:
        return UNDEFINED
    if value in {0.0, 1.0} or known.variance == 0.0:
        return Interval(value, *_around(value, float(max(independent, 1))))
    size = value * (1 - value) / known.variance
    if np.isfinite(known.freedom):
        size *= (float(ndtri(1 - _TAIL)) / float(stdtrit(known.freedom, 1 - _TAIL))) ** 2
    return Interval(value, *_around(value, size))


def _around(value: float, size: float) -> tuple[float, float]:
    low, high = jeffreys(value * size, size)
    return min(low, value), max(high, value)


def jeffreys(hits: float, cases: float) -> tuple[float, float]:
    """Equal-tailed limits of a proportion under the Beta(½, ½) prior, reaching 0 and 1 at the ends."""
    low = 0.0 if hits <= 0 else float(betaincinv(hits + 0.5, cases - hits + 0.5, _TAIL))
    high = 1.0 if hits >= cases else float(betaincinv(hits + 0.5, cases - hits + 0.5, 1 - _TAIL))
    return low, high
