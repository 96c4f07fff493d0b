"""The diagnosis on streams with one known change, and the sentences made of it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from schemas.vocabulary import Diagnosis, Status
from services.evaluation.detector import Thresholds
from services.evaluation.diagnosis import Cause, diagnose, mix_shift, root_cause
from services.evaluation.stream import StreamCase, one_per_patient
from services.evaluation.summary import Seen, summarise
from services.evaluation.verdict import Assessment, Fall

START = datetime(2026, 3, 12, 9, tzinfo=UTC)
FALL = Fall("glioma", "one class", 4, 4, 5, 0.71, 0.90, 0.19, 0.11, 0.27, 0.999)
CT2 = Cause(Diagnosis.COVARIATE, "station CT2")
ASSESSMENT = Assessment(Status.DEGRADED, 6.0, 1.0, Thresholds(5.0, 3.0, "simulation"), 5, FALL, 0, (), 0, 0, 0.09)


def case(number, batch, *, wrong=False, facets=None, findings=()):
    predicted = "none" if wrong else "glioma"
    facets = {"StationName": "CT1", "Manufacturer": "A"} if facets is None else facets
    return StreamCase(batch, f"p{number}", "glioma", predicted, {}, START + timedelta(hours=number), facets, list(findings))


def stream(changed, *, before=3, after=3, size=20):
    """Batches before the fall at batch 4 and after it; `changed(number)` gives what differs afterwards."""
    first = 4 - before
    stable = [case(number, first + number // size) for number in range(before * size)]
    fallen = [case(1000 + number, 4 + number // size, wrong=number % 3 == 0, **changed(number)) for number in range(after * size)]
    return stable + fallen


def found(cases, **options):
    return diagnose(cases, FALL, **({"alarmed": True, "mix_moved": False} | options))


def test_doubts_about_the_images_are_a_broken_feed():
    cause = found(stream(lambda number: {"findings": ["window_missing"] if number % 4 else []}))
    assert cause.kind is Diagnosis.PIPELINE
    assert cause.what == "window missing in 75% of the studies, was 0%"
    assert cause.tests == {"window missing": cause.p_value}
    assert cause.p_value < 1e-6


def test_doubts_that_were_always_there_are_no_cause():
    cases = [one._replace(findings=["window_missing"]) for one in stream(lambda _: {})]
    assert found(cases).kind is Diagnosis.CONCEPT


def test_a_broken_feed_from_the_first_day_is_seen_without_a_stable_part():
    cases = stream(lambda _: {"findings": ["constant_image"]}, before=0)
    assert found(cases).kind is Diagnosis.PIPELINE


def test_another_scanner_is_a_covariate_shift_and_is_named():
    cause = found(stream(lambda _: {"facets": {"StationName": "CT2", "Manufacturer": "A"}}))
    assert (cause.kind, cause.what) == (Diagnosis.COVARIATE, "station CT2")
    assert root_cause(cause, FALL, START) == "since 12 March 2026, station CT2; recall of glioma 0.71, was 0.90"


def test_numbers_are_compared_by_value_and_every_facet_that_moved_is_named():
    thin = {"facets": {"StationName": "CT2", "SliceThickness": "1.25"}}
    cases = [one._replace(facets={"StationName": "CT1", "SliceThickness": "5"}) for one in stream(lambda _: {}, after=0)]
    cases += [one for one in stream(lambda _: thin) if one.batch >= 4]
    cause = found(cases)
    assert cause.kind is Diagnosis.COVARIATE
    assert set(cause.what.split(", ")) == {"station CT2", "slices 1.25 mm instead of 5 mm"}
    assert root_cause(cause, FALL, START).startswith("since 12 March 2026, ")


def test_of_a_new_scanner_its_station_comes_first_then_how_it_scans_then_what_the_station_implies():
    old = {"StationName": "CT1", "Manufacturer": "A", "ManufacturerModelName": "A1", "SoftwareVersions": "1", "SliceThickness": "5"}
    new = {name: value.replace("A", "B").replace("1", "2") for name, value in old.items()} | {"SliceThickness": "1.25"}
    cases = [one._replace(facets=old) for one in stream(lambda _: {}, after=0)]
    cases += [one for one in stream(lambda _: {"facets": new}) if one.batch >= 4]
    cause = found(cases)
    assert cause.what.startswith("station CT2, slices 1.25 mm instead of 5 mm, ")
    assert list(cause.tests) == ["station", "slices", "model"]
    assert max(cause.tests.values()) < 1e-6
    line = root_cause(replace(cause, what="station CT2, slices 1.25 mm instead of 5 mm"), FALL, START)
    assert line == "since 12 March 2026, station CT2, slices 1.25 mm instead of 5 mm; recall of glioma 0.71, was 0.90"


def test_a_number_whose_usual_value_stays_is_named_by_the_value_that_has_become_commoner():
    cases = [one._replace(facets={"SliceThickness": "5"}) for one in stream(lambda _: {}, after=0)]
    later = [one for one in stream(lambda _: {}) if one.batch >= 4]
    cases += [one._replace(facets={"SliceThickness": "5" if at % 5 < 3 else "1.25"}) for at, one in enumerate(later)]
    assert found(cases).what == "slices 1.25 mm in 40% of the studies instead of 0%"


def test_a_number_that_drifts_has_moved_although_no_value_is_common():
    generator = np.random.default_rng(3)
    cases = [one._replace(facets={"EchoTime": f"{generator.normal(80, 3):.4g}"}) for one in stream(lambda _: {}, after=0)]
    later = [one for one in stream(lambda _: {}) if one.batch >= 4]
    cases += [one._replace(facets={"EchoTime": f"{generator.normal(95, 3):.4g}"}) for one in later]
    assert " ms instead of " in found(cases).what


def test_one_odd_study_is_no_cause():
    odd = {"facets": {"StationName": "CT9", "Manufacturer": "A"}}
    assert found(stream(lambda number: odd if number == 0 else {})).kind is Diagnosis.CONCEPT


def test_from_the_first_day_the_facet_that_errors_follow_is_named():
    cases = stream(lambda number: {"facets": {"StationName": "CT2" if number % 3 == 0 else "CT1"}}, before=0)
    assert found(cases).what == "station CT2"


def test_unchanged_descriptions_leave_the_concept_and_none_leave_nothing():
    assert found(stream(lambda _: {})).kind is Diagnosis.CONCEPT
    bare = [one._replace(facets={}) for one in stream(lambda _: {})]
    assert found(bare).kind is Diagnosis.UNKNOWN
    assert found(stream(lambda _: {}), alarmed=False).kind is Diagnosis.UNKNOWN


def test_chance_names_a_cause_rarely():
    generator, wrong = np.random.default_rng(0), 0
    for _ in range(200):
        cases = [
            case(n, 1 + n // 20, facets={"StationName": f"CT{generator.integers(3)}", "Manufacturer": f"M{generator.integers(2)}"})
            for n in range(120)
        ]
        wrong += found(cases).kind is Diagnosis.COVARIATE
    assert wrong <= 4


def test_a_moved_mix_without_a_fall_is_prevalence():
    cases = stream(lambda _: {})
    assert diagnose(cases, None, alarmed=False, mix_moved=True).kind is Diagnosis.PREVALENCE
    assert diagnose(cases, None, alarmed=False, mix_moved=False).kind is Diagnosis.NONE
    assert mix_shift(["a"] * 80 + ["b"] * 20, ["a"] * 20 + ["b"] * 80) < 1e-6
    assert mix_shift(["a"] * 80 + ["b"] * 20, ["a"] * 40 + ["b"] * 10) > 0.5
    assert mix_shift(["a"], []) == 1.0


def test_a_patient_counts_once_and_never_with_the_test_set():
    cases = [case(1, 1), case(2, 1), case(1, 2), case(3, 2)]
    assert [one.patient_key for one in one_per_patient(cases, {"p3"})] == ["p1", "p2"]


@pytest.mark.parametrize(
    ("assessment", "cause", "words"),
    [
        (
            ASSESSMENT,
            Cause(Diagnosis.COVARIATE, "station CT2"),
            "got worse: of 100 patients with glioma it now finds 71, before it found 90",
        ),
        (
            ASSESSMENT,
            Cause(Diagnosis.COVARIATE, "station CT2"),
            "The likely cause is new images (scanner, protocol or patients): station CT2; it began about 12 March 2026.",
        ),
        (ASSESSMENT, Cause(Diagnosis.UNKNOWN), "The cause is not known yet; it began about 12 March 2026."),
        (replace(ASSESSMENT, status=Status.WATCH, alarm=None), Cause(Diagnosis.UNKNOWN), "may be getting worse"),
        (replace(ASSESSMENT, status=Status.HEALTHY, fall=None), Cause(Diagnosis.NONE), "a fall of 9 percentage points"),
        (replace(ASSESSMENT, status=Status.HEALTHY, fall=None), Cause(Diagnosis.PREVALENCE, "the mix moved"), "the mix moved"),
        (replace(ASSESSMENT, status=Status.UNDECIDED, fall=None, more_cases=120), Cause(Diagnosis.NONE), "About 120 more"),
        (
            replace(ASSESSMENT, status=Status.UNDECIDED, fall=None, more_cases=120),
            Cause(Diagnosis.NONE),
            "would show; in a year at this volume one of 9 would.",
        ),
        (replace(ASSESSMENT, status=Status.UNDECIDED, fall=None, more_cases=None), Cause(Diagnosis.NONE), "however many"),
        (
            replace(ASSESSMENT, status=Status.HEALTHY, fall=None, restarted_after=11),
            Cause(Diagnosis.NONE),
            "250 labelled cases (3 studies of patients whom it was trained on are left out) since batch 12, after a recovery, show",
        ),
        (replace(ASSESSMENT, status=Status.HEALTHY, fall=None, own_baseline=100), Cause(Diagnosis.NONE), "the first 100 of them"),
        (None, Cause(Diagnosis.NONE), "no labelled reference cases"),
    ],
)
def test_two_sentences(assessment, cause, words):
    seen = Seen(250, assessment.restarted_after if assessment else 0, 3)
    text = summarise("tumour", seen, assessment, cause, root_cause(cause, FALL, START), START)
    assert words in text
    assert text.rstrip(".").count(". ") == 1
