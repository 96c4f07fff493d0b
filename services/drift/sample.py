"""Predictions as arrays: a version's reference (its baseline) and a window of what came in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.runtime.signatures import Images

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """n scored studies: `probabilities` [n, K], the predicted class as its number, the images (None: not kept), the facets."""

    classes: tuple[str, ...]
    probabilities: Array
    predicted: NDArray[np.int64]
    images: Images | None
    facets: tuple[Mapping[str, str], ...]

    @property
    def count(self) -> int:
        """How many studies there are (n)."""
        return len(self.predicted)

    @property
    def names(self) -> list[str]:
        """The predicted classes by name."""
        return [self.classes[number] for number in self.predicted]

    def take(self, places: Sequence[int]) -> "Sample":
        """The studies at `places`."""
        chosen = list(places)
        images = self.images.take(chosen) if self.images is not None else None
        facets = tuple(self.facets[place] for place in chosen)
        return Sample(self.classes, self.probabilities[chosen], self.predicted[chosen], images, facets)


@dataclass(frozen=True)
class Reference:
    """A version's baseline with its truth (class numbers), and its images under known changes."""

    sample: Sample
    truth: NDArray[np.int64]
    probed: Images
    changed: Mapping[str, Images]

    def take(self, places: Sequence[int]) -> "Reference":
        """The cases at `places`; the images under known changes stay."""
        chosen = list(places)
        return Reference(self.sample.take(chosen), self.truth[chosen], self.probed, self.changed)


def probabilities_of(rows: Sequence[Mapping[str, float]], classes: Sequence[str]) -> Array:
    """[n, K] in the order of the classes."""
    return np.array([[row.get(name, 0.0) for name in classes] for row in rows], np.float64).reshape(len(rows), len(classes))
