"""What is read from a DICOM header: is it an image, and where does it lie in its series. No pixels.

A header can hold anything. Reasons name the kind of fault and never quote a value, since any value may carry identity.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from models.attributes import frame_count, number_of, text_of, words_of
from models.errors import ModelError, UnreadableImage
from models.planes import MARK_TAGS, Spot, spots_of

# pydicom's warnings on invalid values quote the value, which may be a patient's name.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

MAX_FRAMES = 100_000
"""Frames of one file above which a header is taken for damaged."""

_HEADER_TAGS = [
    *MARK_TAGS,
    "Modality",
    "BodyPartExamined",
    "Rows",
    "Columns",
    "SOPClassUID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "InstanceNumber",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "GantryDetectorTilt",
    "PresentationIntentType",
    "PhotometricInterpretation",
    "RescaleSlope",
    "RescaleIntercept",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]


@dataclass(frozen=True, slots=True)
class Header:
    """Selection and ordering facts of one instance. `spots` are its frames' places, as many as the header describes.

    `instance_number` is None where the header has none; `tilt` is GantryDetectorTilt (0018,1120) in degrees, 0 when absent.
    `raw` is a detector's image FOR PROCESSING (PS3.3 C.8.11.1). `rescale` is slope and intercept outside of functional groups.
    """

    path: Path
    modality: str
    body_part: str
    series_description: str
    series_uid: str
    instance_number: int | None
    frames: int
    shape: tuple[int, int]
    spots: tuple[Spot, ...]
    sop_class: str
    image_type: tuple[str, ...]
    tilt: float
    raw: bool
    photometric: str
    rescale: tuple[float | None, float | None]


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
            instance_number=_whole(number_of(dataset, "InstanceNumber")),
            frames=frame_count(dataset),
            shape=shape,
            spots=spots_of(dataset),
            sop_class=text_of(dataset, "SOPClassUID"),
            image_type=tuple(word.strip().upper() for word in words_of(dataset, "ImageType")),
            raw=text_of(dataset, "PresentationIntentType") == "FOR PROCESSING",
            photometric=text_of(dataset, "PhotometricInterpretation"),
            rescale=(number_of(dataset, "RescaleSlope"), number_of(dataset, "RescaleIntercept")),
            tilt=_angle(number_of(dataset, "GantryDetectorTilt")),
        )


def _whole(number: float | None) -> int | None:
    return int(number) if number is not None and math.isfinite(number) else None


def _angle(degrees: float | None) -> float:
    return degrees if degrees is not None and -90 < degrees < 90 else 0.0
