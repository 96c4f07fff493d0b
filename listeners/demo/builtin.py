"""Images for a machine without any: real brain MR anatomy that the nilearn package carries.

The template (MNI ICBM152 2009a, T1, an average of 152 people) is real; the patients are not: each is a random smooth
deformation of it with its own scale, tilt and noise, and the demonstration says so on screen. The task has true labels,
the anatomical level of an axial slice.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, map_coordinates

from listeners.demo.cohort import Development, LabelledImage, Sizes
from listeners.demo.scanner_change import change_scanner, rician, to_uint8

Array = npt.NDArray[np.float64]
LEVELS: dict[str, tuple[float, float]] = {
    "temporal_lobes": (-40.0, -13.0),
    "basal_ganglia": (-13.0, 12.0),
    "lateral_ventricles": (12.0, 35.0),
    "vertex": (35.0, 60.0),
}
"""Class to range of z in mm (MNI space); neighbours touch, so the slices at the borders are hard."""


class BuiltinSource:
    """Slices of deformed copies of the template. `size` is the image edge in pixels."""

    name = "MNI ICBM152 T1 head MR, shipped with nilearn"
    note = "Real MR anatomy (an average of 152 people); the patients are random smooth deformations of it."
    modality = "MR"
    body_part = "HEAD"
    task = "axial-level"
    classes: Sequence[str] = tuple(LEVELS)
    sizes = Sizes()

    def __init__(self, seed: int = 0, size: int = 96, counts: tuple[int, int, int] = (560, 120, 800)) -> None:
        self._seed, self._size, self._counts = seed, size, counts

    def development(self) -> Development:
        """Images that make and baseline the first version."""
        streams = [self._stream(purpose, shifted=False) for purpose in ("train", "valid", "test")]
        train, valid, test = ([next(stream) for _ in range(count)] for stream, count in zip(streams, self._counts, strict=True))
        return Development(train, valid, test)

    def stable(self) -> Iterator[LabelledImage]:
        """Fresh patients on the old scanner."""
        return self._stream("stable", shifted=False)

    def shifted(self) -> Iterator[LabelledImage]:
        """Fresh patients on the new scanner."""
        return self._stream("shifted", shifted=True)

    def _stream(self, purpose: str, *, shifted: bool) -> Iterator[LabelledImage]:
        seeds = np.random.SeedSequence([self._seed, *purpose.encode()])
        number = 0
        while True:
            generator = np.random.default_rng(seeds.spawn(1)[0])
            label = self.classes[int(generator.integers(len(self.classes)))]
            image = self._slice(label, generator)
            yield LabelledImage(change_scanner(image, generator) if shifted else image, label, f"{purpose}-{number:05d}")
            number += 1

    def _slice(self, label: str, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
        volume, origin, spacing = self._template
        level = (generator.uniform(*LEVELS[label]) - origin) / spacing
        rows, columns = self._deformed_grid(generator, volume.shape)
        tilt = generator.normal(0, 5.0) * (rows / volume.shape[1] - 0.5) + generator.normal(0, 5.0) * (
            columns / volume.shape[0] - 0.5
        )
        plane = map_coordinates(volume, [columns, rows, level + tilt], order=1)
        bright = generator.uniform(0.85, 1.1) * plane ** generator.uniform(0.85, 1.2)
        return to_uint8(rician(bright, generator.uniform(0.01, 0.03), generator))

    def _deformed_grid(self, generator: np.random.Generator, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Where each pixel looks into the template: an affine map (scale, turn, shift) and a smooth random displacement."""
        axis = np.linspace(-1, 1, self._size)
        down, across = np.meshgrid(-axis, axis, indexing="ij")
        turn, scale = generator.normal(0, 0.08), generator.uniform(0.88, 1.06, 2)
        rows = scale[0] * (np.cos(turn) * down - np.sin(turn) * across) + generator.normal(0, 0.04)
        columns = scale[1] * (np.sin(turn) * down + np.cos(turn) * across) + generator.normal(0, 0.04)
        bends = gaussian_filter(generator.normal(0, 1, (2, self._size, self._size)), (0, 10, 10)) * 0.9
        half = (shape[1] - 1) / 2
        return (rows + bends[0]) * half + half, (columns + bends[1]) * half + (shape[0] - 1) / 2

    @cached_property
    def _template(self) -> tuple[Array, float, float]:
        """Volume [x, y, z] scaled to [0, 1], z of its first slice in mm, slice distance in mm."""
        from nilearn.datasets import load_mni152_template  # noqa: PLC0415 - an optional extra, only for this source

        loaded = load_mni152_template(resolution=2)
        volume = np.asarray(loaded.get_fdata(), dtype=np.float64)
        return volume / volume.max(), float(loaded.affine[2, 3]), float(loaded.affine[2, 2])
