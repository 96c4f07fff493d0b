"""The paired e-detector: two statistics over a stream of per-class error counts, compared with the baseline's counts.

A, a Bayes-factor Shiryaev-Roberts statistic, asks of every recent window whether its error rate is higher than that of
the baseline together with the earlier stream; it catches later changes fast. B, an e-detector, bets against "no worse
than the upper confidence limit of the baseline"; it catches a gap from the first day and slow decline. Only recalls
enter, so a change of prevalence alone moves nothing. Sources: Shin, Ramdas, Rinaldo, E-detectors (NEJSDS 2024); Shekhar,
Ramdas (2023); the choice of windows, drops and priors was made by simulation.

All functions take R streams at a time: baseline errors and cases [R, K], batch errors and cases [R, T, K]. Assumed: cases
are independent (one of each patient), their order within a batch is irrelevant, batches hold cases and are of about the
size that the thresholds were made for, and test set and stream are drawn from the same classes.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, gammaln, logsumexp

from services.evaluation.cases import Floats, Integers

WINDOWS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 36, 52)
"""Lengths in batches of the windows that A compares with what came before."""
A_DROPS: Final = (0.03, 0.06, 0.12, 0.25, 0.40)
B_DROPS: Final = (0.02, 0.05, 0.10, 0.20, 0.40)
BASELINE_RISK: Final = 0.025
"""Chance that a baseline error rate lies above its upper limit, over all classes."""
LOG_CAP: Final = 138.0
"""B is held below e^138 (1e60): far above any threshold, far below overflow."""
LINEAR_CAP: Final = 600.0
"""Sums of factors are held below e^600, where floating point still counts."""
Pair = tuple[Integers, Integers]
"""Errors and cases."""
YEAR: Final = 52
"""Batches a year where a site's volume is not known yet."""


@dataclass(frozen=True)
class Counts:
    """Errors and cases per true class: of the baseline [R, K], of the batches [R, T, K], these in halves at the finest."""

    baseline_errors: Integers
    baseline_cases: Integers
    errors: Integers | Floats
    cases: Integers | Floats


@dataclass(frozen=True)
class Thresholds:
    """Where the two statistics raise the alarm, how the numbers came about (simulation or bound), and for which year."""

    a: float
    b: float
    origin: str
    per_year: int = YEAR
    """Batches in the year over which they keep the budget."""
    smallest_fall: float | None = None
    """The smallest fall of any usual class that alarms within a year with 80 % probability; 1 where none does."""


def statistics(counts: Counts, reference_size: int) -> Floats:
    """Both statistics after each batch, on the log scale, [R, T, 2]. `reference_size` is the usual batch size."""
    return np.stack([bayes_factors(counts), e_detector(counts, reference_size)], -1)


def bayes_factors(counts: Counts) -> Floats:
    """Statistic A [R, T]: log of the mean over streams and references of the sum over windows of the Bayes factor.

    The factors are those of `log_bayes_factor`, on the linear scale and each at most e^(600 / K), far above any threshold:
    one exponential serves both references, since the factors against them differ by the ratio of the nulls alone. Drops
    and classes are the leading axes here, where sums over them are fastest.
    """
    streams = _ByClass(counts)
    a, b = _doubled(np.moveaxis(priors_of(counts), 0, -1)).swapaxes(0, 1)[..., None]
    prior, batches, classes = _log_beta2(a, b), counts.errors.shape[1], counts.errors.shape[2]
    total, cap = np.zeros(counts.errors.shape[:2]), LINEAR_CAP / classes
    for length in (length for length in WINDOWS if length <= batches):
        window = streams.window(length)
        on_baseline, on_all = streams.nulls(window, length)
        factors = _log_beta2(a + window[0], b + window[1] - window[0]) - prior - on_baseline
        np.exp(np.minimum(factors, cap, out=factors), out=factors)
        found = _sum_of_streams(factors, streams.not_worse(window, length, earlier=False))
        np.multiply(factors, np.exp(np.clip(on_baseline - on_all, -LINEAR_CAP, cap)), out=factors)
        np.minimum(factors, np.exp(cap), out=factors)
        found += _sum_of_streams(factors, streams.not_worse(window, length, earlier=True))
        total[:, length - 1 :] += found
    with np.errstate(divide="ignore"):
        value: Floats = np.log(total) - np.log(2 * (classes + 1))
    return value


def _sum_of_streams(factors: Floats, not_worse: NDArray[np.bool_]) -> Floats:
    """[R, S] sum over each class and all classes of the mean over drops. `factors` [D, K, R, S] stay as they are."""
    held = np.where(not_worse, np.minimum(factors, 1.0), factors)
    found: Floats = (held.sum((0, 1)) + held.prod(1).sum(0)) / len(held)
    return found


class _ByClass:
    """The counts as [K, R, T + 1] running sums, and what the windows of them are compared with. All numbers are doubled."""

    def __init__(self, counts: Counts) -> None:
        self.errors, self.cases = (np.moveaxis(_doubled(_running(part)), -1, 0).copy() for part in (counts.errors, counts.cases))
        self.baseline = 2 * counts.baseline_errors.T[:, :, None], 2 * counts.baseline_cases.T[:, :, None]
        self.log = self._predictive(self.errors, self.cases)

    def window(self, length: int) -> Pair:
        """Errors and cases [K, R, S] of all windows of `length` batches."""
        return self.errors[..., length:] - self.errors[..., :-length], self.cases[..., length:] - self.cases[..., :-length]

    def nulls(self, window: Pair, length: int) -> tuple[Floats, Floats]:
        """Log probabilities [K, R, S] of windows under "as in the baseline" and "as in the baseline and all before"."""
        return self._predictive(*window) - self.log[..., :1], self.log[..., length:] - self.log[..., :-length]

    def not_worse(self, window: Pair, length: int, *, earlier: bool) -> NDArray[np.bool_]:
        """[K, R, S] whether the window's error rate is no higher than the reference's, where there is one."""
        reference_errors = self.baseline[0] + earlier * self.errors[..., :-length]
        reference_cases = self.baseline[1] + earlier * self.cases[..., :-length]
        found: NDArray[np.bool_] = (window[0] * reference_cases <= reference_errors * window[1]) & (reference_cases > 0)
        return found

    def _predictive(self, errors: Integers, cases: Integers) -> Floats:
        """Log beta of the baseline's Jeffreys posterior with these errors and cases added."""
        base_errors, base_cases = self.baseline
        return _log_beta2(base_errors + errors + 1, base_cases - base_errors + cases - errors + 1)


def log_bayes_factor(window: Pair, reference: Pair, priors: Floats) -> Floats:
    """[R, S, K + 1] evidence that windows are worse than their references: each class, then all classes together.

    `window` and `reference` are errors and cases [R, S, K]. Under the null the window follows the beta-binomial predictive
    of the reference (Jeffreys prior); under the alternative one with the priors [R, D, 2, K]; the drops are averaged. All
    classes together: the product of the classes' factors at the same drop. A class whose error rate in the window is not
    above the reference's has a factor of at most 1: a reference spoilt by bad batches must not make a recovery look bad.
    """
    (errors, cases), (reference_errors, reference_cases) = window, reference
    a, b = priors[:, None, :, 0], priors[:, None, :, 1]
    e, right = errors[:, :, None], (cases - errors)[:, :, None]
    alternative = _log_beta(a + e, b + right) - _log_beta(a, b)
    a0 = np.asarray(reference_errors + 0.5, np.float64)
    b0 = np.asarray(reference_cases - reference_errors + 0.5, np.float64)
    null = _log_beta(a0 + errors, b0 + cases - errors) - _log_beta(a0, b0)
    factors: Floats = alternative - null[:, :, None]
    worse = errors * reference_cases > reference_errors * cases
    factors = np.where((worse | (reference_cases == 0))[:, :, None], factors, np.minimum(factors, 0.0))
    factors = np.concatenate([factors, factors.sum(-1, keepdims=True)], -1)
    return _log_mean(factors, 2, len(A_DROPS))


def priors_of(counts: Counts) -> Floats:
    """Alternatives for `log_bayes_factor`: Beta parameters [R, D, 2, K], in halves.

    Their mean is the baseline's error rate plus the drop (at most 0.95), their standard deviation 0.4 of the drop.
    """
    rate = (counts.baseline_errors + 0.5) / (counts.baseline_cases + 1)
    drops = np.array(A_DROPS)[:, None]
    mean = np.minimum(rate[:, None] + drops, 0.95)
    concentration = np.maximum(mean * (1 - mean) / (0.4 * drops) ** 2 - 1, 4)
    halves = np.rint(2 * np.stack([mean * concentration, (1 - mean) * concentration], 2))
    found: Floats = np.maximum(halves, 1) / 2
    return found


def e_detector(counts: Counts, reference_size: int) -> Floats:
    """Statistic B [R, T]: log of the mean over streams and drops of M, where M ← (tick + M) · likelihood ratio.

    The clock ticks by labelled cases (1 per class share of `reference_size`), so that batches without labels add nothing.
    """
    classes = counts.errors.shape[-1]
    limit = _upper_limit(counts.baseline_errors, counts.baseline_cases, BASELINE_RISK / classes)[:, None, None]
    worse = np.minimum(limit + np.array(B_DROPS)[:, None], 0.99)
    limit = np.minimum(limit, worse)
    errors, right = counts.errors[:, :, None], (counts.cases - counts.errors)[:, :, None]
    ratio = errors * np.log(worse / limit) + right * np.log((1 - worse) / (1 - limit))
    ratio = np.concatenate([ratio, ratio.sum(-1, keepdims=True)], -1)
    ticks, steps = _ticks(counts, reference_size)[:, :, None], np.exp(np.minimum(ratio, LOG_CAP))
    value, found = np.zeros_like(ratio[:, 0]), np.empty(counts.errors.shape[:2])
    for batch in range(counts.errors.shape[1]):
        value = np.minimum((value + ticks[:, batch]) * steps[:, batch], np.exp(LOG_CAP))
        found[:, batch] = value.mean((-2, -1))
    with np.errstate(divide="ignore"):
        return np.log(found)


def _ticks(counts: Counts, reference_size: int) -> Floats:
    """[R, T, K + 1] labelled cases of each stream over those expected in `reference_size`.

    No class's clock runs faster than that of all cases, or a class that becomes more common would alarm by its number
    alone; a class that the baseline does not have stands still, for nothing is known that it could fall from.
    """
    share = (counts.baseline_cases + 0.5) / (counts.baseline_cases + 0.5).sum(-1, keepdims=True)
    every = counts.cases.sum(-1, keepdims=True) / reference_size
    each = np.minimum(counts.cases / (share * reference_size)[:, None], every) * (counts.baseline_cases > 0)[:, None]
    return np.concatenate([each, every], -1)


def _upper_limit(errors: Integers, cases: Integers, risk: float) -> Floats:
    """Clopper-Pearson upper limit of an error rate; 0.99 where there are no cases."""
    limit: Floats = np.minimum(betaincinv(errors + 1.0, np.maximum(cases - errors, 0.5), 1 - risk), 0.99)
    return limit


def _doubled(halves: Integers | Floats) -> Integers:
    found: Integers = np.rint(2 * halves).astype(np.int64)
    return found


def _running(counts: Integers | Floats) -> Integers | Floats:
    """[R, T + 1, K] sums of the first 0 … T batches."""
    return np.concatenate([np.zeros_like(counts[:, :1]), np.cumsum(counts, 1)], 1)


_TABLE: Final = np.concatenate([[0.0], gammaln(np.arange(1, 200_001) / 2)])
"""Log gamma of half-integers: every parameter here is one, and a look-up is ten times faster."""


def _log_gamma2(doubled: Integers) -> Floats:
    """Log gamma of half the argument."""
    found: Floats = _TABLE[doubled] if doubled.max(initial=0) < len(_TABLE) else gammaln(doubled / 2)
    return found


def _log_beta2(a: Integers, b: Integers) -> Floats:
    """Log beta of doubled arguments."""
    return _log_gamma2(a) + _log_gamma2(b) - _log_gamma2(a + b)


def _log_beta(a: Floats, b: Floats) -> Floats:
    return _log_beta2(_doubled(a), _doubled(b))


def _log_mean(logs: Floats, axes: int | tuple[int, ...], size: int) -> Floats:
    """Log of the sum of exponentials over `axes`, divided by `size`."""
    found: Floats = logsumexp(logs, axis=axes) - np.log(size)
    return found
