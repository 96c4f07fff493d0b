"""95 % intervals: Jeffreys for proportions, percentiles of the clustered bootstrap for everything else."""

from typing import NamedTuple

import numpy as np
from scipy.special import betaincinv

from services.evaluation.cases import Floats, Integers

LEVEL = 0.95


class Interval(NamedTuple):
    """A value with its limits; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


UNDEFINED = Interval(None, None, None)


def jeffreys(hits: float, cases: float) -> tuple[float, float]:
    """Equal-tailed limits of a proportion under the Beta(½, ½) prior, reaching 0 and 1 at the ends (Brown, Cai, DasGupta 2001)."""
    tail = (1 - LEVEL) / 2
    low = 0.0 if hits <= 0 else float(betaincinv(hits + 0.5, cases - hits + 0.5, tail))
    high = 1.0 if hits >= cases else float(betaincinv(hits + 0.5, cases - hits + 0.5, 1 - tail))
    return low, high


def proportion(hits: Floats, cases: Floats) -> Interval:
    """A proportion from hits and cases per patient, each [patients]; undefined without cases.

    Several cases of a patient are not independent: counts are divided by the design effect, the linearised variance of
    the ratio over the binomial one (Rao and Scott 1992), never below 1.
    """
    total = float(cases.sum())
    if total == 0:
        return UNDEFINED
    value = float(hits.sum()) / total
    inflation = _design_effect(hits, cases, value)
    low, high = jeffreys(value * total / inflation, total / inflation)
    return Interval(value, min(low, value), max(high, value))


def _design_effect(hits: Floats, cases: Floats, value: float) -> float:
    patients, total = int((cases > 0).sum()), float(cases.sum())
    if patients == total or value in {0.0, 1.0}:
        # A boundary value has no variance to compare: all cases of a patient count as one.
        return total / patients
    variance = float(((hits - value * cases) ** 2).sum()) / total**2 * patients / max(patients - 1, 1)
    return float(np.clip(variance * total / (value * (1 - value)), 1.0, total / patients if patients > 1 else total))


def percentiles(value: float | None, draws: Floats, independent: int) -> Interval:
    """Percentile limits of bootstrap draws [draws], NaN where a draw does not define the metric.

    A value of exactly 0 or 1 has no spread in any draw; its limits are those of the proportion 0 or 1 of `independent`
    observations: patients, as a patient's cases are one observation where they are all right or all wrong.
    """
    if value is None:
        return UNDEFINED
    if value in {0.0, 1.0} and independent:
        return Interval(value, *jeffreys(value * independent, independent))
    defined = draws[~np.isnan(draws)]
    if len(defined) < len(draws) / 2:
        return Interval(value, None, None)
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, min(float(low), value), max(float(high), value))


def patient_weights(patients: int, draws: int, seed: int) -> Integers:
    """[draws, patients] how often each patient is in each bootstrap sample."""
    generator = np.random.default_rng([seed, patients])
    return generator.multinomial(patients, np.full(patients, 1 / patients), size=draws)
