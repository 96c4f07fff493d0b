"""Pixels whose header cannot be meant: every case scored with its finding, finite, and padding kept out of the intensities."""

import numpy as np
import pydicom
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from models.errors import ModelError
from models.findings import codes_of
from models.pixels import frames_of
from models.preprocessing import prepare
from models.spec import DicomWindow, FixedWindow, PercentileRange, PreprocessingSpec


def ct(pixels: np.ndarray | None = None, **changes: object) -> pydicom.FileDataset:
    """pydicom's CT with a window, or with other pixels; a change to None deletes the attribute."""
    made = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    made.WindowCenter, made.WindowWidth = "40", "400"
    if pixels is not None:
        made.Rows, made.Columns = pixels.shape
        made.PixelData = pixels.tobytes()
    for keyword, value in changes.items():
        if value is None:
            delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    return made


def codes(dataset: Dataset) -> set[str]:
    return set(codes_of(frames_of(dataset).findings))


def ramp(dtype: type = np.int16, low: int = -1000, high: int = 2000) -> np.ndarray:
    return np.linspace(low, high, 64 * 64).reshape(64, 64).astype(dtype)


def unsigned(pixels: np.ndarray, **changes: object) -> pydicom.FileDataset:
    made = ct(pixels, PixelRepresentation=0, BitsStored=16, HighBit=15, PixelPaddingValue=None)
    for keyword, value in changes.items():
        setattr(made, keyword, value)
    return made


def lut(**changes: object) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, 16])
    item.add_new("LUTData", "US", [16 * value for value in range(4096)])
    item.ModalityLUTType = "US"
    for keyword, value in changes.items():
        setattr(item, keyword, value)
    return item


def test_a_plain_ct_brings_no_finding():
    assert codes(ct()) == set()


@pytest.mark.parametrize(
    ("dataset", "found"),
    [
        (lambda: ct(RescaleSlope=None), {"rescale_incomplete"}),
        (lambda: ct(RescaleIntercept=None), {"rescale_incomplete"}),
        (lambda: ct(RescaleType="US"), set()),
        (lambda: ct(RescaleType="HU"), set()),
        (lambda: ct(RescaleType="Z_EFF"), {"rescale_type_unexpected"}),
        (lambda: unsigned(ramp(np.uint16, 0, 3000), RescaleIntercept="0"), {"rescale_without_negative"}),
        (lambda: unsigned(ramp(np.uint16, 0, 3000), RescaleIntercept="-1024"), set()),
        (lambda: unsigned(ramp().view(np.uint16), RescaleIntercept="-1024"), {"sign_doubtful"}),
        (lambda: unsigned(ramp(np.uint16, 0, 65535), RescaleIntercept="-1024"), set()),
        (lambda: ct(ModalityLUTSequence=Sequence([lut()]), WindowWidth="60000"), {"modality_lut_and_rescale"}),
        (lambda: ct(HighBit=11), {"high_bit_unusual"}),
        (lambda: ct(HighBit=None), {"high_bit_unusual"}),
        (lambda: ct(WindowCenter=["40", "300"], WindowWidth=["400", "1500"]), {"several_windows"}),
        (lambda: ct(WindowCenter="nan"), {"window_absurd"}),
        (lambda: ct(WindowWidth="-1"), {"window_absurd"}),
        (lambda: ct(WindowCenter="-20000", WindowWidth="10"), {"window_outside_values"}),
        (lambda: ct(WindowWidth="1e9"), {"window_outside_values"}),
        (lambda: ct(WindowWidth="1e9", VOILUTFunction="SIGMOID"), {"window_outside_values"}),
        (lambda: ct(WindowWidth="65535"), set()),
        (lambda: ct(RescaleSlope="-1", WindowCenter="-2000", WindowWidth="3000"), {"rescale_reversed"}),
        (lambda: ct(RescaleSlope="-1", WindowCenter="-2000", WindowWidth="3000", Modality="MR"), set()),
        (lambda: ct(PresentationLUTShape="IDENTITY"), set()),
        (lambda: ct(PresentationLUTShape="INVERSE"), {"polarity_contradicted"}),
        (lambda: ct(PresentationLUTShape="INVERSE", PhotometricInterpretation="MONOCHROME1"), set()),
        (lambda: ct(PresentationLUTShape="IDENTITY", PhotometricInterpretation="MONOCHROME1"), {"polarity_contradicted"}),
        (lambda: ct(PixelPaddingValue=5, PixelData=b"\x05\x00" * 128 * 128), {"only_padding", "constant_image"}),
        (lambda: ct(PixelPaddingValue=-32768, PixelPaddingRangeLimit=32767), {"only_padding"}),
    ],
)
def test_each_doubtful_header_has_its_finding(dataset, found):
    assert codes(dataset()) == found


def test_an_image_of_padding_almost_alone_is_doubtful():
    pixels = np.full((64, 64), -2000, np.int16)
    pixels[30:34, 30:34] = np.arange(16).reshape(4, 4)
    made = ct(pixels, PixelPaddingValue=-2000)
    assert codes(made) >= {"mostly_padding"}


def test_an_overlay_in_the_high_bits_is_masked_and_noted():
    pixels = ramp(np.uint16, 0, 4000)
    plain = unsigned(pixels, BitsStored=12, HighBit=11, RescaleIntercept="-1024")
    drawn = pixels.copy()
    drawn[:8] |= 1 << 12
    marked = unsigned(drawn, BitsStored=12, HighBit=11, RescaleIntercept="-1024")
    marked.add_new((0x6000, 0x0100), "US", 16)
    marked.add_new((0x6000, 0x0102), "US", 12)
    np.testing.assert_array_equal(frames_of(marked).values, frames_of(plain).values)
    assert codes(plain) == set()
    assert codes(marked) == {"unused_bits_set"}


def test_the_modality_lut_goes_before_the_rescale():
    made = unsigned(ramp(np.uint16, 0, 4000), RescaleSlope="3", ModalityLUTSequence=Sequence([lut()]))
    np.testing.assert_array_equal(frames_of(made).values[0], 16 * pixel_array(made).astype(np.float32))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("intensity", [PercentileRange(low=0, high=100), DicomWindow(), FixedWindow(center=500, width=1000)])
def test_padding_is_black_and_changes_no_other_pixel(photometric, intensity):
    pixels = ramp(np.int16, 0, 1000)
    padded = pixels.copy()
    padded[:16] = -2000
    common = {"RescaleIntercept": "0", "WindowCenter": "500", "WindowWidth": "1000", "PhotometricInterpretation": photometric}
    spec = PreprocessingSpec(size=(64, 64), intensity=intensity, mean=0.0, std=1.0)
    found = prepare(frames_of(ct(padded, PixelPaddingValue=-2000, **common)), spec).tensor[0, 0]
    alone = prepare(frames_of(ct(pixels[16:].copy(), **common)), spec.model_copy(update={"size": (48, 64)})).tensor[0, 0]
    assert not found[:16].any()
    torch.testing.assert_close(found[16:], alone)


def test_a_range_of_padding_is_masked():
    pixels = ramp(np.int16, 0, 1000)
    pixels[:10], pixels[10:20] = -1999, -2010
    made = ct(pixels, PixelPaddingValue=-2020, PixelPaddingRangeLimit=-1990)
    [frame] = frames_of(made).frames
    assert frame.padding is not None
    assert frame.padding[:20].all()
    assert not frame.padding[20:].any()


TEXTS = ["", "0", "-1", "1e39", "1e400", "nan", "inf", "-inf", "x", "1e-300", "65536", "-70000", "1\\2\\3", "\\"]
KEYWORDS = [
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "PresentationIntentType",
    "Modality",
    "NumberOfFrames",
]
NUMBERS = ["PixelPaddingValue", "PixelPaddingRangeLimit", "BitsStored", "HighBit", "PixelRepresentation"]


@settings(deadline=None, max_examples=200)
@given(
    texts=st.dictionaries(st.sampled_from(KEYWORDS), st.sampled_from(TEXTS), max_size=5),
    numbers=st.dictionaries(st.sampled_from(NUMBERS), st.sampled_from([0, 1, 7, 11, 12, 15, 16, 32768, 65535]), max_size=3),
    intensity=st.sampled_from([DicomWindow(), PercentileRange(), FixedWindow(center=40, width=400)]),
)
def test_absurd_tags_give_a_finite_tensor_or_a_reason(texts, numbers, intensity):
    made = ct()
    for keyword, text in texts.items():
        tag = Tag(tag_for_keyword(keyword))
        made[tag] = RawDataElement(tag, dictionary_VR(tag), len(text), text.encode(), 0, False, True)
    for keyword, number in numbers.items():
        made.add_new(keyword, "US", number)
    spec = PreprocessingSpec(size=(32, 32), intensity=intensity, slices="evenly", max_images=2)
    try:
        prepared = prepare(frames_of(made), spec)
    except ModelError:
        return
    assert torch.isfinite(prepared.tensor).all()
    assert float(prepared.tensor.min()) >= -2 - 1e-4
    assert float(prepared.tensor.max()) <= 2 + 1e-4
