"""Which images of a study a model may look at, and in what order: from headers alone, every doubt a finding.

The outcome does not depend on the order in which the files are listed.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from pydicom.uid import EncapsulatedPDFStorage, ParametricMapStorage, RTDoseStorage, SegmentationStorage

from models.errors import NotSelected
from models.findings import Finding, merged
from models.geometry import orientations, places, spacing_findings, spacing_is_mixed, stacks, tilt_findings
from models.headers import Header, read_header
from models.planes import Plane, Spot
from models.spec import Derived, SelectionRule

_PROJECTION: Final = {"CR", "DX", "MG", "XA", "RF", "IO", "PX"}
_SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"
_MAPS: Final = {SegmentationStorage, RTDoseStorage, ParametricMapStorage, EncapsulatedPDFStorage, "1.2.840.10008.5.1.4.1.1.66.7"}
_SCOUTS: Final = {"LOCALIZER", "SCOUT"}
# Value 3 and later are the manufacturers' own; these are what scanners call their screenshots, protocols and dose pages.
_SCREENS: Final = {"SCREEN SAVE", "SCREEN", "DOSE_INFO", "DOSE INFO", "DOSE REPORT", "PROT", "CT_SOM5 PROT"}


@dataclass(frozen=True, slots=True)
class Slice:
    """One frame of one file; `plane` is where it lies, None where that is not known."""

    path: Path
    frame: int
    plane: Plane | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """The images a model may look at, in order, with the findings of choosing and ordering them."""

    slices: tuple[Slice, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class _Image:
    """A frame on its way to its place. `key` orders images where nothing else does."""

    header: Header
    frame: int
    spot: Spot

    @property
    def key(self) -> tuple[str, float, str, int]:
        number = self.header.instance_number
        return (self.header.series_uid, float("inf") if number is None else number, str(self.header.path), self.frame)

    @property
    def slice(self) -> Slice:
        return Slice(self.header.path, self.frame, self.spot.plane)


def series_of(paths: Iterable[Path], rule: SelectionRule | None = None, derived: Derived = "if_alone") -> Series:
    """Order a study's images along the slice normal; what is no image for a model is left out (see `reason_to_skip`).

    Of several volume series the one with most frames is taken (then the least UID); all projection images belong
    together. Raises NotSelected, with the reasons, where nothing is left, UnreadableImage for a damaged file.
    """
    return series_from(map(read_header, paths), rule, derived)


def series_from(headers: Iterable[Header], rule: SelectionRule | None = None, derived: Derived = "if_alone") -> Series:
    """`series_of` for headers that are already read."""
    kept, findings = _usable(list(headers), rule, derived)
    chosen, several = _one_series(kept)
    images = sorted((image for header in chosen for image in _images(header)), key=lambda image: image.key)
    ordered, doubts = _ordered(images)
    return Series(tuple(image.slice for image in ordered), merged((*findings, *several, *doubts)))


def reason_to_skip(header: Header) -> str:
    """Why an instance is never an image for a model; empty for one that may be."""
    words = set(header.image_type)
    if words & _SCOUTS:
        return "localiser"
    if min(header.shape) < 1:
        return "object without pixels"
    if header.sop_class in _MAPS or header.modality in {"SEG", "RTDOSE", "SR", "PR", "KO", "DOC"}:
        return "map or document"
    if words & _SCREENS:
        return "screenshot or dose page"
    return ""


def is_derived(header: Header) -> bool:
    """Whether an image was made from others: ImageType says DERIVED and SECONDARY (PS3.3 C.7.6.1.1.2), or a Secondary Capture.

    One that is DERIVED and PRIMARY is not: processed radiographs and lossily compressed originals are that.
    """
    return header.image_type[:2] == ("DERIVED", "SECONDARY") or f"{header.sop_class}.".startswith(f"{_SECONDARY_CAPTURE}.")


def _usable(headers: Sequence[Header], rule: SelectionRule | None, derived: Derived) -> tuple[list[Header], list[Finding]]:
    reasons: Counter[str] = Counter()
    kept: list[Header] = []
    for header in headers:
        reason = (
            reason_to_skip(header)
            or _unwanted(header, rule)
            or ("derived image" if derived == "never" and is_derived(header) else "")
        )
        if reason:
            reasons[reason] += 1
        else:
            kept.append(header)
    if not kept:
        found = ", ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items())) or "no files"
        raise NotSelected(f"no image of the study fits the model: {found}")
    shown, findings = _presentable(kept)
    if derived == "always":
        return shown, findings
    originals = [header for header in shown if not is_derived(header)]
    if not originals:
        return shown, [*findings, Finding("only_derived_images", f"{len(shown)} images")]
    left = len(shown) - len(originals) + reasons["derived image"]
    return originals, [*findings, Finding("derived_images_skipped", f"{left} images")] if left else findings


def _presentable(headers: Sequence[Header]) -> tuple[list[Header], list[Finding]]:
    """Detectors send each view twice, raw and for presentation; raw ones alone are kept, and `models.pixels` says so."""
    shown = [header for header in headers if not header.raw]
    if not shown or len(shown) == len(headers):
        return list(headers), []
    return shown, [Finding("raw_images_skipped", f"{len(headers) - len(shown)} images")]


def _unwanted(header: Header, rule: SelectionRule | None) -> str:
    wanted = rule is None or rule.matches(header.modality, header.body_part, header.series_description)
    return "" if wanted else "not what the selection rule asks for"


def _one_series(headers: Sequence[Header]) -> tuple[list[Header], list[Finding]]:
    groups: dict[str, list[Header]] = {}
    for header in headers:
        groups.setdefault(header.series_uid, []).append(header)
    if len(groups) == 1 or all(header.modality in _PROJECTION for header in headers):
        return list(headers), []
    largest = min(groups.items(), key=lambda group: (-sum(header.frames for header in group[1]), group[0]))
    return largest[1], [Finding("several_series", f"{len(groups)} series")]


def _images(header: Header) -> list[_Image]:
    # Frames beyond those that the header describes have no place of their own.
    return [_Image(header, frame, header.spots[frame] if frame < len(header.spots) else Spot()) for frame in range(header.frames)]


def _ordered(images: list[_Image]) -> tuple[list[_Image], list[Finding]]:
    """Images in the canonical order of their keys to images in space."""
    placed = [image for image in images if image.spot.plane is not None]
    if all(image.header.modality in _PROJECTION for image in images):
        return images, _size_findings(images)
    if len(placed) < len(images):
        return images, [*_number_findings(images), *_mixture_findings(images)]
    groups = orientations([_plane(image) for image in images])
    findings = []
    if len(groups) > 1:
        findings.append(
            Finding("mixed_orientations", f"{len(groups)} orientations; {len(groups[0])} of {len(images)} images are scored")
        )
    volume, doubts = _one_per_place([images[index] for index in groups[0]])
    planes = [_plane(image) for image in volume]
    if spacing_is_mixed(planes):
        doubts.append(Finding("mixed_pixel_spacings"))
    findings += [*doubts, *spacing_findings(places(planes)), *tilt_findings(planes, volume[0].header.tilt)]
    return volume, [*findings, *_mixture_findings(volume)]


def _one_per_place(images: list[_Image]) -> tuple[list[_Image], list[Finding]]:
    """Images of one orientation, in the order of their places, one at each."""
    volume = _by_place(images)
    heaps = _heaps(volume)
    if len(heaps) == len(volume):
        return volume, []
    most = max(map(len, heaps))
    split = _split(images, len(heaps))
    if split is not None:
        by, chosen = split
        return _by_place(chosen), [Finding("several_acquisitions", f"up to {most} at one place, told apart by {by}")]
    first = [min((volume[index] for index in heap), key=lambda image: image.key) for heap in heaps]
    return first, [Finding("duplicate_positions", f"{len(volume) - len(first)} images beyond the first of their place")]


def _split(images: list[_Image], distinct: int) -> tuple[str, list[_Image]] | None:
    """What tells images at one place apart, and the largest set that it makes (then that of the least value); None if nothing."""
    names = dict.fromkeys(name for image in images for name in image.spot.marks)
    varied = [name for name in names if len({image.spot.marks.get(name) for image in images}) > 1]
    for by in [(name,) for name in varied] + ([tuple(varied)] if len(varied) > 1 else []):
        sets = _grouped(images, lambda image, by=by: tuple(image.spot.marks.get(name, "") for name in by))  # type: ignore[misc]
        unique = all(len(_heaps(_by_place(each))) == len(each) for each in sets.values())
        largest = max(map(len, sets.values()))
        # A number that each image has for itself tells nothing apart.
        if unique and 2 * largest >= distinct:
            chosen = min(sets.items(), key=lambda item: (-len(item[1]), [(isinstance(value, str), value) for value in item[0]]))
            return " and ".join(by), chosen[1]
    return None


def _grouped(images: list[_Image], of: Callable[[_Image], tuple[float | str, ...]]) -> dict[tuple[float | str, ...], list[_Image]]:
    groups: dict[tuple[float | str, ...], list[_Image]] = {}
    for image in images:
        groups.setdefault(of(image), []).append(image)
    return groups


def _by_place(images: list[_Image]) -> list[_Image]:
    where = places([_plane(image) for image in images])
    return [images[index] for index in np.argsort(where, kind="stable")]


def _heaps(volume: list[_Image]) -> list[list[int]]:
    return stacks(places([_plane(image) for image in volume]))


def _plane(image: _Image) -> Plane:
    assert image.spot.plane is not None
    return image.spot.plane


def _number_findings(images: list[_Image]) -> list[Finding]:
    """The images are in the order of their InstanceNumber and frame; whether that is an order at all."""
    if len(images) < 2:
        return []
    lost = sum(image.spot.plane is None for image in images)
    numbers = [(image.header.series_uid, image.header.instance_number, image.frame) for image in images]
    if any(image.header.instance_number is None for image in images) and len({image.header.path for image in images}) > 1:
        return [Finding("slice_order_unknown", "InstanceNumber is missing")]
    if len(set(numbers)) < len(numbers):
        return [Finding("slice_order_unknown", "InstanceNumber is repeated")]
    return [Finding("slice_positions_missing", f"{lost} of {len(images)} images have none")]


def _mixture_findings(images: list[_Image]) -> list[Finding]:
    """What the slices of one volume should have in common and have not."""
    findings = _size_findings(images)
    photometric = {image.header.photometric for image in images}
    rescales = {image.header.rescale for image in images if image.header.modality == "CT"}
    if len(photometric) > 1:
        findings.append(Finding("mixed_photometric", f"{len(photometric)} interpretations"))
    if len(rescales) > 1:
        findings.append(Finding("mixed_rescales", f"{len(rescales)} rescales"))
    return findings


def _size_findings(images: list[_Image]) -> list[Finding]:
    sizes = {image.header.shape for image in images}
    return [Finding("mixed_image_sizes", f"{len(sizes)} sizes")] if len(sizes) > 1 else []
