"""Where the images of a dataset lie in the patient, and what tells images at the same place apart. Numbers only, no pixels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from models.attributes import frame_count, functional_group, number_of, text_of

Vector = NDArray[np.float64]

FARTHEST: Final = 1e5
"""Millimetres from the origin of the patient's coordinates beyond which a position is taken for damaged."""
_COARSEST: Final = 100.0
_NOT_UNIT: Final = 0.02
"""ImageOrientationPatient is written with few digits; further from orthonormal than this it is no orientation."""

# What repeats the same places within a series, and where a frame of an enhanced object says it (PS3.3 C.7.6.16, C.8.13).
_MARKS: Final = (
    ("StackID", "FrameContentSequence", "StackID"),
    ("TemporalPositionIndex", "FrameContentSequence", "TemporalPositionIndex"),
    ("TemporalPositionIdentifier", "", ""),
    ("EffectiveEchoTime", "MREchoSequence", "EffectiveEchoTime"),
    ("EchoTime", "", ""),
    ("DiffusionBValue", "MRDiffusionSequence", "DiffusionBValue"),
    ("FrameType", "MRImageFrameTypeSequence", "FrameType"),
    ("ImageType", "", ""),
    ("AcquisitionNumber", "", ""),
)
MARK_TAGS: Final = tuple(name for name, sequence, _ in _MARKS if not sequence)


@dataclass(frozen=True, slots=True)
class Plane:
    """An image's plane (PS3.3 C.7.6.2): `origin` [3] of its first pixel in mm, `axes` [2, 3] unit vectors along rows and columns.

    `spacing` is (between rows, between columns) in mm, None where the header has none that can be meant.
    """

    origin: Vector
    axes: Vector
    spacing: tuple[float, float] | None = None

    @property
    def normal(self) -> Vector:
        """Unit vector along which slices are ordered: row direction x column direction."""
        normal = np.cross(self.axes[0], self.axes[1])
        found: Vector = normal / np.linalg.norm(normal)
        return found


@dataclass(frozen=True, slots=True)
class Spot:
    """What is known of one frame: its plane, None where it has none that can be meant, and its marks (keyword to value)."""

    plane: Plane | None = None
    marks: Mapping[str, float | str] = field(default_factory=dict)


def spots_of(dataset: Dataset) -> tuple[Spot, ...]:
    """One spot per frame that the header describes, so that a false NumberOfFrames costs nothing."""
    described = len(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    count = min(frame_count(dataset), described) if described else 1
    return tuple(Spot(_plane(dataset, frame), _marks(dataset, frame)) for frame in range(count))


def _plane(dataset: Dataset, frame: int) -> Plane | None:
    position = functional_group(dataset, "PlanePositionSequence", frame) or dataset
    orientation = functional_group(dataset, "PlaneOrientationSequence", frame) or dataset
    measures = functional_group(dataset, "PixelMeasuresSequence", frame) or dataset
    origin, axes = _vector(position.get("ImagePositionPatient"), 3), _vector(orientation.get("ImageOrientationPatient"), 6)
    if origin is None or axes is None or np.abs(origin).max() > FARTHEST:
        return None
    pair = axes.reshape(2, 3)
    if np.abs(pair @ pair.T - np.eye(2)).max() > _NOT_UNIT:
        return None
    return Plane(origin, pair, _spacing(measures))


def _spacing(measures: Dataset) -> tuple[float, float] | None:
    found = _vector(measures.get("PixelSpacing"), 2)
    if found is None or found.min() <= 0 or found.max() > _COARSEST:
        return None
    return float(found[0]), float(found[1])


def _marks(dataset: Dataset, frame: int) -> dict[str, float | str]:
    marks: dict[str, float | str] = {}
    for name, sequence, keyword in _MARKS:
        source = functional_group(dataset, sequence, frame) if sequence else dataset
        value = _mark(source, keyword or name) if source is not None else None
        if value is not None:
            marks[name] = value
    return marks


def _mark(source: Dataset, keyword: str) -> float | str | None:
    if keyword in {"ImageType", "FrameType", "StackID"}:
        return text_of(source, keyword) or None
    number = number_of(source, keyword)
    return number if number is not None and np.isfinite(number) else None


def _vector(value: Any, length: int) -> Vector | None:
    try:
        vector = np.asarray([float(each) for each in value or ()], dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return vector if vector.size == length and bool(np.isfinite(vector).all()) else None
