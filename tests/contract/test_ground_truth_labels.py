"""From labels on the bus to what an evaluation says about them: late, selected, wrong, contradicting, corrected long after."""

import json
import uuid
from datetime import timedelta

import numpy as np
import pytest
from sqlmodel import col, select

from schemas import topics
from schemas.events import Label, Prediction
from schemas.settings import EvaluationSettings, JoinSettings
from schemas.tables import BaselineCase, Batch, Evaluation, ModelVersion, Outbox
from services.evaluation import calibration
from services.evaluation.app import build
from services.evaluation.repository import latest
from services.evaluation.truth_repository import conflicts, scored_cases
from services.ground_truth.handlers import Join
from services.runtime import registry
from services.runtime.consumer import process
from services.runtime.messages import Record, headers_of
from tests.truth_world import CLASSES, START, calibrated

JOIN = JoinSettings(batch_size=50, tune_share=0.0, gate_share=0.0)


@pytest.fixture(autouse=True)
def fewer_streams(monkeypatch):
    monkeypatch.setattr(calibration, "STREAMS", 100)


@pytest.fixture
def site(context):
    settings = context.settings.model_copy(update={"join": JOIN, "evaluation": EvaluationSettings(bootstrap_draws=100)})
    return Site(type(context)(settings, context.database, context.clock, context.pseudonyms))


class Site:
    """A model that scores studies, and sources that label them."""

    def __init__(self, context):
        self.context, self.database, self.clock = context, context.database, context.clock
        self.rng = np.random.default_rng(7)
        (self.evaluate,) = build(context).consumers
        self.register()

    def register(self):
        shares, truth = calibrated(self.rng, 200, 4.0)
        cases = [
            BaselineCase(
                model="tumour",
                version=1,
                case_key=f"b{n}",
                patient_key=f"b{n}",
                truth=CLASSES[truth[n]],
                predicted=CLASSES[int(row.argmax())],
                probabilities=dict(zip(CLASSES, map(float, row), strict=True)),
            )
            for n, row in enumerate(shares)
        ]
        with self.database.transaction() as tx:
            registry.register_model(tx, "tumour", "tumour", list(CLASSES), {})
            row = ModelVersion(model="tumour", version=1, bundle="b", sha256="0" * 64, created_at=START)
            registry.add_version(tx, row, cases, actor="user:test")

    def feed(self, consumer, *events):
        records = []
        for data in events:
            topic = topics.PREDICTION if isinstance(data, Prediction) else topics.LABEL
            headers = headers_of(topic, uuid.uuid4().hex, START)
            records.append(Record(topic.name, 0, 0, data.study_key, headers, data.model_dump_json().encode()))
        assert process(self.database, consumer, records) == 0

    def score(self, first, shares):
        events = []
        for n, row in enumerate(shares, first):
            fields = {"study_key": f"{n:032x}", "patient_key": f"{n:032x}", "revision": 1, "model": "tumour", "version": 1}
            fields |= {"serving": True, "task": "tumour", "acquired_at": self.clock.now(), "scored_at": self.clock.now()}
            probabilities = dict(zip(CLASSES, map(float, row), strict=True))
            events.append(Prediction(**fields, probabilities=probabilities, predicted=CLASSES[int(row.argmax())]))
        self.feed(Join(JOIN), *events)

    def label(self, labels, source="pathology", *, withdrawn=False, **ago):
        fields = {"task": "tumour", "source": source, "labelled_at": self.clock.now() - timedelta(**ago), "withdrawn": withdrawn}
        self.feed(Join(JOIN), *[Label(study_key=f"{n:032x}", value=value, **fields) for n, value in labels.items()])

    def announced(self):
        with self.database.read() as session:
            query = select(Outbox).where(Outbox.topic == topics.BATCH_READY.name).order_by(col(Outbox.id))
            return list(session.exec(query))

    def evaluate_announced(self):
        records = [Record(row.topic, 0, 0, row.key, row.headers, row.body) for row in self.announced()]
        assert process(self.database, self.evaluate, records) == 0

    def evaluations(self):
        with self.database.read() as session:
            return list(session.exec(select(Evaluation).order_by(col(Evaluation.stream_cases), col(Evaluation.evaluated_at))))


def test_late_selected_and_wrong_labels_are_in_the_evidence(site):
    shares, truth = calibrated(site.rng, 600, 4.0)
    site.score(0, shares)
    site.clock.advance(3 * 86_400)
    unsure = np.argsort(shares.max(1))[:350]
    wrong = set(site.rng.choice(unsure, 20, replace=False).tolist())
    site.label({int(n): CLASSES[(truth[n] + (n in wrong)) % 4] for n in unsure})
    site.evaluate_announced()
    evidence = site.evaluations()[-1].evidence
    assert evidence["label_delay_median_days"] == 3
    assert evidence["labelled_share"] == pytest.approx(350 / 600)
    assert evidence["labels_selected_by"] == "confidence decile"
    assert evidence["label_noise_low"] < 20 / 350 < evidence["label_noise_high"]
    assert evidence["suspect_labels"] > 0


def test_a_correction_long_after_reopens_the_old_batch_and_its_evaluation(site):
    shares, truth = calibrated(site.rng, 150, 4.0)
    site.score(0, shares)
    site.label({n: CLASSES[truth[n]] for n in range(150)})
    site.evaluate_announced()
    site.clock.advance(200 * 86_400)
    corrected = {n: CLASSES[(truth[n] + 1) % 4] for n in range(5)}
    site.label(corrected)
    site.evaluate_announced()
    with site.database.read() as session:
        first = session.exec(select(Batch).where(Batch.number == 1)).one()
    again = [row for row in site.evaluations() if row.batch_id == first.batch_id]
    assert len(again) == 2
    assert json.loads(site.announced()[-1].body)["corrected"]
    before, after = (
        {metric["name"]: metric["value"] for metric in row.metrics} for row in sorted(again, key=lambda row: row.evaluated_at)
    )
    right = [CLASSES[int(shares[n].argmax())] for n in range(5)]
    change = sum(corrected[n] == right[n] for n in range(5)) - sum(CLASSES[truth[n]] == right[n] for n in range(5))
    assert after["accuracy"] - before["accuracy"] == pytest.approx(change / 50)
    assert change < 0
    # The delay of the first label stays what it was: a correction is no late label.
    assert after != before
    assert again[-1].evidence["label_delay_median_days"] == 0


def test_a_withdrawal_reopens_the_evaluation_which_then_does_without_the_case(site):
    shares, truth = calibrated(site.rng, 50, 4.0)
    site.score(0, shares)
    site.label({n: CLASSES[truth[n]] for n in range(50)})
    site.evaluate_announced()
    site.clock.advance(30 * 86_400)
    wrong = [n for n in range(50) if int(shares[n].argmax()) != truth[n]]
    site.label(dict.fromkeys(wrong), withdrawn=True)
    site.evaluate_announced()
    before, after = site.evaluations()
    assert (before.cases, after.cases, before.batch_id) == (50, 50 - len(wrong), after.batch_id)
    assert (before.stream_cases, after.stream_cases) == (50, 50)
    with site.database.read() as session:
        assert latest(session, "tumour").evaluation_id == after.evaluation_id
    rates = [{metric["name"]: metric["value"] for metric in row.metrics}["accuracy"] for row in (before, after)]
    assert rates == [pytest.approx(1 - len(wrong) / 50), 1.0]
    assert "cases_of_unknown_classes" not in after.evidence
    assert ("withdrawn_cases" in before.evidence, after.evidence["withdrawn_cases"]) == (False, len(wrong))
    assert (before.evidence["labelled_share"], after.evidence["labelled_share"]) == (1.0, pytest.approx(1 - len(wrong) / 50))


def test_a_batch_of_which_every_label_was_withdrawn_is_evaluated_to_nothing(site):
    shares, truth = calibrated(site.rng, 50, 4.0)
    site.score(0, shares)
    site.label({n: CLASSES[truth[n]] for n in range(50)})
    site.evaluate_announced()
    site.clock.advance(30 * 86_400)
    site.label(dict.fromkeys(range(50)), withdrawn=True)
    site.evaluate_announced()
    before, after = site.evaluations()
    assert (before.cases, after.cases, after.stream_cases, after.status) == (50, 0, 50, "undecided")
    assert all(metric["value"] is None for metric in after.metrics)
    site.clock.advance(60)
    site.label({n: CLASSES[truth[n]] for n in range(50)})
    site.evaluate_announced()
    again = site.evaluations()[-1]
    assert again.metrics == before.metrics


def test_sources_that_contradict_each_other_are_listed_with_the_one_that_counts_first(site):
    shares, _ = calibrated(site.rng, 3)
    site.score(0, shares)
    site.label({0: "glioma", 1: "none"}, "pathology", days=1)
    site.label({0: "none", 1: "none"}, "csv:worklist")
    site.label({2: "none"}, "pathology", days=2)
    site.label({2: "glioma"}, "pathology", days=1)
    with site.database.read() as session:
        (found,) = conflicts(session, "tumour", 1)
        cases = {case.study_key: case for case in scored_cases(session, "tumour", 1)}
    assert found.study_key == f"{0:032x}"
    assert [(source, value) for source, value, _ in found.labels] == [("csv:worklist", "none"), ("pathology", "glioma")]
    assert cases[found.study_key].truth == "none"
    assert cases[found.study_key].source == "csv:worklist"
    assert cases[f"{2:032x}"].truth == "glioma"
