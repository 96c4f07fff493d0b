"""The evaluation reads the images of its stream from the database, and names a broken feed that no header betrays."""

import uuid
from datetime import timedelta

import numpy as np
import pytest
from sqlmodel import select

from models.signature import LAYOUT, QUALITY, Signature
from schemas.drift import ImageSignature, ReferenceSignature
from schemas.events import BatchReady
from schemas.settings import EvaluationSettings
from schemas.tables import BaselineCase, Batch, Case, Evaluation, ModelVersion
from schemas.topics import BATCH_READY
from schemas.vocabulary import Diagnosis, Status
from services.evaluation import calibration, repository
from services.evaluation.handlers import Evaluate
from services.evaluation.picture_repository import pictures
from services.runtime import registry, signatures
from services.runtime.consumer import process
from services.runtime.messages import Record, headers_of

CLASSES = ["glioma", "none"]
FAULT = np.random.default_rng(9).normal(0, 0.6, LAYOUT).astype(np.float32)


@pytest.fixture(autouse=True)
def fewer_streams(monkeypatch):
    """Thresholds from 125 streams: the tests of the calibration itself use them all."""
    monkeypatch.setattr(calibration, "STREAMS", 125)


class Site:
    """A registered model, batches of labelled cases, and the numbers of their images."""

    def __init__(self, context):
        self.context, self.database = context, context.database
        self.random = np.random.default_rng(2)
        self.cases = 0
        self._register()

    def numbers(self, fault=False):
        quality = self.random.normal(0, 1, len(QUALITY)).astype(np.float32)
        layout = self.random.normal(0.5, 0.3, LAYOUT).astype(np.float32)
        return Signature(quality, layout + fault * FAULT), self.random.normal(0, 1, 8).astype(np.float32)

    def _register(self):
        rows, known = [], []
        for number in range(200):
            truth = CLASSES[number % 2]
            said = CLASSES[1 - number % 2] if number % 20 < 2 else truth
            shared = {"model": "m", "version": 1, "case_key": f"b{number}"}
            probabilities = {name: 0.9 if name == said else 0.1 for name in CLASSES}
            rows.append(BaselineCase(**shared, patient_key=f"b{number}", truth=truth, predicted=said, probabilities=probabilities))
            signature, embedding = self.numbers()
            turned = Signature(signature.quality, signature.layout + FAULT)
            for fault, shown in (("", signature), ("turned by 180 degrees", turned)):
                known.append(ReferenceSignature(**shared, fault=fault, **signatures.packed(shown, embedding)))
        with self.database.transaction() as tx:
            registry.register_model(tx, "m", "t", CLASSES, {})
            row = ModelVersion(model="m", version=1, bundle="b", sha256="0" * 64, created_at=tx.clock.now())
            registry.add_version(tx, row, rows, actor="test")
            signatures.replace_reference(tx, "m", 1, known)

    def batch(self, number, *, error=0.1, fault=False, size=50):
        """A closed batch, evaluated."""
        with self.database.transaction() as tx:
            now, identity = tx.clock.now(), f"batch-{number}"
            tx.session.add(
                Batch(batch_id=identity, model="m", version=1, number=number, cases=size, closed_by="size", closed_at=now)
            )
            for _ in range(size):
                tx.session.add_all(self._case(identity, now, error, fault))
        self.context.clock.advance(7 * 86_400)
        data = BatchReady(batch_id=f"batch-{number}", model="m", version=1, cases=size, closed_by="size")
        headers = headers_of(BATCH_READY, uuid.uuid4().hex, now)
        record = Record(BATCH_READY.name, 0, number, "m", headers, data.model_dump_json().encode())
        consumer = Evaluate(self.database, EvaluationSettings(bootstrap_draws=100), 50)
        assert process(self.database, consumer, [record]) == 0

    def _case(self, batch, now, error, fault):
        key, truth = f"{self.cases:032x}", CLASSES[self.cases % 2]
        wrong = truth == "glioma" and self.random.random() < error
        said = "none" if wrong else truth
        signature, embedding = self.numbers(fault)
        self.cases += 1
        at = now + timedelta(minutes=self.cases)
        shared = {"study_key": key, "model": "m", "version": 1, "revision": 1, "scored_at": at}
        probabilities = {name: 0.9 if name == said else 0.1 for name in CLASSES}
        fields = {"patient_key": key, "role": "trigger", "state": "batched", "acquired_at": at, "joined_at": at, "batch_id": batch}
        case = Case(
            **shared, **fields, task="t", predicted=said, probabilities=probabilities, truth=truth, facets={"StationName": "X"}
        )
        return case, ImageSignature(**shared, **signatures.packed(signature, embedding))

    def newest(self):
        with self.database.read() as session:
            return repository.latest(session, "m", 1)


def test_a_turned_feed_is_named_with_its_share_although_no_header_tells(context):
    site = Site(context)
    for number in (1, 2, 3):
        site.batch(number)
    assert site.newest().diagnosis == Diagnosis.NONE
    for number in (4, 5):
        site.batch(number, error=0.7, fault=True)
    found = site.newest()
    assert (found.status, found.diagnosis) == (Status.DEGRADED, Diagnosis.PIPELINE)
    assert "images turned by 180 degrees in " in found.evidence["root_cause"]
    assert found.evidence["cause_test_standard_errors"] > 5


def test_a_changed_feed_is_told_although_nothing_fell(context):
    site = Site(context)
    for number in (1, 2):
        site.batch(number)
    for number in (3, 4, 5, 6):
        site.batch(number, fault=True)
    found = site.newest()
    assert found.diagnosis == Diagnosis.NONE
    assert found.evidence["change"] == Diagnosis.PIPELINE
    assert "turned by 180 degrees" in found.evidence["change_what"]


def test_the_pictures_of_a_stream_are_those_of_its_cases_and_of_the_baseline(context):
    site = Site(context)
    site.batch(1)
    with site.database.read() as session:
        stream = repository.stream(session, "m", 1, 1)
        found = pictures(session, "m", 1, stream)
        kept = list(session.exec(select(Evaluation)))
        assert pictures(session, "m", 2, stream) is None
    assert len(kept) == 1
    assert len(found.known(stream)) == len(stream) == 50
    assert len(found.reference) == len(found.answers) == 200
    row = found.of(stream[7:8])
    assert row.keys == (stream[7].study_key,)
    assert list(found.changed) == ["turned by 180 degrees"]
