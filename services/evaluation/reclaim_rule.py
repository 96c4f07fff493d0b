"""The published 5 % rule, computed beside the detector for those who must report it. It triggers nothing here.

Source: ReclAIm (arXiv 2510.17004) and the behaviour of its code: any of accuracy, macro or per-class precision, recall
and F1 more than 5 % below the baseline, relatively; undefined values count as 0; a baseline of 0 cannot decline.
A batch without cases is not compared.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from services.evaluation.cases import Floats, Integers

LIMIT: Final = -0.05


@dataclass(frozen=True)
class RuleVerdict:
    """Whether the rule fires, and the metric with the largest relative decline."""

    declined: bool
    metric: str
    change: float


def apply_rule(baseline: Integers, batch: Integers, classes: tuple[str, ...], limit: float = LIMIT) -> RuleVerdict:
    """Compare two confusion matrices [K, K] (rows: truth); a relative change below `limit` is a decline."""
    if not batch.sum():
        return RuleVerdict(declined=False, metric="accuracy", change=0.0)
    before, after = _metrics(baseline), _metrics(batch)
    change = np.divide(after - before, before, out=np.zeros_like(before), where=before > 0)
    worst = int(change.argmin())
    each = [f"{name}:{label}" for name in ("precision", "recall", "f1") for label in classes]
    names = ["accuracy", "macro_precision", "macro_recall", "macro_f1", *each]
    return RuleVerdict(bool(change[worst] < limit), names[worst], float(change[worst]))


def _metrics(confusion: Integers) -> Floats:
    hits, true, said = np.diagonal(confusion).astype(float), confusion.sum(1), confusion.sum(0)
    recall = hits / np.maximum(true, 1)
    precision = hits / np.maximum(said, 1)
    both = recall + precision
    f1 = np.divide(2 * recall * precision, both, out=np.zeros_like(both), where=both > 0)
    accuracy = hits.sum() / max(int(confusion.sum()), 1)
    return np.concatenate([[accuracy, precision.mean(), recall.mean(), f1.mean()], precision, recall, f1])
