"""Labelled images for the demonstration, from one of three sources, all behind `Source`.

A source gives development images and two endless-enough streams: more of the same, and the same task after a change of
scanner. No patient appears in two of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class LabelledImage:
    """One study to be: an image uint8 [H, W], its class and the patient it is of."""

    image: Image
    label: str
    patient: str


@dataclass(frozen=True)
class Scanner:
    """Equipment attributes that the studies of a stream carry (PS3.3 C.7.5.1)."""

    manufacturer: str
    model: str
    station: str


BEFORE = Scanner("Aurora Medical", "Aurora 1.5T", "MR1")
AFTER = Scanner("Borealis Imaging", "Borealis 3T", "MR2")


@dataclass(frozen=True)
class Development:
    """Images for training, for early stopping, and for the baseline, with disjoint patients."""

    train: Sequence[LabelledImage]
    valid: Sequence[LabelledImage]
    test: Sequence[LabelledImage]


@dataclass(frozen=True)
class Sizes:
    """Studies per chapter."""

    stable: int = 440
    shifted: int = 1100
    recovered: int = 1100

    @property
    def portion(self) -> int:
        """Further studies after the change, sent while no decline is shown."""
        return self.shifted // 3

    @property
    def more_portions(self) -> int:
        """How many portions there may be: at least half of the studies for the last chapter stay."""
        return min(3, self.recovered // 2 // self.portion) if self.portion else 0

    def within(self, stable: int, shifted: int) -> "Sizes":
        """Smaller where a source has fewer images: the images after the change are shared between the last two chapters."""
        before = min(self.shifted, shifted * 55 // 100)
        return Sizes(min(self.stable, stable), before, min(self.recovered, shifted - before))


class Source(Protocol):
    """Where the images come from."""

    name: str
    note: str
    modality: str
    body_part: str
    task: str
    classes: Sequence[str]
    sizes: Sizes

    def development(self) -> Development:
        """Images that make and baseline the first version."""
        ...

    def stable(self) -> Iterator[LabelledImage]:
        """Fresh images of the same distribution."""
        ...

    def shifted(self) -> Iterator[LabelledImage]:
        """Fresh images after the change."""
        ...
