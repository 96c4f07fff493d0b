"""Random changes of training images that a scanner or a patient's position could have made, and no others.

Works on batches of normalised tensors. A volume's slices all move alike, in their plane.
"""

import math
from typing import Self

import torch
from pydantic import Field
from torch.nn import functional

from models.spec import PreprocessingSpec, Spec


class AugmentationSettings(Spec):
    """Largest change of each kind. Zero everywhere switches augmentation off."""

    rotation_degrees: float = Field(7.0, ge=0, le=180)
    translation: float = Field(0.05, ge=0, lt=0.5, description="Share of the side")
    scale: float = Field(0.08, ge=0, lt=0.5)
    gamma: float = Field(0.2, ge=0, lt=1, description="Exponent between 1/(1+gamma) and 1+gamma")
    contrast: float = Field(0.1, ge=0, lt=1)
    noise: float = Field(0.02, ge=0, lt=1, description="Largest standard deviation, in units of the display range")
    blur: float = Field(0.8, ge=0, le=5, description="Largest standard deviation in pixels")
    flip: bool = Field(False, description="Left-right flip of half of the images")

    @classmethod
    def for_study(cls, modality: str, body_part: str = "") -> Self:
        """Settings that keep the meaning of an image of this modality.

        A chest film is never flipped: the heart's side is anatomy, and dextrocardia is not a label-preserving change.
        CT keeps its absolute scale, so gamma stays small. Only heads in MR are flipped, whose halves are alike.
        """
        if modality in {"CR", "DX"}:
            return cls(rotation_degrees=5, noise=0.02)
        if modality == "CT":
            return cls(gamma=0.05, contrast=0.03)
        if modality == "MR":
            return cls(rotation_degrees=10, gamma=0.3, contrast=0.15, flip=body_part.upper() in {"HEAD", "BRAIN"})
        return cls()

    @classmethod
    def off(cls) -> Self:
        """No change at all."""
        return cls(rotation_degrees=0, translation=0, scale=0, gamma=0, contrast=0, noise=0, blur=0)


def augment(
    images: torch.Tensor, settings: AugmentationSettings, spec: PreprocessingSpec, generator: torch.Generator
) -> torch.Tensor:
    """Changed copies of normalised images [B, C, (D,) H, W]; every random number comes from `generator` (on the CPU)."""
    if settings == AugmentationSettings.off():
        return images
    shape = images.shape
    shades = (images * spec.std + spec.mean).reshape(shape[0], -1, *shape[-2:])
    shades = _moved(shades, settings, generator)
    shades = _blurred(shades, settings.blur, generator)
    shades = _shaded(shades.clamp_(0, 1), settings, generator)
    return ((shades - spec.mean) / spec.std).reshape(shape)


def _uniform(count: int, low: float, high: float, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    return (low + (high - low) * torch.rand(count, generator=generator)).to(device)


def _moved(images: torch.Tensor, settings: AugmentationSettings, generator: torch.Generator) -> torch.Tensor:
    count, device = len(images), images.device
    limit = math.radians(settings.rotation_degrees)
    angle = _uniform(count, -limit, limit, generator, device)
    zoom = 1 + _uniform(count, -settings.scale, settings.scale, generator, device)
    across = 2 * _uniform(count, -settings.translation, settings.translation, generator, device)
    down = 2 * _uniform(count, -settings.translation, settings.translation, generator, device)
    side = (
        torch.where(_uniform(count, 0, 1, generator, device) < 0.5, -1.0, 1.0)
        if settings.flip
        else torch.ones(count, device=device)
    )
    # Normalised coordinates are scaled by the side's length, so a rotation of a non-square image needs the aspect ratio.
    ratio = images.shape[-2] / images.shape[-1]
    rows = [
        torch.stack([side * angle.cos() * zoom, -side * angle.sin() * zoom * ratio, across], dim=1),
        torch.stack([angle.sin() * zoom / ratio, angle.cos() * zoom, down], dim=1),
    ]
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def _blurred(images: torch.Tensor, largest: float, generator: torch.Generator) -> torch.Tensor:
    """Each image by its own Gaussian, as one grouped convolution per axis."""
    if largest == 0:
        return images
    count, planes, height, width = images.shape
    sigma = _uniform(count, 0, largest, generator, images.device).clamp_min(1e-3)
    reach = max(1, math.ceil(2 * largest))
    places = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (places[None] / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(planes, dim=0)
    flat = functional.pad(images.reshape(1, count * planes, height, width), (reach,) * 4, mode="replicate")
    flat = functional.conv2d(flat, kernel[:, None, :, None], groups=count * planes)
    flat = functional.conv2d(flat, kernel[:, None, None, :], groups=count * planes)
    return flat.reshape(images.shape)


def _shaded(images: torch.Tensor, settings: AugmentationSettings, generator: torch.Generator) -> torch.Tensor:
    count, device = len(images), images.device
    reach = math.log(1 + settings.gamma)
    gamma = _uniform(count, -reach, reach, generator, device).exp()
    contrast = 1 + _uniform(count, -settings.contrast, settings.contrast, generator, device)
    noise = _uniform(count, 0, settings.noise, generator, device)
    each = (slice(None), None, None, None)
    shades = images.clamp_min(1e-6) ** gamma[each] * contrast[each]
    if settings.noise > 0:
        shades = shades + torch.randn(images.shape, generator=generator).to(device) * noise[each]
    return shades.clamp_(0, 1)
