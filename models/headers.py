"""What is read from a DICOM header: is it an image, where does it lie in its series, which scanner made it. No pixels.

A header can hold anything. Reasons name the kind of fault and never quote a value, since any value may carry identity.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import UID

from models import identity_terms
from models.errors import ModelError, UnreadableImage
from models.facets import FACETS, facets_of

# pydicom's warnings on invalid values quote the value, which may be a patient's name.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

MAX_FRAMES = 100_000
"""Frames of one file above which a header is taken for damaged."""

_HEADER_TAGS = [
    *FACETS,
    *identity_terms.KEYWORDS,
    "SOPClassUID",
    "ImageType",
    "SeriesInstanceUID",
    "SeriesDescription",
    "InstanceNumber",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]


@dataclass(frozen=True, slots=True)
class Header:
    """Selection and ordering facts of one instance. `positions` has one place along the slice normal (mm) per frame, or none."""

    path: Path
    modality: str
    body_part: str
    series_description: str
    series_uid: str
    instance_number: int
    frames: int
    shape: tuple[int, int]
    positions: tuple[float, ...]
    localizer: bool
    facets: Mapping[str, str]

    @property
    def is_image(self) -> bool:
        """True for an instance with pixels that is not a localiser."""
        return min(self.shape) > 0 and not self.localizer


@contextmanager
def unreadable_as(reason: str) -> Iterator[None]:
    """Turn whatever a damaged file makes the decoders raise into UnreadableImage; their own text may quote the file.

    An OSError of the operating system (file gone, disk away) stays one: it says nothing about the image.
    """
    try:
        yield
    except ModelError:
        raise
    except BaseException as error:
        # The operating system's errors carry a number; those that pydicom raises itself do not.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        # A damaged file can raise anything; decoders written in Rust panic with a BaseException of their own.
        if isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime":
            raise UnreadableImage(f"{reason} ({type(error).__name__})") from None
        raise


def read_header(path: Path) -> Header:
    """Read one instance's header. Raises UnreadableImage for a file that is not DICOM (PS3.10) or is damaged."""
    with unreadable_as("not a readable DICOM file"):
        return header_of(path, pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_HEADER_TAGS)))


def header_of(path: Path, dataset: Dataset) -> Header:
    """The header facts of a dataset that is already in memory."""
    with unreadable_as("the header is damaged"):
        if frame_count(dataset) > MAX_FRAMES:
            raise UnreadableImage(f"NumberOfFrames {frame_count(dataset)} is beyond any study")
        shape = (int(number_of(dataset, "Rows") or 0), int(number_of(dataset, "Columns") or 0))
        # Reports and presentation states have no pixels by right; an image that lost its size must not pass for one of them.
        if min(shape) < 1 and "Image Storage" in UID(text_of(dataset, "SOPClassUID")).name:
            raise UnreadableImage("the image has no Rows or no Columns")
        return Header(
            path=path,
            modality=text_of(dataset, "Modality"),
            body_part=text_of(dataset, "BodyPartExamined").upper(),
            series_description=text_of(dataset, "SeriesDescription"),
            series_uid=text_of(dataset, "SeriesInstanceUID"),
            instance_number=int(number_of(dataset, "InstanceNumber") or 0),
            frames=frame_count(dataset),
            shape=shape,
            positions=_positions(dataset),
            localizer="LOCALIZER" in _words(dataset, "ImageType"),
            facets=facets_of(dataset),
        )


def frame_count(dataset: Dataset) -> int:
    """Number of Frames (0028,0008), 1 when absent."""
    return max(int(number_of(dataset, "NumberOfFrames") or 1), 1)


def text_of(dataset: Dataset, keyword: str) -> str:
    """An attribute's text, several values joined by a backslash, empty when absent."""
    return "\\".join(_words(dataset, keyword)).strip()


def number_of(dataset: Dataset, keyword: str) -> float | None:
    """An attribute's first value as a number, None when absent, empty or not a number."""
    value = dataset.get(keyword)
    try:
        first = value[0] if isinstance(value, list | tuple | MultiValue) else value
        return None if first is None or first == "" else float(first)
    except (TypeError, ValueError, IndexError):
        return None


def functional_group(dataset: Dataset, sequence: str, frame: int) -> Dataset | None:
    """A frame's functional group macro of an enhanced object, its own before the shared one (PS3.3 C.7.6.16); None if absent."""
    own: Any = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    shared: Any = dataset.get("SharedFunctionalGroupsSequence") or ()
    for groups in (own[frame] if frame < len(own) else None, shared[0] if len(shared) else None):
        macro = groups.get(sequence) if groups is not None else None
        if macro:
            item: Dataset = macro[0]
            return item
    return None


def _words(dataset: Dataset, keyword: str) -> list[str]:
    value: Any = dataset.get(keyword)
    if value is None:
        return []
    values = value if isinstance(value, list | tuple | MultiValue) else [value]
    return [str(each) for each in values]


def _positions(dataset: Dataset) -> tuple[float, ...]:
    places = [_position(dataset, frame) for frame in range(_described_frames(dataset))]
    return tuple(place for place in places if place is not None) if None not in places else ()


def _described_frames(dataset: Dataset) -> int:
    # A header may claim any number of frames; only the described ones have a place.
    described = len(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    return min(frame_count(dataset), described) if described else 1


def _position(dataset: Dataset, frame: int) -> float | None:
    plane = functional_group(dataset, "PlanePositionSequence", frame) or dataset
    orientation = functional_group(dataset, "PlaneOrientationSequence", frame) or dataset
    origin = _vector(plane.get("ImagePositionPatient"), 3)
    axes = _vector(orientation.get("ImageOrientationPatient"), 6)
    if origin is None or axes is None:
        return None
    return float(np.dot(np.cross(axes[:3], axes[3:]), origin))


def _vector(value: Any, length: int) -> NDArray[np.float64] | None:
    try:
        vector = np.asarray([float(each) for each in value or ()], dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return vector if vector.size == length and bool(np.isfinite(vector).all()) else None
