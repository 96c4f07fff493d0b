"""Which images of a study are scored and in what order, and that every doubt about it has its finding."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, MRImageStorage, SecondaryCaptureImageStorage, SegmentationStorage

from models.errors import NotSelected, UnreadableImage
from models.findings import CODES, Finding, Severity, codes_of, is_doubt, merged
from models.headers import Header, header_of
from models.series import Series, reason_to_skip, series_from
from models.spec import SelectionRule

ROOT = Path(__file__).parents[2]
AXIAL = [1, 0, 0, 0, 1, 0]


def dataset(number: int, position: object, **changes: object) -> Dataset:
    """The header of one axial CT slice; a change to None deletes the attribute."""
    made = Dataset()
    attributes: dict[str, object] = {
        "SOPClassUID": CTImageStorage,
        "Modality": "CT",
        "SeriesInstanceUID": "1.2.3",
        "InstanceNumber": number,
        "Rows": 16,
        "Columns": 16,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "ImageOrientationPatient": AXIAL,
        "ImagePositionPatient": [0, 0, position] if isinstance(position, int | float) else position,
        "PixelSpacing": [1, 1],
    } | changes
    for keyword, value in attributes.items():
        if value is not None:
            setattr(made, keyword, value)
    return made


def header(number: int, position: object, **changes: object) -> Header:
    # The name says nothing about the order.
    return header_of(Path(f"{(number * 7919) % 1000:03d}-{position}-{len(changes)}.dcm"), dataset(number, position, **changes))


def stack(count: int = 8, distance: float = 5.0, **changes: object) -> list[Header]:
    return [header(number, number * distance, **changes) for number in range(1, count + 1)]


def places(series: Series) -> list[float]:
    return [round(float(each.plane.origin[2]), 3) for each in series.slices if each.plane is not None]


def details(series: Series) -> dict[str, str]:
    return {finding.code: finding.detail for finding in series.findings}


def test_a_plain_series_has_no_findings():
    series = series_from(reversed(stack()))
    assert places(series) == [5, 10, 15, 20, 25, 30, 35, 40]
    assert series.findings == ()


REPEATED = [header(number + 8 * echo, number * 5.0, EchoTime=10 * echo + 8) for echo in (0, 1) for number in range(1, 9)]
TIMES = [header(number, number * 5.0, TemporalPositionIdentifier=time) for time in (1, 2, 3) for number in range(1, 9)]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (stack()[:3] + stack()[4:], {"slice_gap": "1 missing at 1 places; usual distance 5.00 mm"}),
        ([*stack(), header(9, 42.0)], {"slice_distance_uneven": "2.00 to 5.00 mm"}),
        ([header(n, z) for n, z in enumerate([0, 5, 10, 15, 25, 35, 45])], {"slice_distance_uneven": "5.00 to 10.00 mm"}),
        ([*stack(), header(99, 20.0)], {"duplicate_positions": "1 images beyond the first of their place"}),
        (REPEATED, {"several_acquisitions": "up to 2 at one place, told apart by EchoTime"}),
        (TIMES, {"several_acquisitions": "up to 3 at one place, told apart by TemporalPositionIdentifier"}),
        ([*stack(), header(50, 20.0, ImageOrientationPatient=[0, 1, 0, 0, 0, -1])], {"mixed_orientations": None}),
        ([*stack(7), header(8, 40.0, PixelSpacing=[2, 2])], {"mixed_pixel_spacings": ""}),
        ([*stack(7), header(8, 40.0, PixelSpacing=None)], {"mixed_pixel_spacings": ""}),
        ([*stack(7), header(8, 40.0, Rows=32)], {"mixed_image_sizes": "2 sizes"}),
        ([*stack(7), header(8, 40.0, PhotometricInterpretation="MONOCHROME1")], {"mixed_photometric": "2 interpretations"}),
        ([*stack(7), header(8, 40.0, RescaleIntercept="0")], {"mixed_rescales": "2 rescales"}),
        ([*stack(7), header(8, 40.0, RescaleSlope="10")], {"mixed_rescales": "2 rescales"}),
        ([*stack(7, Modality="MR"), header(8, 40.0, Modality="MR", RescaleSlope="10")], {}),
        ([*stack(7), header(8, None)], {"slice_positions_missing": "1 of 8 images have none"}),
        ([*stack(7), header(8, [0, 0, 9e9])], {"slice_positions_missing": "1 of 8 images have none"}),
        ([*stack(7), header(8, 40.0, ImageOrientationPatient=[0] * 6)], {"slice_positions_missing": "1 of 8 images have none"}),
        ([header(1, None), header(1, None, Columns=16, Rows=16, KVP="80")], {"slice_order_unknown": "InstanceNumber is repeated"}),
        ([header(1, None), header(2, None, InstanceNumber=None)], {"slice_order_unknown": "InstanceNumber is missing"}),
        ([*stack(), header(0, 0.0, SeriesInstanceUID="1.2.4")], {"several_series": "2 series"}),
        ([*stack(), header(0, 0.0, ImageType=["DERIVED", "SECONDARY", "MIP"])], {"derived_images_skipped": "1 images"}),
        ([*stack(), header(0, 0.0, SOPClassUID=SecondaryCaptureImageStorage)], {"derived_images_skipped": "1 images"}),
        (stack(ImageType=["DERIVED", "SECONDARY"]), {"only_derived_images": "8 images"}),
        (stack(ImageType=["DERIVED", "PRIMARY"]), {}),
        (stack(GantryDetectorTilt="12"), {"gantry_tilt_contradicted": "0.0 degrees by the positions, 12.0 by the header"}),
    ],
)
def test_doubts_about_a_series_are_findings(headers, expected):
    found = details(series_from(headers))
    assert found.keys() == expected.keys()
    assert all(found[code] == detail for code, detail in expected.items() if detail is not None)


def test_the_chosen_set_of_several_acquisitions_is_whole_and_the_first():
    assert [int(each.path.name.split("-")[0]) for each in series_from(REPEATED).slices] == [
        (number * 7919) % 1000 for number in range(1, 9)
    ]
    assert places(series_from(TIMES)) == [5, 10, 15, 20, 25, 30, 35, 40]


def test_each_slices_own_acquisition_number_is_no_several_acquisitions():
    headers = [header(number, number * 5.0, AcquisitionNumber=number) for number in range(1, 9)]
    assert series_from(headers).findings == ()
    doubled = details(series_from([*headers, header(99, 20.0, AcquisitionNumber=99)]))
    assert "duplicate_positions" in doubled


@pytest.mark.parametrize("stated", [None, "20"])
def test_a_tilted_gantry_shows_in_the_positions(stated):
    tilt = np.radians(20)
    axes = [1, 0, 0, 0, float(np.cos(tilt)), float(-np.sin(tilt))]
    headers = [header(n, [0, 0, 5.0 * n], ImageOrientationPatient=axes, GantryDetectorTilt=stated) for n in range(1, 9)]
    assert details(series_from(headers)) == {"gantry_tilt": "20.0 degrees"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localiser"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "screenshot or dose page"),
        ({"SOPClassUID": SegmentationStorage, "Modality": "SEG"}, "map or document"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.67", "Modality": "SR", "Rows": None}, "object without pixels"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.11.1", "Modality": "PR", "Rows": None}, "object without pixels"),
    ],
)
def test_what_is_no_image_for_a_model_is_passed_over_with_the_reason(changes, reason):
    other = header(0, 0.0, **changes)
    assert reason_to_skip(other) == reason
    assert len(series_from([other, *stack()]).slices) == 8
    with pytest.raises(NotSelected, match=f"1 x {reason}"):
        series_from([other])


def test_the_model_says_what_becomes_of_derived_images():
    derived = header(0, 0.0, ImageType=["DERIVED", "SECONDARY"])
    assert len(series_from([derived, *stack()], derived="always").slices) == 9
    assert series_from([derived, *stack()], derived="always").findings == ()
    assert len(series_from([derived, *stack()], derived="never").slices) == 8
    with pytest.raises(NotSelected, match="1 x derived image"):
        series_from([derived], derived="never")


def test_the_rule_is_asked_for_each_image():
    bone = [header(number, number * 5.0, SeriesDescription="BONE", SeriesInstanceUID="1.2.9") for number in range(1, 12)]
    series = series_from([*stack(), *bone], SelectionRule(description_contains="bone"))
    assert len(series.slices) == 11
    with pytest.raises(NotSelected, match="8 x not what the selection rule asks for"):
        series_from(stack(), SelectionRule(modalities=("MR",)))


def test_radiographs_belong_together_and_are_not_ordered_in_space():
    views = [header(n, None, Modality="DX", SeriesInstanceUID=f"1.2.{n}", ImageOrientationPatient=None) for n in (2, 1)]
    series = series_from(views)
    assert len(series.slices) == 2
    assert series.findings == ()


@pytest.mark.parametrize("intents", [("FOR PROCESSING", "FOR PRESENTATION"), ("FOR PRESENTATION", "FOR PROCESSING")])
def test_a_radiograph_for_presentation_goes_before_its_raw_image(intents):
    views = [header(n, None, Modality="DX", PresentationIntentType=intent) for n, intent in enumerate(intents, start=1)]
    series = series_from(views)
    assert [each.path for each in series.slices] == [views[intents.index("FOR PRESENTATION")].path]
    assert details(series) == {"raw_images_skipped": "1 images"}
    raw = [header(n, None, Modality="DX", PresentationIntentType="FOR PROCESSING") for n in (1, 2)]
    assert len(series_from(raw).slices) == 2


def enhanced(marks: list[tuple[float, int]]) -> Dataset:
    """An enhanced MR object: (place, temporal position) of each frame in its functional groups (PS3.3 C.7.6.16)."""
    made = dataset(1, None, SOPClassUID="1.2.840.10008.5.1.4.1.1.4.1", Modality="MR", NumberOfFrames=len(marks))
    groups = []
    for place, time in marks:
        plane, content, group = Dataset(), Dataset(), Dataset()
        plane.ImagePositionPatient = [0, 0, place]
        content.TemporalPositionIndex = time
        group.PlanePositionSequence, group.FrameContentSequence = Sequence([plane]), Sequence([content])
        groups.append(group)
    made.PerFrameFunctionalGroupsSequence = Sequence(groups)
    shared, orientation = Dataset(), Dataset()
    orientation.ImageOrientationPatient = AXIAL
    shared.PlaneOrientationSequence = Sequence([orientation])
    made.SharedFunctionalGroupsSequence = Sequence([shared])
    return made


def test_frames_of_an_enhanced_object_are_told_apart_by_their_functional_groups():
    marks = [(place, time) for time in (2, 1) for place in (30.0, 10.0, 20.0)]
    series = series_from([header_of(Path("enhanced.dcm"), enhanced(marks))])
    assert [each.frame for each in series.slices] == [4, 5, 3]
    assert details(series) == {"several_acquisitions": "up to 2 at one place, told apart by TemporalPositionIndex"}


def test_frames_that_the_header_does_not_describe_have_no_place():
    made = enhanced([(0.0, 1), (1.0, 1)])
    made.NumberOfFrames = 4
    series = series_from([header_of(Path("enhanced.dcm"), made)])
    assert [each.frame for each in series.slices] == [0, 1, 2, 3]
    assert details(series) == {"slice_positions_missing": "2 of 4 images have none"}


@settings(deadline=None, max_examples=60)
@given(data=st.data(), count=st.integers(1, 12))
def test_the_order_of_the_files_changes_nothing(data, count):
    place = st.sampled_from([0.0, 5.0, 10.0, 10.004, 15.0, 30.0]) | st.none()
    kind = st.sampled_from(
        [{}, {"EchoTime": 9}, {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, {"InstanceNumber": None}, {"Rows": 8}]
    )
    headers = [
        header_of(Path(f"{index}.dcm"), dataset(data.draw(st.integers(0, 5)), data.draw(place), **data.draw(kind)))
        for index in range(count)
    ]
    shuffled = data.draw(st.permutations(headers))
    assert series_from(shuffled).findings == series_from(headers).findings
    assert [each.path for each in series_from(shuffled).slices] == [each.path for each in series_from(headers).slices]


def _rotation(angles: tuple[float, float, float]) -> np.ndarray:
    found = np.eye(3)
    for angle, (first, second) in zip(angles, itertools.combinations(range(3), 2), strict=True):
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        found = turn @ found
    return found


@settings(deadline=None, max_examples=60)
@given(angles=st.tuples(*[st.floats(-3, 3)] * 3), step=st.floats(0.5, 12), count=st.integers(2, 20), seed=st.integers(0, 99))
def test_slices_lie_in_order_along_the_normal_however_the_patient_lies_and_backwards_when_it_is_reversed(angles, step, count, seed):
    turn = _rotation(angles)
    rows, columns, normal = turn
    shuffled = np.random.default_rng(seed).permutation(count)
    for first, second, expected in ((rows, columns, range(count)), (columns, rows, reversed(range(count)))):
        headers = [
            header(
                int(n) + 1, [float(v) for v in normal * step * n], ImageOrientationPatient=[*map(float, first), *map(float, second)]
            )
            for n in shuffled
        ]
        by_path = {each.path: (each.instance_number or 0) - 1 for each in headers}
        series = series_from(headers)
        handed = list(expected)
        # rows x columns is the normal for a rotation and its reverse for a reflection.
        if np.linalg.det(turn) < 0:
            handed.reverse()
        assert [by_path[each.path] for each in series.slices] == handed
        assert codes_of(series.findings) == ()


ABSURD = st.sampled_from(["", "0", "-1", "1e400", "nan", "inf", "-inf", "x", "1e-300", "999999999999", "1\\2", "\\", "1\\nan\\3"])


@settings(deadline=None, max_examples=150)
@given(
    changes=st.lists(
        st.dictionaries(
            st.sampled_from(
                [
                    "ImagePositionPatient",
                    "ImageOrientationPatient",
                    "PixelSpacing",
                    "InstanceNumber",
                    "GantryDetectorTilt",
                    "EchoTime",
                    "AcquisitionNumber",
                    "NumberOfFrames",
                    "Rows",
                ]
            ),
            ABSURD,
            max_size=4,
        ),
        min_size=1,
        max_size=5,
    )
)
def test_absurd_headers_are_an_order_with_findings_or_unreadable(changes):
    headers = []
    for number, change in enumerate(changes):
        made = dataset(number, number * 5.0)
        for keyword, text in change.items():
            made[keyword] = _raw(keyword, text)
        try:
            headers.append(header_of(Path(f"{number}.dcm"), made))
        except UnreadableImage:
            continue
    if not headers:
        return
    series = series_from(headers)
    assert 1 <= len(series.slices) <= sum(each.frames for each in headers)
    assert all(np.isfinite(each.plane.origin).all() for each in series.slices if each.plane is not None)
    assert not re.search("nan|inf", " ".join(finding.detail for finding in series.findings))


def _raw(keyword: str, text: str):
    """An element as a file holds it, its text not yet converted."""
    from pydicom.datadict import dictionary_VR, tag_for_keyword
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    tag = Tag(tag_for_keyword(keyword))
    return RawDataElement(tag, dictionary_VR(tag), len(text), text.encode(), 0, False, True)


def test_a_mr_magnitude_and_phase_pair_is_told_apart_by_its_image_type():
    kinds = [["ORIGINAL", "PRIMARY", kind] for kind in ("M", "P")]
    headers = [
        header(n + 20 * k, n * 4.0, ImageType=kind, SOPClassUID=MRImageStorage, Modality="MR")
        for k, kind in enumerate(kinds)
        for n in range(1, 6)
    ]
    assert details(series_from(headers)) == {"several_acquisitions": "up to 2 at one place, told apart by ImageType"}


def test_findings_are_a_closed_list_merged_by_code():
    with pytest.raises(ValueError, match="no finding's code"):
        Finding("something_else")
    found = merged([Finding("slice_gap"), Finding("constant_image"), Finding("slice_gap", "2 missing"), Finding("slice_gap", "3")])
    assert found == (Finding("slice_gap", "2 missing"), Finding("constant_image"))
    assert found[0].sentence() == "slices are missing inside the series (2 missing)"
    assert Finding("constant_image").severity is Severity.FAULT
    assert is_doubt("constant_image")
    assert is_doubt("a code of a later version")
    assert not is_doubt("several_windows")


def test_every_code_is_documented_with_its_severity_and_used():
    table = dict(re.findall(r"^\| `([a-z_0-9]+)` \| (note|doubt|fault) \|", (ROOT / "docs/models.md").read_text(), re.MULTILINE))
    assert table == {code: severity.value for code, (severity, _) in CODES.items()}
    source = "".join(file.read_text() for file in (ROOT / "models").glob("*.py") if file.name != "findings.py")
    assert [code for code in CODES if f'"{code}"' not in source] == []
