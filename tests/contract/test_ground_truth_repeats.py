"""Whatever comes again, alone or among new events, under its old id or another, has no second effect. On both databases."""

import json
import random
from datetime import UTC, datetime, timedelta

import pytest
from sqlmodel import col, select

from schemas import topics
from schemas.events import Label, Prediction
from schemas.inbox_pages import InboxPage
from schemas.settings import JoinSettings
from schemas.tables import Audit, Batch, Case, DeadLetter, GroundTruth, Inbox, Outbox, RegisteredModel
from services.ground_truth.handlers import Join
from services.runtime.consumer import process
from services.runtime.messages import Record, headers_of

SETTINGS = JoinSettings(batch_size=3, tune_share=0.0, gate_share=0.0)
LONG_AGO = datetime(2026, 1, 2, 8, tzinfo=UTC)


def study(number):
    return f"{0xABC000 + number:032x}"


def scored(number, *, revision=1, predicted="glioma"):
    names = {"study_key": study(number), "patient_key": study(number), "model": "tumour", "task": "tumour", "predicted": predicted}
    times = {"acquired_at": LONG_AGO + timedelta(minutes=number), "scored_at": LONG_AGO}
    return Prediction(**names, **times, revision=revision, version=1, serving=True, probabilities={"glioma": 0.75, "none": 0.25})


def labelled(number, value="glioma", at=LONG_AGO):
    return Label(study_key=study(number), task="tumour", value=value, source="csv", labelled_at=at, withdrawn=value is None)


class Feed:
    """Gives events to the join, each under a name, and tells what the tables hold."""

    def __init__(self, database):
        self.database, self.sent = database, {}

    def __call__(self, *names, **events):
        self.sent |= events
        self.poll([*events, *names])

    def poll(self, names, suffix=""):
        records = []
        for name in names:
            data = self.sent[name]
            topic = topics.PREDICTION if isinstance(data, Prediction) else topics.LABEL
            headers = headers_of(topic, name + suffix, LONG_AGO)
            records.append(Record(topic.name, 0, 0, data.study_key, headers, data.model_dump_json().encode()))
        assert process(self.database, Join(SETTINGS), records) == 0

    def tables(self):
        keys = (Case.study_key, GroundTruth.study_key, Batch.number, Outbox.id, Audit.id, Inbox.event_id)
        with self.database.read() as session:
            found = [session.exec(select(key.class_).order_by(col(key))).all() for key in keys]
            return [[row.model_dump() for row in rows] for rows in found]

    def announced(self):
        with self.database.read() as session:
            return [json.loads(row.body)["corrected"] for row in session.exec(select(Outbox).order_by(col(Outbox.id)))]

    def audited(self):
        with self.database.read() as session:
            rows = session.exec(select(Audit).order_by(col(Audit.id))).all()
            return [(case["was"], case["is"], case["event"]) for row in rows for case in row.detail["cases"]]


@pytest.fixture
def feed(database):
    return Feed(database)


def test_everything_again_in_any_order_changes_no_table(feed, clock):
    feed(**{f"s{n}": scored(n) for n in range(4)}, **{f"l{n}": labelled(n) for n in range(4)})
    feed(overtaking=labelled(0, "none"), withdrawal=labelled(1, None, LONG_AGO + timedelta(days=1)))
    feed(ahead=labelled(2, "none", clock.now() + timedelta(hours=5)))
    clock.advance(3600)
    feed(correction=labelled(2, "glioma", clock.now()), again=labelled(1, "none", LONG_AGO + timedelta(days=2)))
    feed(higher=scored(3, revision=2, predicted="none"))
    before = feed.tables()
    chance, names = random.Random(4), list(feed.sent)
    for suffix in ("", "", "-another-id"):
        clock.advance(5 * 3600)
        chance.shuffle(names)
        for start in range(0, len(names), 4):
            feed.poll(names[start : start + 4], suffix)
        assert feed.tables() == before
    assert [case["truth"] for case in before[0]] == ["none", "none", "glioma", "glioma"]


def test_a_repeated_correction_beside_a_new_one_swallows_no_announcement(feed):
    feed(**{f"s{n}": scored(n) for n in range(3)}, **{f"l{n}": labelled(n) for n in range(3)})
    feed(first=labelled(1, "none", LONG_AGO + timedelta(days=1)))
    feed("first", "s1", second=labelled(1, "glioma", LONG_AGO + timedelta(days=2)))
    assert feed.announced() == [False, True, True]
    assert feed.audited() == [("glioma", "none", "first"), ("none", "glioma", "second")]


def test_a_poll_is_one_row_and_only_labels_that_leave_no_trace_are_remembered(feed, clock):
    feed(s0=scored(0), l0=labelled(0), late=labelled(1, "glioma", LONG_AGO + timedelta(days=1)))
    feed(correction=labelled(0, "none", LONG_AGO + timedelta(days=1)))
    with feed.database.read() as session:
        pages = [json.loads(page.event_ids) for page in session.exec(select(InboxPage).order_by(col(InboxPage.id)))]
        assert pages == [["s0", "l0", "late"], ["correction"]]
        assert session.exec(select(Inbox)).all() == []
    feed(ahead=labelled(2, "none", clock.now() + timedelta(hours=1)), tie=labelled(1, "none", LONG_AGO + timedelta(days=1)))
    with feed.database.read() as session:
        assert {row.event_id[:5] for row in session.exec(select(Inbox))} == {"said:"}
        assert len(session.exec(select(Inbox)).all()) == 2


def test_a_label_that_counts_comes_again_when_its_class_is_none_any_more(database):
    """Labels may come before their model: what was taken then must not fill the dead letters when a topic is read anew."""
    feed = Feed(database)
    feed(odd=labelled(1, "odd"), first=labelled(2, "odd"), second=labelled(2, "strange"))
    with database.transaction() as tx:
        tx.session.add(RegisteredModel(name="tumour", task="tumour", classes=["glioma", "none"], created_at=LONG_AGO))
    before = feed.tables()
    feed("odd", "first", "second")
    feed("second", "odd")
    assert feed.tables() == before
    new = {"new": labelled(3, "odd"), "other": labelled(1, "queer", LONG_AGO + timedelta(hours=1))}
    records = [
        Record(topics.LABEL.name, 0, 0, "k", headers_of(topics.LABEL, name, LONG_AGO), data.model_dump_json().encode())
        for name, data in new.items()
    ]
    assert process(database, Join(SETTINGS), records) == 2, "what is new is refused"
    with database.read() as session:
        assert {letter.event_id for letter in session.exec(select(DeadLetter))} == {"new", "other"}
