"""The running service of the demonstration: started as a user would (`reclaim up`), watched through its database."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from sqlmodel import Session, col, func, select

from listeners.cli.context import open_context
from listeners.dicom.echo import echo
from schemas.settings import Settings
from schemas.tables import Batch, Case, Evaluation, GroundTruth, Job, Order, Report
from services.runtime.parenthood import die_with_parent
from services.runtime.service import Context

T = TypeVar("T")


class DemoFailure(Exception):  # noqa: N818
    """The demonstration did not get where it should; the message says where to look."""


class Stage:
    """`reclaim up` in its own process, with its own state folder and free ports."""

    def __init__(self, state: Path, overrides: Mapping[str, str]) -> None:
        self.state = state
        self.dicom_port, self.http_port = free_port(), free_port()
        self._log = state / "service.log"
        self._environment = {
            **os.environ,
            "RECLAIM_STATE_DIR": str(state / "state"),
            "RECLAIM_DICOM_HOST": "127.0.0.1",
            "RECLAIM_DICOM_PORT": str(self.dicom_port),
            "RECLAIM_HTTP_PORT": str(self.http_port),
            **overrides,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.context = self._open()

    def _open(self) -> Context:
        """The same settings in this process as in the service's."""
        ours = {name: value for name, value in self._environment.items() if name.startswith("RECLAIM_")}
        os.environ.update(ours)
        return open_context(Settings())

    def start(self, timeout: float = 90.0) -> None:
        """Start the service and return when its listener answers C-ECHO."""
        with self._log.open("wb") as log:
            command = [sys.executable, "-m", "listeners.cli", "up"]
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
                command,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - a system call
            )
        self.wait("the listener to answer", timeout, lambda _: echo("127.0.0.1", self.dicom_port, called_ae="RECLAIM") or None)

    def wait(
        self, what: str, timeout: float, look: Callable[[Session], T | None], sign: Callable[[Session], object] | None = None
    ) -> T:
        """Look until there is something; DemoFailure when the service ends or `timeout` s pass without a new `sign`."""
        end, last = time.monotonic() + timeout, None
        while time.monotonic() < end:
            with self.context.database.read() as session:
                found = look(session)
                seen = sign(session) if sign else None
            if found is not None:
                return found
            if seen != last:
                end, last = time.monotonic() + timeout, seen
            if self._process and self._process.poll() is not None:
                raise DemoFailure(f"the service ended while waiting for {what}; see {self._log}")
            time.sleep(0.2)
        raise DemoFailure(f"waited {timeout:.0f} s for {what}; see {self._log}")

    @property
    def is_running(self) -> bool:
        """Whether the service's process lives."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End the service cleanly, by force after 30 seconds."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scored(session: Session) -> int:
    """Studies that the serving version has scored."""
    return session.exec(select(func.count()).select_from(Case).where(col(Case.serving))).one()


def labelled(session: Session) -> int:
    """Studies whose label has arrived and been taken in."""
    return session.exec(select(func.count()).select_from(GroundTruth)).one()


def newest_evaluation(session: Session, model: str, version: int) -> Evaluation | None:
    """The newest evaluation of a version."""
    query = select(Evaluation).where(Evaluation.model == model, Evaluation.version == version)
    return session.exec(query.order_by(col(Evaluation.evaluated_at).desc())).first()


def remedy_order(session: Session, model: str, known: Collection[str]) -> Order | None:
    """The first remedy order of a model that the guardrails let out and that is none of the known ones."""
    query = select(Order).where(Order.model == model, Order.kind == "remedy", Order.state != "refused")
    query = query.where(col(Order.order_id).not_in(known))
    return session.exec(query.order_by(col(Order.created_at))).first()


def job_of(session: Session, order_id: str) -> Job | None:
    """The job that carries out an order."""
    return session.exec(select(Job).where(Job.order_id == order_id)).first()


def newest_report(session: Session, model: str) -> Report | None:
    """The newest report on a model."""
    return session.exec(select(Report).where(Report.model == model).order_by(col(Report.written_at).desc())).first()


def caught_up(session: Session, model: str, version: int) -> bool:
    """True when every closed batch of a version has an evaluation."""
    batches = session.exec(select(func.count()).select_from(Batch).where(Batch.model == model, Batch.version == version)).one()
    distinct = func.count(col(Evaluation.batch_id).distinct())
    done = session.exec(select(distinct).where(Evaluation.model == model, Evaluation.version == version)).one()
    return batches > 0 and done >= batches


def job_progress(session: Session, order_id: str) -> object:
    """Changes whenever the job of an order gets on, and while its worker renews its lease: not every training tells its epochs."""
    job = job_of(session, order_id)
    return job and (job.attempt, job.state, str(job.progress), job.lease_until)
