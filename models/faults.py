"""Known changes of images, as changes of decoded frames: faults of a feed that no header need betray, and mere variations.

What each does to a model's own reference images can be computed exactly. The variations (another detector, another protocol)
are there to compete with the faults, so that images which are only darker are not taken for images in a wrong window.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, cast

import numpy as np
from scipy.ndimage import gaussian_filter

from models.frames import Frame, full_range
from models.spec import DicomWindow, FixedWindow, PreprocessingSpec
from models.voi import FloatArray, Window

Change = Callable[[Frame], Frame]
CT_INTERCEPT: Final = 1024.0
"""Rescale Intercept of nearly all CT is -1024: without it air is 0 and water 1024."""


def inverted(frame: Frame) -> Frame:
    """Black and white exchanged: a wrong Photometric Interpretation."""
    return replace(frame, inverted=not frame.inverted)


def turned(quarters: int) -> Change:
    """Turned by quarters of a circle."""

    def change(frame: Frame) -> Frame:
        return _moved(frame, lambda array: np.rot90(array, quarters))

    return change


def flipped(axis: int) -> Change:
    """Mirrored: axis 1 left to right, axis 0 top to bottom."""

    def change(frame: Frame) -> Frame:
        return _moved(frame, lambda array: np.flip(array, axis))

    return change


def unscaled(frame: Frame) -> Frame:
    """Stored values instead of Hounsfield units."""
    return replace(frame, values=cast("FloatArray", frame.values + np.float32(CT_INTERCEPT)))


def reshaded(change: Callable[[FloatArray], FloatArray]) -> Change:
    """Other shades inside the window: `change` maps shades [H, W] in [0, 1]; values outside the window are cut off."""

    def changed(frame: Frame) -> Frame:
        low, high = _ends(frame.voi if isinstance(frame.voi, Window) else full_range(frame.values))
        shades = np.clip((frame.values - low) / (high - low), 0, 1)
        return replace(frame, values=np.asarray(change(shades) * (high - low) + low, dtype=np.float32))

    return changed


def cropped(frame: Frame) -> Frame:
    """A smaller field of view: an eighth of the image is missing on each side."""
    rows, columns = (side // 8 for side in frame.values.shape)
    return _moved(frame, lambda array: array[rows : len(array) - rows, columns : array.shape[1] - columns])


def _noisy(shades: FloatArray) -> FloatArray:
    # Always the same noise: a probe is a function of its image.
    noise = np.random.default_rng(0).normal(0, 0.07, shades.shape)
    return np.asarray(shades + noise, dtype=np.float32)


def rewindowed(shift: float, stretch: float) -> Change:
    """Shown through another window: its centre moved by `shift` of the range of the right one, its width multiplied."""

    def change(frame: Frame) -> Frame:
        low, high = np.percentile(frame.values, (0.5, 99.5)) if not isinstance(frame.voi, Window) else _ends(frame.voi)
        centre, width = (low + high) / 2 + shift * (high - low), max((high - low) * stretch, 1.0)
        return replace(frame, voi=Window(float(centre), float(width), "LINEAR_EXACT"))

    return change


def _ends(window: Window) -> tuple[float, float]:
    return window.center - window.width / 2, window.center + window.width / 2


def _moved(frame: Frame, move: Callable[[FloatArray], FloatArray]) -> Frame:
    padding = None if frame.padding is None else np.ascontiguousarray(move(cast("FloatArray", frame.padding)))
    return replace(frame, values=np.ascontiguousarray(move(frame.values)), padding=padding)  # type: ignore[arg-type]


_GEOMETRY: Final[Mapping[str, Change]] = {
    "inverted": inverted,
    "turned by 90 degrees": turned(3),
    "turned by 180 degrees": turned(2),
    "turned by 270 degrees": turned(1),
    "mirrored left to right": flipped(1),
    "mirrored top to bottom": flipped(0),
}
_WINDOWS: Final[Mapping[str, Change]] = {
    "window too narrow": rewindowed(0.0, 0.3),
    "window too wide": rewindowed(0.0, 3.0),
    "window too high": rewindowed(0.6, 1.0),
    "window too low": rewindowed(-0.6, 1.0),
}
_RESCALE: Final[Mapping[str, Change]] = {"without rescale": unscaled}


_VARIATIONS: Final[Mapping[str, Change]] = {
    "blurred": reshaded(lambda shades: gaussian_filter(shades, 0.015 * shades.shape[0])),
    "noisier": reshaded(_noisy),
    "brighter": reshaded(lambda shades: shades**0.6),
    "darker": reshaded(lambda shades: shades**1.6),
    "of less contrast": reshaded(lambda shades: shades.mean() + 0.7 * (shades - shades.mean())),
    "of a smaller field of view": cropped,
}
VARIATIONS: Final = frozenset(_VARIATIONS)
"""Names of the changes that are no faults."""


def known_changes(spec: PreprocessingSpec, modality: str) -> dict[str, Change]:
    """The known faults and the variations that compete with them, by name."""
    return known_faults(spec, modality) | dict(_VARIATIONS)


def known_faults(spec: PreprocessingSpec, modality: str) -> dict[str, Change]:
    """The faults that a model of this preprocessing can be fed, by name; what its preprocessing undoes is none of them."""
    faults = dict(_GEOMETRY)
    if isinstance(spec.intensity, DicomWindow):
        faults |= _WINDOWS
    if modality == "CT" or (not modality and isinstance(spec.intensity, FixedWindow)):
        faults |= _RESCALE
    return faults
