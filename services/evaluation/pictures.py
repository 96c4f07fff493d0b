"""What is known of the images of a stream, beside what the model's own reference images look like under known changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.likeness import Likeness, liken, vectors
from services.evaluation.stream import StreamCase
from services.runtime.signatures import Images


@dataclass(frozen=True)
class Pictures:
    """Numbers of images: of the stream's studies by study key, of the baseline by case key, and of the latter under changes.

    `probed` are the reference images that `changed` are made from, in the same order of keys; `answers` are truth and
    prediction of the baseline's cases.
    """

    stream: Images
    reference: Images
    probed: Images
    changed: Mapping[str, Images]
    answers: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    _places: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Remember where each study stands."""
        object.__setattr__(self, "_places", {key: place for place, key in enumerate(self.stream.keys)})

    def known(self, cases: Sequence[StreamCase]) -> list[StreamCase]:
        """The cases whose images are known."""
        return [case for case in cases if case.study_key in self._places]

    def of(self, cases: Sequence[StreamCase]) -> Images:
        """The images of cases, all of them known."""
        return self.stream.take([self._places[case.study_key] for case in cases])

    def likenesses(self, before: Images, after: Images) -> tuple[Likeness, ...]:
        """Known changes by how well they explain the step between two sets of images."""
        shared = [name for name, images in self.changed.items() if len(images)]
        if not shared:
            return ()
        wanted = set(self.changed[shared[0]].keys)
        own = self.probed.take([place for place, key in enumerate(self.probed.keys) if key in wanted])
        return liken(_vectors(before), _vectors(after), _vectors(own), {name: _vectors(self.changed[name]) for name in shared})


def _vectors(images: Images) -> NDArray[np.float64]:
    return vectors(images.quality, images.layout)
