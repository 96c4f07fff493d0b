"""What a prepared study looks like, in a few bounded numbers: image-quality statistics and a layout of 8 x 8 mean shades.

Drift and diagnosis compare these numbers; no image can be rebuilt from them. They are taken from the very tensor that the
network sees, and from the modality values before windowing, so that a fault on either side leaves its mark.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from models.frames import Frame

if TYPE_CHECKING:
    import torch

FORM: Final = 1
"""Number of this list of statistics; rows of another form are not compared."""
QUALITY: Final = (
    "mean",
    "contrast",
    "entropy",
    "dark_share",
    "bright_share",
    "shade_5",
    "shade_50",
    "shade_95",
    "sharpness",
    "noise",
    "gradient_ratio",
    "value_low",
    "value_middle",
    "value_high",
)
"""Mean, standard deviation, entropy (bits, 32 bins), shares of black and white pixels and three percentiles of the shades in
[0, 1]; log10 of the Laplacian's variance; noise (Immerkaer 1996); log of horizontal over vertical gradient; percentiles 1, 50
and 99 of the modality values as sign(v) log10(1 + |v|)."""
GRID: Final = 8
LAYOUT: Final = GRID * GRID
_SLICES: Final = 3
_SAMPLES: Final = 1024
_PIXELS: Final = 16_384
_ROWS: Final = 48
_BINS: Final = 32
_EDGE: Final = 1 / 255

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Signature:
    """The statistics of one study: `quality` [len(QUALITY)] float32 and `layout` [64] float32, row by row from the top left."""

    quality: Floats
    layout: Floats

    @property
    def vector(self) -> Floats:
        """Quality and layout, one after the other."""
        return np.concatenate([self.quality, self.layout])


@dataclass(frozen=True, slots=True)
class Seen:
    """What is kept of a study's images and scanner: statistics and facets."""

    signature: Signature
    facets: Mapping[str, str]


def signature_of(shades: "torch.Tensor", values: Sequence[Floats]) -> Signature:
    """The signature of shades [k, 1, (D,) H, W] in [0, 1]; `values` are samples of the modality values (see `sampled`)."""
    # Evaluation and drift compare signatures and hold no images: torch would cost each of them half a gigabyte.
    from torch.nn import functional  # noqa: PLC0415

    images = _few(shades)
    quality = np.asarray([*_statistics(images), *_levels(values)], dtype=np.float32)
    layout = functional.adaptive_avg_pool2d(images, GRID).mean(dim=(0, 1)).flatten()
    return Signature(np.nan_to_num(quality), layout.numpy().astype(np.float32))


def sampled(frame: Frame) -> Floats:
    """About a thousand of a frame's modality values, on a regular grid; padding is left out."""
    step = max(int(np.sqrt(frame.values.size / _SAMPLES)), 1)
    thin = frame.values[::step, ::step]
    return thin.ravel() if frame.padding is None else thin[~frame.padding[::step, ::step]]


def _few(shades: "torch.Tensor") -> "torch.Tensor":
    """At most three images [n, 1, H, W] of a study, evenly spaced."""
    images = shades.movedim(2, 1).flatten(0, 1) if shades.ndim == 5 else shades
    images = images.reshape(-1, 1, *images.shape[-2:])
    places = np.linspace(0, len(images) - 1, min(_SLICES + 2, len(images)) if len(images) > _SLICES else len(images))
    chosen = places[1:-1] if len(images) > _SLICES else places
    return images[chosen.round().astype(np.int64)]


def _statistics(images: "torch.Tensor") -> list[float]:
    pixels: Floats = images[:, 0].numpy()
    step = max(int(np.sqrt(pixels.size / _PIXELS)), 1)
    flat = pixels[:, ::step, ::step].ravel()
    percentiles = (float(each) for each in np.percentile(flat, [5, 50, 95]))
    dark, bright = float((flat <= _EDGE).mean()), float((flat >= 1 - _EDGE).mean())
    return [float(flat.mean()), float(flat.std()), _entropy(flat), dark, bright, *percentiles, *_texture(pixels)]


def _entropy(shades: Floats) -> float:
    counts = np.bincount(np.minimum((shades * _BINS).astype(np.int64), _BINS - 1), minlength=_BINS)
    shares = counts[counts > 0] / len(shades)
    return float(-(shares * np.log2(shares)).sum())


def _texture(images: Floats) -> list[float]:
    """Sharpness, noise and the direction of the gradients, on some rows of [n, H, W] with their neighbours."""
    height, width = images.shape[1:]
    if min(height, width) < 3:
        return [0.0, 0.0, 0.0]
    rows = np.unique(np.linspace(1, height - 2, min(height - 2, _ROWS)).round().astype(np.int64))
    above, here, below = images[:, rows - 1], images[:, rows], images[:, rows + 1]
    column = above + below
    laplacian = column[..., 1:-1] + here[..., :-2] + here[..., 2:] - 4 * here[..., 1:-1]
    # Immerkaer's mask is the second difference along the rows of that along the columns.
    second = column - 2 * here
    noise = np.abs(second[..., :-2] + second[..., 2:] - 2 * second[..., 1:-1]).mean() * np.sqrt(np.pi / 2) / 6
    across, down = np.abs(np.diff(here, axis=-1)).mean(), np.abs(below - here).mean()
    return [float(np.log10(laplacian.var() + 1e-8)), float(noise), float(np.log((across + 1e-4) / (down + 1e-4)))]


def _levels(values: Sequence[Floats]) -> list[float]:
    known = np.concatenate([each for each in values if each.size] or [np.zeros(1, np.float32)])
    levels = np.percentile(known, [1, 50, 99])
    return [float(np.sign(level) * np.log10(1 + abs(level))) for level in levels]
