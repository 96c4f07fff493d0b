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
from models.frames import Frame, Frames, unique
from models.headers import header_of, unreadable_as
from models.pixels import frames_of, read_frames
from models.slices import Series, choose, series_from, series_of
from models.spec import DicomWindow, FixedWindow, PercentileBounds, PercentileRange, PreprocessingSpec, SelectionRule
from models.voi import Voi, Window


@dataclass(frozen=True, slots=True)
class Prepared:
    """A study ready for the network: `tensor` [k, C, H, W] or [1, C, D, H, W] float32, with findings and scanner facts."""

    tensor: torch.Tensor
    findings: tuple[str, ...] = ()
    facets: Mapping[str, str] = field(default_factory=dict)


def load_study(paths: Iterable[Path], spec: PreprocessingSpec, rule: SelectionRule | None = None) -> Prepared:
    """Read, order, choose, decode and prepare a study's files; only the chosen frames are decoded.

    Raises UnreadableImage for a damaged file and UnsuitableStudy where no image fits `rule` or `spec`.
    """
    listed = list(paths)
    if len(listed) == 1:
        return _load_single(listed[0], spec, rule)
    series = series_of(listed, rule)
    indices, findings = choose(len(series.slices), spec)
    parts = [read_frames(path, frames) for path, frames in _by_file(series, indices)]
    return prepare(_joined(parts, (*series.findings, *findings)), spec)


def prepare(frames: Frames, spec: PreprocessingSpec) -> Prepared:
    """Choose images by the slice rule, scale intensities to [0, 1], resize with antialiasing, normalise.

    Raises UnsuitableStudy for no frames, or a volume whose slices differ in size.
    """
    if not len(frames):
        raise UnsuitableStudy("the study has no images")
    indices, findings = choose(len(frames), spec)
    chosen = [frames.frames[index] for index in indices]
    height, width = spec.size[-2:]
    with torch.inference_mode(mode=False), torch.no_grad():
        shades = _shades(chosen, spec, (height, width))
        shades.sub_(spec.mean).div_(spec.std)
        tensor = _shaped(shades, spec)
    return Prepared(tensor, _relevant((*frames.findings, *findings), spec), frames.facets)


def _relevant(findings: Iterable[str], spec: PreprocessingSpec) -> tuple[str, ...]:
    """A missing window is no doubt for a model that does not use the file's window."""
    return tuple(each for each in unique(findings) if each != "window_missing" or isinstance(spec.intensity, DicomWindow))


def _load_single(path: Path, spec: PreprocessingSpec, rule: SelectionRule | None) -> Prepared:
    with unreadable_as("not a readable DICOM file"):
        dataset: Dataset = pydicom.dcmread(path)
    series = series_from([header_of(path, dataset)], rule)
    indices, findings = choose(len(series.slices), spec)
    frames = frames_of(dataset, [series.slices[index].frame for index in indices])
    return prepare(frames.with_findings((*series.findings, *findings)), spec)


def _by_file(series: Series, indices: Sequence[int]) -> list[tuple[Path, list[int]]]:
    """Chosen frames grouped by runs of the same file, order kept."""
    runs: list[tuple[Path, list[int]]] = []
    for index in indices:
        chosen = series.slices[index]
        if not runs or runs[-1][0] != chosen.path:
            runs.append((chosen.path, []))
        runs[-1][1].append(chosen.frame)
    return runs


def _joined(parts: Sequence[Frames], findings: Iterable[str]) -> Frames:
    frames = tuple(frame for part in parts for frame in part.frames)
    doubts = unique((*findings, *(finding for part in parts for finding in part.findings)))
    return Frames(frames, doubts, parts[0].facets)


def _shades(chosen: Sequence[Frame], spec: PreprocessingSpec, size: tuple[int, int]) -> torch.Tensor:
    """Images [k, H, W] in [0, 1] at the target size."""
    if len({frame.values.shape for frame in chosen}) == 1:
        return _shades_of_one_size(chosen, spec, size)
    if spec.spatial_dims == 3:
        raise UnsuitableStudy("the slices of the volume differ in size")
    return torch.cat([_shades_of_one_size([frame], spec, size) for frame in chosen])


def _shades_of_one_size(chosen: Sequence[Frame], spec: PreprocessingSpec, size: tuple[int, int]) -> torch.Tensor:
    inner = _inner_size(chosen[0].values.shape, spec, size)
    windows = [_window(frame, spec) for frame in chosen]
    if all(window is not None for window in windows):
        shown = [frame.display(window) for frame, window in zip(chosen, windows, strict=True) if window is not None]
        shades = _resized(torch.from_numpy(np.stack(shown)), inner)
    else:
        # Percentiles are taken after the resize, whose averaging keeps single hot pixels from setting the scale.
        values = _resized(torch.from_numpy(np.stack([frame.values for frame in chosen])), inner)
        shades = _stretched(values, spec)
        flipped = torch.tensor([frame.inverted for frame in chosen])
        shades[flipped] = 1 - shades[flipped]
        for place, (frame, window) in enumerate(zip(chosen, windows, strict=True)):
            if window is not None:
                shades[place] = _resized(torch.from_numpy(frame.display(window)[None]), inner)[0]
    return _centred(shades, size)


def _window(frame: Frame, spec: PreprocessingSpec) -> Voi | None:
    """The VOI that `spec` asks for, None where percentiles decide."""
    if isinstance(spec.intensity, FixedWindow):
        return Window(spec.intensity.center, spec.intensity.width, "LINEAR_EXACT")
    return None if isinstance(spec.intensity, PercentileRange) else frame.voi


def _stretched(values: torch.Tensor, spec: PreprocessingSpec) -> torch.Tensor:
    """Each image (the whole of a volume) from its low to its high percentile to [0, 1]; a constant one becomes 0."""
    bounds = spec.intensity
    assert isinstance(bounds, PercentileBounds)
    flat = values.reshape(1 if spec.spatial_dims == 3 else len(values), -1)
    low, high = np.percentile(flat.numpy(), [bounds.low, bounds.high], axis=1).astype(np.float32)
    bottom, top = torch.from_numpy(low)[:, None], torch.from_numpy(high)[:, None]
    scale = torch.where(top > bottom, 1 / (top - bottom).clamp_min(1e-12), 0)
    return ((flat - bottom) * scale).clamp_(0, 1).reshape(values.shape)


def _inner_size(shape: tuple[int, ...], spec: PreprocessingSpec, size: tuple[int, int]) -> tuple[int, int]:
    if spec.fit == "stretch":
        return size
    scale = min(size[0] / shape[0], size[1] / shape[1])
    return max(round(shape[0] * scale), 1), max(round(shape[1] * scale), 1)


def _resized(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(images.shape[-2:]) == size:
        return images
    return functional.interpolate(images[:, None], size=size, mode="bilinear", antialias=True, align_corners=False)[:, 0]


def _centred(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    missing = (size[0] - images.shape[-2], size[1] - images.shape[-1])
    if missing == (0, 0):
        return images
    top, left = missing[0] // 2, missing[1] // 2
    return functional.pad(images, (left, missing[1] - left, top, missing[0] - top))


def _shaped(images: torch.Tensor, spec: PreprocessingSpec) -> torch.Tensor:
    """[k, H, W] to [k, C, H, W], or to [1, C, D, H, W] with the depth averaged down or interpolated up."""
    if spec.spatial_dims == 2:
        return images[:, None].expand(-1, spec.channels, -1, -1)
    mode = "area" if len(images) > spec.size[0] else "trilinear"
    volume = functional.interpolate(images[None, None], size=spec.size, mode=mode)
    return volume.expand(-1, spec.channels, -1, -1, -1)
