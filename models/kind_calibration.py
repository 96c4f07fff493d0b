"""A correction of one kind of images' logits, where unseen cases show that it suits them, and what its classes have to keep."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from models.logits import Floats, Integers, StudyLogits, balanced_loss, folds_of
from models.spec import Calibration

FOLDS: Final = 5
KEPT: Final = 40.0
"""Nats of class-balanced loss that the square of a recall weighs which the gate will miss: 0.1 for five points."""
EVEN: Final = 5.0
"""The same for what a class lacks beyond all others, whether the gate asks for it or not."""
SPARE: Final = 0.025
"""What a class shall keep beyond that: one that just keeps it on the tune cases fails every other gate, by chance."""
STEP: Final = 0.25
"""Width in nats of the step from a wrong answer to a right one, so that cases near the boundary share in the count."""


def fitted(cases: StudyLogits, base: Calibration, seed: int, patients: Integers) -> tuple[Calibration, float]:
    """A correction of the logits before `base`, where cross-validation finds that it suits unseen patients better; else none.

    With it the class-balanced loss of the cases, that of the correction cross-validated. `patients` [studies] are numbers.

    Temperature and offsets by class-balanced likelihood, each with a weak prior (one nat at a factor e, at an offset of 1).
    """
    count = cases.classes
    offsets = np.asarray(base.offsets or (0.0,) * count)
    given = StudyLogits(cases.logits / base.temperature + offsets, cases.study, cases.labels)
    folds, enough = folds_of(patients, FOLDS, seed), len(np.unique(patients)) >= 2 * FOLDS
    apart = [_fit(studies_of(given, folds != fold)) for fold in range(FOLDS)] if enough else []
    without = balanced_loss(given.probabilities(Calibration()), given.labels)
    if not apart:
        return Calibration(), without
    held_out = np.concatenate([studies_of(given, folds == fold).probabilities(each) for fold, each in enumerate(apart)])
    labels = np.concatenate([given.labels[folds == fold] for fold in range(FOLDS)])
    corrected = balanced_loss(held_out, labels)
    if corrected >= without:
        return Calibration(), without
    found = _fit(given)
    own = np.asarray(found.offsets)
    first = base.temperature * (offsets / found.temperature - offsets + own)
    return Calibration(temperature=found.temperature, offsets=tuple(float(each) for each in first)), corrected


def _fit(cases: StudyLogits) -> Calibration:
    def calibration(numbers: Floats) -> Calibration:
        return Calibration(temperature=math.exp(float(numbers[0])), offsets=tuple(float(each) for each in numbers[1:]))

    def cost(numbers: Floats) -> float:
        return (
            len(cases) * balanced_loss(cases.probabilities(calibration(numbers)), cases.labels)
            + float(np.square(numbers).sum()) / 2
        )

    bounds = [(math.log(0.2), math.log(5.0)), *[(-5.0, 5.0)] * cases.classes]
    return calibration(minimize(cost, np.zeros(cases.classes + 1), method="L-BFGS-B", bounds=bounds).x)


def spread(cases: StudyLogits, usual: Mapping[int, float], before: Mapping[int, float]) -> tuple[float, ...]:
    """Offsets of the logits that keep what the gate asks of each class, for as little class-balanced loss as possible.

    `usual` is the recall of each class before the decline, `before` that of the champion on these cases. A class shall keep
    the lower one. Where the champion finds more than usual it may be calling everything so; there what is lacking to the usual
    recall may be as much as all classes lack in the mean (decision 0034). Classes that `usual` does not know are left out.
    """
    known = [label for label in before if label in usual]
    wanted = np.asarray([usual[label] for label in known])
    present = np.asarray([before[label] for label in known])
    over = present > wanted
    if not known:
        return (0.0,) * cases.classes

    def cost(numbers: Floats) -> float:
        moved = replace(cases, logits=cases.logits + numbers)
        found = moved.probabilities()
        recalls = _smooth_recalls(found, cases, known)
        shared = max(0.0, float((wanted - recalls).mean()))
        uneven = np.maximum(0.0, wanted - recalls - shared)
        missing = np.maximum(0.0, np.minimum(wanted, present) + SPARE - recalls - np.where(over, shared, 0.0))
        price = EVEN * float(uneven @ uneven) + KEPT * float(missing @ missing)
        return balanced_loss(found, cases.labels) + price + float(np.square(numbers).sum()) / len(cases)

    start = np.zeros(cases.classes)
    found = minimize(cost, start, method="Nelder-Mead", options={"maxiter": 400 * cases.classes, "xatol": 1e-3, "fatol": 1e-6})
    return tuple(float(each) for each in found.x - found.x.mean())


def _smooth_recalls(probabilities: Floats, cases: StudyLogits, classes: list[int]) -> Floats:
    """Recall of each class with a smooth step instead of a sharp one at the boundary."""
    logs = np.log(np.clip(probabilities, 1e-12, None))
    rows = np.arange(len(cases))
    own = logs[rows, cases.labels]
    logs[rows, cases.labels] = -np.inf
    right = expit((own - logs.max(axis=1)) / STEP)
    return np.asarray([right[cases.labels == label].mean() for label in classes])


def studies_of(cases: StudyLogits, chosen: np.typing.NDArray[np.bool_]) -> StudyLogits:
    """The studies where `chosen` [studies] holds."""
    places = np.cumsum(chosen) - 1
    images = chosen[cases.study]
    return StudyLogits(cases.logits[images], places[cases.study[images]], cases.labels[chosen])
