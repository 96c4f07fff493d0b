"""The early warning on both databases: predictions in, windows out, once each; it warns of what it should and orders nothing."""

import asyncio
import uuid
from types import SimpleNamespace

import numpy as np
import pytest
from sqlmodel import select

from agents.redaction import plain
from agents.tools.arguments import OneModel
from agents.tools.drift import drift_warnings
from models.signature import LAYOUT, QUALITY, Signature
from schemas import topics
from schemas.drift import DriftCalibration, DriftCase, DriftWindow, ImageSignature, ReferenceSignature
from schemas.drift_settings import DriftSettings
from schemas.events import MonitoringDrift, Prediction
from schemas.tables import Audit, BaselineCase, Case, ModelVersion, Order, Outbox, Study
from schemas.vocabulary import Diagnosis
from services.drift import marginals, repository
from services.drift.app import build
from services.drift.arrivals import look
from services.drift.measure import Measure
from services.runtime import registry, signatures
from services.runtime.consumer import process
from services.runtime.messages import Record, headers_of
from services.runtime.service import StopSignal

CLASSES = ["glioma", "none"]
SETTINGS = DriftSettings(window_cases=100, windows_per_year=12)
SHOWN = {"known faults", "class mix", "estimated recall"}
FAULT = np.random.default_rng(9).normal(0, 0.6, LAYOUT).astype(np.float32)


@pytest.fixture(autouse=True)
def fewer_years(monkeypatch):
    """Levels from 40 years instead of 250: the benchmark uses them all."""
    monkeypatch.setattr(marginals.thresholds, "__defaults__", (20,))


class Site:
    """A registered model with a reference, and its predictions."""

    def __init__(self, context):
        self.context, self.database, self.studies = context, context.database, 0
        self.random = np.random.default_rng(1)
        self.consumer = build(context).consumers[0]
        self.measure = Measure(context.database, SETTINGS)
        self._register(200)

    def _numbers(self, sick, *, fault=False, blur=0.0):
        """Signature, embedding and probability of glioma of one study."""
        quality = self.random.normal(0, 1, len(QUALITY)).astype(np.float32)
        quality[QUALITY.index("sharpness")] -= blur
        layout = self.random.normal(0.5, 0.3, LAYOUT).astype(np.float32)
        layout[:8] += sick
        embedding = self.random.normal(sick, 1, 8).astype(np.float32)
        sure = float(np.clip(self.random.normal(0.85 if sick else 0.15, 0.12), 0.01, 0.99))
        return Signature(quality, layout + fault * FAULT), embedding + blur, sure

    def _register(self, cases):
        rows, known = [], []
        for number in range(cases):
            sick = number % 2 == 0
            signature, embedding, sure = self._numbers(sick)
            key = f"b{number}"
            said = {"glioma": sure, "none": 1 - sure}
            truth = CLASSES[0 if sick else 1]
            shared = {"model": "m", "version": 1, "case_key": key}
            said_most = max(said, key=said.get)
            rows.append(BaselineCase(**shared, patient_key=key, truth=truth, predicted=said_most, probabilities=said))
            turned = Signature(signature.quality, signature.layout + FAULT)
            for fault, shown in (("", signature), ("turned by 90 degrees", turned)):
                packed = signatures.packed(shown, embedding)
                known.append(ReferenceSignature(**shared, fault=fault, facets={"StationName": "CT1"}, **packed))
        with self.database.transaction() as tx:
            registry.register_model(tx, "m", "t", CLASSES, {})
            row = ModelVersion(model="m", version=1, bundle="b", sha256="0" * 64, created_at=tx.clock.now())
            registry.add_version(tx, row, rows, actor="test")
            signatures.replace_reference(tx, "m", 1, known)

    def score(self, count, *, sick=0.5, station="CT1", deliveries=1, **numbers):
        """Predictions with what inference leaves of their images."""
        records, seen = [], []
        for _ in range(count):
            key, now = f"{self.studies:032x}", self.context.clock.now()
            ill = bool(self.random.random() < sick)
            signature, embedding, sure = self._numbers(ill, **numbers)
            said = {"glioma": sure, "none": 1 - sure}
            prediction = Prediction(
                study_key=key,
                patient_key=key,
                revision=1,
                model="m",
                version=1,
                serving=True,
                task="t",
                probabilities=said,
                predicted=max(said, key=said.get),
                acquired_at=now,
                scored_at=now,
                facets={"StationName": station},
            )
            row = ImageSignature(
                study_key=key, revision=1, model="m", version=1, scored_at=now, **signatures.packed(signature, embedding)
            )
            seen.append(row)
            headers = headers_of(topics.PREDICTION, uuid.uuid4().hex, now)
            records.append(Record(topics.PREDICTION.name, 0, 0, key, headers, prediction.model_dump_json().encode()))
            self.studies += 1
        with self.database.transaction() as tx:
            tx.insert_new(ImageSignature, seen, returning="study_key")
        for _ in range(deliveries):
            assert process(self.database, self.consumer, records) == 0

    def window(self, **options):
        """A full window, judged; the clock moves on so that the next may follow."""
        self.score(100, **options)
        assert self.measure.once() == 1
        self.context.clock.advance(40 * 86_400)
        return self.rows(DriftWindow)[-1]

    def rows(self, table):
        order = [table.number] if table in {DriftCase, DriftWindow} else table.__table__.primary_key
        with self.database.read() as session:
            return list(session.exec(select(table).order_by(*order)))

    def events(self):
        rows = [row for row in self.rows(Outbox) if row.topic == topics.DRIFT.name]
        return sorted((MonitoringDrift.model_validate_json(row.body) for row in rows), key=lambda event: event.number)


@pytest.fixture
def site(context):
    return Site(context)


def signal(window, name):
    return next(each for each in window.signals if each["name"] == name)


def test_a_quiet_window_is_told_with_every_signal_and_its_thresholds(site):
    window = site.window()
    assert (window.number, window.cases, window.warning, window.suspected) == (1, 100, False, "none")
    names = {each["name"] for each in window.signals}
    assert names == {"answers", "image statistics", "descriptions", "confidence", "embeddings", *SHOWN}
    assert all(each["sentence"].endswith(".") for each in window.signals)
    [event] = site.events()
    assert (event.drift_id, event.warning, event.new) == (window.drift_id, False, False)
    assert len(site.rows(DriftCalibration)) == 1


def test_a_window_closes_once_it_is_full_and_not_before_and_no_case_is_in_two(site):
    site.score(99)
    assert site.measure.once() == 0
    site.score(31, deliveries=2)
    assert [site.measure.once(), site.measure.once()] == [1, 0]
    assert {case.window_number for case in site.rows(DriftCase)} == {1}
    assert [case.number for case in sorted(site.rows(DriftCase), key=lambda case: case.number)] == list(range(1, 131))
    site.score(100)
    assert site.measure.once() == 0, "too soon after the last"
    site.context.clock.advance(40 * 86_400)
    assert site.measure.once() == 1
    assert len(site.rows(DriftWindow)) == len(site.events()) == 2


def test_a_turned_feed_is_suspected_as_such_without_any_label(site):
    window = site.window(fault=True)
    assert window.warning
    assert window.suspected == Diagnosis.PIPELINE
    assert "turned by 90 degrees" in window.summary
    [audit] = [row for row in site.rows(Audit) if row.action == "drift.warned"]
    assert audit.detail["drift"] == window.drift_id


def test_blurred_images_of_another_station_are_suspected_as_other_images(site):
    window = site.window(blur=3.0, station="CT2")
    assert plain(window.summary, 1000) == window.summary
    assert window.suspected == Diagnosis.COVARIATE
    assert signal(window, "descriptions")["detail"]["moved"] == "station"
    assert signal(window, "descriptions")["threshold"] > 2
    assert signal(window, "image statistics")["detail"]["moved"] == "sharpness"
    assert signal(window, "embeddings")["warning"]
    again = site.window(blur=3.0, station="CT2")
    assert "As in the window before" in again.summary
    assert [event.new for event in site.events()] == [True, False]


def test_another_mix_of_patients_is_told_with_its_interval(site):
    window = site.window(sick=0.9)
    assert window.suspected == Diagnosis.PREVALENCE
    assert plain(window.summary, 1000) == window.summary, "told as it is in the chat and on the one screen"
    detail = signal(window, "class mix")["detail"]
    assert detail["glioma: low"] > 0.7
    assert detail["glioma: low"] < 0.9 < detail["glioma: high"] + 0.05
    assert detail["glioma: reference"] == 0.5


def test_another_station_is_not_explained_by_another_mix_of_patients(site):
    """The mix alone leaves the studies' descriptions as they are."""
    window = site.window(sick=0.85, station="CT2")
    assert signal(window, "descriptions")["warning"]
    assert window.suspected == Diagnosis.COVARIATE


def test_estimates_stand_beside_the_truth_and_are_switched_off_where_it_disagrees(site):
    site.window()
    cases = [case for case in site.rows(DriftCase) if case.predicted == "glioma"][:40]
    with site.database.transaction() as tx:
        for number, case in enumerate(cases):
            shared = case.model_dump(
                include={"study_key", "model", "version", "patient_key", "probabilities", "acquired_at", "scored_at"}
            )
            said = "glioma" if number < 12 else "none"
            tx.session.add(Case(**shared, task="t", role="trigger", state="batched", predicted=said, truth="glioma"))
            row = tx.session.get(DriftCase, (case.study_key, "m", 1))
            row.predicted = said
            tx.session.add(row)
    told = signal(site.window(), "estimated recall")
    assert told["detail"]["glioma: true"] == pytest.approx(12 / 40)
    assert told["detail"]["glioma: value"] is None
    assert told["sentence"].endswith("Off for glioma: the truth that came says otherwise.")


def test_the_agents_read_the_warnings_and_say_that_they_order_nothing(site):
    desk = SimpleNamespace(database=site.database)
    assert "has measured nothing of m yet" in drift_warnings(desk, OneModel(model="m")).say()
    site.window(fault=True)
    site.window()
    told = drift_warnings(desk, OneModel(model="m")).say()
    assert "version 1, quiet" in told.splitlines()[0]
    assert "version 1, warning: m, last 100 studies" in told
    assert "turned by 90 degrees" in told
    assert told.endswith("and order nothing.")


def test_a_warning_alone_leads_to_no_order(site):
    assert site.window(fault=True).warning
    assert site.rows(Order) == []
    sent = {row.topic for row in site.rows(Outbox)}
    assert sent == {topics.DRIFT.name}
    assert topics.DRIFT.readers == ("chat",), "the chat tells people, and orders nothing"
    assert all(topics.DRIFT not in consumer.topics for consumer in _consumers(site.context) if consumer.name != "chat")


def _consumers(context):
    from listeners.cli.catalogue import BUILDERS, build

    services = [build(name, context) for name in BUILDERS if name not in {"dicom", "http"}]
    found = [consumer for service in services for consumer in service.consumers]
    for service in services:
        for close in service.on_close:
            close()
    return found


def test_a_silent_feed_is_a_fault_and_its_end_is_told(site):
    clock = site.context.clock
    for _ in range(20):
        site.score(5)
        clock.advance(86_400)
    _look(site)
    assert site.rows(DriftWindow) == []
    clock.advance(6 * 86_400)
    _look(site)
    _look(site)
    [window] = site.rows(DriftWindow)
    assert (window.kind, window.warning, window.suspected) == ("feed", True, Diagnosis.PIPELINE)
    assert "no study has arrived" in window.summary
    site.score(5)
    _look(site)
    assert [row.warning for row in site.rows(DriftWindow)] == [True, False]


def test_studies_that_arrive_and_are_not_scored_are_a_fault(site):
    clock = site.context.clock
    for _ in range(20):
        first = site.studies
        site.score(5)
        _announce(site, [f"{number:032x}" for number in range(first, site.studies)])
        clock.advance(86_400)
    _announce(site, [f"f{number:031x}" for number in range(30)])
    clock.advance(3600)
    _look(site)
    [window] = site.rows(DriftWindow)
    assert window.summary == "m: Of 30 studies of the last day 0 are scored, usually 100% are. Have a person look at the feed."


def test_a_model_that_is_never_given_a_study_is_a_fault_and_its_first_study_ends_it(site):
    clock = site.context.clock
    clock.advance(13 * 86_400)
    _look(site)
    assert site.rows(DriftWindow) == []
    _announce(site, [f"e{number:031x}" for number in range(7)])
    clock.advance(2 * 86_400)
    _look(site)
    _look(site)
    [window] = site.rows(DriftWindow)
    assert (window.warning, window.suspected, window.cases) == (True, Diagnosis.PIPELINE, 0)
    told = "m: In the 15 days since it was registered no study has been scored, and 7 have arrived. Have a person look at the feed."
    assert window.summary == told
    clock.advance(60)
    site.score(1)
    _look(site)
    _look(site)
    first, last = site.rows(DriftWindow)
    assert (first.warning, last.warning, last.summary) == (True, False, "m: Studies are scored. The feed works again.")


def test_a_model_that_scored_once_is_not_told_as_one_that_never_did(site):
    clock, quiet = site.context.clock, SETTINGS.feed_history_days + 4
    for _ in range(20):
        site.score(5)
        clock.advance(86_400)
    _serve(site, on=False)
    clock.advance(quiet * 86_400)
    _serve(site, on=True)
    clock.advance(13 * 86_400)
    _look(site)
    assert site.rows(DriftWindow) == [], "it serves again for 13 days"
    clock.advance(3 * 86_400)
    _look(site)
    [window] = site.rows(DriftWindow)
    assert (
        window.summary == "m: In the last 16 days no study has been scored, and none have arrived. Have a person look at the feed."
    )
    clock.advance(quiet * 86_400)
    with site.database.transaction() as tx:
        tx.session.delete(tx.session.exec(select(DriftWindow)).one())
    _look(site)
    assert f"In the last {SETTINGS.feed_history_days} days no study" in site.rows(DriftWindow)[0].summary


def _serve(site, *, on):
    with site.database.transaction() as tx:
        registry.set_serving(tx, "m", serving=on, actor="test")


def _announce(site, keys):
    now = site.context.clock.now()
    with site.database.transaction() as tx:
        for key in keys:
            times = {"acquired_at": now, "first_instance_at": now, "last_instance_at": now, "announced_at": now}
            tx.session.add(Study(study_uid=key, study_key=key, patient_key=key, state="complete", **times))


def _look(site):
    with site.database.transaction() as tx:
        look(tx, SETTINGS)


def test_old_numbers_go_and_what_was_measured_stays(site):
    site.window()
    site.context.clock.advance(500 * 86_400)
    with site.database.transaction() as tx:
        repository.forget(tx, SETTINGS.keep_days)
    assert site.rows(DriftCase) == site.rows(ImageSignature) == []
    assert len(site.rows(DriftWindow)) == 1


def test_a_clock_that_ran_ahead_stops_neither_the_windows_nor_the_look_at_the_feed(site):
    clock = site.context.clock
    for _ in range(20):
        site.score(5)
        clock.advance(86_400)
    clock.advance(4000 * 86_400)
    assert site.measure.once() == 1
    site.score(1)
    clock.advance(-4000 * 86_400)
    for number in (2, 3):
        site.score(100)
        assert site.measure.once() == 1, number
        clock.advance(40 * 86_400)
    _look(site)
    assert [row.warning for row in site.rows(DriftWindow) if row.kind == "feed"] == [True], "silent for forty days"


def test_signatures_outlive_a_clock_that_leaps_and_is_put_right(site, caplog):
    (tidy,) = [ticker.run for ticker in build(site.context).tickers if ticker.name == "drift.forget"]
    site.score(3)
    for days in (0, 4000, -4000):
        site.context.clock.advance(days * 86_400)
        with site.database.transaction() as tx:
            tidy(tx)
        assert len(site.rows(ImageSignature)) == 3
    assert "RET-204" in caplog.text


async def test_the_worker_judges_and_ends_when_it_shall(site):
    site.score(100)
    stop = StopSignal()
    task = asyncio.create_task(site.measure.run(stop))
    for _ in range(200):
        await asyncio.sleep(0.05)
        if site.rows(DriftWindow):
            break
    stop.set()
    await asyncio.wait_for(task, 20)
    assert len(site.rows(DriftWindow)) == 1
