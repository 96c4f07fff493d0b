"""Telling images of a new kind from the known ones by their looks, where that can be done.

A linear discriminant with a pooled, shrunk covariance. The recent images may hold known ones too (one scanner of several was
changed): their share and the mean of the rest are found by expectation maximisation, the known images' mean held fixed.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

SHRINKAGE: Final = 0.05
"""Share of the covariance that is taken from its diagonal alone."""
STEPS: Final = 200
LEAST: Final = 1e-4
"""Least variance of a number of a look, in units of that of the known images."""
FOLDS: Final = 2

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Discriminant:
    """The log odds that an image is of the new kind: its look times `direction`, plus `intercept`, both kinds held as likely."""

    direction: Floats
    intercept: float
    share: float
    """Estimated share of the new kind among the recent images."""

    def scores(self, looks: Floats) -> Floats:
        """Log odds [n] of looks [n, f]; above zero an image is more like the new kind."""
        return np.asarray(looks @ self.direction + self.intercept)


@dataclass(frozen=True, slots=True)
class Separation:
    """A discriminant on all images, and the log odds of each image under one that was fitted without its patient."""

    discriminant: Discriminant
    known: Floats
    recent: Floats


def separate(known: Floats, recent: Floats, known_groups: Places, recent_groups: Places) -> Separation:
    """Fit on looks [n, f] of known and of recent images; images of one group (a patient) are judged by fits without it."""
    held_out = np.zeros(len(known)), np.zeros(len(recent))
    for fold in range(FOLDS):
        apart = known_groups % FOLDS == fold, recent_groups % FOLDS == fold
        found = discriminant(known[~apart[0]], recent[~apart[1]])
        for scores, looks, chosen in zip(held_out, (known, recent), apart, strict=True):
            scores[chosen] = found.scores(looks[chosen])
    return Separation(discriminant(known, recent), *held_out)


def discriminant(known: Floats, recent: Floats) -> Discriminant:
    """The discriminant of known from new images [n, f], where `recent` may hold some known ones."""
    centre, scale = known.mean(axis=0), known.std(axis=0) + 1e-6
    first, second = (known - centre) / scale, (recent - centre) / scale
    weights, share = np.ones(len(second)), 1.0
    for _ in range(STEPS):
        mean = (weights[:, None] * second).sum(axis=0) / max(float(weights.sum()), 1.0)
        precision = np.linalg.inv(_pooled(first, second, mean, weights))
        direction = precision @ mean
        odds = second @ direction - float(mean @ direction) / 2
        before, share = share, float(np.clip(weights.mean(), 1e-3, 1 - 1e-3))
        weights = 1 / (1 + np.exp(-np.clip(odds + np.log(share / (1 - share)), -50, 50)))
        if abs(before - share) < 1e-5:
            break
    raw = direction / scale
    return Discriminant(raw, float(-centre @ raw - mean @ direction / 2), float(weights.mean()))


def _pooled(known: Floats, recent: Floats, mean: Floats, weights: Floats) -> Floats:
    """Covariance within both kinds, shrunk towards its diagonal; the known images' mean is zero."""
    apart = recent - mean
    scatter = known.T @ known + (apart * weights[:, None]).T @ apart
    covariance = scatter / (len(known) + float(weights.sum()))
    diagonal = np.diag(np.diag(covariance))
    return np.asarray((1 - SHRINKAGE) * covariance + SHRINKAGE * diagonal + LEAST * np.eye(len(covariance)))
