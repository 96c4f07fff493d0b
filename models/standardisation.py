"""Grey levels of new images brought to those of known ones: a monotone change found from both distributions alone."""

from typing import Final

import numpy as np
import numpy.typing as npt

from models.spec import GreyLevels

LANDMARKS: Final = np.linspace(1, 99, 50)
"""Percentiles that are brought together; between them the change is linear, beyond them it goes to black and white."""

Floats = npt.NDArray[np.floating]


def grey_levels(known: Floats, new: Floats) -> GreyLevels:
    """What brings the shades of `new` to the distribution of `known`, both of any shape with shades in [0, 1].

    All pixels count alike, so that a change of shades that all images share is undone exactly, whatever their number of
    pixels at each level; equal distributions give the identity. Where a level of the new images stands for several of the
    known ones (it was cut off), their mean is wanted.
    """
    given, wanted = (np.percentile(np.asarray(each, dtype=np.float64).ravel(), LANDMARKS) for each in (new, known))
    given, wanted = np.clip(given, 0, 1), np.clip(wanted, 0, 1)
    if np.array_equal(given, wanted):
        return GreyLevels(given=(0.0, 1.0), wanted=(0.0, 1.0))
    levels, places = np.unique(given.round(9), return_inverse=True)
    means = np.bincount(places, weights=wanted) / np.bincount(places)
    if levels[0] > 0:
        levels, means = np.append(0.0, levels), np.append(0.0, means)
    if levels[-1] < 1:
        levels, means = np.append(levels, 1.0), np.append(means, 1.0)
    rising = np.maximum.accumulate(np.clip(means, 0, 1))
    return GreyLevels(given=tuple(levels.tolist()), wanted=tuple(rising.tolist()))


def distance(known: Floats, new: Floats) -> float:
    """How far apart two distributions of shades lie: mean distance of their percentiles, in shades."""
    first, second = (np.percentile(np.asarray(each).ravel(), LANDMARKS) for each in (known, new))
    return float(np.abs(first - second).mean())
