"""How an image looks, in a few numbers: what tells images of another scanner or presentation from those a model knows.

Only the image itself decides, so that serving, training and the gate treat it alike, whatever else is in the batch.
"""

import math
from typing import Final

import torch

FORM: Final = 1
"""Number of this list; a model that was fitted to another list cannot be used."""
PERCENTILES: Final = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99)
LOOK: Final = len(PERCENTILES) + 3
"""Percentiles of the shades in [0, 1]; log10 of the Laplacian's variance (sharpness); log10 of Immerkaer's noise (1996); log of
the gradients along the rows over those along the columns."""
_PIXELS: Final = 4096
_LEVELS: Final = 1024
_SLICES: Final = 3
_ROWS: Final = 48
_LEAST: Final = 1e-4


def look_of(shades: torch.Tensor) -> torch.Tensor:
    """The looks [n, LOOK] float64 of images [n, C, (D,) H, W] with shades in [0, 1]; the channels are copies of one."""
    planes = _planes(shades[:, 0].float())
    flat = planes.flatten(1)
    return torch.cat([_percentiles(flat[:, :: max(flat.shape[1] // _PIXELS, 1)]), _texture(planes)], dim=1).double()


def _planes(images: torch.Tensor) -> torch.Tensor:
    """Images as [n, k, H, W]: of a volume at most three slices, evenly spaced."""
    if images.ndim == 3:
        return images[:, None]
    depth = images.shape[1]
    places = torch.linspace(0, depth - 1, _SLICES + 2)[1:-1].round().long() if depth > _SLICES else torch.arange(depth)
    return images[:, places.to(images.device)]


def _percentiles(shades: torch.Tensor) -> torch.Tensor:
    """Percentiles [n, len(PERCENTILES)] of shades [n, pixels], to a thousandth: counting takes a tenth of the time of sorting."""
    count, pixels = shades.shape
    levels = (shades.clamp(0, 1) * (_LEVELS - 1) + 0.5).int()
    levels += torch.arange(0, count * _LEVELS, _LEVELS, dtype=torch.int32, device=shades.device)[:, None]
    below = torch.bincount(levels.flatten(), minlength=count * _LEVELS).view(count, _LEVELS).cumsum(1)
    wanted = [max(math.ceil(percentile * pixels / 100), 1) for percentile in PERCENTILES]
    found = torch.searchsorted(below, torch.tensor([wanted] * count, device=shades.device))
    return found.float() / (_LEVELS - 1)


def _texture(planes: torch.Tensor) -> torch.Tensor:
    """Sharpness, noise and the direction of the gradients [n, 3] of planes [n, k, H, W], on some rows with their neighbours."""
    height, width = planes.shape[-2:]
    if min(height, width) < 3:
        return planes.new_zeros(len(planes), 3)
    rows = torch.linspace(1, height - 2, min(height - 2, _ROWS)).round().long().to(planes.device)
    above, here, below = planes[..., rows - 1, :], planes[..., rows, :], planes[..., rows + 1, :]
    column = above + below
    laplacian = (column[..., 1:-1] + here[..., :-2] + here[..., 2:] - 4 * here[..., 1:-1]).flatten(1)
    second = column - 2 * here
    noise = (second[..., :-2] + second[..., 2:] - 2 * second[..., 1:-1]).abs().flatten(1).mean(1) * math.sqrt(math.pi / 2) / 6
    across, down = here.diff(dim=-1).abs().flatten(1).mean(1), (below - here).abs().flatten(1).mean(1)
    sharpness = (laplacian.var(dim=1, unbiased=False) + 1e-8).log10()
    return torch.stack([sharpness, (noise + _LEAST).log10(), ((across + _LEAST) / (down + _LEAST)).log()], dim=1)
