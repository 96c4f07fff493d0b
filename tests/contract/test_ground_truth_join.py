"""The join holds the same on both databases: any order, duplicates, corrections, sources, roles, batches."""

import json
import threading
import uuid
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
from sqlmodel import col, select

from schemas import topics
from schemas.events import Label, Prediction
from schemas.settings import JoinSettings
from schemas.tables import Batch, Case, DeadLetter, GroundTruth, Outbox, RegisteredModel
from services.ground_truth.app import build
from services.ground_truth.domain import role_of
from services.ground_truth.handlers import Join
from services.runtime.consumer import process
from services.runtime.messages import Record, headers_of
from services.runtime.registry import set_serving

START = datetime(2026, 3, 2, 8, tzinfo=UTC)
SETTINGS = JoinSettings(batch_size=3, batch_max_age_s=100, tune_share=0.35, gate_share=0.25)
TRIGGERS = [f"{n:032x}" for n in range(4000) if role_of(f"{n:032x}", 0.35, 0.25) == "trigger"]


def study(number):
    return f"{0xABC000 + number:032x}"


def scored(number, *, patient=None, model="tumour", version=1, revision=1, serving=True, predicted="glioma", **fields):
    return Prediction(
        study_key=study(number),
        patient_key=patient or TRIGGERS[number],
        revision=revision,
        model=model,
        version=version,
        serving=serving,
        task="tumour",
        probabilities={"glioma": 0.75, "none": 0.25} if predicted == "glioma" else {"glioma": 0.25, "none": 0.75},
        predicted=predicted,
        acquired_at=START + timedelta(minutes=number),
        scored_at=START,
        **fields,
    )


def labelled(number, value="glioma", *, day=0, source="csv", task="tumour"):
    return Label(study_key=study(number), task=task, value=value, source=source, labelled_at=START - timedelta(days=30 - day))


def record(data, event_id=None, partition=0):
    topic = topics.PREDICTION if isinstance(data, Prediction) else topics.LABEL
    headers = headers_of(topic, event_id or uuid.uuid4().hex, START)
    return Record(topic.name, partition, 0, data.study_key, headers, data.model_dump_json().encode())


def feed(database, *data, settings=SETTINGS):
    return process(database, Join(settings), [item if isinstance(item, Record) else record(item) for item in data])


def rows(database, table, *order):
    with database.read() as session:
        return list(session.exec(select(table).order_by(*order)))


def cases(database):
    return {(row.study_key, row.model, row.version): row for row in rows(database, Case)}


def ready(database):
    return [json.loads(row.body) for row in rows(database, Outbox, col(Outbox.id)) if row.topic == topics.BATCH_READY.name]


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("together", [True, False])
def test_all_orders_of_score_label_and_correction_end_the_same(database, clock, order, together):
    events = [scored(1), labelled(1, "none", day=1), labelled(1, "glioma", day=2)]
    shuffled = [events[place] for place in order]
    for group in [shuffled] if together else [[item] for item in shuffled]:
        assert feed(database, *group) == 0
    case = cases(database)[study(1), "tumour", 1]
    assert (case.truth, case.state, case.joined_at) == ("glioma", "joined", clock.now())
    assert [(row.value, row.source) for row in rows(database, GroundTruth)] == [("glioma", "csv")]
    assert ready(database) == []


def test_weeks_may_lie_between_score_and_label(database, clock):
    feed(database, scored(1), labelled(2))
    clock.advance(40 * 86_400)
    feed(database, labelled(1), scored(2))
    assert {case.state for case in cases(database).values()} == {"joined"}
    assert {case.joined_at for case in cases(database).values()} == {clock.now()}


def test_redelivery_and_duplicates_are_silent(database):
    messages = [record(item) for n in range(3) for item in (scored(n), labelled(n))]
    feed(database, *messages, *messages)
    before = (cases(database), ready(database), rows(database, GroundTruth))
    feed(database, *messages)
    feed(database, *[record(item) for n in range(3) for item in (labelled(n), scored(n))])
    assert (cases(database), ready(database), rows(database, GroundTruth)) == before
    assert len(ready(database)) == 1


def test_a_later_revision_replaces_a_score_until_the_case_is_in_a_batch(database):
    feed(database, scored(1, revision=2, predicted="none"), scored(1, revision=1))
    assert cases(database)[study(1), "tumour", 1].predicted == "none"
    feed(database, labelled(1), scored(1, revision=3, facets={"StationName": "CT2"}, findings=("window_missing",)))
    case = cases(database)[study(1), "tumour", 1]
    assert (case.predicted, case.state, case.truth, case.facets, case.findings) == (
        "glioma",
        "joined",
        "glioma",
        {"StationName": "CT2"},
        ["window_missing"],
    )
    feed(database, scored(2), labelled(2), scored(3), labelled(3))
    feed(database, scored(1, revision=4, predicted="none"))
    case = cases(database)[study(1), "tumour", 1]
    assert (case.state, case.predicted, case.revision) == ("batched", "glioma", 3)


def test_a_challenger_is_joined_but_never_batched(database):
    for number in range(4):
        feed(database, scored(number), scored(number, version=2, serving=False), labelled(number))
    assert [(batch.version, batch.number, batch.cases) for batch in rows(database, Batch)] == [(1, 1, 3)]
    assert {case.state for case in cases(database).values() if case.version == 2} == {"joined"}


def test_only_trigger_patients_fill_batches_and_a_patient_keeps_its_role(database):
    tuner = next(f"{n:032x}" for n in range(4000) if role_of(f"{n:032x}", 0.35, 0.25) == "tune")
    for number in range(6):
        feed(database, scored(number, patient=tuner), labelled(number))
    assert ready(database) == []
    everyone_triggers = SETTINGS.model_copy(update={"tune_share": 0.0, "gate_share": 0.0})
    feed(database, scored(7, patient=tuner), labelled(7), settings=everyone_triggers)
    assert {case.role for case in cases(database).values()} == {"tune"}


def test_batches_are_numbered_per_version_and_take_the_first_acquired(database):
    feed(database, *[item for n in (7, 6, 5, 4, 3, 2, 1) for item in (labelled(n), scored(n), scored(n, model="other", version=2))])
    batches = rows(database, Batch, col(Batch.model), col(Batch.number))
    assert [(batch.model, batch.number) for batch in batches] == [("other", 1), ("other", 2), ("tumour", 1), ("tumour", 2)]
    first = {case.study_key for case in cases(database).values() if case.batch_id == batches[2].batch_id}
    assert first == {study(1), study(2), study(3)}
    assert {event["closed_by"] for event in ready(database)} == {"size"}
    assert {event["cases"] for event in ready(database)} == {3}


def test_a_correction_of_a_batched_case_reopens_its_batch_once(database):
    feed(database, *[item for n in range(3) for item in (scored(n), labelled(n))])
    corrections = [record(labelled(n, "none", day=1)) for n in range(2)]
    feed(database, *corrections)
    feed(database, *corrections)
    feed(database, labelled(0, "glioma", day=0), labelled(1, "none", day=2))
    events = ready(database)
    assert [event["corrected"] for event in events] == [False, True]
    assert len({event["batch_id"] for event in events}) == 1
    assert cases(database)[study(0), "tumour", 1].truth == "none"
    assert {case.state for case in cases(database).values()} == {"batched"}


def test_a_case_that_waits_may_be_corrected_by_the_poll_that_closes_its_batch(database):
    feed(database, scored(1), labelled(1))
    feed(database, labelled(1, "none", day=1), scored(2), labelled(2), scored(3), labelled(3))
    (batch,) = rows(database, Batch)
    found = [(row.truth, row.state, row.batch_id) for row in rows(database, Case, col(Case.study_key))]
    assert found == [(truth, "batched", batch.batch_id) for truth in ("none", "glioma", "glioma")]
    assert [event["corrected"] for event in ready(database)] == [False]


def test_the_most_recently_labelled_source_decides(database):
    feed(database, scored(1), labelled(1, "none", day=5, source="pathology"), labelled(1, "glioma", day=3, source="csv"))
    assert cases(database)[study(1), "tumour", 1].truth == "none"
    feed(database, labelled(1, "glioma", day=6, source="csv"))
    assert cases(database)[study(1), "tumour", 1].truth == "glioma"
    assert len(rows(database, GroundTruth)) == 2


def test_a_label_of_another_task_joins_nothing(database):
    feed(database, scored(1), labelled(1, task="bleeding"))
    assert cases(database)[study(1), "tumour", 1].state == "waiting"


def test_an_unknown_class_goes_to_the_dead_letters_alone(database):
    with database.transaction() as tx:
        model = RegisteredModel(name="tumour", task="tumour", classes=["glioma", "none"], created_at=START)
        tx.session.add(model)
        tx.session.flush()
        set_serving(tx, "tumour", serving=True, actor="user:test")
    assert feed(database, scored(1), labelled(1), labelled(2, "gliom"), labelled(3, "anything", task="unregistered")) == 1
    (letter,) = rows(database, DeadLetter)
    assert "glioma, none" in letter.reason
    assert {row.study_key for row in rows(database, GroundTruth)} == {study(1), study(3)}
    assert cases(database)[study(1), "tumour", 1].state == "joined"


@pytest.mark.parametrize(
    "field", [{"task": "Anna Miller"}, {"source": "Dr. Who, ward"}, {"value": "Miller^Anna"}, {"value": "x" * 65}]
)
def test_a_label_from_the_bus_has_no_room_for_a_person_either(database, field):
    good = labelled(1)
    body = json.dumps(good.model_dump(mode="json") | field).encode()
    bad = Record(topics.LABEL.name, 0, 0, good.study_key, headers_of(topics.LABEL, uuid.uuid4().hex, START), body)
    assert feed(database, bad, labelled(2)) == 1
    (letter,) = rows(database, DeadLetter)
    assert "must match" in letter.reason
    assert not any(word in letter.reason for word in ("Miller", "Who", "xxxx"))
    assert {row.study_key for row in rows(database, GroundTruth)} == {study(2)}


def test_a_batch_closes_by_age(context, clock):
    context = type(context)(context.settings.model_copy(update={"join": SETTINGS}), context.database, clock, context.pseudonyms)
    (ticker,) = build(context).tickers
    feed(context.database, scored(1), labelled(1))

    def tick():
        with context.database.transaction() as tx:
            ticker.run(tx)

    clock.advance(99)
    feed(context.database, scored(2), labelled(2))
    tick()
    assert ready(context.database) == []
    clock.advance(1)
    tick()
    tick()
    (event,) = ready(context.database)
    assert (event["cases"], event["closed_by"]) == (2, "age")


def test_the_trace_of_the_last_case_goes_on(database):
    for number in range(3):
        feed(database, scored(number))
        message = record(labelled(number))
        traceparent = f"00-{number + 1:032x}-{1:016x}-01"
        feed(database, Record(message.topic, 0, 0, message.key, {**message.headers, "traceparent": traceparent}, message.body))
    (row,) = [row for row in rows(database, Outbox) if row.topic == topics.BATCH_READY.name]
    assert row.headers["traceparent"].split("-")[1] == f"{3:032x}"


def test_concurrent_consumers_lose_no_case_and_double_none(database):
    """Scores, labels and corrections of the same studies in four consumers at once, whatever their partitions."""
    studies = range(120)
    streams = [
        [record(scored(n)) for n in studies],
        [record(labelled(n, "none", day=1)) for n in reversed(studies)],
        [record(labelled(n, "glioma", day=2)) for n in studies],
        [record(scored(n, version=2)) for n in reversed(studies)],
    ]
    errors = []

    def consume(stream):
        try:
            for start in range(0, len(stream), 17):
                feed(database, *stream[start : start + 17], settings=SETTINGS.model_copy(update={"batch_size": 10}))
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            errors.append(error)

    threads = [threading.Thread(target=consume, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors
    found = cases(database)
    assert len(found) == 240
    assert {(case.truth, case.state) for case in found.values()} == {("glioma", "batched")}
    batches = rows(database, Batch, col(Batch.version), col(Batch.number))
    assert [(batch.version, batch.number, batch.cases) for batch in batches] == [(v, n, 10) for v in (1, 2) for n in range(1, 13)]
    assert sum(not event["corrected"] for event in ready(database)) == 24
