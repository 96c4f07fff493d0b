"""The evaluation on both databases, fed through the join: status, evidence, corrections, redelivery, audit."""

import asyncio
import json
import uuid
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from sqlmodel import col, select

from schemas import topics
from schemas.events import Label, Prediction
from schemas.settings import EvaluationSettings, JoinSettings
from schemas.tables import (
    Audit,
    BaselineCase,
    Batch,
    DeadLetter,
    DetectorCalibration,
    Evaluation,
    ModelVersion,
    Outbox,
    TrainingPatient,
)
from services.evaluation import calibration, power, repository
from services.evaluation.app import build
from services.evaluation.thresholds import Prepare
from services.ground_truth.handlers import Join
from services.runtime import registry
from services.runtime.consumer import process
from services.runtime.messages import Record, headers_of
from services.runtime.service import StopSignal

START = datetime(2026, 3, 2, 8, tzinfo=UTC)
JOIN = JoinSettings(batch_size=50, tune_share=0.0, gate_share=0.0)
CLASSES = ["glioma", "none"]


@pytest.fixture(autouse=True)
def fewer_streams(monkeypatch):
    """Thresholds from 125 streams instead of 1,000: the tests of the calibration itself use them all."""
    monkeypatch.setattr(calibration, "STREAMS", 125)
    monkeypatch.setattr(power, "STREAMS", 20)


@pytest.fixture
def site(context):
    settings = context.settings.model_copy(update={"join": JOIN, "evaluation": EvaluationSettings(bootstrap_draws=100)})
    return Site(type(context)(settings, context.database, context.clock, context.pseudonyms))


class Site:
    """A registered model, its studies and their labels."""

    def __init__(self, context):
        self.context, self.database, self.studies = context, context.database, 0
        self.generator = np.random.default_rng(4)
        (self.consumer,) = build(context).consumers

    def register(self, version=1, cases=200):
        with self.database.transaction() as tx:
            registry.register_model(tx, "tumour", "tumour", CLASSES, {})
            row = ModelVersion(model="tumour", version=version, bundle="b", sha256="0" * 64, created_at=START)
            baseline = []
            for number in range(cases):
                truth = CLASSES[number % 2]
                wrong = number % 20 < 2
                baseline.append(
                    BaselineCase(
                        **_scores(truth, wrong),
                        model="tumour",
                        version=version,
                        case_key=f"b{number}",
                        patient_key=f"b{number}",
                        truth=truth,
                    )
                )
            registry.add_version(tx, row, baseline, actor="user:test")

    def score_and_label(self, count, error=0.1, **fields):
        events = []
        for _ in range(count):
            truth = CLASSES[self.studies % 2]
            wrong = truth == "glioma" and self.generator.random() < error
            events += [self._prediction(truth, wrong, **fields), self._label(self.studies, truth)]
            self.studies += 1
        self.join(*events)

    def join(self, *events):
        records = []
        for data in events:
            topic = topics.PREDICTION if isinstance(data, Prediction) else topics.LABEL
            headers = headers_of(topic, uuid.uuid4().hex, START)
            records.append(Record(topic.name, 0, 0, data.study_key, headers, data.model_dump_json().encode()))
        assert process(self.database, Join(JOIN), records) == 0

    def _prediction(self, truth, wrong, **fields):
        values = {"facets": {"StationName": "MR1"}, "version": 1} | fields
        at = START + timedelta(hours=self.studies)
        return Prediction(
            study_key=_key("s", self.studies),
            patient_key=_key("p", self.studies),
            revision=1,
            model="tumour",
            serving=True,
            task="tumour",
            acquired_at=at,
            scored_at=at,
            **_scores(truth, wrong),
            **values,
        )

    def _label(self, number, value, day=0):
        return Label(
            study_key=_key("s", number), task="tumour", value=value, source="csv", labelled_at=START - timedelta(days=9 - day)
        )

    def correct(self, number, value):
        self.join(self._label(number, value, day=1))

    def evaluate(self):
        with self.database.read() as session:
            rows = session.exec(select(Outbox).where(Outbox.topic == topics.BATCH_READY.name).order_by(col(Outbox.id))).all()
        records = [Record(row.topic, 0, number, row.key, row.headers, row.body) for number, row in enumerate(rows)]
        return process(self.database, self.consumer, records)

    def rows(self, table):
        with self.database.read() as session:
            return list(session.exec(select(table)))

    def latest(self, version=None):
        with self.database.read() as session:
            return repository.latest(session, "tumour", version)


def _key(kind, number):
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{kind}{number}").hex


def _scores(truth, wrong):
    said = CLASSES[1 - CLASSES.index(truth)] if wrong else truth
    return {"predicted": said, "probabilities": {name: 0.8 if name == said else 0.2 for name in CLASSES}}


def test_decline_on_a_new_scanner_is_found_and_explained(site):
    site.register()
    site.score_and_label(100)
    site.evaluate()
    assert site.latest().status == "healthy"
    assert site.latest().diagnosis == "none"
    site.score_and_label(100, error=0.6, facets={"StationName": "MR2"})
    site.context.clock.advance(60)
    site.evaluate()
    row = site.latest(version=1)
    assert (row.status, row.diagnosis, row.cases, row.stream_cases) == ("degraded", "covariate", 50, 200)
    assert row.evidence["class"] == "glioma"
    assert row.evidence["since"] == (START + timedelta(hours=100)).isoformat()
    assert row.evidence["root_cause"].startswith("since 6 March 2026, station MR2; recall of glioma 0.")
    assert row.evidence["drop_low"] < row.evidence["drop"] < row.evidence["drop_high"]
    assert row.reclaim_rule
    assert "has got worse" in row.summary
    recall = next(metric for metric in row.metrics if metric["name"] == "recall:glioma")
    assert recall["low"] < recall["value"] < recall["high"] < recall["baseline"] == 0.9
    assert {metric["name"] for metric in row.metrics} >= {"accuracy", "macro_f1", "auroc", "ece", "brier", "specificity:none"}


def test_an_evaluation_is_announced_and_audited_once(site):
    site.register()
    site.score_and_label(50)
    site.evaluate()
    site.evaluate()
    (row,) = site.rows(Evaluation)
    (event,) = [item for item in site.rows(Outbox) if item.topic == topics.EVALUATION_COMPLETED.name]
    body = json.loads(event.body)
    assert event.event_id == body["evaluation_id"] == row.evaluation_id
    assert (body["task"], body["status"], len(body["metrics"])) == ("tumour", row.status, len(row.metrics))
    (entry,) = [item for item in site.rows(Audit) if item.action == "evaluation.completed"]
    assert (entry.subject, entry.detail["evaluation"]) == ("tumour:1", row.evaluation_id)


def test_a_correction_brings_another_evaluation_of_the_same_batch(site):
    site.register()
    site.score_and_label(100)
    site.evaluate()
    first = site.rows(Evaluation)
    site.context.clock.advance(60)
    site.correct(1, "glioma")
    site.evaluate()
    second = [row for row in site.rows(Evaluation) if row.evaluation_id not in {old.evaluation_id for old in first}]
    assert len(first) == 2
    assert len(second) == 1
    assert second[0].batch_id in {row.batch_id for row in first}
    assert second[0].stream_cases == 100
    before = next(row for row in first if row.batch_id == second[0].batch_id)
    assert before.metrics != second[0].metrics
    assert site.latest().evaluation_id == second[0].evaluation_id


def test_thresholds_are_kept_and_few_cases_stay_undecided(site):
    site.register(cases=120)
    site.score_and_label(50)
    site.evaluate()
    row = site.latest()
    assert row.status == "undecided"
    assert row.evidence["more_cases_needed"] > 0
    assert "more are needed" in row.summary
    (kept,) = site.rows(DetectorCalibration)
    assert (kept.origin, kept.threshold_a) == ("simulation", row.evidence["threshold_a"])
    site.score_and_label(50)
    site.evaluate()
    assert len(site.rows(DetectorCalibration)) == 1


def test_the_alarm_ends_with_the_version(site):
    site.register()
    site.score_and_label(100, error=0.7)
    site.evaluate()
    assert site.latest().status == "degraded"
    site.register(version=2)
    site.context.clock.advance(60)
    site.score_and_label(100, version=2)
    site.evaluate()
    assert site.latest().status == "healthy"
    assert site.latest(version=1).status == "degraded"
    with site.database.read() as session:
        assert [row.version for row in repository.history(session, "tumour", 3)][:2] == [2, 2]
        assert repository.evaluation(session, site.latest().evaluation_id) is not None


def test_a_version_starts_with_the_variation_that_the_version_before_it_showed(site):
    """Weeks without an error and weeks with many in turn: no fall, but no chance either."""
    site.register()
    for week in range(10):
        site.score_and_label(50, error=0.45 * (week % 2))
        site.context.clock.advance(60)
        site.evaluate()
    seen = site.latest(1).evidence
    assert seen["variation_pairs"] == 9
    assert seen["variation_factor"] > 1.5
    site.register(version=2)
    site.context.clock.advance(60)
    site.score_and_label(50, version=2)
    site.evaluate()
    assert site.latest(2).evidence["variation_pairs"] == 9
    assert site.latest(2).evidence["variation_seen"] == pytest.approx(seen["variation_seen"])
    site.score_and_label(50, version=2)
    site.evaluate()
    assert site.latest(2).evidence["variation_pairs"] == 10
    with site.database.read() as session:
        assert repository.earlier_variation(session, "tumour", 1, 50).pairs == 0
        assert repository.earlier_variation(session, "tumour", 2, 49).pairs == 0


def test_a_version_without_a_test_set_is_measured_but_not_judged(site):
    site.score_and_label(50)
    site.evaluate()
    row = site.latest()
    assert (row.status, row.diagnosis) == ("undecided", "none")
    assert "no labelled reference cases" in row.summary


def test_an_unknown_batch_goes_to_the_dead_letters(site):
    body = {"batch_id": "nothing", "model": "tumour", "version": 1, "cases": 1, "closed_by": "size"}
    record = Record(topics.BATCH_READY.name, 0, 0, "tumour", headers_of(topics.BATCH_READY, "x", START), json.dumps(body).encode())
    assert process(site.database, site.consumer, [record]) == 1
    assert "no batch" in site.rows(DeadLetter)[0].reason


def test_the_same_cases_give_the_same_numbers(site):
    site.register()
    site.score_and_label(50)
    site.evaluate()
    with site.database.read() as session:
        event = session.exec(select(Outbox).where(Outbox.topic == topics.BATCH_READY.name)).one()
    again = Record(event.topic, 0, 9, event.key, {**event.headers, "ce_id": "again"}, event.body)
    assert process(site.database, site.consumer, [again]) == 0
    first, second = site.rows(Evaluation)
    assert (first.metrics, first.evidence, first.summary) == (second.metrics, second.evidence, second.summary)


def test_a_batch_that_is_delivered_again_late_does_not_change_the_status(site):
    site.register()
    site.score_and_label(100)
    site.score_and_label(100, error=0.7)
    site.evaluate()
    assert site.latest().status == "degraded"
    with site.database.read() as session:
        first = session.exec(select(Outbox).where(Outbox.topic == topics.BATCH_READY.name).order_by(col(Outbox.id))).first()
    site.context.clock.advance(60)
    again = Record(first.topic, 0, 9, first.key, {**first.headers, "ce_id": "late"}, first.body)
    assert process(site.database, site.consumer, [again]) == 0
    late = max(site.rows(Evaluation), key=lambda row: row.evaluated_at)
    assert (late.status, late.stream_cases) == ("degraded", 200)
    assert (site.latest().status, site.latest(version=1).status) == ("degraded", "degraded")


def test_labels_of_months_that_come_at_once_are_judged_batch_by_batch(site):
    """A first import of old labels: of a batch is told what was known with it, and no alarm stands before the fall."""
    site.register()
    site.score_and_label(250, error=0.05)
    site.score_and_label(150, error=0.9)
    site.evaluate()
    with site.database.read() as session:
        query = select(Batch.number, Evaluation.status, Evaluation.stream_cases).join(Batch, Batch.batch_id == Evaluation.batch_id)
        rows = session.exec(query.order_by(col(Batch.number))).all()
    assert [(number, cases) for number, _, cases in rows] == [(number, 50 * number) for number in range(1, 9)]
    statuses = [status for _, status, _ in rows]
    assert set(statuses[:5]) <= {"healthy", "undecided"}
    assert statuses[-1] == site.latest().status == "degraded"
    assert site.latest().evidence["since_batch"] == 6


def test_labels_that_come_at_once_with_the_errors_first_raise_no_alarm(site):
    site.register()
    batch = [number for number in range(200) if number % 10 == 0] + [number for number in range(200) if number % 10]
    predictions, labels = [], []
    for number in range(200):
        truth = CLASSES[number // 10 % 2]
        predictions.append(site._prediction(truth, number % 10 == 0))
        labels.append(site._label(number, truth))
        site.studies += 1
    site.join(*predictions)
    site.join(*(labels[number] for number in batch))
    site.evaluate()
    assert "degraded" not in {row.status for row in site.rows(Evaluation)}
    assert site.latest().stream_cases == 200


def test_patients_that_the_model_was_trained_on_are_no_evidence(site):
    """They are read better than others: here they hide a fall that all other patients show."""
    site.register()
    with site.database.transaction() as tx:
        # Every study but the last eight of ten is of a patient whom the model knows by heart.
        known = [TrainingPatient(model="tumour", patient_key=_key("p", number)) for number in range(100) if number % 10 < 8]
        tx.session.add_all([*known, TrainingPatient(model="another", patient_key=_key("p", 9))])
    for _ in range(10):
        site.score_and_label(8, error=0.0)
        site.score_and_label(2, error=0.9)
    site.evaluate()
    row = site.latest()
    assert row.stream_cases == 100
    assert row.evidence["independent_cases"] == 20
    assert row.evidence["returning_training_cases"] == 80
    assert row.evidence["returning_training_patients"] == 80
    recall = next(metric for metric in row.metrics if metric["name"] == "recall:glioma")
    assert recall["cases"] == 5
    assert recall["value"] < 0.5
    assert row.status == "degraded"


def test_thresholds_are_made_when_a_version_begins_to_serve_and_are_those_of_its_first_evaluation(site):
    site.register()
    prepare = Prepare(site.database, site.context.settings.evaluation, JOIN.batch_size)
    assert [prepare.once(), prepare.once()] == [1, 0]
    with site.database.read() as session:
        before = session.exec(select(DetectorCalibration)).one()
        kept = before.fingerprint, before.threshold_a, before.threshold_b
        audit = session.exec(select(Audit).where(Audit.action == "detector.calibrated")).one()
    assert 0 < before.smallest_fall <= 1
    assert audit.detail["fingerprint"] == before.fingerprint
    site.score_and_label(50)
    site.evaluate()
    with site.database.read() as session:
        after = session.exec(select(DetectorCalibration)).one()
        assert (after.fingerprint, after.threshold_a, after.threshold_b) == kept
        assert session.exec(select(Evaluation)).one().evidence["threshold_a"] == before.threshold_a


async def test_the_worker_makes_them_and_ends_when_it_shall(site):
    site.register()
    stop = StopSignal()
    (worker,) = build(site.context).workers
    task = asyncio.create_task(worker.run(stop))
    for _ in range(400):
        await asyncio.sleep(0.05)
        with site.database.read() as session:
            if session.exec(select(DetectorCalibration)).all():
                break
    stop.set()
    await asyncio.wait_for(task, 20)
    with site.database.read() as session:
        assert len(session.exec(select(DetectorCalibration)).all()) == 1
