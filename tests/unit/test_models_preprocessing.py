"""One path from files or arrays to tensors: ordering, choice of slices, intensities, geometry."""

import tracemalloc
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

from models.errors import UnreadableImage, UnsuitableStudy
from models.findings import Finding
from models.frames import Frame, Frames
from models.preprocessing import load_study, prepare
from models.slices import choose
from models.spec import DicomWindow, FixedWindow, PercentileRange, PreprocessingSpec, SelectionRule

PLAIN = PreprocessingSpec(size=(16, 16), intensity=FixedWindow(center=50, width=100), mean=0.0, std=1.0)


def write_slice(folder: Path, number: int, position: float, level: int, **attributes: object) -> Path:
    """A 16 x 16 axial CT slice, level Hounsfield units everywhere but in one corner."""
    ct = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    pixels = np.full((16, 16), level, dtype=np.int16)
    pixels[0, 0] = level + 1
    ct.Rows, ct.Columns, ct.PixelData = 16, 16, pixels.tobytes()
    ct.RescaleSlope, ct.RescaleIntercept = 1, 0
    ct.SOPInstanceUID = ct.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ct.InstanceNumber = number
    ct.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ct.ImageOrientationPatient, ct.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, position]
    del ct.PixelPaddingValue
    for keyword, value in attributes.items():
        setattr(ct, keyword, value)
    path = folder / f"{generate_uid()}.dcm"
    ct.save_as(path)
    return path


def levels(tensor: torch.Tensor) -> list[int]:
    return [round(float(image[0, 8, 8]) * 100) for image in tensor]


@pytest.fixture
def series(tmp_path):
    """Nine slices at 0, 10 … 80 mm with levels 10 … 90, their instance numbers in another order."""
    return [
        write_slice(tmp_path, number, 10.0 * place, 10 + 10 * place) for number, place in enumerate([4, 8, 0, 2, 6, 1, 7, 3, 5])
    ]


def test_slices_are_ordered_by_position_not_by_number(series):
    spec = PLAIN.model_copy(update={"slices": "evenly", "max_images": 9})
    prepared = load_study(series, spec)
    assert levels(prepared.tensor) == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert prepared.codes == ()


@pytest.mark.parametrize(
    ("rule", "images", "expected"), [("middle", 1, [50]), ("evenly", 3, [20, 50, 80]), ("evenly", 2, [30, 70])]
)
def test_slice_rules(series, rule, images, expected):
    spec = PLAIN.model_copy(update={"slices": rule, "max_images": images})
    assert levels(load_study(series, spec).tensor) == expected


def test_a_study_for_a_single_image_model_says_what_it_left_out(series):
    prepared = load_study(series, PLAIN)
    assert levels(prepared.tensor) == [10]
    assert "extra_images_ignored" in prepared.codes


@settings(deadline=None)
@given(count=st.integers(1, 400), images=st.integers(1, 40))
def test_even_choices_are_distinct_ordered_and_stable(count, images):
    spec = PreprocessingSpec(slices="evenly", max_images=images)
    chosen, _ = choose(count, spec)
    assert len(chosen) == min(count, images)
    assert chosen == sorted(set(chosen))
    assert 0 <= chosen[0] <= chosen[-1] < count
    assert choose(len(chosen), spec)[0] == list(range(len(chosen)))


def test_localisers_are_skipped_and_alone_are_no_study(tmp_path, series):
    scout = write_slice(tmp_path, 0, -500.0, 99, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    spec = PLAIN.model_copy(update={"slices": "evenly", "max_images": 20})
    assert len(load_study([scout, *series], spec).tensor) == 9
    with pytest.raises(UnsuitableStudy):
        load_study([scout], spec)


def test_the_largest_fitting_series_is_taken(tmp_path, series):
    other = [write_slice(tmp_path, 1, 0.0, 5, SeriesInstanceUID=generate_uid(), SeriesDescription="bone") for _ in range(2)]
    spec = PLAIN.model_copy(update={"slices": "middle"})
    prepared = load_study([*other, *series], spec)
    assert levels(prepared.tensor) == [50]
    assert "several_series" in prepared.codes
    assert levels(load_study([*other, *series], spec, SelectionRule(description_contains="BONE")).tensor) == [5]
    with pytest.raises(UnsuitableStudy):
        load_study(series, spec, SelectionRule(modalities=("MR",)))


def test_a_damaged_file_of_a_study_is_an_error(tmp_path, series):
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(series[0].read_bytes()[:700])
    with pytest.raises((UnreadableImage, UnsuitableStudy)):
        load_study([broken], PLAIN)
    series[4].write_bytes(series[4].read_bytes()[:-400])
    with pytest.raises(UnreadableImage):
        load_study(series, PLAIN.model_copy(update={"slices": "evenly", "max_images": 9}))


def test_an_image_that_lost_its_size_is_an_error_and_a_report_is_passed_over(tmp_path, series):
    spec = PLAIN.model_copy(update={"slices": "middle"})
    report = Path(str(get_testdata_file("test-SR.dcm", download=False)))
    assert levels(load_study([report, *series], spec).tensor) == [50]
    with pytest.raises(UnsuitableStudy):
        load_study([report], spec)
    lost = write_slice(tmp_path, 1, 0.0, 5)
    image = pydicom.dcmread(lost)
    del image.Rows
    image.save_as(lost)
    for paths in ([lost], [lost, *series]):
        with pytest.raises(UnreadableImage, match="no Rows"):
            load_study(paths, spec)


def test_frames_of_an_enhanced_object_are_ordered_by_their_planes(tmp_path):
    path = write_slice(tmp_path, 1, 0.0, 0)
    enhanced = pydicom.dcmread(path)
    enhanced.NumberOfFrames = 3
    enhanced.PixelData = np.stack([np.full((16, 16), level, dtype=np.int16) for level in (70, 30, 50)]).tobytes()
    groups = []
    for place in (2.0, 0.0, 1.0):
        plane, orientation, group = Dataset(), Dataset(), Dataset()
        plane.ImagePositionPatient, orientation.ImageOrientationPatient = [0, 0, place], [1, 0, 0, 0, 1, 0]
        group.PlanePositionSequence, group.PlaneOrientationSequence = Sequence([plane]), Sequence([orientation])
        groups.append(group)
    enhanced.PerFrameFunctionalGroupsSequence = Sequence(groups)
    enhanced.save_as(path)
    assert levels(load_study([path], PLAIN.model_copy(update={"slices": "evenly", "max_images": 3})).tensor) == [30, 50, 70]


def test_uneven_slices_are_a_finding(tmp_path, series):
    spec = PLAIN.model_copy(update={"slices": "middle"})
    assert load_study([*series, write_slice(tmp_path, 99, 86.0, 50)], spec).codes == ("slice_distance_uneven",)
    assert load_study(series[1:], spec).codes == ("slice_gap",)


def test_a_volume_keeps_order_and_takes_the_asked_depth(series):
    spec = PLAIN.model_copy(update={"size": (3, 16, 16)})
    tensor = load_study(series, spec).tensor
    assert tensor.shape == (1, 1, 3, 16, 16)
    assert [round(float(plane[8, 8]) * 100) for plane in tensor[0, 0]] == [20, 50, 80]


def test_a_volume_of_different_slice_sizes_is_unsuitable():
    frames = Frames(tuple(Frame(np.ones((size, size), dtype=np.float32)) for size in (16, 32)))
    with pytest.raises(UnsuitableStudy, match="differ in size"):
        prepare(frames, PLAIN.model_copy(update={"size": (2, 16, 16)}))


def test_dicom_and_array_give_the_same_tensor(tmp_path):
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (48, 40)).astype(np.int16)
    ct = pydicom.dcmread(write_slice(tmp_path, 1, 0.0, 0))
    ct.Rows, ct.Columns, ct.PixelData = 48, 40, pixels.tobytes()
    ct.WindowCenter, ct.WindowWidth, ct.VOILUTFunction = 127.5, 255, "LINEAR_EXACT"
    ct.save_as(tmp_path / "one.dcm")
    for intensity in (DicomWindow(), PercentileRange()):
        spec = PreprocessingSpec(size=(32, 32), channels=3, intensity=intensity)
        stored = load_study([tmp_path / "one.dcm"], spec).tensor
        assert stored.shape == (1, 3, 32, 32)
        torch.testing.assert_close(stored, prepare(Frames.from_array(pixels, (0, 255)), spec).tensor)


def test_a_missing_window_falls_back_to_percentiles_and_says_so():
    image = np.linspace(0, 1000, 64 * 64, dtype=np.float32).reshape(64, 64)
    frames = Frames((Frame(image),), (Finding("window_missing"),))
    window = prepare(frames, PreprocessingSpec(size=(64, 64)))
    percentile = prepare(frames, PreprocessingSpec(size=(64, 64), intensity=PercentileRange()))
    torch.testing.assert_close(window.tensor, percentile.tensor)
    assert window.codes == ("window_missing",)
    assert percentile.codes == ()


def test_percentiles_do_not_depend_on_the_scale_of_the_values():
    image = np.random.default_rng(0).normal(100, 20, (40, 40)).astype(np.float32)
    spec = PreprocessingSpec(size=(32, 32), intensity=PercentileRange())
    torch.testing.assert_close(
        prepare(Frames.from_array(image), spec).tensor,
        prepare(Frames.from_array(image * 7 - 300), spec).tensor,
        atol=1e-4,
        rtol=1e-4,
    )


def test_an_inverted_image_is_inverted_under_every_intensity():
    image = np.random.default_rng(0).uniform(0, 100, (16, 16)).astype(np.float32)
    for intensity in (FixedWindow(center=50, width=100), PercentileRange(low=1, high=99)):
        spec = PLAIN.model_copy(update={"intensity": intensity})
        plain, inverted = (prepare(Frames((Frame(image, inverted=flag),)), spec).tensor for flag in (False, True))
        torch.testing.assert_close(inverted, 1 - plain, atol=1e-5, rtol=1e-5)


def test_pad_keeps_the_aspect_ratio_and_stretch_does_not():
    image = np.full((10, 40), 100, dtype=np.float32)
    padded = prepare(Frames.from_array(image), PLAIN).tensor[0, 0]
    assert float(padded[8, 8]) == pytest.approx(1)
    assert float(padded[0].max()) == float(padded[-1].max()) == 0
    assert float(padded.mean()) == pytest.approx(4 / 16)
    stretched = prepare(Frames.from_array(image), PLAIN.model_copy(update={"fit": "stretch"})).tensor
    assert float(stretched.min()) == pytest.approx(1)


def test_normalisation_is_mean_and_std_of_the_display_range():
    spec = PLAIN.model_copy(update={"mean": 0.5, "std": 0.25})
    assert float(prepare(Frames.from_array(np.full((16, 16), 100.0)), spec).tensor.mean()) == pytest.approx(2.0)


def test_no_frames_is_unsuitable():
    with pytest.raises(UnsuitableStudy):
        prepare(Frames(()), PLAIN)


def test_a_long_series_is_not_held_decoded_as_a_whole(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 1000, (256, 256)).astype(np.int16)
    common = {"Rows": 256, "Columns": 256, "PixelData": pixels.tobytes()}
    paths = [write_slice(tmp_path, number, 2.0 * number, 0, **common) for number in range(60)]
    spec = PreprocessingSpec(size=(16, 32, 32), intensity=PercentileRange())
    load_study(paths[:2], spec)
    tracemalloc.start()
    try:
        load_study(paths, spec)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # As float32 the decoded slices would be 60 x 256 KiB = 15 MiB.
    assert peak < 6 * 2**20
