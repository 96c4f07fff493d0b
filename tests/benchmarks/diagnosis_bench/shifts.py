"""Changes of known kind and strength: of the images, of the feed, of the mix of patients, of what the labels mean.

None of them is made by the code under test: image changes work on the shades of the source image, faults of the feed on
its pixels or its window. Several kinds (uneven illumination, compression, motion, other hospitals) resemble none of the probes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import convolve1d, gaussian_filter, zoom

from schemas.vocabulary import Diagnosis

Array = np.ndarray[Any, np.dtype[Any]]
Random = np.random.Generator
ImageChange = Callable[[Array, Random], Array]
LABELS, PATIENTS, NOTHING = "labels", "patients", "nothing"


@dataclass(frozen=True)
class Shift:
    """One change. `image` changes shades [h, w] in 0 to 255; `special` names what is done to labels, patients or header instead."""

    name: str
    kind: Diagnosis
    strength: str
    image: ImageChange | None = None
    special: str = ""
    amount: float = 1.0
    only: str = ""

    @property
    def title(self) -> str:
        """Name and strength."""
        return f"{self.name} {self.strength}".strip()


def _blur(sigma: float) -> ImageChange:
    return lambda image, _: gaussian_filter(image, sigma)


def _noise(deviation: float) -> ImageChange:
    return lambda image, random: image + random.normal(0, deviation, image.shape)


def _gamma(power: float) -> ImageChange:
    return lambda image, _: 255 * (np.clip(image, 0, 255) / 255) ** power


def _contrast(factor: float) -> ImageChange:
    return lambda image, _: image.mean() + factor * (image - image.mean())


def _resolution(factor: float) -> ImageChange:
    def change(image: Array, _: Random) -> Array:
        small = zoom(image, 1 / factor, order=1)
        return zoom(small, (image.shape[0] / small.shape[0], image.shape[1] / small.shape[1]), order=0)

    return change


def _crop(share: float) -> ImageChange:
    def change(image: Array, random: Random) -> Array:
        height, width = (round(side * share) for side in image.shape)
        top, left = (int(random.integers(0, side - kept + 1)) for side, kept in zip(image.shape, (height, width), strict=True))
        return image[top : top + height, left : left + width]

    return change


def _shading(depth: float) -> ImageChange:
    def change(image: Array, random: Random) -> Array:
        rows, columns = np.mgrid[-1 : 1 : image.shape[0] * 1j, -1 : 1 : image.shape[1] * 1j]
        angle = random.uniform(0, 2 * np.pi)
        return image * (1 + depth * (rows * np.sin(angle) + columns * np.cos(angle)))

    return change


def _motion(length: int) -> ImageChange:
    return lambda image, _: convolve1d(image, np.full(length, 1 / length), axis=1)


def _compression(quality: int) -> ImageChange:
    def change(image: Array, _: Random) -> Array:
        buffer = BytesIO()
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
        return np.asarray(Image.open(buffer), dtype=np.float64)

    return change


def _inverted(image: Array, _: Random) -> Array:
    return 255 - image


def _turned(quarters: int) -> ImageChange:
    return lambda image, _: np.rot90(image, quarters)


def _mirrored(axis: int) -> ImageChange:
    return lambda image, _: np.flip(image, axis)


COVARIATE, PIPELINE = Diagnosis.COVARIATE, Diagnosis.PIPELINE
IMAGES: tuple[Shift, ...] = (
    *(Shift("blur", COVARIATE, f"sigma {value}", _blur(value)) for value in (1.0, 1.6, 2.5)),
    *(Shift("noise", COVARIATE, f"sd {value}", _noise(value)) for value in (8, 16, 32)),
    *(Shift("gamma", COVARIATE, f"{value}", _gamma(value)) for value in (0.5, 0.7, 1.4, 2.0)),
    *(Shift("contrast", COVARIATE, f"x {value}", _contrast(value)) for value in (0.8, 0.6)),
    *(Shift("resolution", COVARIATE, f"/ {value}", _resolution(value)) for value in (2, 3, 4)),
    *(Shift("crop", COVARIATE, f"{value:.0%}", _crop(value)) for value in (0.9, 0.8, 0.65)),
    *(Shift("shading", COVARIATE, f"{value}", _shading(value)) for value in (0.3, 0.6)),
    *(Shift("motion", COVARIATE, f"{value} px", _motion(value)) for value in (5, 9)),
    *(Shift("compression", COVARIATE, f"quality {value}", _compression(value)) for value in (15, 6)),
)
FEED: tuple[Shift, ...] = (
    Shift("inverted", PIPELINE, "", _inverted),
    *(Shift("turned", PIPELINE, f"{90 * value} degrees", _turned(value)) for value in (1, 2, 3)),
    Shift("mirrored", PIPELINE, "left to right", _mirrored(1)),
    Shift("mirrored", PIPELINE, "top to bottom", _mirrored(0)),
    Shift("inverted", PIPELINE, "half of the studies", _inverted, amount=0.5),
    Shift("turned", PIPELINE, "180 degrees, half of the studies", _turned(2), amount=0.5),
)
HEADERS: tuple[Shift, ...] = (
    *(
        Shift("window", PIPELINE, f"{name}", special=f"window {centre} {width}", only="windowed")
        for name, centre, width in (
            ("0.4 x width", 0.5, 0.4),
            ("0.25 x width", 0.5, 0.25),
            ("2.5 x width", 0.5, 2.5),
            ("centre 50 % up", 1.0, 1.0),
            ("centre 50 % down", 0.0, 1.0),
        )
    ),
    Shift("rescale missing", PIPELINE, "header says so", special="rescale header", only="CT"),
    Shift("rescale missing", PIPELINE, "header hides it", special="rescale", only="CT"),
)
OTHERS: tuple[Shift, ...] = (
    Shift("labels swapped", PIPELINE, "two classes", special="swap"),
    *(Shift("prevalence", Diagnosis.PREVALENCE, f"one class {value:.0%}", special=PATIENTS, amount=value) for value in (0.7, 0.85)),
    *(
        Shift("meaning of a label", Diagnosis.CONCEPT, f"{value:.0%} of a class", special=LABELS, amount=value)
        for value in (0.5, 0.8)
    ),
    Shift("other hospital", COVARIATE, "", special="external"),
    Shift("nothing", Diagnosis.NONE, "", special=NOTHING),
)
SHIFTS = (*IMAGES, *FEED, *HEADERS, *OTHERS)
LEAST = frozenset(
    {
        "blur sigma 1.0",
        "noise sd 8",
        "gamma 0.7",
        "gamma 1.4",
        "contrast x 0.8",
        "resolution / 2",
        "crop 90%",
        "shading 0.3",
        "motion 5 px",
        "compression quality 15",
        "mirrored left to right",
        "turned 180 degrees, half of the studies",
        "window 0.4 x width",
        "prevalence one class 70%",
        "meaning of a label 50% of a class",
        "other hospital",
        "nothing",
    }
)
"""The least strength of each change, and no change at all: where a miss is likeliest."""
