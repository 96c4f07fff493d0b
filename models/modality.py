"""From stored pixel values to modality units (PS3.3 C.11.1): padding, Modality LUT, rescale, and what is odd about them."""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut

from models.attributes import functional_group, number_of, text_of
from models.findings import Finding
from models.voi import FloatArray

_HOUNSFIELD: Final = {"", "HU", "US"}
"""Rescale Types that a CT's Hounsfield units come under; US is "unspecified"."""
_MOSTLY: Final = 0.9
_DEEP: Final = 10
"""Bits from which an empty middle of the range is odd; images of 8 bits may be black and white alone."""
_POPULATED: Final = 0.005


@dataclass
class Instance:
    """A dataset being decoded and the findings so far."""

    dataset: Dataset
    findings: list[Finding] = field(default_factory=list)

    def note(self, code: str, detail: str = "") -> None:
        """Add a finding."""
        self.findings.append(Finding(code, detail))


def padding_of(instance: Instance, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Where Pixel Padding Value or its range applies (PS3.3 C.7.5.1.1.2); None when nowhere, or everywhere."""
    first = number_of(instance.dataset, "PixelPaddingValue")
    if first is None or not np.isfinite(first):
        return None
    limit = number_of(instance.dataset, "PixelPaddingRangeLimit")
    limit = first if limit is None or not np.isfinite(limit) else limit
    low, high = sorted(_as_stored(value, instance.dataset) for value in (first, limit))
    mask: NDArray[np.bool_] = stored == low if low == high else (stored >= low) & (stored <= high)
    count = int(np.count_nonzero(mask))
    if count == mask.size:
        instance.note("only_padding")
        return None
    if count > _MOSTLY * mask.size:
        instance.note("mostly_padding", f"{count / mask.size:.0%}")
    return mask if count else None


def without_padding(values: FloatArray, padding: NDArray[np.bool_], *, bright: bool) -> FloatArray:
    """Padding becomes the darkest shade that the image itself has, so that it sets no extreme."""
    content = values[~padding]
    values = values.copy()
    values[padding] = content.max() if bright else content.min()
    return values


def modality_values(instance: Instance, stored: NDArray[Any], index: int) -> FloatArray:
    """Modality LUT or rescale, the frame's own one in an enhanced object (C.7.6.16.2.9)."""
    dataset = instance.dataset
    source = functional_group(dataset, "PixelValueTransformationSequence", index) or dataset
    slope, intercept = number_of(source, "RescaleSlope"), number_of(source, "RescaleIntercept")
    if dataset.get("ModalityLUTSequence"):
        if slope is not None or intercept is not None:
            instance.note("modality_lut_and_rescale")
        return np.asarray(apply_modality_lut(stored, dataset), dtype=np.float32)
    values = stored.astype(np.float32)
    if slope is None and intercept is None:
        if text_of(dataset, "Modality") == "CT":
            instance.note("rescale_missing")
        return values
    if slope is None or intercept is None:
        instance.note("rescale_incomplete", "RescaleSlope is missing" if slope is None else "RescaleIntercept is missing")
    slope, intercept = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
    if not (np.isfinite([slope, intercept]).all() and 1e-9 < abs(slope) < 1e6 and abs(intercept) < 1e7):
        instance.note("rescale_absurd", "RescaleSlope is 0" if slope == 0 else "")
        return values
    _check_hounsfield(instance, source, slope, intercept)
    if slope != 1:
        values *= np.float32(slope)
    if intercept != 0:
        values += np.float32(intercept)
    return values


def check_bits(instance: Instance) -> None:
    """HighBit against BitsStored, and data in the bits that no pixel uses; decoding masks those."""
    dataset = instance.dataset
    stored, allocated, high = (number_of(dataset, name) for name in ("BitsStored", "BitsAllocated", "HighBit"))
    if stored is None or high is None or high != stored - 1:
        instance.note("high_bit_unusual")
    # Overlays inside the pixel data were retired in 2004; their group still has a bit position (PS3.3 C.9.2).
    if stored is not None and allocated is not None and stored < allocated and _has_embedded_overlay(dataset, stored):
        instance.note("unused_bits_set", "an overlay")


def check_sign(instance: Instance, stored: NDArray[Any], padding: NDArray[np.bool_] | None) -> None:
    """Whether a CT's or MR's values look like signed ones read as unsigned, or the reverse: both ends full, the middle empty."""
    bits = int(number_of(instance.dataset, "BitsStored") or 0)
    if bits < _DEEP or stored.dtype.kind not in "iu" or text_of(instance.dataset, "Modality") not in {"CT", "MR"}:
        return
    signed = int(number_of(instance.dataset, "PixelRepresentation") or 0) == 1
    least, quarter = (-(2 ** (bits - 1)) if signed else 0), 2 ** (bits - 2)
    content = stored if padding is None else stored[~padding]
    if content.min() >= least + quarter or content.max() < least + 3 * quarter:
        return
    low, high = float((content < least + quarter).mean()), float((content >= least + 3 * quarter).mean())
    if min(low, high) > _POPULATED and low + high == 1:
        instance.note("sign_doubtful", f"{low:.0%} at the low end, {high:.0%} at the high end")


def _check_hounsfield(instance: Instance, source: Dataset, slope: float, intercept: float) -> None:
    dataset = instance.dataset
    if text_of(dataset, "Modality") != "CT":
        return
    if (text_of(source, "RescaleType") or text_of(dataset, "RescaleType")).upper() not in _HOUNSFIELD:
        instance.note("rescale_type_unexpected")
    elif slope < 0:
        instance.note("rescale_reversed")
    elif intercept >= 0 and int(number_of(dataset, "PixelRepresentation") or 0) == 0:
        instance.note("rescale_without_negative", "unsigned pixels and no negative RescaleIntercept")


def _has_embedded_overlay(dataset: Dataset, stored: float) -> bool:
    for group in range(0x6000, 0x6020, 2):
        position = dataset.get((group, 0x0102))
        if position is not None and (group, 0x3000) not in dataset and float(position.value or 0) >= stored:
            return True
    return False


def _as_stored(value: float, dataset: Dataset) -> float:
    """A padding value written as US although pixels are signed, as some files do, brought back to its sign."""
    bits = int(dataset.BitsAllocated)
    signed = int(number_of(dataset, "PixelRepresentation") or 0) == 1
    return value - 2**bits if signed and value >= 2 ** (bits - 1) else value
