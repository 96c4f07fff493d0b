"""What a model is and what it takes: everything that must travel with the weights for serving to equal training."""

import re
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

CLASS_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f^]{1,64}")


class Spec(BaseModel):
    """Base of all specifications: immutable, unknown fields refused, so that a typo cannot change the preprocessing unseen."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FixedWindow(Spec):
    """One window for all images in modality units (Hounsfield units for CT), linear and exact (PS3.3 C.11.2.1.3.2)."""

    kind: Literal["window"] = "window"
    center: float
    width: float = Field(gt=0)


class PercentileBounds(Spec):
    """Two percentiles, the lower first."""

    low: float = Field(0.5, ge=0, le=100)
    high: float = Field(99.5, ge=0, le=100)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            msg = "intensity.low must be below intensity.high"
            raise ValueError(msg)
        return self


class DicomWindow(PercentileBounds):
    """The VOI LUT or window that the file carries (PS3.3 C.11.2); percentiles, with a finding, where it has none that works."""

    kind: Literal["dicom_window"] = "dicom_window"


class PercentileRange(PercentileBounds):
    """Percentiles of the resized images become 0 and 1; for modalities without absolute units, such as MR."""

    kind: Literal["percentile"] = "percentile"


Intensity = Annotated[FixedWindow | DicomWindow | PercentileRange, Field(discriminator="kind")]
PositiveFloat = Annotated[float, Field(gt=0)]
Derived = Literal["if_alone", "never", "always"]
"""What becomes of images made from others (DERIVED\\SECONDARY, Secondary Capture)."""
PositiveInt = Annotated[int, Field(ge=1)]


class PreprocessingSpec(Spec):
    """From decoded frames to the network's input.

    `size` is (H, W), or (D, H, W) for a volume: D along the slice normal (row direction x column direction), H down the
    image's columns, W along its rows; nothing is turned to another orientation. Intensities are mapped to [0, 1], clipped,
    and then normalised with `mean` and `std`. `fit` says what happens to another aspect ratio: `pad` keeps it, `stretch` does not.
    """

    size: tuple[PositiveInt, PositiveInt] | tuple[PositiveInt, PositiveInt, PositiveInt] = (224, 224)
    channels: int = Field(1, ge=1, le=4)
    intensity: Intensity = Field(default_factory=DicomWindow)
    mean: float = 0.5
    std: float = Field(0.25, gt=0)
    fit: Literal["pad", "stretch"] = "pad"
    slices: Literal["single", "middle", "evenly"] = Field(
        "single", description="single: the first image of the study; middle: the central slice; evenly: max_images over the series"
    )
    max_images: int = Field(1, ge=1, description="Most images a study is scored by under the rule evenly")
    derived: Derived = Field(
        "if_alone",
        description="Derived and secondary images: if_alone takes them, with a finding, where there is no original; never; always",
    )
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = Field(
        None, description="Voxel size of a volume in mm (D, H, W); None stretches the series to `size` whatever its extent"
    )

    @property
    def spatial_dims(self) -> int:
        """2 for images, 3 for volumes."""
        return len(self.size)

    @model_validator(mode="after")
    def _images_follow_the_rule(self) -> Self:
        if self.slices != "evenly" and self.max_images != 1:
            msg = f"max_images is {self.max_images}, but the slice rule {self.slices!r} takes one image"
            raise ValueError(msg)
        if self.spacing is not None and self.spatial_dims != 3:
            msg = "spacing is for volumes: size must be (D, H, W)"
            raise ValueError(msg)
        return self


class Calibration(Spec):
    """Correction of the logits after the network: logits / temperature + offsets (one per class, empty for none)."""

    temperature: float = Field(1.0, gt=0)
    offsets: tuple[float, ...] = ()


class GreyLevels(Spec):
    """A monotone change of shades: straight lines between `given` and `wanted` landmarks, from 0 to 1 (Nyúl, Udupa 1999)."""

    given: tuple[float, ...] = Field(min_length=2)
    wanted: tuple[float, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _monotone(self) -> Self:
        if len(self.given) != len(self.wanted) or self.given[0] != 0 or self.given[-1] != 1:
            msg = "grey levels need as many wanted as given landmarks, and given ones from 0 to 1"
            raise ValueError(msg)
        if any(high <= low for low, high in pairwise(self.given)) or any(high < low for low, high in pairwise(self.wanted)):
            msg = "the landmarks of grey levels must rise"
            raise ValueError(msg)
        if self.wanted[0] < 0 or self.wanted[-1] > 1:
            msg = "shades lie between 0 and 1"
            raise ValueError(msg)
        return self


class ImageKind(Spec):
    """Images of another look (scanner, protocol, presentation) than those the model was made with, and how it reads them.

    An image is of this kind where its look (`models.look`) times `direction`, plus `intercept`, is above zero; of several
    kinds it is of the one with the greatest such number. `statistics`: BatchNorm statistics of its own lie with the weights;
    so does a change of the last layer for the first `head` classes. `calibration` comes behind that and before the model's own.
    """

    direction: tuple[float, ...]
    intercept: float
    grey_levels: GreyLevels | None = None
    statistics: bool = False
    head: int = Field(0, ge=0)
    calibration: Calibration = Field(default_factory=Calibration)


MOST_KINDS = 8


class Harmonisation(Spec):
    """The kinds of images that a model has learned to tell from those it was made with. `form`: that of the numbers of a look."""

    form: int
    kinds: tuple[ImageKind, ...] = Field(min_length=1, max_length=MOST_KINDS)


class ModelSpec(Spec):
    """A model: its task, classes in the order of the network's outputs, its network and its preprocessing."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    task: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    classes: tuple[str, ...] = Field(min_length=2)
    network: str = "small"
    options: dict[str, int | float | str | bool] = Field(default_factory=dict)
    preprocessing: PreprocessingSpec = Field(default_factory=PreprocessingSpec)
    calibration: Calibration = Field(default_factory=Calibration)
    harmonisation: Harmonisation | None = None
    modality: str = Field("", description="Modality the model was trained on, empty for any; decides the augmentation")
    body_part: str = ""
    description: str = ""
    intended_use: str = "Research use; not cleared for clinical use"
    authors: str = ""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.classes)) != len(self.classes) or not all(self.classes):
            msg = "classes must be distinct and not empty"
            raise ValueError(msg)
        if not all(CLASS_NAME.fullmatch(name) for name in self.classes):
            msg = "a class name has 1 to 64 characters without ^ and control characters: labels with any other are refused"
            raise ValueError(msg)
        if self.calibration.offsets and len(self.calibration.offsets) != len(self.classes):
            msg = "calibration.offsets needs one value per class"
            raise ValueError(msg)
        kinds = self.harmonisation.kinds if self.harmonisation else ()
        if any(max(len(kind.calibration.offsets), kind.head) > len(self.classes) for kind in kinds):
            msg = "a kind of images has more offsets than there are classes, or changes the last layer for more"
            raise ValueError(msg)
        return self


class SelectionRule(Spec):
    """Which studies (or series) a model scores. Every part that is set must hold; an empty rule takes everything.

    Case does not matter. `description_regex` is searched anywhere in the series description.
    """

    modalities: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    description_contains: str | None = None
    description_regex: str | None = None

    @field_validator("description_regex")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                msg = f"description_regex does not compile: {error}"
                raise ValueError(msg) from error
        return value

    def matches(self, modality: str, body_part: str = "", description: str = "") -> bool:
        """True when a study or series with these attributes is to be scored."""
        text = description.casefold()
        return (
            _listed(modality, self.modalities)
            and _listed(body_part, self.body_parts)
            and (self.description_contains is None or self.description_contains.casefold() in text)
            and (self.description_regex is None or re.search(self.description_regex, description, re.IGNORECASE) is not None)
        )


def _listed(value: str, allowed: tuple[str, ...]) -> bool:
    return not allowed or value.strip().casefold() in {word.casefold() for word in allowed}
