"""Results before they are sent: UIDs, states, the SR, the image. DCMTK reads what is written."""

import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom.data
import pytest
from highdicom.sr import srread
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.uid import generate_uid

from schemas.vocabulary import ResultState
from services.results.build import in_words
from services.results.capture import build_capture
from services.results.finding import NOT_FOR_DIAGNOSIS, Reference, Result
from services.results.header import read_header
from services.results.picture import HEIGHT, WIDTH, draw
from services.results.report import build_report
from services.results.states import TRANSITIONS, ResultEvent, after
from services.runtime.backoff import doubled
from services.runtime.errors import InvalidInput
from services.runtime.result_uids import is_result_uid, result_uid
from services.runtime.transitions import ImpossibleTransition
from tests.pacs_world import make_study

CT = "1.2.840.10008.5.1.4.1.1.2"
CHARSETS = Path(pydicom.data.__file__).parent / "charset_files"
SCORED = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)


def result_of(**changes):
    facts = {
        "study_uid": "1.2.3",
        "revision": 1,
        "model": "tumour-mr",
        "version": 3,
        "weights": "ab" * 32,
        "task": "tumour",
        "predicted": "glioma",
        "probabilities": {"glioma": 0.83, "none": 0.17},
        "findings": ("Doubt about the images: no window",),
        "scored_at": SCORED,
        "images": tuple(Reference(CT, f"1.2.3.1.{number}", "1.2.3.1") for number in range(1, 4)),
    }
    return Result(**facts | changes)


@pytest.fixture
def header(tmp_path):
    return read_header(make_study(tmp_path / "in", "header", count=1, accession_number="ACC-1")[0])


def written(dataset, path=None):
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    if path is not None:
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


# UIDs


@settings(deadline=None)
@given(st.lists(st.text(), min_size=1))
def test_result_uids_are_valid_stable_and_known_as_ours(parts):
    uid = result_uid(*parts)
    assert uid == result_uid(*parts)
    assert is_result_uid(uid)
    assert len(uid) <= 64
    assert pydicom.uid.UID(uid).is_valid


@settings(deadline=None)
@given(st.one_of(st.text(), st.uuids().map(lambda each: f"2.25.{each.int}"), st.integers(0).map(lambda each: f"2.25.{each}")))
def test_other_uids_are_not_ours(uid):
    assert not is_result_uid(uid)
    assert not is_result_uid(str(generate_uid()))


@pytest.mark.parametrize(
    "change", [{"study_uid": "1.2.4"}, {"revision": 2}, {"model": "other"}, {"version": 4}, {"weights": "cd" * 32}]
)
def test_uids_tell_results_apart(change):
    one, other = result_of(), result_of(**change)
    assert one.uid("SR") != other.uid("SR")
    assert (one.series_uid("SR") == other.series_uid("SR")) is ("revision" in change)
    assert one.uid("SR") != one.uid("SC")


# States


def test_every_state_leads_to_an_end_and_nothing_leaves_sent():
    assert {state for (state, _) in TRANSITIONS} == set(ResultState) - {ResultState.SENT}
    with pytest.raises(ImpossibleTransition):
        after(ResultState.SENT, ResultEvent.CLAIM)
    assert after(ResultState.GIVEN_UP, ResultEvent.REPLAY) is ResultState.QUEUED


@settings(deadline=None)
@given(st.integers(1, 10_000))
def test_delays_grow_and_stay_bounded(attempt):
    assert 30 <= doubled(attempt - 1, 30, 3600) <= doubled(attempt, 30, 3600) <= 3600
    assert doubled(0, 30, 3600) == 30
    assert doubled(2, 30, 3600) == 120


def test_the_default_delays_last_as_long_as_the_settings_say():
    from schemas.settings import ResultsSettings

    limits = ResultsSettings()
    waits = [doubled(number - 1, limits.first_delay_s, limits.longest_delay_s) for number in range(1, limits.max_attempts)]
    assert timedelta(days=2.3) < timedelta(seconds=sum(waits)) < timedelta(days=2.7)


# The SR


def test_the_report_says_what_was_found_by_whom_and_from_what(header):
    document = srread(BytesIO(written(build_report(result_of(), header))))
    (group,) = document.content.get_image_measurement_groups()
    assert group.finding_type.meaning == "glioma"
    assert group.finding_category.meaning == "tumour"
    assert [(each.name.meaning, float(each.value)) for each in group.get_measurements()] == [
        ("Probability of glioma", 0.83),
        ("Probability of none", 0.17),
    ]
    assert [each.referenced_sop_instance_uid for each in group.source_images] == [f"1.2.3.1.{number}" for number in (1, 2, 3)]
    texts = {item.name.meaning: item.value for item in group[0].ContentSequence if item.ValueType == "TEXT"}
    assert (texts["Algorithm Name"], texts["Algorithm Version"]) == ("tumour-mr", "3")
    assert "ab" * 32 in texts["Algorithm Parameters"]
    remarks = [item.value for item in group[0].ContentSequence if item.ValueType == "TEXT" and item.name.meaning == "Comment"]
    assert remarks == [NOT_FOR_DIAGNOSIS, "Revision 1 of the study.", "Doubt about the images: no window"]
    assert (document.VerificationFlag, document.PreliminaryFlag, document.CompletionFlag) == (
        "UNVERIFIED",
        "PRELIMINARY",
        "COMPLETE",
    )
    assert document.get_evidence() == [("1.2.3", "1.2.3.1", f"1.2.3.1.{number}", CT) for number in (1, 2, 3)]


def test_codes_of_the_site_are_used(header):
    coded = result_of(codes={"glioma": ("393564001", "SCT", "Glioma")})
    (group,) = srread(BytesIO(written(build_report(coded, header)))).content.get_image_measurement_groups()
    assert (group.finding_type.value, group.finding_type.scheme_designator) == ("393564001", "SCT")
    (group,) = srread(BytesIO(written(build_report(result_of(), header)))).content.get_image_measurement_groups()
    assert group.finding_type.scheme_designator == "99RECLAIM"
    assert len(group.finding_type.value) <= 16


@pytest.mark.dcmtk
@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="NOT TESTED with DCMTK: no dsrdump on PATH")
def test_dcmtk_reads_the_report(header, tmp_path):
    """dsrdump checks the relationships and value types of Comprehensive SR and refuses a document that breaks them."""
    written(build_report(result_of(), header), tmp_path / "sr.dcm")
    told = subprocess.run(["dsrdump", "+Pl", str(tmp_path / "sr.dcm")], capture_output=True, text=True, timeout=30, check=True)
    for expected in ("Imaging Measurement Report", "Probability of glioma", "tumour-mr", "no window", NOT_FOR_DIAGNOSIS):
        assert expected in told.stdout
    assert "E:" not in told.stderr


@pytest.mark.parametrize("build", [build_report, build_capture])
def test_the_same_result_makes_the_same_bytes(header, build):
    assert written(build(result_of(), header)) == written(build(result_of(), header))
    assert written(build(result_of(revision=2), header)) != written(build(result_of(), header))


@pytest.mark.parametrize("build", [build_report, build_capture])
def test_patient_and_study_are_those_of_the_archive(header, build):
    made = dcmread(BytesIO(written(build(result_of(), header))))
    assert (made.PatientName, made.PatientID, made.AccessionNumber) == ("Meier^Anna", "PAT-1", "ACC-1")
    assert made.StudyInstanceUID == header.StudyInstanceUID
    assert (made.ContentDate, made.ContentTime, made.TimezoneOffsetFromUTC) == ("20260302", "093000", "+0000")
    assert is_result_uid(made.SOPInstanceUID)
    assert is_result_uid(made.SeriesInstanceUID)


@pytest.mark.parametrize("name", ["chrH31.dcm", "chrRuss.dcm", "chrX2.dcm", "chrGerm.dcm", "chrArab.dcm", "chrI2.dcm"])
@pytest.mark.parametrize("build", [build_report, build_capture])
def test_names_in_any_character_set_arrive_as_unicode(name, build):
    source = dcmread(CHARSETS / name)
    made = dcmread(BytesIO(written(build(result_of(), read_header(CHARSETS / name)))))
    assert made.SpecificCharacterSet == "ISO_IR 192"
    assert str(made.PatientName) == str(source.PatientName) != ""


def test_times_are_in_the_study_s_own_zone(tmp_path):
    (path,) = make_study(tmp_path, "zone", count=1)
    dataset = dcmread(path)
    dataset.TimezoneOffsetFromUTC = "-0930"
    dataset.save_as(path)
    made = build_capture(result_of(), read_header(path))
    assert (made.ContentDate, made.ContentTime) == ("20260302", "000000")


def test_a_header_with_faults_is_used_as_far_as_it_goes(tmp_path, recwarn):
    (path,) = make_study(tmp_path, "faults", count=1)
    dataset = dcmread(path)
    from pydicom import config
    from pydicom.dataelem import DataElement

    for keyword, vr, value in (
        ("PatientSex", "CS", "weiblich"),
        ("PatientBirthDate", "DA", "1.4.1950"),
        ("StudyDate", "DA", "gestern!"),
    ):
        dataset[keyword] = DataElement(pydicom.tag.Tag(keyword), vr, value, validation_mode=config.IGNORE)
    dataset[0x00101030] = DataElement(0x00101030, "DS", b"heavy", validation_mode=config.IGNORE, already_converted=True)
    dataset.save_as(path)
    made = dcmread(BytesIO(written(build_report(result_of(), read_header(path)))))
    assert (made.PatientSex, made.PatientBirthDate) == ("weiblich", "1.4.1950")
    assert "PatientWeight" not in made
    assert not any("weiblich" in str(each.message) or "gestern" in str(each.message) for each in recwarn)


def test_a_file_that_is_gone_or_no_dicom_says_so(tmp_path):
    with pytest.raises(InvalidInput, match="no longer has"):
        read_header(tmp_path / "gone.dcm")
    (tmp_path / "rubbish.dcm").write_bytes(b"Meier^Anna" * 100)
    with pytest.raises(InvalidInput, match="cannot be read") as refusal:
        read_header(tmp_path / "rubbish.dcm")
    assert "Meier" not in str(refusal.value)


def test_findings_become_sentences_the_gravest_first():
    codes = ("several_series", "slice_gap", "sign_doubtful", "unheard_of")
    assert in_words(codes, {"slice_gap": "3 missing at 1 places"}) == (
        "Fault in the images: values at both ends of the range and none between: signed read as unsigned or the reverse",
        "Doubt about the images: slices are missing inside the series (3 missing at 1 places)",
        "Doubt about the images: unheard_of",
        "Note: several series fit; the one with most images is scored",
    )


# The image


def test_the_image_is_a_valid_secondary_capture(header):
    made = dcmread(BytesIO(written(build_capture(result_of(), header))))
    assert made.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
    assert (made.Modality, made.ConversionType, made.BurnedInAnnotation) == ("OT", "WSD", "NO")
    assert made.pixel_array.shape == (HEIGHT, WIDTH, 3)
    assert [each.ReferencedSOPInstanceUID for each in made.SourceImageSequence] == [f"1.2.3.1.{number}" for number in (1, 2, 3)]


def test_the_picture_shows_every_part_and_nothing_of_the_patient(header):
    plain = draw(result_of())
    for change in (
        {"predicted": "none"},
        {"task": "other"},
        {"findings": ()},
        {"revision": 2},
        {"version": 4},
        {"model": "m"},
        {"probabilities": {"glioma": 0.5, "none": 0.5}},
    ):
        assert not np.array_equal(plain, draw(result_of(**change))), change
    assert np.array_equal(plain, draw(result_of(study_uid="1.2.4"))), "the study's identity is not drawn"


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.text(max_size=300), st.floats(0, 1), min_size=1, max_size=12),
    st.lists(st.text(max_size=2000), max_size=6),
)
def test_any_words_fit_into_the_picture(probabilities, findings):
    predicted = next(iter(probabilities))
    image = draw(result_of(probabilities=probabilities, predicted=predicted, findings=tuple(findings), model=predicted))
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert not image[:, WIDTH - 8 :].any(), "nothing runs out of the picture"
