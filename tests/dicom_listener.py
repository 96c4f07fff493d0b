"""A listener of the real service in this process, senders that say exactly what they are told, and what to expect of it."""

import asyncio
import json
import shutil
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom.data
import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA
from sqlmodel import select

from listeners.dicom import app
from listeners.dicom.app import build
from listeners.dicom.synthesize import StudyFacts, write_image
from schemas.events import StudyReceived
from schemas.settings import DatabaseSettings, DicomSettings, Settings
from schemas.tables import Instance, Outbox, Study
from services.assembly.completion import complete_studies
from services.assembly.rules import Rules
from services.assembly.writer import IndexWriter
from services.runtime.clock import SystemClock
from services.runtime.database import Database
from services.runtime.identity import Pseudonyms
from services.runtime.service import Context, StopSignal

MR, CT, SC = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7"
EXPLICIT = str(ExplicitVRLittleEndian)
PACKAGED = Path(pydicom.data.__file__).parent / "test_files"
ACQUIRED = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)


class WatchedWriter(IndexWriter):
    """Tells a test when every row is written."""

    newest: "WatchedWriter"

    def start(self):
        WatchedWriter.newest = self
        super().start()

    def settle(self):
        end = time.monotonic() + 10
        while self._queue and time.monotonic() < end:
            time.sleep(0.005)
        assert not self._queue


class Listener:
    """A listener of the real service in this process, its own event loop and thread."""

    def __init__(self, folder, database_url, **dicom):
        self.settings = Settings(
            state_dir=folder,
            database=DatabaseSettings(url=database_url),
            dicom=DicomSettings(**({"host": "127.0.0.1", "port": 0, "min_free_bytes": 0} | dicom)),
        )
        self.database = Database(database_url, SystemClock())
        self.context = Context(self.settings, self.database, SystemClock(), Pseudonyms(b"k" * 32))
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self):
        ordinary, app.IndexWriter = app.IndexWriter, WatchedWriter
        self._thread.start()
        assert self._started.wait(10)
        announcement = self.settings.state_dir / "run" / "dicom.json"
        for _ in range(200):
            if announcement.exists():
                self.port = json.loads(announcement.read_text())["port"]
                app.IndexWriter, self._writer = ordinary, WatchedWriter.newest
                return self
            time.sleep(0.02)
        raise AssertionError("the listener did not start")

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive(), "the listener did not stop"
        self.database.close()

    async def _run(self):
        self._loop, self._stop = asyncio.get_running_loop(), StopSignal()
        self._started.set()
        (worker,) = build(self.context).workers
        await worker.run(self._stop)

    @property
    def archive(self):
        return self.settings.archive_dir

    def files(self):
        return sorted(path for path in self.archive.rglob("*.dcm"))

    def temporary(self):
        return [path for path in (self.archive / "incoming").rglob("*") if path.is_file() and path.suffix != ".lock"]

    def instance(self, uid):
        self._writer.settle()
        with self.database.read() as session:
            return session.get(Instance, str(uid))

    def study(self, uid):
        self._writer.settle()
        with self.database.read() as session:
            return session.get(Study, str(uid))

    def close_studies(self):
        self._writer.settle()
        with self.database.transaction() as tx:
            return complete_studies(tx, self.context.pseudonyms, Rules(0.0))

    def events(self, study_uid):
        key = self.context.pseudonyms.study(study_uid)
        with self.database.read() as session:
            rows = session.exec(select(Outbox).where(Outbox.key == key).order_by(Outbox.id)).all()
        return [(row, StudyReceived.model_validate_json(row.body)) for row in rows]


@contextmanager
def associated(port, *contexts, **options):
    ae = AE("TEST")
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = options.get("timeout", 10)
    for uid, syntax in contexts or ((MR, EXPLICIT),):
        ae.add_requested_context(uid, syntax)
    association = ae.associate("127.0.0.1", port, max_pdu=options.get("max_pdu", 16382))
    yield association
    if association.is_established:
        association.release()


def make(seed, tmp_path, modality="MR", **facts):
    path = tmp_path / f"{seed}.dcm"
    image = np.random.default_rng(abs(hash(seed)) % 1000).integers(0, 255, (32, 32), dtype=np.uint8)
    write_image(path, image, StudyFacts(modality, facts.pop("patient_id", "P1"), seed, ACQUIRED, **facts))
    return dcmread(path)


def encoded(dataset):
    out = BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    raw = out.getvalue()
    return raw[144 + struct.unpack_from("<L", raw, 140)[0] :]


def request_of(data, instance_uid, sop_class=MR):
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop_class, instance_uid
    request.DataSet = BytesIO(data)
    return request


def pause(association):
    """Hold the association's own loop, which would otherwise now and then take a response for itself."""
    association._reactor_checkpoint.clear()
    while not association._is_paused and association.is_established:
        time.sleep(0.001)


def store(association, data, instance_uid, sop_class=MR, context=None):
    """A C-STORE of exactly these bytes; returns the response's command set, None when the association was ended."""
    request = request_of(data, instance_uid, sop_class)
    pause(association)
    association.dimse.send_msg(request, context or association.accepted_contexts[0].context_id)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return response


def one(listener, data, uid, sop_class=MR, syntax=EXPLICIT, context_class=None):
    with associated(listener.port, (context_class or sop_class, syntax)) as association:
        return store(association, data, uid, sop_class)


def refused(listener, before, response, status):
    assert response.Status == status
    assert 0 < len(response.ErrorComment) <= 64
    assert listener.files() == before
    assert listener.temporary() == []


def send_by_hand(association, last_fragment, dataset_type):
    """A C-STORE command and, after it, one PDV of our own making."""
    message = C_STORE_RQ()
    message.primitive_to_message(request_of(b"x", generate_uid()))
    message.command_set.CommandDataSetType = dataset_type
    command = next(iter(message.encode_msg(1, 16382)))
    pause(association)
    association.dul.send_pdu(command)
    if last_fragment is not None:
        fragment = P_DATA()
        fragment.presentation_data_value_list = [[1, last_fragment]]
        association.dul.send_pdu(fragment)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return response


def dcmtk(name):
    """A program of DCMTK; pynetdicom installs its own under the same names beside the interpreter."""
    folders = [folder for folder in ("/usr/bin", "/usr/local/bin", "/opt/homebrew/bin") if Path(folder) != Path(sys.prefix) / "bin"]
    found = shutil.which(name, path=":".join(folders))
    if found is None or "dcmtk" not in subprocess.run([found, "--version"], check=False, capture_output=True, text=True).stdout:
        pytest.skip(f"NOT TESTED against DCMTK: {name} is not installed (Debian package: dcmtk)")
    return found
