"""Resampling of patients: one patient's studies are not independent, so whole patients are drawn (cluster bootstrap).

Davison & Hinkley, Bootstrap Methods and their Application, 1997, §3.8. Everything works on count matrices
[draws, cases]: how often each case stands in each draw.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from services.runtime.conventions import CALIBRATION_BINS

Floats = npt.NDArray[np.float64]


def counts(clusters: Sequence[Hashable], draws: int, seed: int) -> Floats:
    """How often each case is drawn: [draws, cases], from draws of whole clusters with replacement."""
    _, places = np.unique(np.array([str(cluster) for cluster in clusters]), return_inverse=True)
    number = int(places.max()) + 1
    chosen = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=draws)
    return np.asarray(chosen[:, places], dtype=np.float64)


def means(values: Floats, weights: Floats) -> Floats:
    """Mean of `values` [cases] in each draw; NaN where a draw holds none of the cases with weight."""
    totals = weights.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((weights @ values) / totals)


def recalls(right: Floats, truth: npt.NDArray[np.int64], present: Sequence[int], weights: Floats) -> Floats:
    """Mean over the `present` classes of their recall in each draw; a class that a draw lacks is left out of that draw."""
    each = [means(right[truth == label], weights[:, truth == label]) for label in present]
    return np.asarray(np.nanmean(np.stack(each), axis=0))


def calibration_errors(confidence: Floats, right: Floats, weights: Floats) -> Floats:
    """Expected calibration error in each draw: 10 bins of equal width over the top class's probability (Guo et al. 2017)."""
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    totals = weights.sum(axis=1)
    gaps = [np.abs(weights[:, bins == place] @ (confidence - right)[bins == place]) for place in range(CALIBRATION_BINS)]
    return np.asarray(np.sum(gaps, axis=0) / totals)


def interval(draws: Floats, alpha: float) -> tuple[float, float]:
    """Percentile interval with `alpha` outside, half on either side."""
    low, high = np.nanquantile(draws, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)


def upper(draws: Floats, alpha: float) -> float:
    """One-sided upper bound with confidence 1 - alpha."""
    return float(np.nanquantile(draws, 1 - alpha))
