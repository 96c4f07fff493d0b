"""The join against a dictionary: random events in random order and random groups, some delivered several times.

An event's id follows from what it says, as that of every event of ours does.
"""

import hashlib
import json
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlmodel import col, select

from schemas import topics
from schemas.events import Label, Prediction
from schemas.settings import JoinSettings
from schemas.tables import Batch, Case, Outbox
from services.ground_truth.domain import role_of
from services.ground_truth.handlers import Join
from services.runtime.consumer import process
from services.runtime.database import Database
from services.runtime.messages import Record, headers_of

NOW = datetime(2026, 3, 2, 8, tzinfo=UTC)
SHARES = JoinSettings(batch_size=2, tune_share=0.2, gate_share=0.2)
KEYS = [f"{number:032x}" for number in range(6)]
PATIENTS = [f"{number:032x}" for number in range(100)]
TRIGGERS = [patient for patient in PATIENTS if role_of(patient, 0.2, 0.2) == "trigger"][:4]
PATIENT_OF = [TRIGGERS[0], *TRIGGERS, next(patient for patient in PATIENTS if role_of(patient, 0.2, 0.2) == "gate")]

scores = st.builds(
    lambda study, version, revision, serving, predicted: Prediction(
        study_key=KEYS[study],
        patient_key=PATIENT_OF[study],
        revision=revision,
        model="m",
        version=version,
        serving=serving,
        task="t",
        probabilities={"x": 0.5, "y": 0.5},
        predicted=predicted,
        acquired_at=NOW + timedelta(hours=study),
        scored_at=NOW,
    ),
    st.integers(0, 5),
    st.sampled_from([1, 1, 2]),
    st.integers(1, 3),
    st.sampled_from([True, True, True, False]),
    st.sampled_from("xy"),
)
labels = st.builds(
    lambda study, value, source, day: Label(
        study_key=KEYS[study], task="t", value=value, source=source, labelled_at=NOW - timedelta(days=day), withdrawn=value is None
    ),
    st.integers(0, 5),
    st.sampled_from(["x", "y", None]),
    st.sampled_from(["csv", "http"]),
    st.integers(0, 3),
)
deliveries = st.lists(st.lists(st.one_of(scores, labels), min_size=1, max_size=12), min_size=1, max_size=8)


class Dictionary:
    """The join as one would write it in memory."""

    def __init__(self):
        self.seen, self.cases, self.labels, self.batches, self.corrected = set(), {}, {}, [], []

    def deliver(self, group):
        fresh = [data for event_id, data in dict(group).items() if event_id not in self.seen]
        self.seen |= {event_id for event_id, _ in group}
        for data in fresh:
            self._score(data) if isinstance(data, Prediction) else self._label(data)
        self._settle({data.study_key for data in fresh})

    def _score(self, data):
        key = (data.study_key, data.version)
        case = self.cases.get(key)
        if case is None or (case["state"] not in {"batched", "withdrawn"} and data.revision > case["data"].revision):
            before = case or {"truth": None, "state": "waiting", "batch": None}
            self.cases[key] = before | {"data": data}

    def _label(self, data):
        known = self.labels.setdefault(data.study_key, {})
        before = known.get(data.source)
        if before is None or (data.labelled_at, data.withdrawn) >= (before.labelled_at, before.withdrawn):
            known[data.source] = data

    def _settle(self, studies):
        reopened, versions = set(), set()
        for (study, version), case in self.cases.items():
            if study not in studies or study not in self.labels:
                continue
            said = [label for label in self.labels[study].values() if not label.withdrawn]
            truth = max(said, key=lambda label: (label.labelled_at, label.source)).value if said else None
            if case["truth"] != truth and case["batch"]:
                reopened.add(case["batch"])
            case["truth"] = truth
            free, placed = ("joined", "batched") if truth else ("waiting", "withdrawn")
            case["state"] = placed if case["batch"] else free
            versions.add(version)
        self.corrected += sorted(reopened)
        for version in sorted(versions):
            self._close(version)

    def _close(self, version):
        def is_open(case):
            role = role_of(case["data"].patient_key, 0.2, 0.2)
            return case["state"] == "joined" and case["data"].serving and role == "trigger"

        while len(found := sorted(s for (s, v), case in self.cases.items() if v == version and is_open(case))) >= 2:
            number = sum(v == version for v, _ in self.batches) + 1
            self.batches.append((version, number))
            for study in found[:2]:
                self.cases[study, version] |= {"state": "batched", "batch": (version, number)}


def record(event_id, data):
    topic = topics.PREDICTION if isinstance(data, Prediction) else topics.LABEL
    return Record(topic.name, 0, 0, data.study_key, headers_of(topic, event_id, NOW), data.model_dump_json().encode())


def state_of(database):
    with database.read() as session:
        numbers = {batch.batch_id: (batch.version, batch.number) for batch in session.exec(select(Batch))}
        cases = {
            (row.study_key, row.version): (row.truth, row.state, numbers.get(row.batch_id or ""), row.revision, row.predicted)
            for row in session.exec(select(Case))
        }
        bodies = [json.loads(row.body) for row in session.exec(select(Outbox).order_by(col(Outbox.id)))]
    events = [(numbers[body["batch_id"]], body["corrected"]) for body in bodies]
    return cases, sorted(numbers.values()), sorted(number for number, corrected in events if corrected)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("model")


@given(deliveries)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_join_does_what_a_dictionary_does(scratch, sqlite_template, groups):
    path = scratch / "join.sqlite"
    for leftover in scratch.glob("join.sqlite*"):
        leftover.unlink()
    shutil.copy(sqlite_template, path)
    database, model = Database(f"sqlite:///{path}"), Dictionary()
    with database.engine.connect() as connection:
        connection.connection.driver_connection.execute("PRAGMA synchronous=OFF")
    for group in groups:
        named = [(hashlib.sha256(data.model_dump_json().encode()).hexdigest(), data) for data in group]
        model.deliver(named)
        assert process(database, Join(SHARES), [record(*item) for item in named]) == 0
    cases, batches, corrected = state_of(database)
    database.close()
    assert cases == {
        key: (case["truth"], case["state"], case["batch"], case["data"].revision, case["data"].predicted)
        for key, case in model.cases.items()
    }
    assert batches == sorted(model.batches)
    assert corrected == sorted(model.corrected)
