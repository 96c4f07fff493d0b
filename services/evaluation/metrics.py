"""Metrics of labelled cases, each with a 95 % interval that takes a patient's cases as one cluster.

Conventions, where usage differs: a class without cases has no recall, F1, AUROC or average precision (None), and a class that
is never predicted no precision; macro values average over the classes that have cases, an undefined precision counting 0
there. Brier is the mean squared distance, halved for two classes (as scikit-learn has it). ECE is top-label with ten bins of
equal width (Guo et al. 2017). AUROC and average precision of a class are against all others. docs/evaluation.md has the
sources and the measured coverage of the intervals.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from schemas.events import ConfusionMatrix
from services.evaluation.cases import Cases, Floats
from services.evaluation.influence import Estimate, Ranked, area, average_precision, mean_of, people, ratio, undefined
from services.evaluation.intervals import LEVEL, Interval
from services.runtime.conventions import CALIBRATION_BINS

POINTS = (
    "accuracy",
    "balanced_accuracy",
    "macro_recall",
    "macro_precision",
    "macro_specificity",
    "macro_f1",
    "auroc",
    "average_precision",
    "brier",
    "ece",
)
OF_CLASSES = ("recall", "precision", "specificity", "f1", "auroc", "average_precision")


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


def names(classes: tuple[str, ...]) -> list[str]:
    """All metrics of a model with these classes, in the order in which they are listed."""
    return [*POINTS, *(f"{name}:{label}" for label in classes for name in OF_CLASSES)]


def measure(cases: Cases, *, draws: int = 1000, seed: int = 0) -> MetricSet:
    """All metrics of these cases. With no cases every value is None. `draws` are those of the calibration error's limits."""
    if cases.count == 0:
        return MetricSet(dict.fromkeys(names(cases.classes), Measured(None, None, None, 0)))
    found: dict[str, Measured] = {}
    parts: dict[str, list[Estimate]] = {name: [] for name in OF_CLASSES}
    for number, label in enumerate(cases.classes):
        for name, estimate in of_class(cases, number).items():
            found[f"{name}:{label}"] = _measured(estimate, cases)
            parts[name].append(estimate)
    for name, estimate in overall(cases, parts).items():
        found[name] = _measured(estimate, cases)
    found["ece"] = _told(calibration_error(cases, draws, seed), cases.count)
    return MetricSet({name: found[name] for name in names(cases.classes)})


def confusion(cases: Cases) -> ConfusionMatrix | None:
    """Counts with limits of each cell's share of its row; None without cases."""
    if cases.count == 0:
        return None
    k = len(cases.classes)
    rows = [[_cell(cases, truth, said) for said in range(k)] for truth in range(k)]
    return ConfusionMatrix(
        classes=cases.classes,
        counts=tuple(tuple(int(count) for count in row) for row in cases.confusion()),
        low=tuple(tuple(cell.low for cell in row) for row in rows),
        high=tuple(tuple(cell.high for cell in row) for row in rows),
    )


def _cell(cases: Cases, truth: int, said: int) -> Interval:
    own = cases.truth == truth
    return ratio((own & (cases.predicted == said)).astype(float), own.astype(float), cases.patients).interval(cases.patients)


def _measured(estimate: Estimate, cases: Cases) -> Measured:
    return _told(estimate.interval(cases.patients), estimate.cases)


def _told(interval: Interval, cases: int) -> Measured:
    return Measured(interval.value, interval.low, interval.high, cases)


def of_class(cases: Cases, label: int) -> dict[str, Estimate]:
    """All metrics of one class, as estimates over the cases."""
    true, said = cases.truth == label, cases.predicted == label
    ranked = Ranked.of(cases.probabilities[:, label], true)
    own = int(true.sum())

    def proportion(hit: Floats, base: Floats) -> Estimate:
        return ratio(hit.astype(float), base.astype(float), cases.patients)

    recall = proportion(true & said, true)
    f1 = ratio(2.0 * (true & said), true.astype(float) + said, cases.patients, people(cases.patients, true), own)
    return {
        "recall": recall,
        "precision": proportion(true & said, said),
        "specificity": proportion(~true & ~said, ~true),
        "f1": f1 if own else undefined(),
        "auroc": area(ranked, cases.patients),
        "average_precision": average_precision(ranked, cases.patients),
    }


def overall(cases: Cases, parts: Mapping[str, list[Estimate]]) -> dict[str, Estimate]:
    """Metrics of all classes together, from those of each class (`of_class`)."""
    present = [each.value is not None for each in parts["recall"]]
    ones = np.ones(cases.count)

    def macro(name: str) -> Estimate:
        return mean_of([each for each, has in zip(parts[name], present, strict=True) if has], cases.count)

    recall, precision = macro("recall"), [_or_zero(each, cases) for each in parts["precision"]]
    return {
        "accuracy": ratio((cases.truth == cases.predicted).astype(float), ones, cases.patients),
        "balanced_accuracy": recall,
        "macro_recall": recall,
        "macro_precision": mean_of([each for each, has in zip(precision, present, strict=True) if has], cases.count),
        "macro_specificity": macro("specificity"),
        "macro_f1": macro("f1"),
        "auroc": mean_of(parts["auroc"], cases.count),
        "average_precision": mean_of(parts["average_precision"], cases.count),
        "brier": brier(cases),
    }


def _or_zero(precision: Estimate, cases: Cases) -> Estimate:
    """A class that is never predicted has precision 0 in the mean (scikit-learn's `zero_division=0`)."""
    return precision if precision.value is not None else Estimate(0.0, np.zeros(cases.count), 1, 1, 0)


def brier(cases: Cases) -> Estimate:
    """Mean squared distance of the probabilities from the truth (Brier 1950), halved for two classes.

    It is at most 2 where probabilities sum to one at most, else (findings that do not exclude each other) their number.
    """
    rest = np.einsum("ij,ij->i", cases.probabilities, cases.probabilities)
    own = cases.probabilities[np.arange(cases.count), cases.truth]
    parts = 2.0 if len(cases.classes) == 2 else 1.0
    exclusive = bool((cases.probabilities.sum(1) < 1 + 1e-6).all())
    scale = (2.0 if exclusive else float(max(len(cases.classes), 2))) / parts
    found = ratio((rest - 2 * own + 1) / parts, np.ones(cases.count), cases.patients)
    share = (found.value or 0.0) / scale
    usual = share * (1 - share) * scale**2 / cases.count
    return Estimate(found.value, found.influence, found.units, found.independent, cases.count, usual=usual, scale=scale)


def calibration_error(cases: Cases, draws: int, seed: int) -> Interval:
    """Sum over bins of |share right - mean confidence| times the bin's share of cases, with limits from its normal law.

    The gaps of the bins are means over patients, hence about normal with the clustered covariance; `draws` of them give the
    law of the error. Absolute values make it too large by chance alone, which the limits take off (basic bootstrap).
    """
    confidence = cases.probabilities[np.arange(cases.count), cases.predicted]
    bins = np.clip((confidence * CALIBRATION_BINS).astype(int), 0, CALIBRATION_BINS - 1)
    gap = ((cases.truth == cases.predicted) - confidence) / cases.count
    mean = np.bincount(bins, gap, CALIBRATION_BINS)
    value = float(np.abs(mean).sum())
    units = int(cases.patients.max()) + 1
    table = np.bincount(cases.patients * CALIBRATION_BINS + bins, gap, units * CALIBRATION_BINS)
    of_patient = table.reshape(units, -1) - mean / units
    covariance = of_patient.T @ of_patient * units / max(units - 1, 1)
    least = np.bincount(bins, confidence * (1 - confidence), CALIBRATION_BINS) / cases.count**2
    covariance[np.diag_indices(CALIBRATION_BINS)] = np.maximum(np.diag(covariance), least)
    generator = np.random.default_rng([seed, cases.count])
    drawn = np.abs(generator.multivariate_normal(mean, covariance, max(draws, 2), method="eigh")).sum(1)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    bias = float(drawn.mean()) - value
    lowest = min(float(low) - 2 * bias, 2 * value - float(high))
    return Interval(value, min(max(lowest, 0.0), value), max(min(float(high), 1.0), value))
