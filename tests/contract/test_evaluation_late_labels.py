"""Labels that come late, and sooner for errors, through the join and the evaluation on real databases."""

import uuid
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from sqlmodel import col, select

from schemas import topics
from schemas.events import Label, Prediction
from schemas.settings import EvaluationSettings, JoinSettings
from schemas.tables import BaselineCase, Batch, DetectorCalibration, Evaluation, ModelVersion, Outbox
from services.evaluation import calibration, power, repository
from services.evaluation.app import build
from services.ground_truth.handlers import Join
from services.runtime import registry
from services.runtime.consumer import process
from services.runtime.messages import Record, headers_of

MONDAY = datetime(2026, 3, 2, 8, tzinfo=UTC)
JOIN = JoinSettings(batch_size=50, tune_share=0.0, gate_share=0.0)
CLASSES = ["glioma", "none"]
WEEKLY = 50
LATE = {"right": 4.0, "wrong": 0.5}
LATER = {"right": 8.0, "wrong": 0.5}
"""Mean weeks until the label comes."""


@pytest.fixture
def open_clinic(context, monkeypatch):
    """A clinic that waits for labels for so many days."""
    monkeypatch.setattr(calibration, "STREAMS", 250)
    monkeypatch.setattr(power, "STREAMS", 20)

    def make(wait_days):
        chosen = EvaluationSettings(bootstrap_draws=100, label_wait_days=wait_days)
        settings = context.settings.model_copy(update={"join": JOIN, "evaluation": chosen})
        return Clinic(type(context)(settings, context.database, context.clock, context.pseudonyms))

    return make


@pytest.fixture
def clinic(open_clinic):
    return open_clinic(90.0)


class Clinic:
    """A week at a time: predictions are scored, labels come in, full batches are evaluated."""

    def __init__(self, context):
        self.context, self.database, self.week, self.due = context, context.database, 0, {}
        self.generator, self.seen = np.random.default_rng(11), 0
        (self.consumer,) = build(context).consumers
        self.context.clock.advance((MONDAY - context.clock.now()).total_seconds())
        with self.database.transaction() as tx:
            registry.register_model(tx, "tumour", "tumour", CLASSES, {})
            row = ModelVersion(model="tumour", version=1, bundle="b", sha256="0" * 64, created_at=MONDAY)
            registry.add_version(tx, row, [_baseline(number) for number in range(400)], actor="user:test")

    def live(self, weeks, error, late=LATE):
        """`weeks` weeks with this error rate; returns the status after each."""
        found = []
        for _ in range(weeks):
            self._score(error, late)
            self._label()
            found.append(self._evaluate())
            self.week += 1
            self.context.clock.advance(7 * 86_400)
        return found

    def _score(self, error, late):
        events = []
        for number in range(WEEKLY):
            truth, wrong = CLASSES[number % 2], self.generator.random() < error
            said = CLASSES[1 - number % 2] if wrong else truth
            at = self.context.clock.now() - timedelta(minutes=WEEKLY - number)
            key, patient = uuid.UUID(int=2 * self.seen).hex, uuid.UUID(int=2 * self.seen + 1).hex
            shared = {"study_key": key, "patient_key": patient, "revision": 1, "model": "tumour", "version": 1, "serving": True}
            events.append(Prediction(**shared, **_scores(said), task="tumour", acquired_at=at, scored_at=at, facets={}))
            delay = self.generator.geometric(1 / (1 + late["wrong" if wrong else "right"])) - 1
            self.due.setdefault(self.week + int(delay), []).append((key, truth))
            self.seen += 1
        self._join(topics.PREDICTION, events)

    def _label(self):
        now = self.context.clock.now()
        labels = self.due.pop(self.week, [])
        self._join(topics.LABEL, [Label(study_key=k, task="tumour", value=v, source="csv", labelled_at=now) for k, v in labels])

    def _join(self, topic, events):
        records = [
            Record(topic.name, 0, 0, data.study_key, headers_of(topic, uuid.uuid4().hex, MONDAY), data.model_dump_json().encode())
            for data in events
        ]
        assert process(self.database, Join(JOIN), records) == 0

    def _evaluate(self):
        with self.database.read() as session:
            rows = session.exec(select(Outbox).where(Outbox.topic == topics.BATCH_READY.name).order_by(col(Outbox.id))).all()
        records = [Record(row.topic, 0, number, row.key, row.headers, row.body) for number, row in enumerate(rows)]
        process(self.database, self.consumer, records)
        row = self.latest()
        return row.status if row else None

    def latest(self):
        with self.database.read() as session:
            return repository.latest(session, "tumour")


def _scores(said):
    return {"predicted": said, "probabilities": {name: 0.8 if name == said else 0.2 for name in CLASSES}}


def _baseline(number):
    truth = CLASSES[number % 2]
    said = CLASSES[1 - number % 2] if number % 20 < 2 else truth
    names = {"case_key": f"b{number}", "patient_key": f"b{number}"}
    return BaselineCase(model="tumour", version=1, truth=truth, **names, **_scores(said))


@pytest.mark.parametrize("late", [LATE, LATER])
def test_errors_that_are_labelled_sooner_do_not_alarm(clinic, late):
    statuses = clinic.live(16, error=0.10, late=late)
    assert "degraded" not in statuses
    evidence = clinic.latest().evidence
    assert evidence["weeks_waiting_for_labels"] > 4
    assert evidence["labels_awaited"] > 50
    assert evidence["cases_held_back"] > 50
    assert evidence["judged_on"] == "complete weeks"
    assert evidence["last_week_waiting"] == (MONDAY + timedelta(weeks=15)).date().isoformat()


def test_a_batch_closed_by_a_clock_that_ran_ahead_does_not_end_the_wait_for_labels(clinic):
    clinic.live(4, error=0.10, late=LATER)
    with clinic.database.transaction() as tx:
        batch = tx.session.exec(select(Batch).limit(1)).one()
        batch.closed_at += timedelta(days=4000)
        tx.session.add(batch)
    statuses = clinic.live(12, error=0.10, late=LATER)
    assert "degraded" not in statuses
    assert clinic.latest().evidence["weeks_waiting_for_labels"] > 4


def test_the_same_labels_do_alarm_where_none_is_waited_for(open_clinic):
    clinic = open_clinic(0.0)
    assert "degraded" in clinic.live(16, error=0.10, late=LATER)
    assert "weeks_waiting_for_labels" not in clinic.latest().evidence


def test_a_true_fall_is_found_although_labels_are_late(clinic):
    clinic.live(8, error=0.10)
    found = clinic.live(12, error=0.60)
    assert found[-1] == "degraded"
    evidence = clinic.latest().evidence
    assert evidence["drop"] > 0.2
    began = datetime.fromisoformat(evidence["since"])
    assert abs(began - (MONDAY + timedelta(weeks=8))) <= timedelta(weeks=2)


def test_labels_at_once_leave_nothing_to_wait_for(clinic):
    clinic.live(4, error=0.10, late={"right": 0.0, "wrong": 0.0})
    row = clinic.latest()
    assert row.status == "healthy"
    assert not {"weeks_waiting_for_labels", "judged_on"} & set(row.evidence)
    assert row.stream_cases == 200


def test_thresholds_keep_the_volume_that_they_hold_for(clinic):
    """Fifty cases a week in blocks of fifty are a block a week; 52 is assumed before and measured after."""
    clinic.live(6, error=0.10, late={"right": 0.0, "wrong": 0.0})
    with clinic.database.read() as session:
        kept = session.exec(select(DetectorCalibration)).all()
        batches = session.exec(select(Batch)).all()
        evaluations = session.exec(select(Evaluation)).all()
    assert len(batches) == len(evaluations) == 6
    assert {row.batch_size for row in kept} == {50}
    assert {row.batches_per_year for row in kept} <= {52, 74}
    assert clinic.latest().evidence["blocks_per_year"] in {52, 74}
