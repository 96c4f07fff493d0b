"""Which known change does a change of images look like? Means of signatures against those of the reference under each change.

A mixture of studies with and without a fault has the mixture of their mean signatures, so the share of studies that have the
fault is read off as well. No distribution is assumed; lengths are measured after whitening within the samples, with the chance
part of a difference of means taken off (it is known from the samples' own variances).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.faults import VARIATIONS
from models.signature import QUALITY

Array = NDArray[np.float64]
_SHADES: Final = [place for place, name in enumerate(QUALITY) if not name.startswith("value_")]
"""Modality values differ between scanners by scale alone; the shades show what reaches the network."""
_LIMIT: Final = 8.0
_SHRINK: Final = 0.2
LEAST_CASES: Final = 20
CERTAIN: Final = 5.0
"""Standard errors from which a likeness is no chance."""
EXPLAINED: Final = 0.6
"""Least share of a change that a known one must explain."""
LEAST_SHARE: Final = 0.15
"""Least share of studies that a fault must concern."""


@dataclass(frozen=True)
class Likeness:
    """How far a change resembles a known one.

    `share` of the studies have it, `score` is in standard errors, `explained` is the known change's part of the whole change.
    """

    name: str
    share: float
    score: float
    explained: float

    @property
    def fault(self) -> bool:
        """Whether the known change is a fault of the feed."""
        return self.name not in VARIATIONS

    @property
    def certain(self) -> bool:
        """Whether the change is that known one beyond chance, and little else."""
        return self.score >= CERTAIN and self.explained >= EXPLAINED and self.share >= LEAST_SHARE


def liken(
    before: NDArray[np.floating],
    after: NDArray[np.floating],
    reference: NDArray[np.floating],
    changed: Mapping[str, NDArray[np.floating]],
) -> tuple[Likeness, ...]:
    """Known changes by how well they explain the step from `before` [n, d] to `after` [m, d], the best first.

    `changed` holds the same studies as `reference` [k, d] in the same order, under each known change; d as `vectors` makes it.
    """
    if min(len(before), len(after), len(reference)) < LEAST_CASES or not changed:
        return ()
    whiten = _Whitening(reference, changed)
    first, second = whiten(before), whiten(after)
    step = second.mean(0) - first.mean(0)
    centre = whiten(reference).mean(0)
    found = [_likeness(name, step, whiten(images).mean(0) - centre, first, second) for name, images in changed.items()]
    return tuple(sorted(found, key=lambda each: -each.explained))


def vectors(quality: NDArray[np.floating], layout: NDArray[np.floating]) -> Array:
    """What is compared: the statistics of the shades and the layout, [n, d]."""
    return np.concatenate([quality[:, _SHADES], layout], axis=1).astype(np.float64)


class _Whitening:
    """Coordinates in which studies of one kind vary by about one in every direction."""

    def __init__(self, reference: NDArray[np.floating], changed: Mapping[str, NDArray[np.floating]]) -> None:
        self._centre, self._scale = reference.mean(0), reference.std(0) + 1e-3
        samples = [self._scaled(each) for each in (reference, *changed.values())]
        spread = np.concatenate([each - each.mean(0) for each in samples])
        within = spread.T @ spread / (len(spread) - len(samples))
        size = len(self._centre)
        shrunk = (1 - _SHRINK) * within + _SHRINK * np.trace(within) / size * np.eye(size)
        self._matrix = np.linalg.cholesky(np.linalg.inv(shrunk))

    def __call__(self, samples: NDArray[np.floating]) -> Array:
        found: Array = self._scaled(samples) @ self._matrix
        return found

    def _scaled(self, samples: NDArray[np.floating]) -> Array:
        # A constant image is far from everything; without a limit it alone would make the mean.
        found: Array = np.clip((samples - self._centre) / self._scale, -_LIMIT, _LIMIT)
        return found


def _likeness(name: str, step: Array, known: Array, first: Array, second: Array) -> Likeness:
    length = float(np.linalg.norm(known))
    direction = known / max(length, 1e-9)
    along = float(step @ direction)
    error = float(np.sqrt((first @ direction).var() / len(first) + (second @ direction).var() / len(second)))
    chance = float((first.var(0) / len(first) + second.var(0) / len(second)).sum())
    rest = step - along * direction
    unexplained = max(float(rest @ rest) - (chance - error**2), 0.0)
    whole = unexplained + max(along**2 - error**2, 0.0)
    explained = 1 - unexplained / whole if whole > 0 and along > 0 else 0.0
    return Likeness(name, along / max(length, 1e-9), along / max(error, 1e-9), explained)
