"""Commitment reports to a real SCU on its own port: what they say of each instance, and what happens when the peer is not there."""

import logging
import socket
from datetime import timedelta

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from sqlmodel import select

from schemas.announcements import Commitment
from schemas.settings import DicomSettings, PeerSettings
from schemas.tables import Audit
from services.assembly import reporter as reporting
from services.assembly.commitments import LONGEST_RETRY_S, Reference, Report, Request, next_attempt
from services.assembly.conflicts import keep_aside
from services.assembly.files import ArchiveFiles
from services.assembly.index import ArchiveIndex
from services.assembly.reindex import enter_file
from services.assembly.reporter import PUSH_MODEL, PUSH_MODEL_INSTANCE, Reporter, send_report
from services.assembly.signals import request_commitment
from services.runtime.archive import instance_path
from services.runtime.scu import Peer, PeerAway, PeerLost, PeerRefuses
from services.runtime.service import Context

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"


class Scu:
    """A modality that waits for its report: accepts the association on which the caller is SCP."""

    def __init__(self, *, status=0x0000, silent=False, accepts_role=True):
        self.reports, self.roles, self.titles = [], [], []
        self.status, self.silent = status, silent
        ae = AE("CT1")
        ae.add_supported_context(PUSH_MODEL, scu_role=False if accepts_role else None, scp_role=True if accepts_role else None)
        self.server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._take)])
        self.port = self.server.server_address[1]

    def _take(self, event):
        if self.silent:
            event.assoc.abort()
        self.reports.append((event.event_type, event.event_information, event.request.AffectedSOPInstanceUID))
        self.titles.append(event.assoc.requestor.ae_title)
        self.roles.append([(context.as_scu, context.as_scp) for context in event.assoc.accepted_contexts])
        return self.status, Dataset()

    def close(self):
        self.server.shutdown()


@pytest.fixture
def scu():
    made = Scu()
    yield made
    made.close()


def settings_of(context, port, **dicom):
    peers = {"scanner": PeerSettings(ae_title="CT1", host="127.0.0.1", port=port)}
    return Context(
        context.settings.model_copy(update={"dicom": DicomSettings(peers=peers, commitment_wait_s=0, **dicom)}),
        context.database,
        context.clock,
        context.pseudonyms,
    )


def stored(context, number):
    """A CT in archive and index; returns its UID and file."""
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.1.{number}"
    names, root = context.pseudonyms, context.settings.archive_dir
    path = root / instance_path(names.study("1.2.3"), names.series("1.2.3.1"), dataset.SOPInstanceUID)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    enter_file(ArchiveIndex(context.database, names), root, path)
    return dataset.SOPInstanceUID, path


def ask(context, *references, transaction="1.2.99"):
    with context.database.transaction() as tx:
        request_commitment(tx, Request(transaction, "CT1", "RECLAIM", tuple(Reference(*item) for item in references)))


def state(context):
    with context.database.read() as session:
        return session.exec(select(Commitment)).one()


def test_everything_there_is_reported_as_committed(sqlite_context, scu):
    context = settings_of(sqlite_context, scu.port)
    uids = [stored(context, number)[0] for number in (1, 2)]
    ask(context, *((CT, uid) for uid in uids))
    assert Reporter(context).step() == 1
    ((event_type, information, instance),) = scu.reports
    assert (event_type, instance, information.TransactionUID) == (1, PUSH_MODEL_INSTANCE, "1.2.99")
    assert [(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) for item in information.ReferencedSOPSequence] == [
        (CT, uid) for uid in uids
    ]
    assert "FailedSOPSequence" not in information
    assert scu.titles == ["RECLAIM"]
    assert scu.roles == [[(True, False)]]
    assert (state(context).state, state(context).attempts) == ("reported", 1)
    assert Reporter(context).step() == 0


def test_each_failure_has_its_reason(sqlite_context, scu):
    context = settings_of(sqlite_context, scu.port)
    whole, _ = stored(context, 1)
    lost, path = stored(context, 2)
    path.unlink()
    short, path = stored(context, 3)
    path.write_bytes(path.read_bytes()[:-100])
    ask(context, (CT, whole), (CT, lost), (CT, short), (MR, stored(context, 4)[0]), (CT, "1.2.3.1.9"))
    Reporter(context).step()
    ((event_type, information, _),) = scu.reports
    assert event_type == 2
    assert [item.ReferencedSOPInstanceUID for item in information.ReferencedSOPSequence] == [whole]
    assert {item.ReferencedSOPInstanceUID: item.FailureReason for item in information.FailedSOPSequence} == {
        lost: 0x0112,
        short: 0x0110,
        "1.2.3.1.4": 0x0119,
        "1.2.3.1.9": 0x0112,
    }


@pytest.mark.parametrize("acknowledged", [True, False])
def test_a_uid_that_two_objects_claim_is_not_committed_before_somebody_decides(sqlite_context, scu, tmp_path, acknowledged):
    context = settings_of(sqlite_context, scu.port)
    (uid, path), root = stored(context, 1), context.settings.archive_dir
    other = tmp_path / "other.dcm"
    other.write_bytes(path.read_bytes()[:-2] + b"zz")
    index, files = ArchiveIndex(context.database, context.pseudonyms), ArchiveFiles(root)
    kept_as = keep_aside(files, index, other, path.relative_to(root).as_posix(), acknowledged=acknowledged)
    files.close()
    for transaction in ("1.2.98", "1.2.99"):
        ask(context, (CT, uid), transaction=transaction)
        Reporter(context).step()
        (root / kept_as).unlink(missing_ok=True)
    (_, disputed, _), (_, decided, _) = scu.reports
    assert [(item.ReferencedSOPInstanceUID, item.FailureReason) for item in disputed.FailedSOPSequence] == [(uid, 0x0110)]
    assert [item.ReferencedSOPInstanceUID for item in decided.ReferencedSOPSequence] == [uid]


def test_a_report_waits_for_instances_that_are_under_way(sqlite_context, scu, clock):
    context = settings_of(sqlite_context, scu.port)
    context = Context(
        context.settings.model_copy(update={"dicom": context.settings.dicom.model_copy(update={"commitment_wait_s": 10.0})}),
        context.database,
        clock,
        context.pseudonyms,
    )
    ask(context, (CT, "1.2.3.1.1"), (CT, "1.2.3.1.7"))
    Reporter(context).step()
    assert scu.reports == []
    stored(context, 1)
    clock.advance(1.5)
    Reporter(context).step()
    assert scu.reports == []
    clock.advance(10)
    Reporter(context).step()
    assert [item.ReferencedSOPInstanceUID for item in scu.reports[0][1].FailedSOPSequence] == ["1.2.3.1.7"]


def test_a_peer_that_is_away_gets_its_report_later(sqlite_context, clock, caplog):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        context = settings_of(sqlite_context, taken.getsockname()[1], commitment_retry_s=30)
        ask(context, (CT, stored(context, 1)[0]))
        with caplog.at_level(logging.WARNING):
            Reporter(context).step()
        assert "SCM-301" in caplog.text
        assert "1.2.99" not in caplog.text
    scu = Scu()
    try:
        later = settings_of(context, scu.port)
        assert Reporter(later).step() == 0
        clock.advance(30)
        assert Reporter(later).step() == 1
    finally:
        scu.close()
    assert (len(scu.reports), state(context).state, state(context).attempts) == (1, "reported", 2)


def test_a_report_that_nobody_takes_is_given_up_with_a_record(sqlite_context, clock, caplog):
    scu = Scu(status=0x0110)
    try:
        context = settings_of(sqlite_context, scu.port, commitment_give_up_s=100, commitment_retry_s=30)
        ask(context, (CT, stored(context, 1)[0]))
        for _ in range(10):
            Reporter(context).step()
            clock.advance(60)
    finally:
        scu.close()
    assert state(context).state == "given_up"
    with context.database.read() as session:
        (record,) = [row for row in session.exec(select(Audit)) if row.action == "commitment.given_up"]
    assert record.detail == {"peer": "CT1", "attempts": len(scu.reports)}
    assert "SCM-302" in caplog.text


def test_a_peer_without_address_is_retried_and_not_forgotten(sqlite_context):
    context = settings_of(sqlite_context, 104)
    nobody = Context(
        context.settings.model_copy(update={"dicom": DicomSettings(commitment_wait_s=0)}),
        context.database,
        context.clock,
        context.pseudonyms,
    )
    ask(nobody, (CT, stored(context, 1)[0]))
    Reporter(nobody).step()
    assert (state(nobody).state, state(nobody).attempts) == ("owed", 1)


REPORT = Report((Reference(CT, "1.2.3"),), ())


def test_what_a_peer_does_with_a_report_is_told_apart():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(PeerAway):
            send_report(Peer("scanner", "CT1", "127.0.0.1", taken.getsockname()[1]), "RECLAIM", "1.2.99", REPORT)
    for scu, error in ((Scu(status=0x0110), PeerRefuses), (Scu(silent=True), PeerLost)):
        try:
            with pytest.raises(error):
                send_report(Peer("scanner", "CT1", "127.0.0.1", scu.port), "RECLAIM", "1.2.99", REPORT)
        finally:
            scu.close()


def test_a_peer_that_answers_no_role_selection_gets_its_report():
    scu = Scu(accepts_role=False)
    try:
        send_report(Peer("scanner", "CT1", "127.0.0.1", scu.port), "RECLAIM", "1.2.99", REPORT)
    finally:
        scu.close()
    assert len(scu.reports) == 1


def test_one_silent_peer_does_not_stop_the_others_reports(sqlite_context, scu, monkeypatch):
    monkeypatch.setattr(reporting, "TIMEOUTS", reporting.Timeouts(connect_s=1.0, answer_s=1.0))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        context = settings_of(sqlite_context, scu.port)
        peers = context.settings.dicom.peers | {
            "silent": PeerSettings(ae_title="CT0", host="127.0.0.1", port=silent.getsockname()[1])
        }
        dicom = context.settings.dicom.model_copy(update={"peers": peers})
        context = Context(context.settings.model_copy(update={"dicom": dicom}), context.database, context.clock, context.pseudonyms)
        reference = Reference(CT, stored(context, 1)[0])
        for number in range(5):
            with context.database.transaction() as tx:
                request_commitment(tx, Request(f"1.2.98.{number}", "CT0", "RECLAIM", (reference,)))
        ask(context, (CT, reference.sop_instance_uid))
        Reporter(context).step()
    assert len(scu.reports) == 1


def test_the_pause_before_a_retry_doubles_up_to_an_hour(clock):
    first = timedelta(seconds=30)
    pauses = [next_attempt(clock.now(), attempts, first) - clock.now() for attempts in range(1, 40)]
    assert pauses[:3] == [first, 2 * first, 4 * first]
    assert max(pauses) == timedelta(seconds=LONGEST_RETRY_S)
    assert pauses == sorted(pauses)
