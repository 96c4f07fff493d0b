"""A worker whose order is withdrawn, and one that is killed in the middle of a training."""

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from sqlmodel import func, select

from schemas.events import MaintenancePromotion, MaintenanceRun
from schemas.tables import Job, ModelVersion, Order
from schemas.topics import PROMOTION, RUN
from schemas.vocabulary import CaseRole, JobState, OrderKind, OrderState, Remedy
from services.remediation.worker import JobWorker
from services.runtime.service import Context
from tests.remediation_world import KEY, copied, events, give, stored, stream

WORK = """
import sys
from services.remediation.worker import JobWorker
from services.runtime.clock import SystemClock
from services.runtime.database import Database
from services.runtime.identity import Pseudonyms
from services.runtime.service import Context
from schemas.settings import Settings
settings = Settings.model_validate_json(sys.stdin.read())
clock = SystemClock()
JobWorker(Context(settings, Database(settings.database_url, clock), clock, Pseudonyms(sys.argv[1].encode()))).run_one()
"""


def test_a_withdrawn_order_ends_its_running_job(stripes: Context) -> None:
    for role in (CaseRole.TUNE, CaseRole.GATE):
        stream(stripes, role, 40)
    give(stripes, OrderKind.REMEDY, "withdrawn", remedy=Remedy.FULL, settings={"epochs": 400})
    child = _start(stripes)
    try:
        _until_epoch(stripes, "withdrawn", 1)
        with stripes.database.transaction() as tx:
            row = tx.session.get_one(Order, "withdrawn")
            row.state, row.explanation = OrderState.REFUSED, "Taken back."
            tx.session.add(row)
        assert child.wait(60) == 0
    finally:
        child.kill()
    job = stored(stripes, Job, "withdrawn")
    assert (job.state, job.error) == (JobState.FAILED, "The order was withdrawn: Taken back.")


def _start(context: Context) -> subprocess.Popen[bytes]:
    dumped = context.settings.model_dump_json().replace('"url":"**********"', f'"url":"{context.settings.database_url}"')
    child = subprocess.Popen([sys.executable, "-c", WORK, KEY.decode()], stdin=subprocess.PIPE, env=dict(os.environ))
    child.stdin.write(dumped.encode())
    child.stdin.close()
    return child


def _until_epoch(context: Context, job_id: str, epoch: int) -> None:
    deadline = time.monotonic() + 90
    while stored(context, Job, job_id).progress.get("epoch", -1) < epoch:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_worker_is_succeeded_by_one_that_resumes(in_service: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of training; the second attempt goes on and ends with the numbers of an undisturbed run."""
    results = []
    for name in ("killed", "undisturbed"):
        context = copied(in_service, tmp_path / name, f"sqlite:///{tmp_path / f'{name}.sqlite'}")
        stream(context, CaseRole.TUNE, 60)
        stream(context, CaseRole.GATE, 60)
        give(context, OrderKind.REMEDY, "repair", remedy=Remedy.FULL, settings={"epochs": 12})
        if name == "killed":
            _kill_at(context, 3)
        assert JobWorker(context).run_one()
        results.append(stored(context, Job, "repair"))
        _finished_once(context, attempts=2 if name == "killed" else 1)
        context.database.close()
    killed, undisturbed = results
    assert killed.settings["plan"] == undisturbed.settings["plan"]
    timeless = [{name: value for name, value in job.result["numbers"].items() if name != "latency_ratio"} for job in results]
    assert timeless[0] == timeless[1]
    assert len(list((tmp_path / "killed" / "models" / "stripes").glob("run-*"))) == 1
    assert killed.result["weights_sha256"] == undisturbed.result["weights_sha256"]


def _kill_at(context: Context, epoch: int) -> None:
    child = _start(context)
    _until_epoch(context, "repair", epoch)
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    assert stored(context, Job, "repair").state == JobState.RUNNING
    assert not JobWorker(context).run_one(), "the lease still holds"
    while not (stored(context, Job, "repair").lease_until <= datetime.now(UTC)):
        time.sleep(0.1)


def _finished_once(context: Context, attempts: int) -> None:
    job = stored(context, Job, "repair")
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, attempts), job.error
    with context.database.read() as session:
        assert session.exec(select(func.count()).select_from(ModelVersion)).one() == 2
    epochs = [each.epoch for each in events(context, RUN, MaintenanceRun) if each.epoch is not None]
    assert epochs == sorted(set(epochs)) == list(range(epochs[-1] + 1))
    assert len(events(context, PROMOTION, MaintenancePromotion)) == 1
