"""The rules that others publish, each with its published default: one statistic [R, T] per batch, an alarm above a limit.

Re-implemented from their documentation, for whole arrays of streams at a time. "CUSUM" and "EWMA" watch every class's
error rate and the overall one, standardised by the test set's rate, which they take for the truth.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from detector_bench.worlds import YEAR, per_class
from scipy.stats import hypergeom


@dataclass(frozen=True)
class Rule:
    """`statistic(test sets [R, K, K], streams [R, T, K, K], batch size)` alarms where it is above `limit(K)`."""

    name: str
    statistic: Callable[[np.ndarray, np.ndarray, int], np.ndarray]
    limit: Callable[[int], float]
    source: str


def reclaim(base, stream, size):
    """Largest relative fall of accuracy and of macro and per-class precision, recall and F1; no division by zero."""
    before, now = _metrics(base)[:, None], _metrics(stream)
    return ((before - now) / np.maximum(before, 1e-9)).max(-1)


def evidently(base, stream, size):
    """Largest relative change, up or down, of accuracy and of each class's precision, recall and F1."""
    before, now = _metrics(base)[:, None], _metrics(stream)
    k = base.shape[-1]
    keep = [0, *range(4, 4 + 3 * k)]
    return (np.abs(before - now) / np.maximum(before, 1e-9))[..., keep].max(-1)


def nannyml(base, stream, size):
    """Distance of accuracy and of macro precision, recall and F1 from the mean of the reference's chunks, in their SD.

    The reference is the test set cut into chunks of the batch size; an SD takes at least two chunks.
    """
    found = np.full(stream.shape[:2], np.nan)
    for line, confusion in enumerate(base):
        chunks = _chunks(confusion, size, line)
        if len(chunks) < 2:
            return found
        metrics = _metrics(chunks)[:, :4]
        spread = np.maximum(metrics.std(0), 1e-12)
        found[line] = (np.abs(_metrics(stream[line])[:, :4] - metrics.mean(0)) / spread).max(-1)
    return found


def _chunks(confusion, size, seed):
    """The cases of a test set in random order, cut into chunks of `size` cases; confusion counts of each."""
    k = len(confusion)
    cells = np.repeat(np.arange(k * k), confusion.ravel())
    np.random.default_rng([7, seed]).shuffle(cells)
    cut = cells[: len(cells) // size * size].reshape(-1, size)
    return np.stack([np.bincount(chunk, minlength=k * k) for chunk in cut]).reshape(-1, k, k) if len(cut) else cut


def shewhart(base, stream, size):
    """Largest standardised error rate, the test set's rate being taken for the truth."""
    return _standardised(base, stream).max(-1)


def fisher_holm(base, stream, size):
    """-log of the smallest one-sided p-value times the number of tests (Holm's first step), each class and overall."""
    (e0, m0), (e, m) = (_with_all(*per_class(part)) for part in (base, stream))
    p = hypergeom.sf(e - 1, (m0[:, None] + m), e0[:, None] + e, m)
    return -np.log(np.minimum(1, e.shape[-1] * p.min(-1)) + 1e-300)


def ewma(base, stream, size, weight=0.1):
    """Exponentially weighted mean of standardised errors, over its own standard deviation (Roberts 1959)."""
    z = _standardised(base, stream)
    value, found = np.zeros_like(z[:, 0]), np.empty(z.shape[:2])
    for batch in range(z.shape[1]):
        value = (1 - weight) * value + weight * z[:, batch]
        spread = np.sqrt(weight / (2 - weight) * (1 - (1 - weight) ** (2 * (batch + 1))))
        found[:, batch] = (value / spread).max(-1)
    return found


def cusum(base, stream, size, slack=0.5):
    """Page's CUSUM of standardised errors with allowance 0.5."""
    z = _standardised(base, stream)
    value, found = np.zeros_like(z[:, 0]), np.empty(z.shape[:2])
    for batch in range(z.shape[1]):
        value = np.maximum(0, value + z[:, batch] - slack)
        found[:, batch] = value.max(-1)
    return found


def siegmund(classes: int, slack: float = 0.5) -> float:
    """CUSUM limit for a mean run of 52 / 0.05 batches on each of `classes` + 1 charts (Siegmund 1985)."""
    wanted, low, high = YEAR / 0.05 * (classes + 1), 0.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        scaled = 2 * slack * (middle + 1.166)
        run = (np.exp(scaled) - scaled - 1) / (2 * slack * slack)
        low, high = (middle, high) if run < wanted else (low, middle)
    return high


def _metrics(confusion):
    """[..., 4 + 3 K]: accuracy, macro precision, recall and F1, then per class precision, recall, F1."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1).astype(float)
    cases, called = confusion.sum(-1), confusion.sum(-2)
    recall = np.where(cases > 0, right / np.maximum(cases, 1), 0.0)
    precision = np.where(called > 0, right / np.maximum(called, 1), 0.0)
    both = recall + precision
    f1 = np.where(both > 0, 2 * recall * precision / np.maximum(both, 1e-12), 0.0)
    accuracy = right.sum(-1, keepdims=True) / np.maximum(cases.sum(-1, keepdims=True), 1)
    macro = [part.mean(-1, keepdims=True) for part in (precision, recall, f1)]
    return np.concatenate([accuracy, *macro, precision, recall, f1], -1)


def _with_all(errors, cases):
    return tuple(np.concatenate([part, part.sum(-1, keepdims=True)], -1) for part in (errors, cases))


def _standardised(base, stream):
    (e0, m0), (e, m) = (_with_all(*per_class(part)) for part in (base, stream))
    rate = ((e0 + 0.5) / (m0 + 1))[:, None]
    return (e - m * rate) / np.sqrt(np.maximum(m, 1) * rate * (1 - rate))


RULES = (
    Rule("5 % rule (ReclAIm)", reclaim, lambda _: 0.05, "published code"),
    Rule("Evidently, ±20 % relative", evidently, lambda _: 0.20, "documented default, re-implemented"),
    Rule("NannyML, 3 SD of reference chunks", nannyml, lambda _: 3.0, "documented default, re-implemented"),
    Rule("3-sigma chart", shewhart, lambda _: 3.0, "Shewhart"),
    Rule("Fisher + Holm, 5 % a batch", fisher_holm, lambda _: float(-np.log(0.05)), "textbook"),
    Rule("EWMA 0.1, 3-sigma", ewma, lambda _: 3.0, "textbook"),
    Rule("CUSUM 0.5 (AIM-CU style)", cusum, siegmund, "textbook"),
)
