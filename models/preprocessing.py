"""From frames to the network's input: the one path for training, baselines and serving."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
import torch
from pydicom.dataset import Dataset
from torch.nn import functional

from models.errors import UnsuitableStudy
from models.findings import Finding, codes_of, merged
from models.frames import Frame, Frames
from models.headers import header_of, unreadable_as
from models.pixels import frames_of, read_frames
from models.planes import Plane
from models.series import Series, series_from, series_of
from models.slices import choose
from models.spec import DicomWindow, FixedWindow, PercentileBounds, PercentileRange, PreprocessingSpec, SelectionRule
from models.voi import Voi, Window
from models.volume import centred, in_plane_size, resampled

_PADDED = 0.5
"""Share of padding from which a resized pixel does not count for percentiles."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A study ready for the network: `tensor` [k, C, H, W] or [1, C, D, H, W] float32, with findings and scanner facts."""

    tensor: torch.Tensor
    findings: tuple[Finding, ...] = ()
    facets: Mapping[str, str] = field(default_factory=dict)

    @property
    def codes(self) -> tuple[str, ...]:
        """The findings' codes."""
        return codes_of(self.findings)


def load_study(paths: Iterable[Path], spec: PreprocessingSpec, rule: SelectionRule | None = None) -> Prepared:
    """Read, order, choose, decode and prepare a study's files; only the chosen frames are decoded.

    Raises UnreadableImage for a damaged file and UnsuitableStudy where no image fits `rule` or `spec`.
    """
    listed = list(paths)
    if len(listed) == 1:
        return _load_single(listed[0], spec, rule)
    series = series_of(listed, rule, spec.derived)
    indices, findings = choose(len(series.slices), spec)
    # The scanner facts of a series are those of its first chosen image; to clear them of identity takes as long as to decode one.
    parts = [read_frames(path, frames, facets=not place) for place, (path, frames) in enumerate(_by_file(series, indices))]
    return prepare(_of_series(_joined(parts), series, indices, findings), spec)


def prepare(frames: Frames, spec: PreprocessingSpec) -> Prepared:
    """Choose images by the slice rule, scale intensities to [0, 1], resize with antialiasing, normalise.

    Raises UnsuitableStudy for no frames, or a volume whose slices differ in size.
    """
    if not len(frames):
        raise UnsuitableStudy("the study has no images")
    indices, findings = choose(len(frames), spec)
    chosen = [frames.frames[index] for index in indices]
    planes, doubts = _voxel_planes([frames.planes[index] if frames.planes else None for index in indices], spec)
    with torch.inference_mode(mode=False), torch.no_grad():
        tensor, cuts = _tensor(chosen, planes, spec)
        tensor.sub_(spec.mean).div_(spec.std)
        tensor = tensor.expand(-1, spec.channels, *tensor.shape[2:])
    return Prepared(tensor, _relevant((*frames.findings, *findings, *doubts, *cuts), spec), frames.facets)


def _relevant(findings: Iterable[Finding], spec: PreprocessingSpec) -> tuple[Finding, ...]:
    """What the file says of windows is no doubt for a model that does not use it, unless it says something absurd."""
    unused = () if isinstance(spec.intensity, DicomWindow) else ("window_missing", "several_windows")
    return tuple(each for each in merged(findings) if each.code not in unused)


def _load_single(path: Path, spec: PreprocessingSpec, rule: SelectionRule | None) -> Prepared:
    with unreadable_as("not a readable DICOM file"):
        dataset: Dataset = pydicom.dcmread(path)
    series = series_from([header_of(path, dataset)], rule, spec.derived)
    indices, findings = choose(len(series.slices), spec)
    frames = frames_of(dataset, [series.slices[index].frame for index in indices])
    return prepare(_of_series(frames, series, indices, findings), spec)


def _of_series(frames: Frames, series: Series, indices: Sequence[int], findings: Iterable[Finding]) -> Frames:
    return frames.of_series((*series.findings, *findings), [series.slices[index].plane for index in indices])


def _by_file(series: Series, indices: Sequence[int]) -> list[tuple[Path, list[int]]]:
    """Chosen frames grouped by runs of the same file, order kept."""
    runs: list[tuple[Path, list[int]]] = []
    for index in indices:
        chosen = series.slices[index]
        if not runs or runs[-1][0] != chosen.path:
            runs.append((chosen.path, []))
        runs[-1][1].append(chosen.frame)
    return runs


def _joined(parts: Sequence[Frames]) -> Frames:
    frames = tuple(frame for part in parts for frame in part.frames)
    return Frames(frames, merged(finding for part in parts for finding in part.findings), parts[0].facets)


def _voxel_planes(planes: Sequence[Plane | None], spec: PreprocessingSpec) -> tuple[list[Plane], list[Finding]]:
    """The planes of a volume that is to be resampled; none, with a finding where they are missing, for anything else."""
    if spec.spacing is None:
        return [], []
    known = [plane for plane in planes if plane is not None and plane.spacing is not None]
    if len(known) < len(planes) or len(known) < 2:
        return [], [Finding("spacing_missing", f"{len(known)} of {len(planes)} images have a position and a pixel spacing")]
    return known, []


def _tensor(chosen: Sequence[Frame], planes: Sequence[Plane], spec: PreprocessingSpec) -> tuple[torch.Tensor, list[Finding]]:
    """Intensities in [0, 1] as [k, 1, H, W] or [1, 1, D, H, W]."""
    if len(spec.size) == 2:
        return _shades(chosen, spec, spec.size)[:, None], []
    if len({frame.values.shape for frame in chosen}) > 1:
        raise UnsuitableStudy("the slices of the volume differ in size")
    if planes and spec.spacing is not None:
        inner = in_plane_size(chosen[0].values.shape, planes[0], spec.spacing)
        volume, findings = resampled(_shades_of_one_size(chosen, spec, inner), planes, spec.spacing, spec.size)
        return volume[None, None], findings
    shades = _shades(chosen, spec, spec.size[1:])
    # The depth is averaged down or interpolated up.
    mode = "area" if len(shades) > spec.size[0] else "trilinear"
    return functional.interpolate(shades[None, None], size=spec.size, mode=mode), []


def _shades(chosen: Sequence[Frame], spec: PreprocessingSpec, size: tuple[int, int]) -> torch.Tensor:
    """Images [k, H, W] in [0, 1] at the target size."""
    sizes = {frame.values.shape for frame in chosen}
    if len(sizes) == 1:
        return centred(_shades_of_one_size(chosen, spec, _inner_size(sizes.pop(), spec, size)), size)
    return torch.cat([_shades([frame], spec, size) for frame in chosen])


def _shades_of_one_size(chosen: Sequence[Frame], spec: PreprocessingSpec, inner: tuple[int, int]) -> torch.Tensor:
    """Images [k, h, w] in [0, 1] at the size `inner`."""
    windows = [_window(frame, spec) for frame in chosen]
    if all(window is not None for window in windows):
        shown = [frame.display(window) for frame, window in zip(chosen, windows, strict=True) if window is not None]
        return _resized(torch.from_numpy(np.stack(shown)), inner)
    # Percentiles are taken after the resize, whose averaging keeps single hot pixels from setting the scale.
    values = _resized(torch.from_numpy(np.stack([frame.values for frame in chosen])), inner)
    masks = _masks(chosen, inner)
    shades = _stretched(values, masks, spec)
    flipped = torch.tensor([frame.inverted for frame in chosen])
    shades[flipped] = 1 - shades[flipped]
    if masks is not None:
        shades.mul_(1 - masks)
    for place, (frame, window) in enumerate(zip(chosen, windows, strict=True)):
        if window is not None:
            shades[place] = _resized(torch.from_numpy(frame.display(window)[None]), inner)[0]
    return shades


def _masks(chosen: Sequence[Frame], size: tuple[int, int]) -> torch.Tensor | None:
    """Share of padding [k, h, w] of each pixel after the resize; None where there is none at all."""
    if all(frame.padding is None for frame in chosen):
        return None
    full = [np.zeros(frame.values.shape, np.float32) if frame.padding is None else frame.padding for frame in chosen]
    return _resized(torch.from_numpy(np.stack(full).astype(np.float32)), size).clamp_(0, 1)


def _window(frame: Frame, spec: PreprocessingSpec) -> Voi | None:
    """The VOI that `spec` asks for, None where percentiles decide."""
    if isinstance(spec.intensity, FixedWindow):
        return Window(spec.intensity.center, spec.intensity.width, "LINEAR_EXACT")
    return None if isinstance(spec.intensity, PercentileRange) else frame.voi


def _stretched(values: torch.Tensor, masks: torch.Tensor | None, spec: PreprocessingSpec) -> torch.Tensor:
    """Each image (the whole of a volume) from its low to its high percentile to [0, 1]; a constant one becomes 0.

    Padding does not count; an image of nothing else is 0.
    """
    groups = 1 if spec.spatial_dims == 3 else len(values)
    flat = values.reshape(groups, -1)
    kept = None if masks is None else (masks < _PADDED).reshape(groups, -1)
    limits = [_limits(row if kept is None else row[kept[index]], spec) for index, row in enumerate(flat)]
    bottom, top = (torch.tensor(each, dtype=torch.float32)[:, None] for each in zip(*limits, strict=True))
    scale = torch.where(top > bottom, 1 / (top - bottom).clamp_min(1e-12), 0)
    return ((flat - bottom) * scale).clamp_(0, 1).reshape(values.shape)


def _limits(content: torch.Tensor, spec: PreprocessingSpec) -> tuple[float, float]:
    bounds = spec.intensity
    assert isinstance(bounds, PercentileBounds)
    if not len(content):
        return 0.0, 0.0
    low, high = np.percentile(content.numpy(), [bounds.low, bounds.high])
    return float(low), float(high)


def _inner_size(shape: tuple[int, ...], spec: PreprocessingSpec, size: tuple[int, int]) -> tuple[int, int]:
    if spec.fit == "stretch":
        return size
    scale = min(size[0] / shape[0], size[1] / shape[1])
    return max(round(shape[0] * scale), 1), max(round(shape[1] * scale), 1)


def _resized(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(images.shape[-2:]) == size:
        return images
    return functional.interpolate(images[:, None], size=size, mode="bilinear", antialias=True, align_corners=False)[:, 0]
