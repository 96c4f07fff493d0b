"""A change of the last layer for one kind of images: ridge on what the harmonised network sees, where unseen cases gain by it.

Multinomial logistic regression beside given logits (their offset), class-balanced, its penalty on the change chosen by
cross-validation over patients (Hoerl, Kennard 1970; Friedman, Hastie, Tibshirani 2010).
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from scipy.optimize import minimize
from torch import nn

from models.data import TensorSet
from models.heads import last_linear
from models.logits import Floats, Integers, StudyLogits, balanced_loss, folds_of, study_logits

FOLDS: Final = 5
PENALTIES: Final = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)
"""Weights of half the squared change, of standardised features whose squares sum to about one."""
FEWEST: Final = 40
"""Patients below which the last layer is left alone."""


@dataclass(frozen=True, slots=True)
class KindHead:
    """`change` [classes, features + 1] of the logits before any correction, the last column an offset; None: none.

    `logits` of the cases with it, each image by a change that was fitted without its patient, and their class-balanced loss.
    """

    change: Floats | None
    logits: Floats
    loss: float
    penalty: float | None = None

    def moved(self, features: Floats) -> Floats:
        """What the change adds to the logits of images [images, classes]; nothing where there is none."""
        if self.change is None:
            return np.zeros(())
        return np.asarray(features @ self.change[:, :-1].T + self.change[:, -1])


def logits_and_features(module: nn.Module, tensors: TensorSet, device: torch.device) -> tuple[StudyLogits, Floats]:
    """A network's outputs, and what its last layer takes [images, features]. Raises TrainingFailed, UnknownNetwork."""
    seen: list[torch.Tensor] = []
    hook = last_linear(module).register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0].detach().float().cpu()))
    try:
        outputs = study_logits(module, tensors, device)
    finally:
        hook.remove()
    return outputs, torch.cat(seen).double().numpy()


def merged(
    chosen: np.typing.NDArray[np.bool_], first: tuple[StudyLogits, Floats], second: tuple[StudyLogits, Floats]
) -> tuple[StudyLogits, Floats]:
    """Outputs and features of the studies where `chosen` [studies] holds and of the others, in the order of all."""
    places = np.flatnonzero(chosen), np.flatnonzero(~chosen)
    study = np.concatenate([own[part[0].study] for own, part in zip(places, (first, second), strict=True)])
    order, labels = np.argsort(study, kind="stable"), np.empty(len(chosen), dtype=np.int64)
    for own, part in zip(places, (first, second), strict=True):
        labels[own] = part[0].labels
    logits, features = (np.concatenate(both)[order] for both in ((first[0].logits, second[0].logits), (first[1], second[1])))
    return StudyLogits(logits, study[order], labels), features


def head_of_kind(cases: StudyLogits, features: Floats, seed: int, patients: Integers) -> KindHead:
    """The change beside the cases' logits that suits unseen patients best, none where no change does. `patients` [studies]."""
    without = KindHead(None, cases.logits, balanced_loss(cases.probabilities(), cases.labels))
    if len(np.unique(patients)) < FEWEST:
        return without
    folds = folds_of(patients, FOLDS, seed)
    mean, scale = features.mean(axis=0), (features.std(axis=0) + 1e-6) * np.sqrt(features.shape[1])
    rotation = np.linalg.svd((features - mean) / scale, full_matrices=False)[2].T
    inputs = np.column_stack([(features - mean) / scale @ rotation, np.ones(len(features))])
    best = min((_unseen(cases, inputs, penalty, folds) for penalty in PENALTIES), key=lambda each: each.loss)
    if best.loss >= without.loss or best.penalty is None:
        return without
    fitted = _fit(cases, inputs, np.ones(len(cases), dtype=np.bool_), best.penalty)
    weights = rotation @ fitted[:-1] / scale[:, None]
    return KindHead(np.vstack([weights, fitted[-1] - mean @ weights]).T, best.logits, best.loss, best.penalty)


def _unseen(cases: StudyLogits, inputs: Floats, penalty: float, folds: Integers) -> KindHead:
    """Logits and loss by cross-validation."""
    logits = cases.logits.copy()
    for fold in range(FOLDS):
        held_out = (folds == fold)[cases.study]
        logits[held_out] += inputs[held_out] @ _fit(cases, inputs, folds != fold, penalty)
    said = replace(cases, logits=logits).probabilities()
    return KindHead(None, logits, balanced_loss(said, cases.labels), penalty)


def _fit(cases: StudyLogits, inputs: Floats, chosen: np.typing.NDArray[np.bool_], penalty: float) -> Floats:
    """The change [inputs, classes] fitted to the `chosen` studies; a study's images share its weight."""
    images = chosen[cases.study]
    given, rows, truth = cases.logits[images], inputs[images], cases.labels[cases.study[images]]
    weights = _weights(cases.study[images], truth)
    wanted = np.eye(cases.classes)[truth]
    penalties = np.append(np.full(inputs.shape[1] - 1, penalty), 1 / len(cases))[:, None]

    def cost(numbers: Floats) -> tuple[float, Floats]:
        change = numbers.reshape(len(penalties), cases.classes)
        logits = given + rows @ change
        logits -= logits.max(axis=1, keepdims=True)
        total = np.log(np.exp(logits).sum(axis=1, keepdims=True))
        loss = -float((weights[:, None] * wanted * (logits - total)).sum()) + float((penalties * change**2).sum()) / 2
        slope = rows.T @ (weights[:, None] * (np.exp(logits - total) - wanted)) + penalties * change
        return loss, slope.ravel()

    start = np.zeros(len(penalties) * cases.classes)
    found = minimize(cost, start, jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return np.asarray(found.x.reshape(len(penalties), cases.classes))


def _weights(study: Integers, truth: Integers) -> Floats:
    """Of each image: studies of a class share one, the classes share one."""
    _, places, counts = np.unique(study, return_inverse=True, return_counts=True)
    each = 1 / counts[places]
    for label in np.unique(truth):
        own = truth == label
        each[own] /= each[own].sum()
    return np.asarray(each / len(np.unique(truth)))
