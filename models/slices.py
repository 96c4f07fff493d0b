"""Which images of a study a model looks at, and in what order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.errors import NotSelected
from models.frames import unique
from models.headers import Header, read_header
from models.spec import PreprocessingSpec, SelectionRule

_PROJECTION = {"CR", "DX", "MG", "XA", "RF"}


@dataclass(frozen=True, slots=True)
class Slice:
    """One frame of one file."""

    path: Path
    frame: int


@dataclass(frozen=True, slots=True)
class Series:
    """The images a model may look at, in order, with the findings of choosing and ordering them."""

    slices: tuple[Slice, ...]
    findings: tuple[str, ...]


def series_of(paths: Iterable[Path], rule: SelectionRule | None = None) -> Series:
    """Order a study's images along the slice normal, localisers left out.

    Of several volume series the one with most frames is taken (then the least UID), with the finding `several_series`;
    all projection images belong together. Raises NotSelected where nothing is left, UnreadableImage for a damaged file.
    """
    return series_from(map(read_header, paths), rule)


def series_from(headers: Iterable[Header], rule: SelectionRule | None = None) -> Series:
    """`series_of` for headers that are already read."""
    headers = [header for header in headers if header.is_image and _wanted(header, rule)]
    if not headers:
        raise NotSelected("no image of the study fits the model: only localisers, other modalities or objects without pixels")
    chosen, findings = _one_series(headers)
    ordered, doubts = _ordered(chosen)
    return Series(ordered, unique((*findings, *doubts)))


def choose(count: int, spec: PreprocessingSpec) -> tuple[list[int], tuple[str, ...]]:
    """Indices of the images to look at among `count` ordered ones, and findings. Choosing again changes nothing."""
    if spec.spatial_dims == 3:
        return list(range(count)), ("few_slices",) if count < spec.size[0] // 4 else ()
    if spec.slices == "single":
        return [0], ("extra_images_ignored",) if count > 1 else ()
    if spec.slices == "middle":
        return [count // 2], ()
    wanted = min(spec.max_images, count)
    # Centres of `wanted` equal parts: never the outermost slices of a volume, which mostly show air.
    places = (np.arange(wanted) + 0.5) * count / wanted
    return [int(place) for place in places], ()


def _wanted(header: Header, rule: SelectionRule | None) -> bool:
    return rule is None or rule.matches(header.modality, header.body_part, header.series_description)


def _one_series(headers: Sequence[Header]) -> tuple[list[Header], tuple[str, ...]]:
    groups: dict[str, list[Header]] = {}
    for header in headers:
        groups.setdefault(header.series_uid, []).append(header)
    if len(groups) == 1 or all(header.modality in _PROJECTION for header in headers):
        return list(headers), ()
    largest = min(groups.items(), key=lambda group: (-sum(header.frames for header in group[1]), group[0]))
    return largest[1], ("several_series",)


def _ordered(headers: list[Header]) -> tuple[tuple[Slice, ...], tuple[str, ...]]:
    findings: list[str] = []
    if len({header.shape for header in headers}) > 1:
        findings.append("mixed_image_sizes")
    placed = all(len(header.positions) == header.frames for header in headers)
    listed = sorted(headers, key=lambda header: (header.series_uid, header.instance_number, header.path.name))
    slices = [
        (header.positions[frame] if placed else 0.0, Slice(header.path, frame))
        for header in listed
        for frame in range(header.frames)
    ]
    if not placed and len(slices) > 1 and headers[0].modality not in _PROJECTION:
        findings.append("slice_positions_missing")
    slices.sort(key=lambda placed_slice: placed_slice[0])
    if placed and _uneven([place for place, _ in slices]):
        findings.append("slice_distance_uneven")
    return tuple(each for _, each in slices), tuple(findings)


def _uneven(places: list[float]) -> bool:
    """True when some gap between neighbours differs from the median gap by more than a tenth of it."""
    gaps = np.diff(places)
    if gaps.size < 2:
        return False
    middle = float(np.median(gaps))
    return bool((np.abs(gaps - middle) > 0.1 * max(middle, 1e-3)).any())
