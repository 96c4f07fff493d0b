"""A correction of one kind of images' logits, where unseen cases show that it suits them."""

import math
from typing import Final

import numpy as np
from scipy.optimize import minimize

from models.logits import Floats, StudyLogits, balanced_loss
from models.spec import Calibration

FOLDS: Final = 5


def fitted(cases: StudyLogits, base: Calibration, seed: int) -> tuple[Calibration, float]:
    """A correction of the logits before `base`, where cross-validation finds that it suits unseen cases better; else none.

    With it the class-balanced loss of the cases, that of the correction cross-validated.

    Temperature and offsets by class-balanced likelihood, each with a weak prior (one nat at a factor e, at an offset of 1).
    """
    count = cases.classes
    offsets = np.asarray(base.offsets or (0.0,) * count)
    given = StudyLogits(cases.logits / base.temperature + offsets, cases.study, cases.labels)
    folds = np.random.default_rng(seed).permutation(len(given)) % FOLDS
    apart = [_fit(studies_of(given, folds != fold)) for fold in range(FOLDS)] if len(given) >= 2 * FOLDS else []
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


def studies_of(cases: StudyLogits, chosen: np.typing.NDArray[np.bool_]) -> StudyLogits:
    """The studies where `chosen` [studies] holds."""
    places = np.cumsum(chosen) - 1
    images = chosen[cases.study]
    return StudyLogits(cases.logits[images], places[cases.study[images]], cases.labels[chosen])
