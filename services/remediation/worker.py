"""The worker: claims one job at a time and sees it through in a thread, under the trace of the order behind it."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from models.errors import ModelError
from services.remediation import jobs, run
from services.remediation.conclusion import conclude, conclude_too_few
from services.remediation.material import freeze, prepare
from services.remediation.plan import SharedPatient, TooFew
from services.runtime import telemetry
from services.runtime.errors import InvalidInput, Transient
from services.runtime.lease import new_owner
from services.runtime.service import Context, StopSignal

logger = logging.getLogger(__name__)
POLL_S = 1.0


class JobWorker:
    """Works on jobs until the process stops. Several workers, on several machines, share the queue."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._owner = new_owner()

    async def run(self, stop: StopSignal) -> None:
        """Claim and work until `stop`; raises Transient when the database is away, and whatever bug a run has."""
        while not stop.is_set:
            if not await asyncio.to_thread(self.run_one, lambda: stop.is_set):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), POLL_S)

    def run_one(self, stopping: Callable[[], bool] = lambda: False) -> bool:
        """Claim a job and see it to its end; False when there is none."""
        limits = self._context.settings.remediation
        with self._context.database.transaction() as tx:
            claim = jobs.claim_next(tx, self._owner, limits.lease_s, limits.max_attempts)
        if claim is None:
            return False
        started = time.monotonic()
        with _traced(claim), jobs.LeaseKeeper(self._context.database, claim, limits.lease_s, stopping) as keeper:
            self._work(claim, keeper, stopping)
        telemetry.observe("reclaim.job.seconds", time.monotonic() - started, remedy=claim.remedy)
        return True

    def _work(self, claim: jobs.Claim, keeper: jobs.LeaseKeeper, stopping: Callable[[], bool]) -> None:
        logger.info("job %s: %s of %s, attempt %d", claim.job_id, claim.remedy, claim.model, claim.attempt)
        try:
            self._see_through(claim, keeper)
        except jobs.OrderWithdrawn:
            self._close(claim, jobs.withdraw)
        except jobs.JobStopped as error:
            logger.warning("%s", error)
            if stopping():
                self._write(claim, jobs.release)
        except (InvalidInput, ModelError, SharedPatient) as error:
            reason = str(error)
            logger.warning("job %s failed: %s", claim.job_id, reason)
            self._close(claim, lambda tx, held: jobs.fail(tx, held, reason))
        except Transient:
            raise
        except Exception as error:
            fault = type(error).__name__
            self._write(claim, lambda tx, held: jobs.note_fault(tx, held, fault))
            raise

    def _see_through(self, claim: jobs.Claim, keeper: jobs.LeaseKeeper) -> None:
        material = prepare(self._context, claim)
        if isinstance(material, TooFew):
            conclude_too_few(self._context, claim, material)
            return
        material = freeze(self._context, claim, material)
        outcome = run.execute(self._context, claim, material, keeper)
        keeper.check()
        verdict = conclude(self._context, claim, material, outcome)
        run.forget(self._context, claim, outcome.bundle.folder if verdict else None)
        logger.info("job %s: %s", claim.job_id, verdict or "void")

    def _close(self, claim: jobs.Claim, write: Callable[..., None]) -> None:
        if self._write(claim, write):
            run.forget(self._context, claim)

    def _write(self, claim: jobs.Claim, write: Callable[..., None]) -> bool:
        """One fenced write; False when a successor has taken over and decides instead."""
        try:
            with self._context.database.transaction() as tx:
                write(tx, claim)
        except jobs.JobStopped:
            return False
        return True


@contextlib.contextmanager
def _traced(claim: jobs.Claim) -> Iterator[None]:
    parent = TraceContextTextMapPropagator().extract({"traceparent": claim.traceparent})
    token = otel_context.attach(parent)
    try:
        with trace.get_tracer("reclaim").start_as_current_span(f"remediation {claim.remedy}"):
            yield
    finally:
        otel_context.detach(token)
