"""Results on their way to a PACS: Orthanc that dies and comes back, peers that refuse, and the way back by auto-routing."""

import asyncio
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO, StringIO

import pytest
from highdicom.sr import srread
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from rich.console import Console
from sqlmodel import select

from listeners.cli import pacs as pacs_commands
from listeners.cli.catalogue import build as build_service
from schemas.events import Prediction
from schemas.results import ResultJob
from schemas.settings import PeerSettings, ResultsSettings
from schemas.tables import Audit, DeadLetter, Instance, ModelVersion, Outbox, RegisteredModel, Study
from schemas.topics import PREDICTION, STUDY_RECEIVED
from schemas.vocabulary import ResultState
from services.assembly.index import ArchiveIndex
from services.assembly.reindex import read_stored
from services.results import jobs
from services.results.app import build
from services.results.handlers import Results
from services.results.worker import ResultWorker
from services.runtime.clock import SystemClock
from services.runtime.consumer import process
from services.runtime.errors import InvalidInput
from services.runtime.messages import Record, headers_of
from services.runtime.result_uids import is_result_uid
from services.runtime.service import Context, StopSignal
from tests.conftest import START
from tests.pacs_world import Orthanc, make_study, port

SR, SC = "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.7"
SECRETS = ("Meier", "PAT-1", "ACC-1")


class Site:
    """An archive with one scored study, a champion, and a results worker."""

    def __init__(self, context, destination, folder, **options):
        limits = ResultsSettings(destination="pacs", first_delay_s=30, max_attempts=3, lease_s=60, **options)
        peer = PeerSettings(ae_title="PACS", host="127.0.0.1", port=destination)
        dicom = context.settings.dicom.model_copy(update={"peers": {"pacs": peer}})
        settings = context.settings.model_copy(update={"results": limits, "dicom": dicom})
        self.context = Context(settings, context.database, context.clock, context.pseudonyms)
        self.database, self.clock = context.database, context.clock
        self.files = make_study(folder, "scored", count=3, accession_number="ACC-1")
        for path in self.files:
            self.archive(path)
        self.source = dcmread(self.files[0])
        self._register()
        self.worker = ResultWorker(self.context)

    def archive(self, path):
        index, stored = ArchiveIndex(self.database, self.context.pseudonyms), read_stored(path)
        target = self.context.settings.archive_dir / index.path_of(stored.facts)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        return index.enter(stored)

    def _register(self):
        with self.database.transaction() as tx:
            model = {"name": "m", "task": "t", "classes": ["a", "b"], "selection": {"modalities": ["CT"]}, "created_at": START}
            tx.session.add(RegisteredModel(**model))
            tx.session.flush()
            tx.session.add(ModelVersion(model="m", version=1, bundle="m/1", sha256="ab" * 32, created_at=START))

    def predict(self, number=1, **changes):
        facts = {
            "study_key": self.context.pseudonyms.study(self.source.StudyInstanceUID),
            "patient_key": "b" * 32,
            "revision": number,
            "model": "m",
            "version": 1,
            "serving": True,
            "task": "t",
            "probabilities": {"a": 0.7, "b": 0.3},
            "predicted": "a",
            "acquired_at": START,
            "scored_at": START,
            "findings": ("window_missing", "slice_gap"),
            "finding_details": {"slice_gap": "3 missing at 1 places"},
        }
        data = Prediction(**facts | changes)
        headers = headers_of(PREDICTION, f"event-{number}", START)
        process(
            self.database,
            Results("pacs"),
            [Record(PREDICTION.name, 0, number, data.study_key, headers, data.model_dump_json().encode())],
        )

    def job(self, number=1):
        with self.database.read() as session:
            return session.get_one(ResultJob, f"event-{number}")

    def rows(self, table):
        with self.database.read() as session:
            return session.exec(select(table)).all()


@pytest.fixture
def make_site(sqlite_context, tmp_path):
    return lambda destination, **options: Site(sqlite_context, destination, tmp_path / "in", **options)


@contextmanager
def peer(on_store=lambda _event: 0x0000, accepted=(SR, SC), syntaxes=(ExplicitVRLittleEndian, ImplicitVRLittleEndian)):
    ae = AE("PACS")
    for uid in accepted:
        ae.add_supported_context(uid, list(syntaxes))
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)])
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    with Orthanc(tmp_path_factory.mktemp("pacs")) as running:
        yield running


def test_a_result_reaches_the_pacs_under_its_own_study_and_patient(make_site, pacs, tmp_path, caplog):
    caplog.set_level("DEBUG")
    site = make_site(pacs.port)
    pacs.upload(*site.files)
    site.predict()
    assert site.worker.run_one()
    assert site.job().state == ResultState.SENT, site.job().error
    (study,) = [pacs.get(f"/studies/{each}") for each in pacs.get("/studies")]
    assert study["PatientMainDicomTags"]["PatientName"] == "Meier^Anna"
    results = [uid for uid in pacs.uids() if is_result_uid(uid)]
    assert len(results) == 2
    by_class = {str(each.SOPClassUID): each for each in (dcmread(BytesIO(pacs.file(uid))) for uid in results)}
    assert set(by_class) == {SR, SC}
    for made in by_class.values():
        for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "AccessionNumber", "StudyDate"):
            assert made[keyword].value == site.source[keyword].value, keyword
    (audit,) = [row for row in site.rows(Audit) if row.action == "result.sent"]
    assert audit.detail["objects"] == {"Comprehensive SR Storage": "0000", "Secondary Capture Image Storage": "0000"}
    told = caplog.text + repr([row.model_dump() for table in (ResultJob, Audit, Outbox) for row in site.rows(table)])
    assert not any(secret in told for secret in (*SECRETS, str(site.source.StudyInstanceUID)))
    assert not site.worker.run_one(), "once is enough"


@pytest.mark.dcmtk
@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="NOT TESTED with DCMTK: no dsrdump on PATH")
def test_what_lies_in_the_pacs_is_a_sound_report_that_names_the_images(make_site, pacs, tmp_path):
    site = make_site(pacs.port)
    site.predict(number=2)
    site.worker.run_one()
    (sr,) = [
        data
        for data in (pacs.file(uid) for uid in pacs.uids() if is_result_uid(uid))
        if dcmread(BytesIO(data)).SOPClassUID == SR and dcmread(BytesIO(data)).InstanceNumber == 2
    ]
    (tmp_path / "sr.dcm").write_bytes(sr)
    told = subprocess.run(["dsrdump", "+Pl", str(tmp_path / "sr.dcm")], capture_output=True, text=True, timeout=30, check=True)
    assert "Probability of a" in told.stdout
    assert "slices are missing inside the series (3 missing at 1 places)" in told.stdout
    (group,) = srread(tmp_path / "sr.dcm").content.get_image_measurement_groups()
    assert {each.referenced_sop_instance_uid for each in group.source_images} == {
        str(dcmread(path).SOPInstanceUID) for path in site.files
    }


def test_a_pacs_that_dies_gets_its_results_when_it_is_back(make_site, tmp_path):
    with Orthanc(tmp_path / "pacs") as pacs:
        site = make_site(pacs.port)
        pacs.stop()
        for number in (1, 2, 3):
            site.predict(number)
        for _ in range(2):
            assert site.worker.run_one()
        assert (site.job(1).state, site.job(2).attempt) == (ResultState.QUEUED, 1)
        assert "nobody who speaks DICOM" in site.job(1).error
        pacs.start()
        assert site.worker.run_one()
        assert site.job(3).state == ResultState.SENT
        assert site.worker.run_one(), "the others need not wait for their delays"
        assert site.worker.run_one()
        assert not site.worker.run_one()
        assert {site.job(number).state for number in (1, 2, 3)} == {ResultState.SENT}
        assert len(pacs.uids()) == 6


def test_a_worker_that_dies_after_sending_doubles_nothing(make_site, pacs, monkeypatch):
    site = make_site(pacs.port)
    site.predict(number=5)
    with monkeypatch.context() as patched:
        patched.setattr(jobs, "succeed", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            site.worker.run_one()
    before = pacs.uids()
    successor = ResultWorker(site.context)
    assert not successor.run_one(), "the lease still holds"
    site.clock.advance(61)
    assert successor.run_one()
    assert (site.job(5).state, site.job(5).attempt) == (ResultState.SENT, 2)
    assert pacs.uids() == before


def test_a_refusal_ends_as_a_dead_letter_with_advice(make_site):
    with peer(accepted=(SR,)) as number:
        site = make_site(number)
        site.predict()
        for _ in range(3):
            assert site.worker.run_one()
            site.clock.advance(3600)
        assert not site.worker.run_one()
    (letter,) = site.rows(DeadLetter)
    assert "does not accept Secondary Capture Image Storage" in letter.reason
    assert "reclaim dead-letters replay" in letter.reason
    assert site.job().state == ResultState.GIVEN_UP


def test_kinds_can_be_switched_off(make_site):
    seen = []
    with peer(lambda event: seen.append(str(event.request.AffectedSOPClassUID)) or 0x0000, accepted=(SR,)) as number:
        site = make_site(number, secondary_capture=False)
        site.predict()
        site.worker.run_one()
    assert (seen, site.job().state) == ([SR], ResultState.SENT)


def test_a_peer_with_implicit_vr_only_is_served(make_site):
    received = []

    def on_store(event):
        received.append((event.context.transfer_syntax, event.dataset))
        return 0xB000  # coerced: a warning is a success

    with peer(on_store, syntaxes=(ImplicitVRLittleEndian,)) as number:
        site = make_site(number)
        site.predict()
        site.worker.run_one()
    assert site.job().state == ResultState.SENT
    assert {syntax for syntax, _ in received} == {ImplicitVRLittleEndian}
    assert {str(dataset.PatientName) for _, dataset in received} == {"Meier^Anna"}


def test_the_peer_s_own_words_are_kept_out(make_site, caplog):
    def on_store(_event):
        answer = Dataset()
        answer.Status, answer.ErrorComment = 0xC001, "patient Meier^Anna is locked"
        return answer

    with peer(on_store) as number:
        site = make_site(number)
        site.predict()
        site.worker.run_one()
    assert "C001" in site.job().error
    assert not any(secret in site.job().error + caplog.text for secret in SECRETS)


def test_a_study_that_is_gone_from_the_archive_is_given_up_at_once(make_site):
    site = make_site(port())
    shutil.rmtree(site.context.settings.archive_dir / site.context.pseudonyms.study(site.source.StudyInstanceUID)[:2])
    site.predict()
    site.worker.run_one()
    (letter,) = site.rows(DeadLetter)
    assert (site.job().state, "no longer has the study's files" in letter.reason) == (ResultState.GIVEN_UP, True)


def test_a_destination_that_nobody_knows_stops_the_start(make_site):
    site = make_site(port())
    wrong = site.context.settings.results.model_copy(update={"destination": "pasc"})
    settings = site.context.settings.model_copy(update={"results": wrong})
    with pytest.raises(InvalidInput, match="known"):
        build(Context(settings, site.database, site.clock, site.context.pseudonyms))
    assert build(site.context).name == "results"
    assert build_service("results", site.context).consumers[0].topics == (PREDICTION,)


def test_results_that_the_pacs_routes_back_are_stored_and_nothing_else(make_site, tmp_path, sqlite_database):
    from tests.dicom_world import listening

    site = make_site(port())
    with listening(site.context) as number, Orthanc(tmp_path / "pacs", {"RECLAIM": number}) as pacs:
        known = site.context.settings.dicom.peers["pacs"].model_copy(update={"port": pacs.port})
        dicom = site.context.settings.dicom.model_copy(update={"peers": {"pacs": known}})
        settings = site.context.settings.model_copy(update={"dicom": dicom})
        context = Context(settings, site.database, SystemClock(), site.context.pseudonyms)
        _complete(site)
        site.predict()
        ResultWorker(context).run_one()
        assert site.job().state == ResultState.SENT, site.job().error
        before = _state(site)
        results = [uid for uid in pacs.uids() if is_result_uid(uid)]
        for uid in results:
            pacs.send_to("RECLAIM", uid)
            pacs.send_to("RECLAIM", uid)
    with site.database.read() as session:
        rows = [session.get_one(Instance, uid) for uid in results]
    assert len(rows) == 2
    assert all((site.context.settings.archive_dir / row.path).is_file() for row in rows)
    assert _state(site) == before
    assert not [row for row in site.rows(Outbox) if row.topic == STUDY_RECEIVED.name]


def _complete(site):
    with site.database.transaction() as tx:
        row = tx.session.get_one(Study, str(site.source.StudyInstanceUID))
        row.state, row.revision = "complete", 1
        tx.session.add(row)


def _state(site):
    with site.database.read() as session:
        row = session.get_one(Study, str(site.source.StudyInstanceUID))
        return row.state, row.revision, row.instances


async def test_the_worker_sends_as_jobs_come_and_ends_with_the_process(make_site):
    with peer() as number:
        site = make_site(number)
        (worker,) = build(site.context).workers
        stop = StopSignal()
        running = asyncio.create_task(worker.run(stop))
        site.predict(1)
        await _until(lambda: site.job(1).state == ResultState.SENT)
        site.predict(2)
        await _until(lambda: site.job(2).state == ResultState.SENT)
        stop.set()
        await asyncio.wait_for(running, 5)


async def test_without_destination_the_worker_leaves_the_queue_alone(make_site):
    site = make_site(port())
    site.predict(1)
    results = site.context.settings.results.model_copy(update={"destination": ""})
    settings = site.context.settings.model_copy(update={"results": results})
    stop = StopSignal()
    running = asyncio.create_task(ResultWorker(replace(site.context, settings=settings)).run(stop))
    await asyncio.sleep(0.2)
    stop.set()
    await asyncio.wait_for(running, 5)
    assert (site.job(1).state, site.job(1).attempt) == (ResultState.QUEUED, 0)


async def _until(holds):
    for _ in range(400):
        if await asyncio.to_thread(holds):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it did not come to that")


def test_the_command_line_shows_what_waits_and_why(make_site, monkeypatch):
    with peer() as number:
        site = make_site(number)
        site.predict(1)
        assert site.worker.run_one()
    site.predict(2)
    assert site.worker.run_one()
    monkeypatch.setattr(pacs_commands, "open_context", lambda: site.context)
    monkeypatch.setattr(pacs_commands, "console", Console(width=250, file=(told := StringIO())))
    pacs_commands.results(everything=False, limit=50)
    assert told.getvalue().count("m:1") == 1
    assert "queued" in told.getvalue()
    assert "nobody who speaks DICOM answers" in told.getvalue()
    pacs_commands.results(everything=True, limit=50)
    assert "sent" in told.getvalue()
    assert not any(secret in told.getvalue() for secret in (*SECRETS, str(site.source.StudyInstanceUID)))
