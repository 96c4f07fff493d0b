"""From frames to the network's input: the one path for training, baselines and serving."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import pydicom
import torch
from pydicom.dataset import Dataset
from torch.nn import functional

from models.errors import UnsuitableStudy
from models.findings import Finding, codes_of, merged
from models.frames import Frame, Frames
from models.headers import header_of, unreadable_as
from models.intensities import Reduced, reduced, shades
from models.pixels import frames_of, read_frames
from models.planes import Plane
from models.series import Series, series_from, series_of
from models.signature import Floats, Signature, sampled, signature_of
from models.slices import choose
from models.spec import DicomWindow, PreprocessingSpec, SelectionRule
from models.volume import centred, in_plane_size, resampled

_AT_ONCE = 16
"""Frames of a multi-frame object that are decoded before they are reduced."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A study ready for the network: `tensor` [k, C, H, W] or [1, C, D, H, W] float32, with findings, scanner facts, statistics."""

    tensor: torch.Tensor
    findings: tuple[Finding, ...] = ()
    facets: Mapping[str, str] = field(default_factory=dict)
    signature: Signature | None = None

    @property
    def codes(self) -> tuple[str, ...]:
        """The findings' codes."""
        return codes_of(self.findings)


def load_study(paths: Iterable[Path], spec: PreprocessingSpec, rule: SelectionRule | None = None) -> Prepared:
    """Read, order, choose, decode and prepare a study's files; only the chosen frames are decoded, and few are held at a time.

    Raises UnreadableImage for a damaged file and UnsuitableStudy where no image fits `rule` or `spec`.
    """
    chosen = _chosen(list(paths), spec, rule)
    return _prepared(chosen.parts, chosen.planes, spec, chosen.findings)


def load_changed(
    paths: Iterable[Path],
    spec: PreprocessingSpec,
    changes: Mapping[str, Callable[[Frame], Frame]],
    rule: SelectionRule | None = None,
) -> dict[str, Prepared]:
    """The study as each of `changes` would make it, by name; it is decoded once. Raises as `load_study`."""
    chosen = _chosen(list(paths), spec, rule)
    parts = list(chosen.parts)
    return {
        name: _prepared(
            [replace(part, frames=tuple(change(frame) for frame in part.frames)) for part in parts],
            chosen.planes,
            spec,
            chosen.findings,
        )
        for name, change in changes.items()
    }


def prepare(frames: Frames, spec: PreprocessingSpec) -> Prepared:
    """Choose images by the slice rule, scale intensities to [0, 1], resize with antialiasing, normalise.

    Raises UnsuitableStudy for no frames, or a volume whose slices differ in size.
    """
    if not len(frames):
        raise UnsuitableStudy("the study has no images")
    indices, findings = choose(len(frames), spec)
    chosen = Frames(tuple(frames.frames[index] for index in indices), frames.findings, frames.facets)
    planes = [frames.planes[index] if frames.planes else None for index in indices]
    return _prepared([chosen], planes, spec, findings)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The frames that the network takes, part by part as they are decoded, with their planes and what was found on the way."""

    parts: Iterable[Frames]
    planes: Sequence[Plane | None]
    findings: Sequence[Finding]


def _chosen(paths: Sequence[Path], spec: PreprocessingSpec, rule: SelectionRule | None) -> _Chosen:
    if len(paths) == 1:
        return _chosen_of_one(paths[0], spec, rule)
    series = series_of(paths, rule, spec.derived)
    indices, findings = choose(len(series.slices), spec)
    # The scanner facts of a series are those of its first chosen image; to clear them of identity takes as long as to decode one.
    parts = (read_frames(path, frames, facets=not place) for place, (path, frames) in enumerate(_by_file(series, indices)))
    return _Chosen(parts, [series.slices[index].plane for index in indices], (*series.findings, *findings))


def _chosen_of_one(path: Path, spec: PreprocessingSpec, rule: SelectionRule | None) -> _Chosen:
    with unreadable_as("not a readable DICOM file"):
        dataset: Dataset = pydicom.dcmread(path)
    series = series_from([header_of(path, dataset)], rule, spec.derived)
    indices, findings = choose(len(series.slices), spec)
    starts = range(0, len(indices), _AT_ONCE)
    chunks = ([series.slices[index].frame for index in indices[start : start + _AT_ONCE]] for start in starts)
    parts = (frames_of(dataset, frames, facets=not place) for place, frames in enumerate(chunks))
    return _Chosen(parts, [series.slices[index].plane for index in indices], (*series.findings, *findings))


def _by_file(series: Series, indices: Sequence[int]) -> Iterator[tuple[Path, list[int]]]:
    """Chosen frames grouped by runs of the same file, order kept."""
    for path, run in groupby((series.slices[index] for index in indices), key=lambda chosen: chosen.path):
        yield path, [chosen.frame for chosen in run]


def _prepared(
    parts: Iterable[Frames], places: Sequence[Plane | None], spec: PreprocessingSpec, findings: Iterable[Finding]
) -> Prepared:
    """The chosen frames, part by part, as the network's input; `places` are their planes."""
    planes, doubts = _voxel_planes(places, spec)
    found, images, values = [*findings, *doubts], list[Reduced](), list[Floats]()
    facets: dict[str, str] = {}
    with torch.inference_mode(mode=False), torch.no_grad():
        for part in parts:
            facets = facets or dict(part.facets)
            found += part.findings
            images += [reduced(frame, spec, _inner_size(frame, planes, spec)) for frame in part.frames]
            values += [sampled(frame) for frame in part.frames]
        tensor, cuts = _tensor(images, planes, spec)
        signature = signature_of(tensor, values)
        tensor.sub_(spec.mean).div_(spec.std)
        tensor = tensor.expand(-1, spec.channels, *tensor.shape[2:])
    return Prepared(tensor, _relevant((*found, *cuts), spec), facets, signature)


def _relevant(findings: Iterable[Finding], spec: PreprocessingSpec) -> tuple[Finding, ...]:
    """What the file says of windows is no doubt for a model that does not use it, unless it says something absurd."""
    unused = () if isinstance(spec.intensity, DicomWindow) else ("window_missing", "several_windows")
    return tuple(each for each in merged(findings) if each.code not in unused)


def _voxel_planes(planes: Sequence[Plane | None], spec: PreprocessingSpec) -> tuple[list[Plane], list[Finding]]:
    """The planes of a volume that is to be resampled; none, with a finding where they are missing, for anything else."""
    if spec.spacing is None:
        return [], []
    known = [plane for plane in planes if plane is not None and plane.spacing is not None]
    if len(known) < len(planes) or len(known) < 2:
        return [], [Finding("spacing_missing", f"{len(known)} of {len(planes)} images have a position and a pixel spacing")]
    return known, []


def _tensor(images: Sequence[Reduced], planes: Sequence[Plane], spec: PreprocessingSpec) -> tuple[torch.Tensor, list[Finding]]:
    """Intensities in [0, 1] as [k, 1, H, W] or [1, 1, D, H, W]."""
    size = (spec.size[-2], spec.size[-1])
    if len(spec.size) == 2:
        return torch.cat([centred(shades([image], spec), size) for image in images])[:, None], []
    if len({image.shape for image in images}) > 1:
        raise UnsuitableStudy("the slices of the volume differ in size")
    slices = shades(images, spec)
    if planes and spec.spacing is not None:
        volume, findings = resampled(slices, planes, spec.spacing, spec.size)
        return volume[None, None], findings
    # The depth is averaged down or interpolated up.
    mode = "area" if len(slices) > spec.size[0] else "trilinear"
    return functional.interpolate(centred(slices, size)[None, None], size=spec.size, mode=mode), []


def _inner_size(frame: Frame, planes: Sequence[Plane], spec: PreprocessingSpec) -> tuple[int, int]:
    """Height and width that the frame is resized to, before black is put around it or its edges are cut off."""
    shape, size = frame.values.shape, (spec.size[-2], spec.size[-1])
    if planes and spec.spacing is not None:
        return in_plane_size(shape, planes[0], spec.spacing)
    if spec.fit == "stretch":
        return size
    scale = min(size[0] / shape[0], size[1] / shape[1])
    return max(round(shape[0] * scale), 1), max(round(shape[1] * scale), 1)
