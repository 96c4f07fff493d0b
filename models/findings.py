"""Doubts about a study's images, as a closed list: what was done where a header or the pixels are not what they should be.

A finding's code goes to the bus and into the case's row; its detail adds numbers. Neither holds anything that a person typed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Severity(StrEnum):
    """What a finding says about the score."""

    NOTE = "note"
    """A stated rule was applied; nothing is wrong with the images."""
    DOUBT = "doubt"
    """The network may see the images otherwise than they were meant."""
    FAULT = "fault"
    """The images are very probably not what the modality made: look at the feed."""


CODES: Final[Mapping[str, tuple[Severity, str]]] = {
    "several_series": (Severity.NOTE, "several series fit; the one with most images is scored"),
    "extra_images_ignored": (Severity.NOTE, "the model takes one image and the study has more; the first is scored"),
    "derived_images_skipped": (Severity.NOTE, "derived or secondary images beside originals; only the originals are scored"),
    "raw_images_skipped": (Severity.NOTE, "raw detector images beside those for presentation; only the latter are scored"),
    "only_derived_images": (Severity.DOUBT, "the study has no original image; the derived or secondary ones are scored"),
    "several_acquisitions": (Severity.DOUBT, "several images at each place, told apart by a header attribute; one set is scored"),
    "duplicate_positions": (Severity.DOUBT, "several images at one place; the one with the lowest InstanceNumber is scored"),
    "slice_positions_missing": (Severity.DOUBT, "positions are missing or absurd; slices are ordered by InstanceNumber"),
    "slice_order_unknown": (Severity.FAULT, "neither positions nor InstanceNumber order the slices; the order is arbitrary"),
    "slice_gap": (Severity.DOUBT, "slices are missing inside the series"),
    "slice_distance_uneven": (Severity.DOUBT, "the distance of neighbouring slices varies by more than a tenth"),
    "gantry_tilt": (Severity.NOTE, "the slices are sheared against their normal, as with a tilted gantry"),
    "gantry_tilt_contradicted": (Severity.DOUBT, "GantryDetectorTilt and the shear of the positions disagree"),
    "mixed_orientations": (Severity.DOUBT, "images of several orientations; the commonest orientation is scored"),
    "mixed_image_sizes": (Severity.DOUBT, "images of several sizes in one series"),
    "mixed_pixel_spacings": (Severity.DOUBT, "images of several pixel spacings in one series"),
    "mixed_photometric": (Severity.DOUBT, "images of several photometric interpretations in one series; each is read by its own"),
    "mixed_rescales": (Severity.DOUBT, "images of several rescales in one CT series; each is read by its own"),
    "few_slices": (Severity.DOUBT, "fewer than a quarter of the slices that the network takes"),
    "spacing_missing": (Severity.DOUBT, "the volume is to be resampled to a spacing, but its own is not known; it is stretched"),
    "volume_cropped": (Severity.DOUBT, "the series reaches beyond the volume that the network takes; its edges are cut off"),
    "rescale_missing": (Severity.DOUBT, "a CT without rescale; stored values are used"),
    "rescale_incomplete": (Severity.DOUBT, "only one of slope and intercept is there; the other is taken as 1 or 0"),
    "rescale_absurd": (Severity.FAULT, "a rescale that cannot be meant; stored values are used"),
    "rescale_without_negative": (
        Severity.FAULT,
        "a CT that cannot hold a value below zero, so no air; values are used as they are",
    ),
    "rescale_reversed": (Severity.DOUBT, "a CT with a negative slope, so that what is dense has low stored values; it is used"),
    "rescale_type_unexpected": (Severity.DOUBT, "a CT whose values are not in Hounsfield units; values are used as they are"),
    "modality_lut_and_rescale": (Severity.DOUBT, "both a Modality LUT and a rescale; the LUT is used"),
    "window_missing": (Severity.DOUBT, "no window; percentiles are used"),
    "window_absurd": (Severity.DOUBT, "an impossible window or VOI LUT; percentiles are used"),
    "window_outside_values": (Severity.DOUBT, "a window that shows nothing of the image; percentiles are used"),
    "several_windows": (Severity.NOTE, "several windows or VOI LUTs; the first is used"),
    "constant_image": (Severity.FAULT, "all pixels are equal"),
    "only_padding": (Severity.FAULT, "every pixel is padding; nothing is masked"),
    "mostly_padding": (Severity.DOUBT, "more than nine tenths of the pixels are padding"),
    "colour_converted": (Severity.DOUBT, "colour was turned into luminance"),
    "photometric_unexpected": (Severity.DOUBT, "another photometric interpretation than MONOCHROME1 or MONOCHROME2"),
    "polarity_contradicted": (
        Severity.DOUBT,
        "Presentation LUT Shape and photometric interpretation disagree on what is bright; the latter is used",
    ),
    "pixel_data_excess": (Severity.DOUBT, "more pixel data than the header describes; the rest is ignored"),
    "for_processing": (Severity.DOUBT, "a raw detector image instead of one for presentation"),
    "high_bit_unusual": (Severity.DOUBT, "HighBit is not BitsStored - 1; the low bits are used"),
    "unused_bits_set": (Severity.NOTE, "an overlay or other data in the bits above BitsStored; it is masked"),
    "sign_doubtful": (Severity.FAULT, "values at both ends of the range and none between: signed read as unsigned or the reverse"),
}
"""Every code with its severity and its meaning."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One doubt. `code` is one of CODES; `detail` adds numbers and names of attributes, never a text from the file."""

    code: str
    detail: str = ""

    def __post_init__(self) -> None:
        """Refuse a code that is not in the list: nobody could look it up."""
        if self.code not in CODES:
            msg = f"{self.code!r} is no finding's code"
            raise ValueError(msg)

    @property
    def severity(self) -> Severity:
        """What it says about the score."""
        return CODES[self.code][0]

    def sentence(self) -> str:
        """The meaning, with the detail in brackets."""
        meaning = CODES[self.code][1]
        return f"{meaning} ({self.detail})" if self.detail else meaning


def merged(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """One finding per code, in the order of their first appearance; the first detail that says something is kept."""
    found: dict[str, Finding] = {}
    for finding in findings:
        known = found.get(finding.code)
        if known is None or (not known.detail and finding.detail):
            found[finding.code] = finding
    return tuple(found.values())


def codes_of(findings: Iterable[Finding]) -> tuple[str, ...]:
    """The codes alone, as they travel on the bus."""
    return tuple(finding.code for finding in findings)


def is_doubt(code: str) -> bool:
    """Whether a code speaks of the images; false for the notes that a stated rule was applied. Unknown codes are doubts."""
    severity = CODES.get(code)
    return severity is None or severity[0] is not Severity.NOTE
