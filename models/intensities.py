"""From one decoded frame to shades in [0, 1] at the network's resolution: windows, percentiles, padding, resizing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from models.frames import Frame
from models.spec import FixedWindow, PercentileBounds, PercentileRange, PreprocessingSpec
from models.voi import FloatArray, Voi, Window

_PADDED = 0.5
"""Share of padding from which a resized pixel does not count for percentiles."""


@dataclass(frozen=True, slots=True)
class Reduced:
    """A frame at the network's resolution: `image` [h, w] in [0, 1] if `shown`, else in modality units.

    `padding` [h, w] is each pixel's share of padding, None for none; `shape` is the frame's own size.
    """

    image: torch.Tensor
    shown: bool
    shape: tuple[int, int]
    inverted: bool = False
    padding: torch.Tensor | None = None


def reduced(frame: Frame, spec: PreprocessingSpec, size: tuple[int, int]) -> Reduced:
    """Apply the window that `spec` asks for, if any, and resize with antialiasing."""
    shape = (frame.values.shape[0], frame.values.shape[1])
    window = _window(frame, spec)
    if window is not None:
        return Reduced(_resized(frame.display(window), size), shown=True, shape=shape)
    # Percentiles are taken after the resize, whose averaging keeps single hot pixels from setting the scale.
    padding = None if frame.padding is None else _resized(frame.padding.astype(np.float32), size).clamp_(0, 1)
    return Reduced(_resized(frame.values, size), shown=False, shape=shape, inverted=frame.inverted, padding=padding)


def shades(images: Sequence[Reduced], spec: PreprocessingSpec) -> torch.Tensor:
    """Frames [k, h, w] in [0, 1], all of one reduced size. Percentiles are of each image, or of the whole volume.

    Padding does not count for them and is black; a constant image becomes 0.
    """
    raw = [image for image in images if not image.shown]
    together = _limits(raw, spec) if raw and spec.spatial_dims == 3 else None
    return torch.stack([image.image if image.shown else _stretched(image, together or _limits([image], spec)) for image in images])


def _stretched(image: Reduced, limits: tuple[float, float]) -> torch.Tensor:
    low, high = limits
    shade = ((image.image - low) * (1 / (high - low) if high > low else 0.0)).clamp_(0, 1)
    if image.inverted:
        shade = 1 - shade
    return shade if image.padding is None else shade * (1 - image.padding)


def _limits(images: Sequence[Reduced], spec: PreprocessingSpec) -> tuple[float, float]:
    bounds = spec.intensity
    assert isinstance(bounds, PercentileBounds)
    content = [each.image if each.padding is None else each.image[each.padding < _PADDED] for each in images]
    values = np.concatenate([each.numpy().ravel() for each in content])
    if not values.size:
        return 0.0, 0.0
    low, high = np.percentile(values, [bounds.low, bounds.high])
    return float(low), float(high)


def _window(frame: Frame, spec: PreprocessingSpec) -> Voi | None:
    """The VOI that `spec` asks for, None where percentiles decide."""
    if isinstance(spec.intensity, FixedWindow):
        return Window(spec.intensity.center, spec.intensity.width, "LINEAR_EXACT")
    return None if isinstance(spec.intensity, PercentileRange) else frame.voi


def _resized(image: FloatArray, size: tuple[int, int]) -> torch.Tensor:
    # A copy: what was decoded may be read-only, and what is prepared is normalised in place.
    given = torch.tensor(image)
    if tuple(given.shape) == size:
        return given
    return functional.interpolate(given[None, None], size=size, mode="bilinear", antialias=True, align_corners=False)[0, 0]
