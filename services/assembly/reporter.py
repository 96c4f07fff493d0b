"""Delivers storage commitment reports: N-EVENT-REPORT on an association of its own (PS3.4 J.3.3), until the peer has it.

A new association is what every SCU supports; the one that carried the request is often closed by the time of the answer.
"""

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Final

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.presentation import build_context, build_role

from schemas.settings import PeerSettings
from schemas.vocabulary import CommitmentState
from services.assembly.announcement_repository import (
    REPORTER_BELL,
    OwedReport,
    claim_reports,
    forget,
    has_reports_due,
    mark_committed,
    postpone,
    references_of,
    settle,
    stored_of,
)
from services.assembly.commitments import Reference, Report, next_attempt, report_on
from services.runtime import telemetry
from services.runtime.errors import InvalidInput, Transient
from services.runtime.health import pause
from services.runtime.scu import Peer, PeerLost, PeerRefuses, Timeouts, association, peers, status_words
from services.runtime.service import Context, StopSignal

logger = logging.getLogger(__name__)
PUSH_MODEL: Final = "1.2.840.10008.1.20.1"
PUSH_MODEL_INSTANCE: Final = "1.2.840.10008.1.20.1.1"
ACTION_REQUEST: Final = 1
ALL_COMMITTED: Final = 1
FAILURES_EXIST: Final = 2
IDLE_S: Final = 1.0
WAIT_STEP_S: Final = 1.0
LEASE: Final = timedelta(minutes=10)
REPORTS_AT_ONCE: Final = 20
PEERS_AT_ONCE: Final = 4
TIMEOUTS: Final = Timeouts(connect_s=5.0, answer_s=15.0)
KEEP: Final = timedelta(days=30)
HOUSEKEEPING_S: Final = 3600.0
_WARNING: Final = (0x0001, 0x0107, 0x0116)


def peer_titled(peers_known: Mapping[str, PeerSettings], ae_title: str) -> Peer | None:
    """The peer of an AE title; the first by name where several have it."""
    return next((each for each in peers(peers_known) if each.ae_title.strip() == ae_title), None)


class Reporter:
    """Checks what was asked and reports it. One or several processes may run it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._settings = context.settings.dicom
        self._database = context.database
        self._next_housekeeping = 0.0

    async def run(self, stop: StopSignal) -> None:
        """Deliver reports until `stop` is set."""
        awake = asyncio.Event()
        with self._database.listen(REPORTER_BELL, awake):
            while not stop.is_set:
                awake.clear()
                worked = await asyncio.to_thread(self.step, stop)
                await asyncio.to_thread(self._keep_house)
                if not worked:
                    await pause(stop, IDLE_S, awake)

    def step(self, stop: StopSignal | None = None) -> int:
        """Deal with the reports that are due; returns how many."""
        with self._database.read() as session:
            if not has_reports_due(session, self._context.clock.now()):
                return 0
        with self._database.transaction() as tx:
            owed = claim_reports(tx, LEASE, REPORTS_AT_ONCE)
        by_peer: dict[str, list[OwedReport]] = {}
        for item in owed:
            by_peer.setdefault(item.peer_ae, []).append(item)
        with ThreadPoolExecutor(max_workers=PEERS_AT_ONCE) as pool:
            list(pool.map(lambda reports: self._deal_with_peer(reports, stop), by_peer.values()))
        return len(owed)

    def _deal_with_peer(self, owed: Sequence[OwedReport], stop: StopSignal | None) -> None:
        """One peer's reports, one after the other; when it does not take one, the others wait for the next round."""
        rest = list(owed)
        while rest and not (stop is not None and stop.is_set):
            if not self._deal_with(rest.pop(0)):
                break
        with self._database.transaction() as tx:
            for item in rest:
                postpone(tx, item.transaction_uid, tx.clock.now() + self._seconds(IDLE_S), item.attempts)

    def _deal_with(self, owed: OwedReport) -> bool:
        """Deliver a report, or put it off; False when the peer does not take it."""
        report = self._check(owed)
        if report.lacks_instances and self._context.clock.now() - owed.created_at < self._seconds(self._settings.commitment_wait_s):
            with self._database.transaction() as tx:
                postpone(tx, owed.transaction_uid, tx.clock.now() + self._seconds(WAIT_STEP_S), owed.attempts)
            return True
        try:
            self._deliver(owed, report)
        except (Transient, InvalidInput) as error:
            self._try_again(owed, str(error))
            return False
        with self._database.transaction() as tx:
            mark_committed(tx, owed.transaction_uid)
            settle(tx, owed.transaction_uid, CommitmentState.REPORTED, owed.attempts + 1)
        telemetry.count("reclaim.commitments.finished", outcome="failures" if report.failed else "committed")
        level = logging.WARNING if report.failed else logging.INFO
        numbers = (len(report.committed), len(report.failed))
        logger.log(level, "SCM-101 %s has its commitment report: %d instances committed, %d not", owed.peer_ae, *numbers)
        return True

    def _check(self, owed: OwedReport) -> Report:
        with self._database.read() as session:
            references = references_of(session, owed.transaction_uid)
            stored = stored_of(session, [item.sop_instance_uid for item in references])
        return report_on(references, stored, self._context.settings.archive_dir)

    def _deliver(self, owed: OwedReport, report: Report) -> None:
        peer = peer_titled(self._settings.peers, owed.peer_ae)
        if peer is None:
            raise InvalidInput(f"dicom.peers has no peer with ae_title {owed.peer_ae}")
        send_report(peer, owed.own_ae, owed.transaction_uid, report)

    def _try_again(self, owed: OwedReport, reason: str) -> None:
        now, attempts = self._context.clock.now(), owed.attempts + 1
        request = hashlib.sha256(owed.transaction_uid.encode()).hexdigest()[:16]
        with self._database.transaction() as tx:
            if now - owed.created_at < self._seconds(self._settings.commitment_give_up_s):
                until = next_attempt(now, attempts, self._seconds(self._settings.commitment_retry_s))
                postpone(tx, owed.transaction_uid, until, attempts)
                logger.warning("SCM-301 commitment report to %s not delivered (%s); next try at %s", owed.peer_ae, reason, until)
                return
            settle(tx, owed.transaction_uid, CommitmentState.GIVEN_UP, attempts)
            tx.audit("assembly", "commitment.given_up", request, peer=owed.peer_ae, attempts=attempts)
        telemetry.count("reclaim.commitments.finished", outcome=CommitmentState.GIVEN_UP)
        logger.error(
            "SCM-302 commitment report %s to %s is given up after %d attempts (%s): mend it or dicom.peers, then have it ask again",
            request,
            owed.peer_ae,
            attempts,
            reason,
        )

    def _keep_house(self) -> None:
        now = self._context.clock.monotonic()
        if now >= self._next_housekeeping:
            self._next_housekeeping = now + HOUSEKEEPING_S
            with self._database.transaction() as tx:
                forget(tx, tx.clock.now() - KEEP)

    @staticmethod
    def _seconds(seconds: float) -> timedelta:
        return timedelta(seconds=seconds)


def send_report(peer: Peer, own_ae: str, transaction_uid: str, report: Report) -> None:
    """One N-EVENT-REPORT on a new association on which we are SCP. Raises Transient or InvalidInput when it was not taken."""
    contexts = [build_context(PUSH_MODEL, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])]
    roles = [build_role(PUSH_MODEL, scu_role=False, scp_role=True)]
    event_type = FAILURES_EXIST if report.failed else ALL_COMMITTED
    with association(peer, contexts, calling_ae=own_ae, roles=roles, timeouts=TIMEOUTS) as opened:
        try:
            status, _ = opened.send_n_event_report(
                event_information(transaction_uid, report), event_type, PUSH_MODEL, PUSH_MODEL_INSTANCE
            )
        except (RuntimeError, ValueError) as error:
            raise PeerLost(f"{peer.address} ended the association ({type(error).__name__})") from None
        if "Status" not in status:
            raise PeerLost(f"{peer.address} did not answer N-EVENT-REPORT in time")
        if status.Status != 0x0000 and status.Status not in _WARNING:
            raise PeerRefuses(f"{peer.address} answered N-EVENT-REPORT with {status_words(status)}")


def event_information(transaction_uid: str, report: Report) -> Dataset:
    """Event Information of PS3.4 Table J.3-2. Sequences without items are left out."""
    dataset = Dataset()
    dataset.TransactionUID = transaction_uid
    if report.committed:
        dataset.ReferencedSOPSequence = [_reference(item) for item in report.committed]
    if report.failed:
        dataset.FailedSOPSequence = [_reference(item, reason) for item, reason in report.failed]
    return dataset


def _reference(item: Reference, reason: int | None = None) -> Dataset:
    dataset = Dataset()
    dataset.ReferencedSOPClassUID = item.sop_class_uid
    dataset.ReferencedSOPInstanceUID = item.sop_instance_uid
    if reason is not None:
        dataset.FailureReason = int(reason)
    return dataset
