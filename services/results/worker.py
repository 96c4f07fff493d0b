"""The worker: claims one result at a time, builds its objects and sends them. While the PACS is away it waits in between."""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.results import jobs, repository
from services.results.build import build_objects
from services.results.delivery import Refused, deliver
from services.runtime import scu, telemetry
from services.runtime.errors import InvalidInput, Transient
from services.runtime.lease import new_owner
from services.runtime.scu import PeerAway, PeerBusy, PeerLost, PeerRefuses
from services.runtime.service import Context, StopSignal
from services.runtime.transaction import Transaction

logger = logging.getLogger(__name__)
POLL_S = 1.0


class ResultWorker:
    """Sends results until the process stops. Several workers, on several machines, share the queue."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._settings = context.settings.results
        self._owner = new_owner()
        self._pause = False
        self._outage = False

    async def run(self, stop: StopSignal) -> None:
        """Claim and send until `stop`; raises Transient when the database or the archive is away, and whatever bug there is."""
        if not self._settings.destination:
            await stop.wait()
        while not stop.is_set:
            worked = await asyncio.to_thread(self.run_one, lambda: stop.is_set)
            pause = self._settings.first_delay_s if self._pause else 0.0 if worked else POLL_S
            if pause:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), pause)

    def run_one(self, stopping: Callable[[], bool] = lambda: False) -> bool:
        """Claim a result and see it through one attempt; False when none is due."""
        with self._context.database.transaction() as tx:
            claim = jobs.claim_next(tx, self._owner, self._settings)
        self._pause = False
        if claim is None:
            return False
        parent = TraceContextTextMapPropagator().extract({"traceparent": claim.traceparent})
        token = otel_context.attach(parent)
        try:
            with trace.get_tracer("reclaim").start_as_current_span("result to PACS"):
                self._attempt(claim, stopping)
        finally:
            otel_context.detach(token)
        return True

    def _attempt(self, claim: jobs.Claim, stopping: Callable[[], bool]) -> None:
        try:
            peer = scu.peer(self._context.settings.dicom.peers, claim.destination)
            objects = build_objects(self._context.settings, self._context.database, claim.prediction)
            told = deliver(peer, objects, calling_ae=self._context.settings.dicom.ae_title)
        except (PeerAway, PeerBusy, PeerLost) as error:
            self._pause = self._outage = True
            self._later(claim, str(error), stopping)
        except (PeerRefuses, Refused) as error:
            self._later(claim, str(error), stopping)
        except InvalidInput as error:
            reason = error.reason
            self._write(lambda tx: jobs.give_up(tx, claim, "InvalidInput", reason))
            logger.warning("RES-102 result %s given up: %s", claim.job_id, reason)
            telemetry.count("reclaim.results.finished", outcome="given_up")
        except Transient:
            self._write(lambda tx: jobs.release(tx, claim))
            raise
        else:
            self._sent(claim, told)

    def _sent(self, claim: jobs.Claim, told: dict[str, str]) -> None:
        def close(tx: Transaction) -> None:
            jobs.succeed(tx, claim, told)
            if self._outage:
                repository.hasten(tx, claim.destination)

        self._write(close)
        self._outage = False
        logger.info("RES-100 result %s is at %s", claim.job_id, claim.destination)
        telemetry.count("reclaim.results.finished", outcome="sent")

    def _later(self, claim: jobs.Claim, reason: str, stopping: Callable[[], bool]) -> None:
        if stopping():
            self._write(lambda tx: jobs.release(tx, claim))
            return
        gave_up = self._write(lambda tx: jobs.postpone(tx, claim, reason, self._settings))
        if gave_up:
            logger.error("RES-102 result %s given up: %s", claim.job_id, reason)
            telemetry.count("reclaim.results.finished", outcome="given_up")
        else:
            logger.warning("RES-101 result %s waits, attempt %d failed: %s", claim.job_id, claim.attempt, reason)

    def _write(self, write: Callable[[Transaction], bool | None]) -> bool:
        """One fenced write; nothing happens when a successor has taken over and decides instead."""
        try:
            with self._context.database.transaction() as tx:
                return bool(write(tx))
        except jobs.JobLost as error:
            logger.warning("RES-103 %s", error)
            return False
