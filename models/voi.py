"""VOI transformations of PS3.3 C.11.2, each normalised to [0, 1] instead of to the range of the stored bits."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float32]
VoiFunction: TypeAlias = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]


@dataclass(frozen=True, slots=True)
class Window:
    """Window Center and Width with the VOI LUT Function (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""

    center: float
    width: float
    function: VoiFunction = "LINEAR"

    @property
    def valid(self) -> bool:
        """Width at least 1 for LINEAR, above 0 otherwise; both values finite."""
        least = self.width >= 1 if self.function == "LINEAR" else self.width > 0
        return bool(np.isfinite(self.center) and np.isfinite(self.width) and least)

    def apply(self, values: FloatArray) -> FloatArray:
        """Map modality values to [0, 1]."""
        if self.function == "SIGMOID":
            # The logistic function written as tanh does not overflow far outside the window.
            return np.asarray(0.5 * (1 + np.tanh(2 * (values - self.center) / self.width)), dtype=np.float32)
        shift, width = (self.center - 0.5, self.width - 1) if self.function == "LINEAR" else (self.center, self.width)
        if width == 0:
            return (values > shift).astype(np.float32)
        scaled = values * np.float32(1 / width)
        scaled += np.float32(0.5 - shift / width)
        np.clip(scaled, 0, 1, out=scaled)
        return scaled


@dataclass(frozen=True, slots=True)
class LookupTable:
    """VOI LUT Sequence item: `entries` in [0, 1], the first one belongs to the modality value `first` (PS3.3 C.11.2.1.1)."""

    first: int
    entries: FloatArray

    @property
    def valid(self) -> bool:
        """At least two different entries."""
        return self.entries.size > 1 and bool(self.entries.min() < self.entries.max())

    def apply(self, values: FloatArray) -> FloatArray:
        """Map modality values to [0, 1]; values outside the table take its first or last entry."""
        index = np.clip(np.rint(values) - self.first, 0, self.entries.size - 1).astype(np.int32)
        shown: FloatArray = self.entries[index]
        return shown


Voi: TypeAlias = Window | LookupTable
