"""Whatever cases a batch holds, its evaluation can be stored and announced."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.events import EvaluationCompleted
from schemas.tables import BaselineCase
from schemas.vocabulary import Status
from services.evaluation.detector import Thresholds
from services.evaluation.evaluate import Material, evaluate
from services.evaluation.stream import StreamCase

NOW = datetime(2026, 3, 2, 8, tzinfo=UTC)
NAMES = st.sampled_from(["a", "b", "c", "foreign"])
PATIENTS = st.sampled_from([f"p{number}" for number in range(12)])


def probabilities(said):
    return {name: 0.8 if name == said else 0.1 for name in "abc"}


stream_cases = st.builds(
    lambda batch, patient, truth, said, facets, findings: StreamCase(
        batch, patient, truth, said, probabilities(said), NOW, facets, findings
    ),
    st.integers(1, 4),
    PATIENTS,
    NAMES,
    NAMES,
    st.dictionaries(st.sampled_from(["StationName", "Manufacturer"]), st.sampled_from(["x", "y", ""])),
    st.lists(st.sampled_from(["window_missing", "constant_image"]), max_size=2),
)
baseline_cases = st.builds(
    lambda patient, truth, said: BaselineCase(
        model="m", version=1, case_key=patient, patient_key=patient, truth=truth, predicted=said, probabilities=probabilities(said)
    ),
    st.sampled_from([f"p{number}" for number in range(8, 40)]),
    NAMES,
    NAMES,
)


def judged(stream, baseline, thresholds=1.0):
    every_batch = [StreamCase(batch, "p8", "a", "a", probabilities("a"), NOW, {}, ()) for batch in (1, 2, 3, 4)]
    ordered = sorted([*stream, *every_batch], key=lambda case: case.batch)
    limits = Thresholds(thresholds, thresholds, "bound")
    return evaluate(Material("m", ("a", "b", "c"), 4, 10, baseline, ordered, limits, 100, 0))


@given(st.lists(stream_cases, max_size=40), st.lists(baseline_cases, max_size=40), st.sampled_from([-50.0, 1.0, 8.0]))
@settings(max_examples=60, deadline=None)
def test_every_outcome_can_be_announced(stream, baseline, threshold):
    outcome = judged(stream, baseline, threshold)
    ids = {"evaluation_id": "e", "batch_id": "b", "model": "m", "version": 1, "task": "t", "evaluated_at": NOW}
    event = EvaluationCompleted(**ids, **vars(outcome))
    assert json.loads(event.model_dump_json())["status"] == outcome.status
    json.dumps(outcome.evidence, allow_nan=False)
    assert len(outcome.summary) <= 1000
    known = [row for row in baseline if {row.truth, row.predicted} <= set("abc")]
    assert ("smallest_fall_in_a_year" in outcome.evidence) is bool(known), "what this volume can show is always said"


def test_a_stream_without_independent_cases_is_undecided():
    case = {"case_key": "k", "patient_key": "p8", "truth": "a", "predicted": "a", "probabilities": probabilities("a")}
    known = [BaselineCase(model="m", version=1, **case)]
    outcome = judged([], known, 8.0)
    assert outcome.status is Status.UNDECIDED
    assert outcome.evidence["independent_cases"] == 0
    assert outcome.stream_cases == 4


@pytest.mark.parametrize("foreign", [0, 3])
def test_cases_of_unknown_classes_are_counted_and_left_out(foreign):
    stream = [StreamCase(4, f"q{number}", "foreign", "a", probabilities("a"), NOW, {}, ()) for number in range(foreign)]
    outcome = judged(stream, [])
    assert outcome.evidence.get("cases_of_unknown_classes", 0) == foreign
    assert next(metric.cases for metric in outcome.metrics if metric.name == "accuracy") == 1


@pytest.mark.parametrize("changed", [1, 3])
def test_a_late_label_of_an_old_study_does_not_move_the_start(changed):
    def case(batch, number):
        wrong = batch >= changed and number % 2 == 0
        said = "b" if wrong else "a"
        at = NOW + timedelta(days=batch, minutes=number)
        return StreamCase(batch, f"q{batch}-{number}", "a", said, probabilities(said), at, {}, ())

    stream = [case(batch, number) for batch in (1, 2, 3, 4) for number in range(40)]
    old = StreamCase(changed, "late", "a", "b", probabilities("b"), datetime(2019, 5, 1, tzinfo=UTC), {}, ())
    known = {"truth": "a", "predicted": "a", "probabilities": probabilities("a")}
    baseline = [BaselineCase(model="m", version=1, case_key=f"k{n}", patient_key=f"k{n}", **known) for n in range(100)]
    ordered = sorted([*stream, old], key=lambda each: (each.batch, each.acquired_at))
    outcome = evaluate(Material("m", ("a", "b", "c"), 4, 40, baseline, ordered, Thresholds(5.0, 3.0, "bound"), 100, 0))
    assert outcome.evidence["since_batch"] == changed
    since = datetime.fromisoformat(outcome.evidence["since"])
    # In order of acquisition the old study moves every block by one case.
    assert timedelta(days=-1) < since - (NOW + timedelta(days=changed)) <= timedelta(minutes=2)
    assert f" {since.year}" in outcome.evidence["root_cause"]
