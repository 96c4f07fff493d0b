"""Listener and assembly together on the wire: MPPS, storage commitment, and the studies that they complete."""

import asyncio
import json
import shutil
import threading
import time

import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from sqlmodel import select

from listeners.dicom.app import build as build_listener
from listeners.dicom.mpps import MPPS
from schemas.events import StudyReceived
from schemas.settings import DatabaseSettings, DicomSettings, PeerSettings, Settings
from schemas.tables import Outbox
from services.assembly.app import build as build_assembly
from services.assembly.reporter import PUSH_MODEL, PUSH_MODEL_INSTANCE
from services.runtime.bells import Bells
from services.runtime.clock import SystemClock
from services.runtime.database import Database
from services.runtime.health import Health
from services.runtime.identity import Pseudonyms
from services.runtime.process import run
from services.runtime.service import Context
from tests.pacs_world import Orthanc, port
from tests.signals_world import CT, Scanner, asked, associated, begun, dataset, ended, images, until


class Site:
    """Listener and assembly in one process, as `reclaim up` has them; the scanner CT1 and a PACS may be called."""

    def __init__(self, folder, url):
        self.scanner_port, self.pacs_port = port(), port()
        peers = {
            "scanner": PeerSettings(ae_title="CT1", host="127.0.0.1", port=self.scanner_port),
            "pacs": PeerSettings(ae_title="PACS", host="127.0.0.1", port=self.pacs_port),
        }
        dicom = DicomSettings(
            host="127.0.0.1", port=0, min_free_bytes=0, quiet_period_s=600, commitment_wait_s=1, commitment_retry_s=0.2, peers=peers
        )
        self.settings = Settings(state_dir=folder, database=DatabaseSettings(url=url), dicom=dicom)
        database = Database(url, SystemClock(), bells=Bells(self.settings.bells_dir))
        self.context = Context(self.settings, database, SystemClock(), Pseudonyms(b"k" * 32))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self):
        self._thread.start()
        announcement = self.settings.state_dir / "run" / "dicom.json"
        until(announcement.exists, "the listener")
        self.port = json.loads(announcement.read_text())["port"]
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._health.stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive()
        assert self._health.exit_code == 0
        self.context.database.close()

    async def _run(self):
        self._loop, self._health = asyncio.get_running_loop(), Health()
        await run([build_listener(self.context), build_assembly(self.context)], self.context, self._health)

    def associated(self, *contexts, title="CT1"):
        return associated(self.port, *contexts, title=title)

    def events(self, study_uid):
        key = self.context.pseudonyms.study(study_uid)
        with self.context.database.read() as session:
            rows = session.exec(select(Outbox).where(Outbox.key == key).order_by(Outbox.id)).all()
        return [StudyReceived.model_validate_json(row.body) for row in rows]

    def wait_for_event(self, study_uid, number=1, seconds=10.0):
        until(lambda: len(self.events(study_uid)) >= number, "the event", seconds)
        return self.events(study_uid)[number - 1]


@pytest.fixture(scope="module")
def site(tmp_path_factory, sqlite_template):
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(sqlite_template, folder / "database.sqlite")
    with Site(folder / "state", f"sqlite:///{folder / 'database.sqlite'}") as running:
        yield running


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_completed_step_completes_its_study_within_a_moment(site, syntax):
    study, found = images(3)
    step = generate_uid()
    association = site.associated((CT, [ExplicitVRLittleEndian]), (MPPS, [syntax]))
    try:
        status, _ = association.send_n_create(begun(study), MPPS, step)
        assert status.Status == 0x0000
        for image in found[:2]:
            assert association.send_c_store(image).Status == 0x0000
        status, _ = association.send_n_set(ended(found), MPPS, step)
        assert status.Status == 0x0000
        time.sleep(0.3)
        assert site.events(study) == []
        assert association.send_c_store(found[2]).Status == 0x0000
        event = site.wait_for_event(study)
        assert (event.completed_by, event.series[0].instances) == ("mpps", 3)
    finally:
        association.release()


def test_refusals_of_a_step_on_the_wire(site):
    study, found = images(1)
    step = generate_uid()
    association = site.associated((MPPS, [ExplicitVRLittleEndian]))
    try:
        assert association.send_n_set(ended(found), MPPS, step)[0].Status == 0x0112
        assert association.send_n_create(dataset(PatientName="A"), MPPS, step)[0].Status == 0x0120
        assert association.send_n_create(begun(study), MPPS, step)[0].Status == 0x0000
        refused, _ = association.send_n_create(begun(study), MPPS, step)
        assert (refused.Status, refused.ErrorComment) == (0x0111, "A step with this SOP Instance UID exists")
        assert association.send_n_set(ended(found, "DISCONTINUED"), MPPS, step)[0].Status == 0x0000
        refused, _ = association.send_n_set(ended(found), MPPS, step)
        assert (refused.Status, refused.ErrorID) == (0x0110, 0xA710)
        assert association.send_n_get([], MPPS, step)[0].Status == 0x0211
    finally:
        association.release()


def test_commitment_is_asked_reported_and_completes_the_study(site):
    study, found = images(2)
    transaction = generate_uid()
    association = site.associated((CT, [ExplicitVRLittleEndian]), (PUSH_MODEL, [ImplicitVRLittleEndian]))
    with Scanner(site.scanner_port) as scanner:
        try:
            for image in found:
                assert association.send_c_store(image).Status == 0x0000
            status, _ = association.send_n_action(asked(found, transaction), 1, PUSH_MODEL, PUSH_MODEL_INSTANCE)
            assert status.Status == 0x0000
            until(lambda: scanner.reports, "the report")
        finally:
            association.release()
        event_type, information = scanner.reports[0]
        assert (event_type, information.TransactionUID) == (1, transaction)
        assert {item.ReferencedSOPInstanceUID for item in information.ReferencedSOPSequence} == {
            image.SOPInstanceUID for image in found
        }
    assert site.wait_for_event(study).completed_by == "storage_commitment"


def test_a_report_waits_for_a_scanner_that_is_switched_off(site):
    _, found = images(1)
    transaction = generate_uid()
    association = site.associated((PUSH_MODEL, [ExplicitVRLittleEndian]))
    try:
        status, _ = association.send_n_action(asked(found, transaction), 1, PUSH_MODEL, PUSH_MODEL_INSTANCE)
        assert status.Status == 0x0000
        assert association.send_n_action(asked(found, transaction), 2, PUSH_MODEL, PUSH_MODEL_INSTANCE)[0].Status == 0x0123
    finally:
        association.release()
    time.sleep(2.5)
    with Scanner(site.scanner_port) as scanner:
        until(lambda: scanner.reports, "the report")
    event_type, information = scanner.reports[0]
    assert event_type == 2
    assert [item.FailureReason for item in information.FailedSOPSequence] == [0x0112]


def test_a_sender_without_address_is_told_so(site):
    _, found = images(1)
    association = site.associated((PUSH_MODEL, [ExplicitVRLittleEndian]), title="NOBODY")
    try:
        status, _ = association.send_n_action(asked(found, generate_uid()), 1, PUSH_MODEL, PUSH_MODEL_INSTANCE)
        assert (status.Status, status.ErrorComment) == (0x0110, "No address is configured for this AE title")
    finally:
        association.release()


def test_the_number_of_instances_that_a_sender_states_completes(site):
    study, found = images(2)
    association = site.associated((CT, [ExplicitVRLittleEndian]))
    try:
        for image in found:
            image.NumberOfStudyRelatedInstances = 2
            assert association.send_c_store(image).Status == 0x0000
        assert site.wait_for_event(study).completed_by == "instance_count"
    finally:
        association.release()


def test_orthanc_stores_asks_and_gets_its_report(site, tmp_path):
    study, found = images(2)
    with Orthanc(tmp_path / "pacs", {"RECLAIM": site.port}, DicomPort=site.pacs_port) as orthanc:
        for image in found:
            image.save_as(tmp_path / "image.dcm", enforce_file_format=True)
            orthanc.upload(tmp_path / "image.dcm")
            orthanc.send_to("RECLAIM", image.SOPInstanceUID)
        known = report_at(orthanc, found)
        assert known["Status"] == "Success"
        assert {item["SOPInstanceUID"] for item in known["Success"]} == {image.SOPInstanceUID for image in found}
        _, others = images(1)
        unknown = report_at(orthanc, others)
        assert (unknown["Status"], unknown["Failures"][0]["FailureReason"]) == ("Failure", 0x0112)
    assert site.wait_for_event(study).completed_by == "storage_commitment"


def report_at(orthanc, found):
    references = [[str(image.SOPClassUID), str(image.SOPInstanceUID)] for image in found]
    asked = orthanc.post("/modalities/reclaim/storage-commitment", json.dumps({"DicomInstances": references}).encode())
    until(lambda: orthanc.get(asked["Path"])["Status"] != "Pending", "the report at Orthanc", 30)
    return orthanc.get(asked["Path"])
