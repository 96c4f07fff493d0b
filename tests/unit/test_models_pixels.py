"""Real DICOM files become the right values, and what cannot be decoded is an error and never an image."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing, pixel_array
from pydicom.sequence import Sequence

from models.errors import UnreadableImage
from models.findings import codes_of
from models.pixels import frames_of, read_frames
from models.voi import LookupTable, Window


def shipped(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    assert path is not None, f"{name} is not in pydicom's wheel"
    return Path(str(path))


def dataset(name: str = "CT_small.dcm") -> pydicom.FileDataset:
    return pydicom.dcmread(shipped(name))


def test_ct_is_in_hounsfield_units():
    ct = dataset()
    expected = apply_modality_lut(pixel_array(ct), ct)
    frames = read_frames(shipped("CT_small.dcm"))
    np.testing.assert_allclose(frames.values[0], expected)
    assert frames.values.dtype == np.float32
    assert frames.facets["Manufacturer"] == "GE MEDICAL SYSTEMS"


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
    ],
)
def test_every_lossless_transfer_syntax_gives_the_same_values(name):
    np.testing.assert_array_equal(read_frames(shipped(name)).values, read_frames(shipped("MR_small.dcm")).values)


@settings(deadline=None, max_examples=60)
@given(
    center=st.floats(-1500, 3000),
    width=st.floats(1, 4000),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
)
def test_windows_equal_pydicoms_scaled_to_one(center, width, function):
    ct = dataset()
    ct.WindowCenter, ct.WindowWidth, ct.VOILUTFunction = center, width, function
    values = np.linspace(-2000, 4000, 997, dtype=np.float32)
    bottom, top = (stored * ct.RescaleSlope + ct.RescaleIntercept for stored in (-(2**15), 2**15 - 1))
    reference = (apply_windowing(values, ct) - bottom) / (top - bottom)
    # At a step as narrow as one value float32 and float64 may fall on different sides.
    near_step = np.abs(values - center) < 1
    shown = Window(center, width, function).apply(values)
    np.testing.assert_allclose(shown[~near_step], reference[~near_step], atol=2e-3)
    assert 0 <= shown.min() <= shown.max() <= 1


def test_a_voi_table_equals_pydicoms():
    ct = dataset()
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [300, 900, 12])
    item.add_new("LUTData", "US", [min(13 * step, 4095) for step in range(300)])
    ct.VOILUTSequence = Sequence([item])
    values = frames_of(ct).frames[0]
    assert isinstance(values.voi, LookupTable)
    expected = apply_voi(values.values.astype(np.int32), ct) / 4095
    np.testing.assert_allclose(values.display(values.voi), expected, atol=1e-6)


def test_monochrome1_is_the_negative_of_monochrome2():
    plain, inverted = dataset(), dataset()
    for each in (plain, inverted):
        each.WindowCenter, each.WindowWidth = 40, 400
    inverted.PhotometricInterpretation = "MONOCHROME1"
    np.testing.assert_allclose(frames_of(inverted).display, 1 - frames_of(plain).display, atol=1e-6)


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_dcmtk.dcm", "SC_ybr_full_422_uncompressed.dcm", "examples_palette.dcm"])
def test_colour_becomes_luminance_with_a_finding(name):
    frames = read_frames(shipped(name), [0])
    assert frames.values.ndim == 3
    assert "colour_converted" in codes_of(frames.findings)
    assert 0 <= frames.display.min() < frames.display.max() <= 1


def test_luminance_of_pure_colours():
    colours = dataset("SC_rgb_jpeg_dcmtk.dcm")
    rgb = pixel_array(colours).astype(float)
    np.testing.assert_allclose(frames_of(colours).values[0], rgb @ [0.299, 0.587, 0.114], rtol=1e-4, atol=1e-2)


def test_only_the_asked_frames_of_a_multi_frame_file_are_given_in_order():
    every = read_frames(shipped("rtdose.dcm"))
    some = read_frames(shipped("rtdose.dcm"), [9, 2])
    assert len(every) == 15
    np.testing.assert_array_equal(some.values, every.values[[9, 2]])
    with pytest.raises(UnreadableImage, match="15 frames"):
        read_frames(shipped("rtdose.dcm"), [15])


def enhanced() -> pydicom.FileDataset:
    """Two frames with their own rescale and window, as an enhanced MR object carries them (PS3.3 C.7.6.16)."""
    mr = dataset("MR_small.dcm")
    pixels = mr.pixel_array
    mr.NumberOfFrames = 2
    mr.PixelData = np.stack([pixels, pixels]).tobytes()
    for keyword in ("WindowCenter", "WindowWidth"):
        if keyword in mr:
            delattr(mr, keyword)
    groups = []
    for slope, intercept, center in ((1, 0, 600), (2, -100, 1100)):
        rescale, window, group = Dataset(), Dataset(), Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept = slope, intercept
        window.WindowCenter, window.WindowWidth = center, 1600 * slope
        group.PixelValueTransformationSequence = Sequence([rescale])
        group.FrameVOILUTSequence = Sequence([window])
        groups.append(group)
    mr.PerFrameFunctionalGroupsSequence = Sequence(groups)
    return mr


def test_an_enhanced_object_uses_each_frames_own_rescale_and_window():
    frames = frames_of(enhanced())
    np.testing.assert_allclose(frames.values[1], 2 * frames.values[0] - 100)
    assert [frame.voi for frame in frames.frames] == [Window(600, 1600), Window(1100, 3200)]


def test_padding_takes_the_darkest_shade_of_the_image():
    ct = dataset()
    pixels = pixel_array(ct).copy()
    pixels[:40] = -2000
    ct.PixelData = pixels.tobytes()
    ct.add_new("PixelPaddingValue", "SS", -2000)
    values = frames_of(ct).values[0]
    least = float(pixels[40:].min()) * ct.RescaleSlope + ct.RescaleIntercept
    assert (values[:40] == least).all()
    ct.add_new("PixelPaddingValue", "US", 65536 - 2000)
    np.testing.assert_array_equal(frames_of(ct).values[0], values)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"RescaleSlope": "0"}, "rescale_absurd"),
        ({"RescaleIntercept": "1e12"}, "rescale_absurd"),
        ({"RescaleSlope": None, "RescaleIntercept": None}, "rescale_missing"),
        ({"WindowCenter": "40", "WindowWidth": "0"}, "window_absurd"),
        ({"WindowCenter": "40", "WindowWidth": "-400"}, "window_absurd"),
        ({"WindowCenter": "40", "WindowWidth": "400", "VOILUTFunction": "CUBIC"}, "window_absurd"),
        ({"WindowCenter": "40", "WindowWidth": None}, "window_absurd"),
        ({"WindowCenter": "90000", "WindowWidth": "100"}, "window_outside_values"),
        ({"WindowCenter": None, "WindowWidth": None}, "window_missing"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "for_processing"),
        ({"PixelData": b"\x01\x00" * 128 * 128}, "constant_image"),
        ({"PixelData": b"\x01\x00" * 128 * 129}, "pixel_data_excess"),
    ],
)
def test_doubts_are_findings(change, finding):
    ct = dataset()
    ct.WindowCenter, ct.WindowWidth = "40", "400"
    assert finding not in codes_of(frames_of(ct).findings)
    for keyword, value in change.items():
        if value is None:
            delattr(ct, keyword)
        else:
            setattr(ct, keyword, value)
    frames = frames_of(ct)
    assert finding in codes_of(frames.findings)
    assert np.isfinite(frames.display).all()


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PixelData", b""),
        ("PixelData", b"\x01\x00" * 100),
        ("Rows", 0),
        ("Rows", 65535),
        ("NumberOfFrames", "4"),
        ("NumberOfFrames", "2000000000"),
        ("BitsAllocated", 7),
        ("PhotometricInterpretation", "NONSENSE"),
        ("SamplesPerPixel", 3),
    ],
)
def test_pixels_that_do_not_fit_their_header_are_unreadable(keyword, value):
    ct = dataset()
    setattr(ct, keyword, value)
    with pytest.raises(UnreadableImage):
        frames_of(ct)


@pytest.mark.parametrize("keyword", ["PixelData", "Rows", "BitsAllocated", "PhotometricInterpretation", "SamplesPerPixel"])
def test_a_missing_image_attribute_is_unreadable(keyword):
    ct = dataset()
    delattr(ct, keyword)
    with pytest.raises(UnreadableImage):
        frames_of(ct)


@pytest.mark.parametrize(
    "name", ["MR_small_RLE.dcm", "JPEG2000.dcm", "MR_small_jpeg_ls_lossless.dcm", "JPGExtended.dcm", "SC_rgb_jpeg_dcmtk.dcm"]
)
@pytest.mark.parametrize("kept", [0.3, 0.95])
def test_a_cut_codestream_is_unreadable_and_not_half_grey(name, kept):
    cut = dataset(name)
    frame = next(generate_frames(cut.PixelData, number_of_frames=1))
    cut.PixelData = encapsulate([frame[: int(len(frame) * kept)]])
    with pytest.raises(UnreadableImage):
        frames_of(cut)


@pytest.mark.parametrize("name", ["MR_truncated.dcm", "rtplan.dcm", "test-SR.dcm", "no_meta.dcm", "README.txt"])
def test_files_without_a_whole_image_are_unreadable(name):
    with pytest.raises(UnreadableImage):
        read_frames(shipped(name))


@pytest.mark.parametrize("coding", ["RLE", "implicit", "jp2klossless"])
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.tuples(st.integers(132, 6500), st.integers(0, 255)), min_size=1, max_size=12))
def test_a_damaged_file_gives_finite_values_or_unreadable(tmp_path, coding, places):
    content = bytearray(shipped(f"MR_small_{coding}.dcm").read_bytes())
    for place, byte in places:
        content[place % len(content)] = byte
    path = tmp_path / "damaged.dcm"
    path.write_bytes(content)
    try:
        frames = read_frames(path)
    except UnreadableImage:
        return
    assert np.isfinite(frames.values).all()


def test_a_decoder_that_panics_is_unreadable(monkeypatch):
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})

    def decode(*_: object, **__: object) -> None:
        raise panic

    monkeypatch.setattr("models.pixels.pixel_array", decode)
    with pytest.raises(UnreadableImage, match="PanicException"):
        frames_of(dataset())


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_request_to_stop_is_no_damaged_file(monkeypatch, stop):
    def decode(*_: object, **__: object) -> None:
        raise stop

    monkeypatch.setattr("models.pixels.pixel_array", decode)
    with pytest.raises(stop):
        frames_of(dataset())


def test_a_file_that_is_gone_says_nothing_about_its_image(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_frames(tmp_path / "gone.dcm")


def test_the_reason_never_quotes_the_header():
    ct = dataset()
    ct.PatientName = "SECRET^PERSON"
    ct.PhotometricInterpretation = "SECRET"
    with pytest.raises(UnreadableImage) as caught:
        frames_of(ct)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_facets_leave_out_a_value_that_carries_identity():
    ct = dataset()
    ct.PatientName, ct.PatientID = "Miller^Anna", "4711-77"
    ct.StationName, ct.ManufacturerModelName, ct.ConvolutionKernel = "for MILLER", "Model 4711-77", "B30f"
    facets = frames_of(ct).facets
    assert facets["ConvolutionKernel"] == "B30f"
    assert not {"StationName", "ManufacturerModelName", "PatientName", "PatientID"} & set(facets)
