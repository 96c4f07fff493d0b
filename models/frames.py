"""Decoded images of one study, before any model's preprocessing. DICOM files and plain arrays meet here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.findings import Finding
from models.planes import Plane
from models.voi import FloatArray, Voi, Window


@dataclass(frozen=True, slots=True)
class Frame:
    """One image: `values` [H, W] after the Modality LUT, its VOI, and whether low values are bright (MONOCHROME1).

    `padding` [H, W] is true where there is no image (Pixel Padding Value); None where there is one everywhere.
    """

    values: FloatArray
    voi: Voi | None = None
    inverted: bool = False
    padding: NDArray[np.bool_] | None = None

    def display(self, voi: Voi) -> FloatArray:
        """The image in [0, 1], 1 = white, after `voi` and the photometric interpretation; padding is black."""
        shown = voi.apply(self.values)
        shown = np.subtract(1, shown, dtype=np.float32) if self.inverted else shown
        if self.padding is not None:
            shown = np.where(self.padding, np.float32(0), shown)
        return shown


@dataclass(frozen=True, slots=True)
class Frames:
    """Images of one study in order, the doubts about them, and facts on the scanner. Frames may differ in size.

    `planes` says where each frame lies, None for one that does not say; empty where nothing is known.
    """

    frames: tuple[Frame, ...]
    findings: tuple[Finding, ...] = ()
    facets: Mapping[str, str] = field(default_factory=dict)
    planes: tuple[Plane | None, ...] = ()

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def values(self) -> FloatArray:
        """All frames [n, H, W] in modality units. Raises ValueError where sizes differ."""
        return np.stack([frame.values for frame in self.frames])

    @property
    def display(self) -> FloatArray:
        """All frames [n, H, W] in [0, 1], 1 = white, by their own VOI or, where there is none, their range."""
        return np.stack([frame.display(frame.voi or full_range(frame.values)) for frame in self.frames])

    @classmethod
    def from_array(cls, images: NDArray[Any], window: tuple[float, float] | None = None) -> "Frames":
        """Frames from [H, W] or [n, H, W] of any real type; `window` is (lowest, highest) value to show, black to white."""
        stacked = np.asarray(images)
        stacked = stacked[None] if stacked.ndim == 2 else stacked
        if stacked.ndim != 3 or stacked.size == 0:
            msg = f"images must be [H, W] or [n, H, W] and not empty, not of shape {np.shape(images)}"
            raise ValueError(msg)
        voi = None if window is None else Window((window[0] + window[1]) / 2, window[1] - window[0], "LINEAR_EXACT")
        return cls(tuple(Frame(np.asarray(image, dtype=np.float32), voi) for image in stacked))


def full_range(values: FloatArray) -> Window:
    """The window from the least to the greatest value."""
    low, high = float(values.min()), float(values.max())
    return Window((low + high) / 2, max(high - low, 1e-6), "LINEAR_EXACT")
