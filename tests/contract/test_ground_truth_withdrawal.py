"""A withdrawn label takes its case's truth away and re-opens its batch, in whatever order things arrive, on both databases."""

import json
import uuid
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
from sqlmodel import col, select

from schemas import topics
from schemas.events import Label, Prediction
from schemas.settings import JoinSettings
from schemas.tables import Audit, Batch, Case, DeadLetter, GroundTruth, Outbox
from services.evaluation import repository
from services.evaluation.truth_repository import conflicts, scored_cases
from services.ground_truth.domain import role_of
from services.ground_truth.handlers import Join
from services.runtime import registry
from services.runtime.consumer import process
from services.runtime.messages import Record, headers_of

START = datetime(2026, 3, 2, 8, tzinfo=UTC)
SETTINGS = JoinSettings(batch_size=3, batch_max_age_s=100, tune_share=0.35, gate_share=0.25)
PATIENTS = {
    role: [f"{n:032x}" for n in range(4000) if role_of(f"{n:032x}", 0.35, 0.25) == role] for role in ("trigger", "tune", "gate")
}


def study(number):
    return f"{0xABC000 + number:032x}"


def scored(number, *, role="trigger", **fields):
    values = {"study_key": study(number), "patient_key": PATIENTS[role][number], "revision": 1, "model": "tumour", "version": 1}
    values |= {"serving": True, "task": "tumour", "probabilities": {"glioma": 0.75, "none": 0.25}, "predicted": "glioma"}
    values |= {"acquired_at": START + timedelta(minutes=number), "scored_at": START}
    return Prediction(**(values | fields))


def labelled(number, value="glioma", *, day=0, source="csv"):
    at = START - timedelta(days=30 - day)
    return Label(study_key=study(number), task="tumour", value=value, source=source, labelled_at=at, withdrawn=value is None)


def withdrawn(number, *, day=1, source="csv"):
    return labelled(number, None, day=day, source=source)


def record(data):
    topic = topics.PREDICTION if isinstance(data, Prediction) else topics.LABEL
    headers = headers_of(topic, uuid.uuid4().hex, START)
    return Record(topic.name, 0, 0, data.study_key, headers, data.model_dump_json().encode())


def feed(database, *data):
    assert process(database, Join(SETTINGS), [item if isinstance(item, Record) else record(item) for item in data]) == 0


def rows(database, table, *order):
    with database.read() as session:
        return list(session.exec(select(table).order_by(*order)))


def case(database, number):
    return next(row for row in rows(database, Case) if row.study_key == study(number))


def ready(database):
    return [json.loads(row.body) for row in rows(database, Outbox, col(Outbox.id)) if row.topic == topics.BATCH_READY.name]


def full_batch(database):
    feed(database, *[item for n in range(3) for item in (scored(n), labelled(n))])


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_all_orders_of_score_label_withdrawal_and_new_label_end_the_same(sqlite_database, order):
    events = [scored(1), labelled(1, "none", day=1), withdrawn(1, day=2), labelled(1, "glioma", day=3)]
    for place in order:
        feed(sqlite_database, events[place])
    found = case(sqlite_database, 1)
    assert (found.truth, found.state) == ("glioma", "joined")
    assert found.joined_at is not None
    assert [(row.value, row.source) for row in rows(sqlite_database, GroundTruth)] == [("glioma", "csv")]


@pytest.mark.parametrize("order", list(permutations(range(4))))
@pytest.mark.parametrize("together", [True, False])
def test_all_orders_that_end_with_the_withdrawal_end_without_a_truth(database, order, together):
    events = [scored(1), labelled(1, "none", day=1), labelled(1, "glioma", day=2), withdrawn(1, day=2)]
    shuffled = [events[place] for place in order]
    for group in [shuffled] if together else [[item] for item in shuffled]:
        feed(database, *group)
    feed(database, withdrawn(1, day=2))
    found = case(database, 1)
    assert (found.truth, found.state, found.joined_at, found.batch_id) == (None, "waiting", None, None)
    assert [(row.value, row.labelled_at) for row in rows(database, GroundTruth)] == [(None, START - timedelta(days=28))]
    assert ready(database) == []


def test_a_withdrawal_reopens_the_batch_and_a_new_label_does_so_again(database):
    full_batch(database)
    messages = [record(withdrawn(1, day=1))]
    feed(database, *messages)
    feed(database, *messages)
    feed(database, labelled(1, day=0), withdrawn(1, day=1))
    found = case(database, 1)
    assert (found.truth, found.state, found.joined_at) == (None, "withdrawn", None)
    assert [event["corrected"] for event in ready(database)] == [False, True]
    with database.read() as session:
        (batch,) = session.exec(select(Batch)).all()
        assert [row.study_key for row in repository.stream(session, "tumour", 1, 1)] == [study(0), study(2)]
        assert [row.patient_key for row in repository.pending(session, "tumour", 1)] == [PATIENTS["trigger"][1]]
    assert (batch.cases, found.batch_id) == (3, batch.batch_id)
    feed(database, scored(1, revision=2, predicted="none"))
    feed(database, labelled(1, "none", day=2))
    found = case(database, 1)
    assert (found.truth, found.state, found.batch_id, found.revision) == ("none", "batched", batch.batch_id, 1)
    assert [event["corrected"] for event in ready(database)] == [False, True, True]
    assert len(rows(database, Batch)) == 1


def test_the_audit_record_keeps_what_the_truth_was(database):
    full_batch(database)
    feed(database, scored(5, role="gate"), labelled(5))
    feed(database, withdrawn(1), withdrawn(5), labelled(2, "none", day=1))
    found = [row for row in rows(database, Audit) if row.action == "truth.changed"]
    assert [row.subject for row in found] == ["tumour:1"]
    said = [[change[name] for name in ("study", "was", "is", "role")] for change in found[0].detail["cases"]]
    assert said == [
        [study(1), "glioma", None, "trigger"],
        [study(2), "glioma", "none", "trigger"],
        [study(5), "glioma", None, "gate"],
    ]
    assert [bool(change["batch"]) for change in found[0].detail["cases"]] == [True, True, False]
    assert all(change["event"] for change in found[0].detail["cases"])


def test_an_open_case_that_is_withdrawn_fills_no_batch(database):
    feed(database, scored(0), labelled(0), scored(1), labelled(1))
    feed(database, withdrawn(0), scored(2), labelled(2))
    assert ready(database) == []
    feed(database, scored(3), labelled(3))
    assert [event["cases"] for event in ready(database)] == [3]
    assert case(database, 0).state == "waiting"
    feed(database, labelled(0, day=2))
    assert case(database, 0).state == "joined"


def test_what_another_source_said_stands_when_one_withdraws(database):
    full_batch(database)
    feed(database, labelled(1, "none", day=3, source="pathology"))
    assert case(database, 1).truth == "none"
    with database.read() as session:
        assert len(conflicts(session, "tumour", 1)) == 1
    feed(database, withdrawn(1, day=4, source="pathology"))
    assert (case(database, 1).truth, case(database, 1).state) == ("glioma", "batched")
    with database.read() as session:
        assert conflicts(session, "tumour", 1) == []
        assert {row.source for row in scored_cases(session, "tumour", 1)} == {"csv"}
    assert [event["corrected"] for event in ready(database)] == [False, True, True]


@pytest.mark.parametrize("role", ["tune", "gate"])
def test_cases_that_teach_or_judge_go_back_too(database, role):
    feed(database, scored(1, role=role), labelled(1))
    feed(database, withdrawn(1))
    assert (case(database, 1).truth, case(database, 1).state, case(database, 1).role) == (None, "waiting", role)


def test_a_withdrawal_of_what_was_never_said_and_of_an_unknown_class_is_kept(database):
    with database.transaction() as tx:
        registry.register_model(tx, "tumour", "tumour", ["glioma", "none"], {})
    feed(database, withdrawn(1), withdrawn(2).model_copy(update={"value": "no such class"}), scored(1), scored(2))
    assert [row.value for row in rows(database, GroundTruth)] == [None, None]
    assert {row.state for row in rows(database, Case)} == {"waiting"}


def test_a_label_without_a_class_that_withdraws_nothing_is_refused(database):
    data = labelled(1).model_copy(update={"value": None})
    assert process(database, Join(SETTINGS), [record(data)]) == 1
    assert rows(database, GroundTruth) == []
    assert "class name" in rows(database, DeadLetter)[0].reason
