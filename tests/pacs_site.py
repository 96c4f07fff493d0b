"""Our listener and archive beside Orthanc as the PACS, the command line against them, and PACS of our own making."""

import asyncio
import json
import shutil
import threading
import time
from contextlib import contextmanager

from pynetdicom import AE, evt
from sqlmodel import select
from typer.testing import CliRunner

from listeners.cli.context import console
from listeners.cli.main import app
from listeners.dicom.app import build
from listeners.dicom.query import STUDY_ROOT_FIND
from listeners.dicom.retrieve import STUDY_ROOT_GET, STUDY_ROOT_MOVE
from schemas.settings import DatabaseSettings, DicomSettings, PeerSettings, Settings
from schemas.tables import Instance
from services.assembly.files import layout_of
from services.runtime.clock import SystemClock
from services.runtime.database import Database
from services.runtime.identity import Pseudonyms
from services.runtime.scu import Peer, Timeouts
from services.runtime.service import Context, StopSignal
from tests.pacs_world import Orthanc, make_study, port

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
QUICK = Timeouts(connect_s=2.0, answer_s=1.0)


class Site:
    """Our listener and archive beside a PACS that knows us."""

    def __init__(self, folder, sqlite_template):
        (folder / "state").mkdir(parents=True)
        database = folder / "state" / "reclaim.sqlite"
        shutil.copy(sqlite_template, database)
        self.url, self.port = f"sqlite:///{database}", port()
        self.pacs = Orthanc(folder / "pacs", {"RECLAIM": self.port})
        self.peer = Peer("pacs", "PACS", "127.0.0.1", self.pacs.port)
        dicom = DicomSettings(
            host="127.0.0.1",
            port=self.port,
            min_free_bytes=0,
            peers={"pacs": PeerSettings(ae_title="PACS", host="127.0.0.1", port=self.pacs.port)},
        )
        self.settings = Settings(state_dir=folder / "state", database=DatabaseSettings(url=self.url), dicom=dicom)
        self.database = Database(self.url, SystemClock())
        self.context = Context(self.settings, self.database, SystemClock(), Pseudonyms(b"k" * 32))

    @contextmanager
    def listening(self):
        ready = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)))
        thread.start()
        try:
            assert ready.wait(10)
            for _ in range(100):
                if (self.settings.state_dir / "run" / "dicom.json").exists():
                    break
                time.sleep(0.05)
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            thread.join(20)

    async def _serve(self, ready):
        self._loop, self._stop = asyncio.get_running_loop(), StopSignal()
        ready.set()
        workers = build(self.context).workers
        await asyncio.gather(*(worker.run(self._stop) for worker in workers if worker.name == "dicom"))

    def archived(self, study_uid):
        with self.database.read() as session:
            rows = session.exec(select(Instance).where(Instance.study_uid == study_uid)).all()
        return {row.sop_instance_uid: self.settings.archive_dir / row.path for row in rows}

    def environment(self):
        peers = {"pacs": {"ae_title": "PACS", "host": "127.0.0.1", "port": self.pacs.port}}
        return {
            "RECLAIM_STATE_DIR": str(self.settings.state_dir),
            "RECLAIM_PSEUDONYM_KEY": "k" * 32,
            "RECLAIM_DICOM_PORT": str(self.port),
            "RECLAIM_DICOM_MIN_FREE_BYTES": "0",
            "RECLAIM_DICOM_PEERS": json.dumps(peers),
            "COLUMNS": "250",
        }


@contextmanager
def running_site(folder, sqlite_template):
    """A site whose PACS has a study, three priors of its patient and one of another patient."""
    made = Site(folder, sqlite_template)
    with made.pacs:
        made.pacs.upload(*make_study(folder / "in", "now", count=3, accession_number="ACC-1"))
        for number, modality in enumerate(["CT", "MR", "CT"]):
            facts = {"acquired_at": made.context.clock.now().replace(2020 + number), "modality": modality}
            made.pacs.upload(*make_study(folder / "in", f"prior{number}", **facts))
        made.pacs.upload(*make_study(folder / "in", "other", patient_id="PAT-2", count=1))
        yield made
    made.database.close()


def reclaim(site, *arguments, monkeypatch, stdin=None):
    for name, value in site.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(console, "_width", 200)  # whatever terminal, or none, the tests run in
    result = CliRunner().invoke(app, ["pacs", *arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def same_data(archived, pacs):
    for uid, path in archived.items():
        kept = path.read_bytes()[layout_of(path).dataset_offset :]
        sent = pacs.file(uid)
        assert sent.endswith(kept), uid
    return True


@contextmanager
def scp(handlers, **options):
    ae = AE("TEST")
    for name, value in options.items():
        setattr(ae, name, value)
    for uid in (STUDY_ROOT_FIND, STUDY_ROOT_MOVE, "1.2.840.10008.1.1"):
        ae.add_supported_context(uid)
    if evt.EVT_C_GET in handlers:
        ae.add_supported_context(STUDY_ROOT_GET)
        ae.add_supported_context(CT, scu_role=True, scp_role=True)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=list(handlers.items()))
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
