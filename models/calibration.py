"""Repairs that leave the weights alone: decision offsets, temperature, and correction for another mix of classes.

Guo et al. 2017 (temperature scaling); Saerens et al. 2002 (EM for the new priors); Lipton et al. 2018 (black-box shift
estimation, BBSE); Alexandari et al. 2020 (EM works on calibrated probabilities). All results are a `Calibration` that a
bundle keeps and serving applies to every image's logits.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from models.logits import Floats, Integers, StudyLogits, class_recalls, log_likelihood_loss, macro_recall
from models.spec import Calibration

SHARPNESS = 0.25
"""Width, in nats, of the smooth step that stands for a decision: thresholds are chosen by margins, not by single cases."""
STEPS = np.linspace(-3, 3, 49)
ROUNDS = 4
CONDITION = 50.0
"""Largest condition number of the confusion matrix with which BBSE is tried: beyond it small samples decide the answer."""


@dataclass(frozen=True, slots=True)
class Recalibration:
    """The new calibration, and the numbers of everything that was tried."""

    calibration: Calibration
    record: dict[str, Any]


def composed(first: Calibration, then: Calibration, classes: int) -> Calibration:
    """One calibration that equals `first` followed by `then`; its offsets sum to zero, which changes no probability."""
    before, after = (np.asarray(each.offsets or (0.0,) * classes) for each in (first, then))
    offsets = before / then.temperature + after
    centred = offsets - offsets.mean()
    return Calibration(temperature=first.temperature * then.temperature, offsets=tuple(float(value) for value in centred))


def fit_temperature(cases: StudyLogits, base: Calibration) -> float:
    """The factor on the base's temperature with the greatest likelihood under a weak prior around one (one nat, standard)."""

    def cost(logarithm: float) -> float:
        tried = composed(base, Calibration(temperature=math.exp(logarithm)), cases.classes)
        return len(cases) * log_likelihood_loss(cases.probabilities(tried), cases.labels) + logarithm**2 / 2

    found = minimize_scalar(cost, bounds=(math.log(0.05), math.log(20)), method="bounded")
    return math.exp(float(found.x))


def label_shift_em(target: Floats, source_prior: Floats, *, rounds: int = 500) -> Floats:
    """Priors [classes] of unlabelled studies from their probabilities [studies, classes] under `source_prior` (Saerens 2002).

    One case of each class is added (maximum a posteriori), so that no class is ever held impossible.
    """
    classes = len(source_prior)
    prior = source_prior
    for _ in range(rounds):
        weighted = target * (prior / source_prior)
        weighted /= weighted.sum(axis=1, keepdims=True)
        before, prior = prior, (weighted.sum(axis=0) + 1) / (len(target) + classes)
        if float(np.abs(prior - before).max()) < 1e-7:
            break
    return np.asarray(prior)


def label_shift_bbse(source: Floats, labels: Integers, target: Floats) -> Floats | None:
    """Priors [classes] of unlabelled studies by the confusion of labelled ones (Lipton 2018, soft predictions).

    None where a class has no labelled study or the confusion matrix is close to singular.
    """
    classes = source.shape[1]
    if len(np.unique(labels)) < classes:
        return None
    confusion = np.stack([source[labels == label].mean(axis=0) for label in range(classes)], axis=1)
    if np.linalg.cond(confusion) > CONDITION:
        return None
    prior = np.clip(np.linalg.solve(confusion, target.mean(axis=0)), 1 / (len(target) + classes), None)
    return np.asarray(prior / prior.sum())


def prior_offsets(target: Floats, source: Floats) -> Calibration:
    """What corrects probabilities under the `source` priors to those under the `target` priors."""
    return Calibration(offsets=tuple(float(value) for value in np.log(target / source)))


def recalibrate(base: Calibration, old: StudyLogits, new: StudyLogits, recent: StudyLogits) -> Recalibration:
    """Temperature and prior correction, chosen by the likelihood of the labelled `new` studies.

    `old` are held-out labelled studies of the development data, `recent` studies whose labels are not used. Every fitted
    number costs one nat (Akaike 1974), so that the present calibration stays where nothing is clearly better.
    """
    classes = new.classes
    sharpened = composed(base, Calibration(temperature=fit_temperature(old, base)), classes)
    source, target = old.probabilities(sharpened), recent.probabilities(sharpened)
    source_prior = (source.sum(axis=0) + 1) / (len(source) + classes)
    estimates = {"em": label_shift_em(target, source_prior), "bbse": label_shift_bbse(source, old.labels, target)}
    tried = {"present": (base, 0)}
    for name, prior in estimates.items():
        if prior is not None:
            corrected = composed(sharpened, prior_offsets(prior, source_prior), classes)
            tried[name] = (corrected, classes)
    for name, (start, parameters) in list(tried.items()):
        factor = Calibration(temperature=fit_temperature(new, start))
        tried[f"{name}+temperature"] = (composed(start, factor, classes), parameters + 1)
    costs = {
        name: log_likelihood_loss(new.probabilities(each), new.labels) + parameters / len(new)
        for name, (each, parameters) in tried.items()
    }
    best = min(costs, key=lambda name: costs[name])
    record = {
        "chosen": best,
        "candidates": {name: round(value, 6) for name, value in costs.items()},
        "priors": {name: [round(float(each), 4) for each in prior] for name, prior in estimates.items() if prior is not None},
        "prior_before": [round(float(each), 4) for each in source_prior],
        "unlabelled_studies": len(recent),
    }
    return Recalibration(tried[best][0], record)


def rethreshold(
    base: Calibration, old: StudyLogits, new: StudyLogits, *, tolerance: float = 0.01, reference: Mapping[int, float] | None = None
) -> Recalibration:
    """Per-class offsets that raise the mean recall of the labelled `new` studies, found by coordinate search from zero.

    No class of the held-out `old` studies may come to lie more than `tolerance` below its recall in `reference` (without one,
    its recall under `base`). A recall counts by smooth margins and the offsets' squares cost a little, so that a handful of
    cases does not move a threshold far.
    """
    before = dict(reference) if reference is not None else class_recalls(old.probabilities(base), old.labels)
    cost = _decision_cost(base, old, new, before, tolerance)
    offsets = np.zeros(new.classes)
    best = start = cost(offsets)
    for width in (1.0, 0.5, 0.25, 0.1)[:ROUNDS]:
        for label in range(new.classes):
            moves = [offsets + width * step * _unit(label, new.classes) for step in STEPS]
            costs = [cost(move) for move in moves]
            if min(costs) < best - 1e-9:
                best, offsets = min(costs), moves[int(np.argmin(costs))]
    chosen = composed(base, Calibration(offsets=tuple(float(value) for value in offsets)), new.classes)
    after = class_recalls(old.probabilities(chosen), old.labels)
    record = {
        "offsets": [round(float(value), 4) for value in offsets - offsets.mean()],
        "cost": [round(start, 6), round(best, 6)],
        "macro_recall": [round(macro_recall(new.probabilities(each), new.labels), 4) for each in (base, chosen)],
        "old_recall_loss": round(max((before[label] - after[label] for label in before), default=0.0), 4),
    }
    return Recalibration(base if best == start else chosen, record)


def _decision_cost(
    base: Calibration, old: StudyLogits, new: StudyLogits, before: dict[int, float], tolerance: float
) -> Callable[[Floats], float]:
    def cost(offsets: Floats) -> float:
        tried = composed(base, Calibration(offsets=tuple(float(value) for value in offsets)), new.classes)
        after = class_recalls(old.probabilities(tried), old.labels)
        lost = sum(max(0.0, before[label] - after[label] - tolerance) for label in before)
        spread = float(np.square(offsets - offsets.mean()).sum())
        return 1 - _soft_recall(new.probabilities(tried), new.labels) + 5 * lost + spread / (20 * len(new))

    return cost


def _soft_recall(probabilities: Floats, labels: Integers) -> float:
    """Mean over the classes of the smooth share of their studies that are read rightly."""
    known = np.log(np.clip(probabilities, 1e-12, None))
    rows = np.arange(len(labels))
    truth = known[rows, labels]
    others = known.copy()
    others[rows, labels] = -np.inf
    right = 1 / (1 + np.exp(-np.clip((truth - others.max(axis=1)) / SHARPNESS, -50, 50)))
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def _unit(place: int, length: int) -> Floats:
    unit = np.zeros(length)
    unit[place] = 1.0
    return unit
