"""The join's pure parts: transitions, roles, who decides the truth."""

import json
from datetime import UTC, datetime, timedelta, timezone
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import topics
from schemas.events import Label, Prediction
from schemas.vocabulary import CaseRole, CaseState
from services.ground_truth.domain import (
    StoredLabel,
    check_label,
    decide,
    role_of,
)
from services.ground_truth.reading import read, texts_of
from services.ground_truth.statements import REVISION, SCORE_COLUMNS
from services.ground_truth.states import RESCORABLE, TRANSITIONS, CaseEvent, Effect, step, truth_event
from services.runtime.errors import InvalidInput
from services.runtime.messages import Received, Record

NOW = datetime(2026, 3, 2, 8, tzinfo=UTC)
LABEL = {"study_key": "a" * 32, "task": "t", "value": "v", "source": "csv"}
KEYS = st.text("0123456789abcdef", min_size=32, max_size=32)


def prediction(**fields):
    values = {
        "study_key": "a" * 32,
        "patient_key": "b" * 32,
        "revision": 1,
        "model": "tumour",
        "version": 1,
        "serving": True,
        "task": "tumour",
        "probabilities": {"glioma": 0.9, "none": 0.1},
        "predicted": "glioma",
        "acquired_at": NOW,
        "scored_at": NOW,
    }
    return Prediction(**(values | fields))


def label(**fields):
    return Label(**({"study_key": "a" * 32, "task": "tumour", "value": "glioma", "source": "csv", "labelled_at": NOW} | fields))


def test_no_case_leaves_its_batch():
    batched = {CaseState.BATCHED, CaseState.WITHDRAWN}
    assert all(after in batched for (before, _), (after, _) in TRANSITIONS.items() if before in batched)
    assert {after for (before, _), (after, _) in TRANSITIONS.items() if before in batched} == batched


def test_every_change_of_a_batched_truth_reopens_the_batch():
    batched = {CaseState.BATCHED, CaseState.WITHDRAWN}
    changing = {pair: effects for pair, (_, effects) in TRANSITIONS.items() if pair[0] in batched and pair[1] != CaseEvent.RESCORED}
    assert len(changing) == 3
    assert all(Effect.REOPEN in effects for effects in changing.values())


def test_withdrawn_sources_leave_the_decision_to_the_others():
    withdrawn = StoredLabel(None, "a", NOW)
    assert decide([withdrawn]) is None
    assert decide([withdrawn, StoredLabel(None, "b", NOW)]) is None
    assert decide([withdrawn, StoredLabel("y", "b", NOW - timedelta(days=9))]) == "y"


def test_every_state_is_reached_and_a_correction_of_a_batched_case_reopens_it():
    assert {after for after, _ in TRANSITIONS.values()} == set(CaseState)
    assert step(CaseState.BATCHED, CaseEvent.CORRECTED) == (CaseState.BATCHED, {Effect.SET_TRUTH, Effect.REOPEN})
    assert {CaseState.WAITING, CaseState.JOINED} == RESCORABLE


@pytest.mark.parametrize(("state", "event"), [(CaseState.WAITING, CaseEvent.CLOSED), (CaseState.WAITING, CaseEvent.CORRECTED)])
def test_what_cannot_happen_is_loud(state, event):
    with pytest.raises(KeyError):
        step(state, event)


def test_truth_events():
    assert truth_event(None, "glioma") is CaseEvent.LABELLED
    assert truth_event("none", "glioma") is CaseEvent.CORRECTED
    assert truth_event("glioma", "glioma") is None
    assert truth_event("glioma", None) is CaseEvent.WITHDRAWN
    assert truth_event(None, None) is None


@given(KEYS, st.floats(0, 0.5), st.floats(0, 0.49))
def test_a_patient_has_one_role(patient, tune, gate):
    assert role_of(patient, tune, gate) is role_of(patient, tune, gate)
    assert role_of(patient, 0.0, 0.0) is CaseRole.TRIGGER


def test_roles_follow_the_shares():
    roles = [role_of(f"{number:032x}", 0.35, 0.25) for number in range(20_000)]
    shares = {role: roles.count(role) / len(roles) for role in CaseRole}
    assert shares[CaseRole.TUNE] == pytest.approx(0.35, abs=0.015)
    assert shares[CaseRole.GATE] == pytest.approx(0.25, abs=0.015)


@given(st.permutations([StoredLabel("x", "a", NOW), StoredLabel("y", "b", NOW), StoredLabel("z", "c", NOW - timedelta(1))]))
def test_the_most_recently_labelled_source_decides(labels):
    assert decide(labels) == "y"


def received(*data):
    """Events whose place is their id."""
    topic = {Prediction: topics.PREDICTION, Label: topics.LABEL}
    record = Record("", 0, 0, "", {}, b"")
    return [Received(str(place), topic[type(item)], item, record) for place, item in enumerate(data)]


def test_the_newest_of_a_batch_counts():
    for order in permutations([prediction(revision=2), prediction(revision=1), prediction(revision=3)]):
        found = read(received(*order), (0.0, 0.0))
        assert [row[REVISION] for row in found.scores] == [3]
        assert [(place, case[-1]) for place, case in found.scored] == [(place, item.revision) for place, item in enumerate(order)]


def test_the_first_of_equal_revisions_counts():
    found = read(received(prediction(), prediction(predicted="none")), (0.0, 0.0))
    assert [row[SCORE_COLUMNS.index("predicted")] for row in found.scores] == ["glioma"]


def test_rows_are_in_key_order_with_their_own_times():
    later = {"acquired_at": NOW + timedelta(hours=2), "scored_at": NOW + timedelta(hours=3)}
    found = read(received(prediction(study_key="f" * 32, **later), prediction(), prediction(version=2)), (0.0, 0.0))
    assert [(row[0][0], row[2], row[-2][11:16], row[-1][11:16]) for row in found.scores] == [
        ("a", 1, "08:00", "08:00"),
        ("a", 2, "08:00", "08:00"),
        ("f", 1, "10:00", "11:00"),
    ]


def test_events_are_named_by_their_place_whatever_lies_between():
    bad = prediction(predicted="meningioma")
    early = label(labelled_at="0001-01-01T00:00:00+14:00")
    found = read(received(label(), bad, prediction(), label(value=None, withdrawn=True), early), (0.0, 0.0))
    assert [place for place, _ in found.scored] == [2]
    assert [(place, item.value) for place, item in found.said] == [(0, "glioma"), (3, None)]
    assert [place for place, _ in found.refused] == [1, 4]
    assert found.last({"a" * 32}) == 3
    assert found.last({"b" * 32}) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"predicted": "meningioma"},
        {"model": "x" * 65},
        {"task": ""},
        {"facets": {"StationName": "CT\0"}},
        {"version": 2**31},
        {"acquired_at": "0001-01-01T00:00:00+14:00"},
    ],
)
def test_predictions_no_table_can_take_are_invalid(fields):
    found = read(received(prediction(**fields)), (0.0, 0.0))
    assert [type(error) for _, error in found.refused] == [InvalidInput]
    assert found.scores == found.scored == []


def test_an_unknown_class_is_named_with_the_known_ones():
    with pytest.raises(InvalidInput, match="glioma, none"):
        check_label(label(value="x"), ["glioma", "none"], NOW)
    check_label(label(value="x"), [], NOW)
    check_label(label(), ["glioma", "none"], NOW)


def test_a_label_from_the_future_is_invalid():
    with pytest.raises(InvalidInput, match="future"):
        check_label(label(labelled_at=NOW + timedelta(days=2)), [], NOW)


@given(
    st.datetimes(
        datetime(1, 1, 2),  # noqa: DTZ001 - Hypothesis adds the zone
        datetime(9999, 12, 30),  # noqa: DTZ001
        timezones=st.integers(-14 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m))),
    ),
    st.booleans(),
)
def test_times_become_the_texts_that_the_database_layer_writes(moment, whole):
    moment = moment.replace(microsecond=0) if whole else moment
    received = Label.model_validate_json(json.dumps(LABEL | {"labelled_at": moment.isoformat()})).labelled_at
    assert texts_of([received]) == [moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")]
