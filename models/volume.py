"""From a stack of slices to a volume of stated voxel size: sheared slices set straight, uneven ones interpolated.

Axis order [D, H, W]: D along the slice normal, H down the image's columns, W along its rows, as the scanner stored them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from models.errors import UnsuitableStudy
from models.findings import Finding
from models.geometry import places
from models.planes import Plane

_LOST = 1.05
"""Extent of the series over that of the volume above which something worth a finding is cut off."""
_WIDEST = 4096
_MOVED = 0.1
"""Pixels below which a slice is not shifted."""


def in_plane_size(shape: tuple[int, ...], plane: Plane, voxel: tuple[float, float, float]) -> tuple[int, int]:
    """Rows and columns of a slice of `shape` once its pixels have the voxel's size.

    Raises UnsuitableStudy where a pixel spacing makes it larger than any slice.
    """
    assert plane.spacing is not None
    rows, columns = (length * own / wanted for length, own, wanted in zip(shape, plane.spacing, voxel[1:], strict=True))
    if max(rows, columns) > _WIDEST:
        raise UnsuitableStudy(
            f"a slice of {shape[0]} x {shape[1]} pixels at the model's voxel size would have {max(rows, columns):.0f}"
        )
    return max(round(rows), 1), max(round(columns), 1)


def resampled(
    slices: torch.Tensor, planes: Sequence[Plane], voxel: tuple[float, float, float], size: tuple[int, int, int]
) -> tuple[torch.Tensor, list[Finding]]:
    """Ordered slices [k, h, w], in-plane already at the voxel's size, as a volume [D, H, W] about the series' centre.

    Black outside of the series. Between slices it is interpolated linearly by their places; voxels thicker than the
    slices' distance average the slices they cover.
    """
    where = places(planes)
    shift = _shifts(planes, where, voxel)
    placed = _placed(slices, (size[1], size[2]), shift)
    weights = torch.from_numpy(_weights(where, voxel[0], size[0]))
    volume = (weights @ placed.reshape(len(placed), -1)).reshape(size)
    extent = ((where[-1] - where[0]) / voxel[0] + 1, slices.shape[1], slices.shape[2])
    lost = [name for name, has, room in zip("DHW", extent, size, strict=True) if has > _LOST * room]
    return volume, [Finding("volume_cropped", f"along {', '.join(lost)}")] if lost else []


def _shifts(planes: Sequence[Plane], where: NDArray[np.float64], voxel: tuple[float, float, float]) -> NDArray[np.float64]:
    """[k, 2] by how many (row, column) pixels each slice's first pixel lies aside of the line through the central slice's."""
    centre = planes[len(planes) // 2]
    offsets = np.stack([centre.axes @ (plane.origin - centre.origin) for plane in planes])
    # The centre of the volume is the middle of the way, not of the list: uneven stacks would move aside.
    middle = (where[0] + where[-1]) / 2
    offsets -= np.stack([np.interp(middle, where, offsets[:, axis]) for axis in (0, 1)])
    found: NDArray[np.float64] = offsets[:, ::-1] / np.asarray(voxel[1:])
    return found


def _placed(slices: torch.Tensor, size: tuple[int, int], shift: NDArray[np.float64]) -> torch.Tensor:
    """Slices centred in `size`, cropped or with black around, each moved by its shift."""
    if np.abs(shift).max() < _MOVED:
        return centred(slices, size)
    height, width = slices.shape[-2:]
    theta = torch.zeros(len(slices), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = size[1] / width, size[0] / height
    moved = torch.from_numpy(shift.astype(np.float32))
    theta[:, 0, 2], theta[:, 1, 2] = -2 * moved[:, 1] / width, -2 * moved[:, 0] / height
    grid = functional.affine_grid(theta, [len(slices), 1, *size], align_corners=False)
    return functional.grid_sample(slices[:, None], grid, padding_mode="zeros", align_corners=False)[:, 0]


def centred(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Images [k, h, w] in the middle of [k, H, W]: black around them, or their edges cut off."""
    missing = (size[0] - images.shape[-2], size[1] - images.shape[-1])
    if missing == (0, 0):
        return images
    # Negative padding crops.
    top, left = missing[0] // 2, missing[1] // 2
    return functional.pad(images, (left, missing[1] - left, top, missing[0] - top))


def _weights(where: NDArray[np.float64], thickness: float, depth: int) -> NDArray[np.float32]:
    """[depth, k] share of each slice in each voxel layer; rows sum to one inside the series and to zero outside."""
    targets = (where[0] + where[-1]) / 2 + (np.arange(depth) - (depth - 1) / 2) * thickness
    gaps = np.diff(where)
    usual = float(np.median(gaps)) if gaps.size else thickness
    weights = np.zeros((depth, len(where)))
    inside = (targets >= where[0] - usual / 2) & (targets <= where[-1] + usual / 2)
    for layer in np.flatnonzero(inside):
        weights[layer] = _layer(where, float(targets[layer]), max(thickness, usual))
    total = weights.sum(axis=1, keepdims=True)
    return np.asarray(weights / np.where(total > 0, total, 1), dtype=np.float32)


def _layer(where: NDArray[np.float64], target: float, reach: float) -> NDArray[np.float64]:
    """A triangle about the target; where it covers no slice (a gap), the neighbours by their distance."""
    near = np.clip(1 - np.abs(where - target) / reach, 0, None)
    if near.any():
        return near
    return np.asarray([np.interp(target, where, unit) for unit in np.eye(len(where))])
