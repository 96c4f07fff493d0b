"""A listener in a process that may be killed, DCMTK as the sender that counts what was acknowledged, and what must hold then."""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from sqlmodel import select

from listeners.dicom.synthesize import StudyFacts, write_image
from schemas.settings import Settings
from schemas.tables import Instance, Outbox, Study
from services.assembly.completion import complete_studies
from services.assembly.files import layout_of
from services.assembly.rules import Rules
from services.runtime.clock import SystemClock
from services.runtime.database import Database
from services.runtime.identity import load_pseudonyms

ACQUIRED = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
SERVER = """
import asyncio
from listeners.cli.context import open_context
from listeners.dicom.app import build
from services.runtime.process import run
context = open_context()
asyncio.run(run([build(context)], context))
"""


class Process:
    """A listener in a process of its own, with the real settings, database and signal handling."""

    def __init__(self, state, prelude="", **options):
        self.state = state
        (state / "run" / "dicom.json").unlink(missing_ok=True)
        environment = os.environ | {
            "RECLAIM_STATE_DIR": str(state),
            "RECLAIM_DICOM_HOST": "127.0.0.1",
            "RECLAIM_DICOM_PORT": "0",
            "RECLAIM_DICOM_MIN_FREE_BYTES": "0",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", prelude + SERVER], env=environment, cwd=Path(__file__).parents[1], **options
        )
        announcement = state / "run" / "dicom.json"
        for _ in range(600):
            if announcement.exists():
                self.port = json.loads(announcement.read_text())["port"]
                return
            assert self.process.poll() is None, "the listener ended at start"
            time.sleep(0.05)
        self.kill()
        raise AssertionError("the listener did not start")

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def terminate(self):
        self.process.terminate()
        return self.process.wait(20)


def images(folder, count, studies=4):
    folder.mkdir()
    for number in range(count):
        image = np.random.default_rng(number).integers(0, 255, (64, 64), dtype=np.uint8)
        facts = StudyFacts("MR", f"P{number % studies}", f"crash-{number % studies}", ACQUIRED, instance=number + 1)
        write_image(folder / f"{number:03d}.dcm", image, facts)
    return sorted(folder.glob("*.dcm"))


def dataset_of(path):
    return path.read_bytes()[layout_of(path).dataset_offset :]


def storescu():
    found = next(
        (folder / "storescu" for folder in map(Path, ("/usr/bin", "/usr/local/bin")) if (folder / "storescu").exists()), None
    )
    if found is None:
        pytest.skip("NOT TESTED against DCMTK: storescu is not installed (Debian package: dcmtk)")
    return found


def acknowledged(output):
    """Files for which storescu saw status 0000, from its verbose log."""
    sent = re.findall(r"Sending file: (\S+)(.*?)(?=Sending file:|\Z)", output, re.DOTALL)
    return {name for name, after in sent if "Received Store Response (Success)" in after}


def everything_is_there_once(state, paths):
    database = Database(f"sqlite:///{state / 'reclaim.sqlite'}", SystemClock())
    with database.read() as session:
        for path in paths:
            row = session.get(Instance, str(dcmread(path, stop_before_pixels=True).SOPInstanceUID))
            assert dataset_of(state / "archive" / row.path) == dataset_of(path)
        counts = {study.study_uid: study.instances for study in session.exec(select(Study))}
        assert counts == Counter(row.study_uid for row in session.exec(select(Instance)))
    assert len(list((state / "archive").rglob("*.dcm"))) == len(paths)
    assert not list((state / "archive" / "incoming").iterdir())
    for _ in range(2):
        with database.transaction() as tx:
            complete_studies(tx, load_pseudonyms_of(state), Rules(0.0))
    with database.read() as session:
        announced = Counter((row.key, json.loads(row.body)["revision"]) for row in session.exec(select(Outbox)))
        instances = sum(series["instances"] for row in session.exec(select(Outbox)) for series in json.loads(row.body)["series"])
    assert set(announced.values()) == {1}
    assert instances == len(paths)
    database.close()


def load_pseudonyms_of(state):
    return load_pseudonyms(Settings(state_dir=state))
