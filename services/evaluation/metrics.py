"""Metrics of labelled cases, each with a 95 % interval that takes a patient's cases as one cluster.

Conventions, where usage differs: a class without cases has no recall, F1 or AUROC (None), and a class that is never
predicted no precision; macro values average over the classes that have cases, an undefined precision counting 0 there.
Brier is the mean squared distance, halved for two classes (as scikit-learn has it). ECE is top-label with ten bins of
equal width (Guo et al. 2017).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.evaluation.cases import Cases, Floats, Integers
from services.evaluation.intervals import Interval, patient_weights, percentiles, proportion
from services.runtime.conventions import CALIBRATION_BINS

CHUNK_CELLS = 4_000_000
"""Cells of a draws-by-cases array that are held at a time."""


@dataclass(frozen=True)
class Measured:
    """A metric, its 95 % limits and the number of cases behind it."""

    value: float | None
    low: float | None
    high: float | None
    cases: int


@dataclass(frozen=True)
class MetricSet(Mapping[str, Measured]):
    """All metrics by name, such as `accuracy`, `macro_f1`, `auroc`, `recall:CLASS`."""

    values_by_name: Mapping[str, Measured]

    def __getitem__(self, name: str) -> Measured:
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)


def measure(cases: Cases, *, draws: int = 1000, seed: int = 0) -> MetricSet:
    """All metrics of these cases. With no cases every value is None. `draws` bootstrap samples of patients, seeded."""
    k, sizes = len(cases.classes), np.bincount(cases.truth, minlength=len(cases.classes))
    if cases.count == 0:
        names = [*_POINTS, *[f"{name}:{label}" for name in (*_PROPORTIONS, "f1", "auroc") for label in cases.classes]]
        return MetricSet(dict.fromkeys(names, Measured(None, None, None, 0)))
    weights = patient_weights(int(cases.patients.max()) + 1, draws, seed)
    points = _values(cases, np.ones((1, weights.shape[1]), np.int64))
    spread = _values(cases, weights)
    people = _patients_of_classes(cases)
    smallest = int(people[sizes > 0].min())
    found = {"accuracy": _measured(_accuracy(cases), cases.count)}
    for name in _POINTS[1:]:
        found[name] = _bootstrapped(points[name], spread[name], cases.count, smallest)
    for number, label in enumerate(cases.classes):
        for name, interval, count in _class_proportions(cases, number):
            found[f"{name}:{label}"] = _measured(interval, count)
        for name, independent in (("f1", int(people[number])), ("auroc", _rarer_side(cases, number))):
            column = f"{name}:{number}"
            found[f"{name}:{label}"] = _bootstrapped(points[column], spread[column], int(sizes[number]), independent)
    assert len(found) == len(_POINTS) + 5 * k
    return MetricSet(found)


_POINTS = (
    "accuracy",
    "balanced_accuracy",
    "macro_recall",
    "macro_precision",
    "macro_specificity",
    "macro_f1",
    "auroc",
    "brier",
    "ece",
)
_PROPORTIONS = ("recall", "precision", "specificity")


def _measured(interval: Interval, cases: int) -> Measured:
    return Measured(interval.value, interval.low, interval.high, cases)


def _bootstrapped(point: Floats, spread: Floats, cases: int, independent: int) -> Measured:
    value = None if math.isnan(point[0]) else float(point[0])
    return _measured(percentiles(value, spread, independent), cases)


def _patients_of_classes(cases: Cases) -> Integers:
    """[k] patients who have a case of the class."""
    pairs = np.unique(np.stack([cases.truth, cases.patients]), axis=1)
    return np.bincount(pairs[0], minlength=len(cases.classes))


def _rarer_side(cases: Cases, label: int) -> int:
    """Patients of the class or patients of all others, whichever are fewer: a ROC curve rests on both."""
    own = cases.truth == label
    return min(len(np.unique(cases.patients[own])), len(np.unique(cases.patients[~own])))


def _per_patient(cases: Cases, chosen: NDArray[np.bool_]) -> Floats:
    return np.bincount(cases.patients[chosen], minlength=int(cases.patients.max()) + 1).astype(float)


def _accuracy(cases: Cases) -> Interval:
    right = cases.truth == cases.predicted
    return proportion(_per_patient(cases, right), _per_patient(cases, np.ones_like(right)))


def _class_proportions(cases: Cases, label: int) -> list[tuple[str, Interval, int]]:
    """Recall, precision, specificity of one class: name, interval and the cases in the denominator."""
    true, said = cases.truth == label, cases.predicted == label
    parts = (("recall", true & said, true), ("precision", true & said, said), ("specificity", ~true & ~said, ~true))
    return [(name, proportion(_per_patient(cases, hit), _per_patient(cases, base)), int(base.sum())) for name, hit, base in parts]


def _values(cases: Cases, weights: Integers) -> dict[str, Floats]:
    """Every metric that is no plain proportion, for each row of patient weights [draws, patients]; NaN where undefined."""
    found = _from_confusion(_confusions(cases, weights))
    areas = _areas(cases, weights)
    found |= {f"auroc:{number}": areas[:, number] for number in range(len(cases.classes))}
    found["auroc"] = _mean_defined(areas)
    found["brier"] = _weighted_mean(cases, weights, _squared_distance(cases)[:, None])[:, 0]
    found["ece"] = _calibration_error(cases, weights)
    return found


def _sums(cases: Cases, weights: Integers, columns: Floats) -> Floats:
    """[draws, c] weighted sums over cases of columns [n, c]; summed per patient first, so cost is patients, not cases."""
    per_patient = np.zeros((weights.shape[1], columns.shape[1]))
    np.add.at(per_patient, cases.patients, columns)
    return weights.astype(float) @ per_patient


def _confusions(cases: Cases, weights: Integers) -> Floats:
    """Confusion matrices [draws, k, k]."""
    k = len(cases.classes)
    cell = np.eye(k * k)[cases.truth * k + cases.predicted]
    return _sums(cases, weights, cell).reshape(-1, k, k)


def _from_confusion(confusion: Floats) -> dict[str, Floats]:
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    true, said, total = confusion.sum(2), confusion.sum(1), confusion.sum((1, 2))[:, None]
    present = true > 0
    recall, precision = _ratio(hits, true), _ratio(hits, said)
    specificity = _ratio(total - true - said + hits, total - true)
    f1 = np.where(present, _ratio(2 * hits, true + said), np.nan)
    macro = {
        "macro_recall": _mean_defined(recall),
        "macro_precision": _mean_defined(np.where(present, np.nan_to_num(precision), np.nan)),
        "macro_specificity": _mean_defined(np.where(present, specificity, np.nan)),
        "macro_f1": _mean_defined(f1),
    }
    classes = {f"f1:{number}": f1[:, number] for number in range(f1.shape[1])}
    return macro | {"balanced_accuracy": macro["macro_recall"]} | classes


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)


def _mean_defined(columns: Floats) -> Floats:
    """[draws] mean over the defined columns of [draws, c]; NaN when there is none."""
    defined = ~np.isnan(columns)
    return _ratio(np.where(defined, columns, 0.0).sum(1), defined.sum(1).astype(float))


def _areas(cases: Cases, weights: Integers) -> Floats:
    """[draws, k] area under the ROC curve, each class against the rest, ties counting one half."""
    step = max(1, CHUNK_CELLS // max(cases.count, 1))
    chunks = [weights[start : start + step, cases.patients] for start in range(0, len(weights), step)]
    return np.concatenate([np.stack([_area(cases, label, chunk) for label in range(len(cases.classes))], 1) for chunk in chunks])


def _area(cases: Cases, label: int, weights: Integers) -> Floats:
    score = cases.probabilities[:, label]
    order = np.argsort(score, kind="stable")
    first_of_tie = np.flatnonzero(np.diff(score[order], prepend=-np.inf) > 0)
    positive = (cases.truth == label)[order]
    inside = np.add.reduceat(np.where(positive, weights[:, order], 0), first_of_tie, axis=1).astype(float)
    outside = np.add.reduceat(np.where(positive, 0, weights[:, order]), first_of_tie, axis=1).astype(float)
    won = (inside * (np.cumsum(outside, 1) - outside / 2)).sum(1)
    return _ratio(won, inside.sum(1) * outside.sum(1))


def _squared_distance(cases: Cases) -> Floats:
    target = np.eye(len(cases.classes))[cases.truth]
    distance = ((cases.probabilities - target) ** 2).sum(1)
    halved: Floats = distance / 2 if len(cases.classes) == 2 else distance
    return halved


def _weighted_mean(cases: Cases, weights: Integers, columns: Floats) -> Floats:
    return _sums(cases, weights, columns) / _sums(cases, weights, np.ones((cases.count, 1)))


def _calibration_error(cases: Cases, weights: Integers) -> Floats:
    confidence = cases.probabilities[np.arange(cases.count), cases.predicted]
    bins = np.eye(CALIBRATION_BINS)[np.clip((confidence * CALIBRATION_BINS).astype(int), 0, CALIBRATION_BINS - 1)]
    right = (cases.truth == cases.predicted).astype(float)
    gaps: Floats = np.abs(_weighted_mean(cases, weights, bins * (right - confidence)[:, None])).sum(1)
    return gaps
