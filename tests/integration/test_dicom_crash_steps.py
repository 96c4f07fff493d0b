"""SIGKILL between any two steps of receive, fsync, link, fsync, answer, index: what was acknowledged is there, once."""

import os
import subprocess

import pytest

from listeners.cli.context import open_context
from schemas.settings import Settings
from services.assembly.files import ArchiveFiles
from services.assembly.reindex import enter_missing
from tests.dicom_process import Process, acknowledged, dataset_of, everything_is_there_once, images, storescu

PRELUDE = """
import itertools, os
from listeners.dicom import session
from services.assembly import files, index

def kill_at(owner, name, moment, number):
    ordinary, calls = getattr(owner, name), itertools.count(1)
    def step(*arguments, **options):
        last = next(calls) == number
        if last and moment == "before":
            os.kill(os.getpid(), 9)
        result = ordinary(*arguments, **options)
        if last:
            os.kill(os.getpid(), 9)
        return result
    setattr(owner, name, step)

STEPS = {
    "opened": (files.ArchiveFiles, "open_temporary", "after"),
    "written": (files.Temporary, "sync", "before"),
    "synchronised": (files.Temporary, "sync", "after"),
    "linked": (files.ArchiveFiles, "_link", "after"),
    "published": (files.ArchiveFiles, "publish", "after"),
    "answered": (session.Session, "_finish_store", "after"),
    "rows to be written": (index.ArchiveIndex, "enter_all", "before"),
    "rows committed": (index.ArchiveIndex, "enter_all", "after"),
}
"""
STEPS = ("opened", "written", "synchronised", "linked", "published", "answered", "rows to be written", "rows committed")


@pytest.mark.dcmtk
@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_what_was_acknowledged_survives_a_kill_at(tmp_path, step, monkeypatch):
    sender, paths, state = storescu(), images(tmp_path / "images", 12), tmp_path / "state"
    number = 1 if step.startswith("rows") else 7
    listener = Process(state, f"{PRELUDE}\nkill_at(*STEPS[{step!r}], {number})\n")
    command = [sender, "-v", "-nh", "127.0.0.1", str(listener.port), *paths]
    fast = os.environ | {"TCP_NODELAY": "1"}
    client = subprocess.run(command, check=False, capture_output=True, text=True, env=fast, timeout=60)
    assert listener.process.wait(10) == -9
    acked = [path for path in paths if str(path) in acknowledged(client.stdout + client.stderr)]
    assert len(acked) >= 6 or number == 1
    kept = _recover(state, monkeypatch)
    assert {path.name for path in acked} <= {path.name for path in paths if dataset_of(path) in kept}
    everything_is_there_once(state, [path for path in paths if dataset_of(path) in kept])
    assert len(kept) - len(acked) in (0, 1), "at most the one whose answer was under way"


def _recover(state, monkeypatch):
    """What the next start does; returns the data sets that the archive then has."""
    monkeypatch.setenv("RECLAIM_STATE_DIR", str(state))
    context = open_context(Settings(state_dir=state))
    files = ArchiveFiles(context.settings.archive_dir)
    try:
        enter_missing(context, files, lambda: False)
    finally:
        files.close()
        context.database.close()
    return {dataset_of(path) for path in (state / "archive").rglob("*.dcm")}
