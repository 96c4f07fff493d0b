"""What a modality was told is done outlives the process: a kill right after the answer loses neither report nor study."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from sqlmodel import select

from listeners.dicom.echo import echo
from listeners.dicom.mpps import MPPS
from schemas.announcements import Commitment
from schemas.events import StudyReceived
from schemas.tables import Outbox
from services.assembly.reporter import PUSH_MODEL, PUSH_MODEL_INSTANCE
from services.runtime.database import Database
from services.runtime.parenthood import die_with_parent
from tests.pacs_world import port
from tests.signals_world import CT, Scanner, asked, associated, begun, ended, images, until


class Process:
    """`reclaim serve dicom assembly`, which tests kill and start again."""

    def __init__(self, folder, database_url, scanner_port):
        self.port, self._folder = port(), folder
        peers = {"scanner": {"ae_title": "CT1", "host": "127.0.0.1", "port": scanner_port}}
        self._environment = os.environ | {
            "RECLAIM_STATE_DIR": str(folder / "state"),
            "RECLAIM_DATABASE_URL": database_url,
            "RECLAIM_DICOM_HOST": "127.0.0.1",
            "RECLAIM_DICOM_PORT": str(self.port),
            "RECLAIM_DICOM_PEERS": json.dumps(peers),
            "RECLAIM_DICOM_QUIET_PERIOD_S": "600",
            "RECLAIM_DICOM_MIN_FREE_BYTES": "0",
        }

    def start(self):
        with (self._folder / "log").open("ab") as log:
            command = [sys.executable, "-m", "listeners.cli", "serve", "dicom", "assembly"]
            self.process = subprocess.Popen(
                command,
                env=self._environment,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,  # noqa: PLW1509
            )
        until(lambda: echo("127.0.0.1", self.port, called_ae="RECLAIM"), "the listener", 60)

    def kill(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        self.process.wait(30)


def test_what_was_answered_with_success_happens_after_a_kill(tmp_path, sqlite_template):
    shutil.copy(sqlite_template, tmp_path / "database.sqlite")
    url, scanner_port = f"sqlite:///{tmp_path / 'database.sqlite'}", port()
    service = Process(tmp_path, url, scanner_port)
    service.start()
    study, found = images(2)
    step, transaction = generate_uid(), generate_uid()
    association = associated(service.port, *((abstract, [ExplicitVRLittleEndian]) for abstract in (CT, MPPS, PUSH_MODEL)))
    assert association.send_n_create(begun(study), MPPS, step)[0].Status == 0x0000
    for image in found:
        assert association.send_c_store(image).Status == 0x0000
    action = association.send_n_action(asked(found, transaction), 1, PUSH_MODEL, PUSH_MODEL_INSTANCE)
    assert action[0].Status == 0x0000
    assert association.send_n_set(ended(found), MPPS, step)[0].Status == 0x0000
    service.kill()
    association.abort()
    time.sleep(0.1)
    let_leases_pass(url)
    with Scanner(scanner_port) as scanner:
        service.start()
        try:
            until(lambda: scanner.reports, "the report", 30)
            database = Database(url)
            until(lambda: events(database), "the event")
            assert [(event.revision, event.completed_by, event.series[0].instances) for event in events(database)] == [
                (1, "mpps", 2)
            ]
            database.close()
        finally:
            service.kill(signal.SIGTERM)
    event_type, information = scanner.reports[0]
    assert (event_type, information.TransactionUID) == (1, transaction)


def let_leases_pass(url):
    """Whoever was killed while it delivered a report keeps it for minutes, and so does a first attempt that nobody answered."""
    database = Database(url)
    with database.transaction() as tx:
        for row in tx.session.exec(select(Commitment)):
            row.next_at = row.created_at
            tx.session.add(row)
    database.close()


def events(database):
    with database.read() as session:
        return [StudyReceived.model_validate_json(row.body) for row in session.exec(select(Outbox).order_by(Outbox.id))]
