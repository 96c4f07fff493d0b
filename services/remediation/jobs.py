"""Long jobs: claimed with a lease, fenced by (owner, attempt), resumed after a crash, given up after too many attempts.

The lease is renewed by its own thread, so that a long training step loses nothing; a worker that was away for longer than
its lease finds its writes refused instead of mixing them with its successor's.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from schemas.events import MaintenanceRun
from schemas.tables import Job
from schemas.topics import RUN
from schemas.vocabulary import JobState, OrderState, Remedy
from services.remediation import repository
from services.remediation.ids import natural_id
from services.remediation.states import JobEvent, after
from services.runtime import telemetry
from services.runtime.database import Database
from services.runtime.errors import Transient
from services.runtime.transaction import Transaction

logger = logging.getLogger(__name__)
ACTOR = "service:remediation"
WITHDRAWN = {OrderState.REFUSED, OrderState.FAILED}


class JobStopped(Exception):  # noqa: N818 - named for what happened, not for the mechanism
    """Work on a job ends without an outcome: the process stops, or the lease was lost."""


class OrderWithdrawn(Exception):  # noqa: N818 - named for what happened, not for the mechanism
    """The order behind the job was taken back."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One attempt at a job. Every write names it; a later attempt shuts an earlier one out."""

    job_id: str
    order_id: str
    model: str
    remedy: Remedy
    attempt: int
    owner: str
    traceparent: str


def claim_next(tx: Transaction, owner: str, lease_s: float, max_attempts: int) -> Claim | None:
    """Take the oldest free job, None when there is none. A job without attempts left, or without its order, is closed."""
    while (job := repository.claimable(tx.session, tx.clock.now(), owner, lease_s)) is not None:
        order = repository.order(tx.session, job.order_id)
        if order.state in WITHDRAWN:
            _finish(tx, job, JobEvent.FAIL, error=f"The order was withdrawn: {order.explanation}")
        elif job.attempt >= max_attempts:
            reason = f"Given up after {job.attempt} attempts; the worker ended without a result. {job.error}".strip()
            _finish(tx, job, JobEvent.FAIL, error=reason)
            repository.close_order(tx, job.order_id, OrderState.FAILED, reason)
        else:
            return _take(tx, job, owner, lease_s)
        tx.session.flush()
    return None


def _take(tx: Transaction, job: Job, owner: str, lease_s: float) -> Claim:
    event = JobEvent.CLAIM if job.state == JobState.QUEUED else JobEvent.RECLAIM
    job.state, job.owner, job.attempt = after(JobState(job.state), event), owner, job.attempt + 1
    job.lease_until = tx.clock.now() + timedelta(seconds=lease_s)
    job.updated_at = tx.clock.now()
    tx.session.add(job)
    order = repository.order(tx.session, job.order_id)
    order.state, order.updated_at = OrderState.RUNNING, tx.clock.now()
    tx.session.add(order)
    tx.audit(ACTOR, "job.claimed", job.job_id, attempt=job.attempt, model=job.model, remedy=job.remedy)
    return Claim(job.job_id, job.order_id, job.model, Remedy(job.remedy), job.attempt, owner, job.traceparent)


def held(tx: Transaction, claim: Claim) -> Job:
    """The job's row, locked, for a write of this attempt. Raises JobStopped when another attempt has taken over."""
    job = repository.held_job(tx.session, claim.job_id, claim.owner, claim.attempt)
    if job is None:
        raise JobStopped(f"job {claim.job_id}: attempt {claim.attempt} no longer holds the lease")
    return job


def report(
    tx: Transaction,
    claim: Claim,
    message: str,
    *,
    epoch: int | None = None,
    epochs: int | None = None,
    metrics: dict[str, float] | None = None,
) -> None:
    """Record progress and announce it; each epoch is announced once, however often the job is resumed."""
    job = held(tx, claim)
    news = {"message": message, "epoch": epoch, "epochs": epochs, "metrics": metrics}
    job.progress = job.progress | {name: value for name, value in news.items() if value is not None}
    job.updated_at = tx.clock.now()
    tx.session.add(job)
    moment = f"epoch {epoch}" if epoch is not None else f"{claim.attempt} {message}"
    emit_run(tx, job, moment, message, epoch=epoch, metrics=metrics)


def emit_run(
    tx: Transaction, job: Job, moment: str, message: str, *, epoch: int | None = None, metrics: dict[str, float] | None = None
) -> None:
    """Announce where the job stands."""
    event = MaintenanceRun(
        run_id=job.job_id,
        order_id=job.order_id,
        model=job.model,
        remedy=Remedy(job.remedy),
        state=job.state,
        epoch=epoch,
        epochs=job.progress.get("epochs"),
        metrics=metrics or {},
        message=message,
    )
    tx.emit(RUN, event, event_id=natural_id("run", job.job_id, moment), cause=job.traceparent or None)


def succeed(tx: Transaction, claim: Claim, result: dict[str, Any], explanation: str) -> None:
    """Close the job and its order with a result; the gate's `no` is a result too."""
    _finish(tx, held(tx, claim), JobEvent.SUCCEED, result=result, message=explanation)
    repository.close_order(tx, claim.order_id, OrderState.DONE, explanation)


def fail(tx: Transaction, claim: Claim, reason: str) -> None:
    """Close the job and its order without a result."""
    _finish(tx, held(tx, claim), JobEvent.FAIL, error=reason)
    repository.close_order(tx, claim.order_id, OrderState.FAILED, reason)


def withdraw(tx: Transaction, claim: Claim) -> None:
    """Close the job of an order that was taken back; the order keeps the state that took it back."""
    reason = f"The order was withdrawn: {repository.order(tx.session, claim.order_id).explanation}"
    _finish(tx, held(tx, claim), JobEvent.FAIL, error=reason)


def release(tx: Transaction, claim: Claim) -> None:
    """Put the job back because this process ends; the attempt does not count."""
    job = repository.held_job(tx.session, claim.job_id, claim.owner, claim.attempt)
    if job is None:
        return
    job.state, job.owner, job.lease_until = after(JobState(job.state), JobEvent.RELEASE), "", None
    job.attempt, job.updated_at = job.attempt - 1, tx.clock.now()
    tx.session.add(job)


def note_fault(tx: Transaction, claim: Claim, fault: str) -> None:
    """Keep what ended this attempt, for the reason that is given when no attempt is left."""
    job = repository.held_job(tx.session, claim.job_id, claim.owner, claim.attempt)
    if job is not None:
        job.error = f"Attempt {claim.attempt} ended with {fault}."[:1000]
        tx.session.add(job)


def _finish(
    tx: Transaction, job: Job, event: JobEvent, *, result: dict[str, Any] | None = None, error: str = "", message: str = ""
) -> None:
    job.state, job.lease_until, job.updated_at = after(JobState(job.state), event), None, tx.clock.now()
    job.result, job.error = result or {}, error[:1000]
    tx.session.add(job)
    emit_run(tx, job, "end", (error or message)[:1000])
    tx.audit(ACTOR, f"job.{job.state}", job.job_id, attempt=job.attempt, model=job.model, error=job.error)
    telemetry.count("reclaim.jobs.finished", state=job.state)


class LeaseKeeper:
    """Renews a claim's lease every third of its length until closed; `check` raises once the work must end."""

    def __init__(self, database: Database, claim: Claim, lease_s: float, stopping: Callable[[], bool]) -> None:
        self._database, self._claim, self._lease_s, self._stopping = database, claim, lease_s, stopping
        self._closed = threading.Event()
        self._lost = threading.Event()
        self._withdrawn = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease {claim.job_id}", daemon=True)

    def __enter__(self) -> "LeaseKeeper":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def must_end(self) -> bool:
        """True once the process stops, the lease is lost or the order is withdrawn."""
        return self._stopping() or self._lost.is_set() or self._withdrawn.is_set()

    def check(self) -> None:
        """Raise JobStopped or OrderWithdrawn when the work must end."""
        if self._withdrawn.is_set():
            raise OrderWithdrawn
        if self.must_end():
            raise JobStopped(f"job {self._claim.job_id}: attempt {self._claim.attempt} ends without an outcome")

    def _keep(self) -> None:
        deadline = self._database.clock.monotonic() + self._lease_s
        while not self._closed.wait(self._lease_s / 3) and not self._lost.is_set() and not self._withdrawn.is_set():
            try:
                self._renew()
                deadline = self._database.clock.monotonic() + self._lease_s
            except Transient as error:
                logger.warning("the lease of job %s could not be renewed: %s", self._claim.job_id, error)
                if self._database.clock.monotonic() > deadline:
                    self._lost.set()
            except JobStopped as error:
                logger.warning("%s", error)
                self._lost.set()

    def _renew(self) -> None:
        with self._database.transaction() as tx:
            job = held(tx, self._claim)
            if repository.order(tx.session, job.order_id).state in WITHDRAWN:
                self._withdrawn.set()
            job.lease_until = tx.clock.now() + timedelta(seconds=self._lease_s)
            tx.session.add(job)
