"""What a feed does that it should not: clocks that run ahead, keys that name nothing, bytes that no database takes."""

import json
from datetime import UTC, datetime, timedelta

from aiokafka import ConsumerRecord
from sqlmodel import select

from schemas import topics
from schemas.events import Label, Prediction
from schemas.settings import JoinSettings
from schemas.tables import Case, DeadLetter, GroundTruth, Outbox
from services.evaluation.truth_repository import Punctuality, punctuality
from services.ground_truth.handlers import Join
from services.runtime.bus import to_record
from services.runtime.consumer import process
from services.runtime.messages import Record, headers_of

START = datetime(2026, 3, 2, 8, tzinfo=UTC)
STUDY = "a" * 32
SETTINGS = JoinSettings(batch_size=1, tune_share=0.0, gate_share=0.0)


def score():
    shares = {"glioma": 0.75, "none": 0.25}
    names = {"study_key": STUDY, "patient_key": "b" * 32, "model": "tumour", "task": "tumour", "predicted": "glioma"}
    return Prediction(**names, revision=1, version=1, serving=True, probabilities=shares, acquired_at=START, scored_at=START)


def label(value, at, source="csv"):
    return Label(study_key=STUDY, task="tumour", value=value, source=source, labelled_at=at)


def message(data, event_id, key=STUDY):
    topic = topics.PREDICTION if isinstance(data, Prediction) else topics.LABEL
    return Record(topic.name, 0, 0, key, headers_of(topic, event_id, START), data.model_dump_json().encode())


def feed(database, *messages):
    return process(database, Join(SETTINGS), messages)


def truth(database):
    with database.read() as session:
        return session.exec(select(Case)).one().truth


def announced(database):
    with database.read() as session:
        rows = session.exec(select(Outbox).where(Outbox.topic == topics.BATCH_READY.name).order_by(Outbox.id)).all()
    return [json.loads(row.body)["corrected"] for row in rows]


def test_a_clock_that_runs_ahead_does_not_outlive_the_corrections_of_others(database, clock):
    feed(database, message(score(), "s"), message(label("none", clock.now() + timedelta(hours=20), "http:ris"), "l1"))
    clock.advance(3600)
    feed(database, message(label("glioma", clock.now(), "http:pathology"), "l2"))
    assert truth(database) == "glioma"


def test_of_labels_from_the_future_in_one_poll_the_later_counts(database, clock):
    ahead = [label("glioma", clock.now() + timedelta(hours=3)), label("none", clock.now() + timedelta(hours=2))]
    feed(database, message(score(), "s"), *[message(item, f"l{n}") for n, item in enumerate(ahead)])
    assert truth(database) == "glioma"
    with database.read() as session:
        assert session.exec(select(GroundTruth)).one().labelled_at == clock.now()


def test_a_clock_that_runs_ahead_is_seen_by_the_time_from_statement_to_receipt(database, clock):
    said = [label("glioma", clock.now() - timedelta(hours=3)), label("none", clock.now() + timedelta(hours=2), "ahead")]
    feed(database, *[message(data, str(number)) for number, data in enumerate([score(), *said])])
    with database.read() as session:
        found = punctuality(session, "tumour", 1)
    assert found == {"ahead": Punctuality(1, 0.0, 0.0, 1), "csv": Punctuality(1, 3.0, 3.0, 0)}


def test_every_correction_is_announced_whatever_key_its_message_has(database, clock):
    feed(database, message(score(), "s"), message(label("none", START - timedelta(days=9)), "l0", key=""))
    for day, value in enumerate(("glioma", "none", "glioma"), 1):
        feed(database, message(label(value, START - timedelta(days=9 - day)), f"l{day}", key="elsewhere"))
    assert truth(database) == "glioma"
    assert announced(database) == [False, True, True, True]


def wire(event_id, key, body, headers=()):
    headers = [("ce_id", event_id), *headers]
    return ConsumerRecord(topics.LABEL.name, 0, 7, 0, 0, key, body, None, len(key), len(body), headers)


def test_null_characters_in_keys_and_headers_stop_nothing(database):
    good = label("none", START - timedelta(days=1)).model_dump_json().encode()
    messages = [
        wire(b"one\0", b"key\0", good, [("traceparent", b"\0"), ("na\0me", b"\0")]),
        wire(b"two\0", b"\0", b"\0", [("x", b"\0")]),
    ]
    assert process(database, Join(SETTINGS), map(to_record, messages)) == 1
    with database.read() as session:
        assert session.exec(select(GroundTruth)).one().value == "none"
        assert session.exec(select(DeadLetter)).one().body == b"\0"
