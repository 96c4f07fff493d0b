"""What is stored and announced: bit for bit, once, under the right study."""

import re
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from pydicom import dcmread
from pydicom.uid import generate_uid
from sqlmodel import select

from listeners.dicom import session
from listeners.dicom.send import send_folder
from listeners.dicom.synthesize import StudyFacts, study_instance_uid, write_image
from schemas.tables import Audit
from services.assembly.files import Temporary, layout_of
from tests.dicom_listener import ACQUIRED, EXPLICIT, MR, PACKAGED, SC, Listener, encoded, make, one
from tests.dicom_wire import accepted, command, p_data, receive_pdu, status_in


@pytest.fixture(scope="module")
def listener(tmp_path_factory, sqlite_template):
    folder = tmp_path_factory.mktemp("listener")
    shutil.copy(sqlite_template, folder / "database.sqlite")
    with Listener(folder / "state", f"sqlite:///{folder / 'database.sqlite'}", sop_classes=(SC,)) as running:
        yield running


def test_identical_resend_is_silent(listener, tmp_path):
    dataset = make("resend", tmp_path)
    data = encoded(dataset)
    assert [one(listener, data, dataset.SOPInstanceUID).Status for _ in range(3)] == [0, 0, 0]
    assert listener.study(dataset.StudyInstanceUID).instances == 1
    listener.close_studies()
    assert one(listener, data, dataset.SOPInstanceUID).Status == 0
    assert listener.close_studies() == 0
    assert len(listener.events(dataset.StudyInstanceUID)) == 1


def test_an_empty_fragment_before_the_data_changes_nothing(listener, tmp_path):
    dataset = make("empty-fragment", tmp_path)
    data, uid = encoded(dataset), str(dataset.SOPInstanceUID)
    with accepted(listener.port, (MR, EXPLICIT)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(p_data(1, 3, command(0x0001, sop_class=MR, instance=uid)) + p_data(1, 0, b""))
        time.sleep(0.1)
        connection.sendall(p_data(1, 0, b"") + p_data(1, 2, data))
        assert status_in(receive_pdu(connection)[1]) == 0x0000
    path = listener.archive / listener.instance(uid).path
    assert path.read_bytes()[layout_of(path).dataset_offset :] == data


def test_a_file_of_another_size_than_was_received_is_never_acknowledged(listener, tmp_path, monkeypatch):
    """What writes a file may have defects of its own: here it writes more than came."""
    dataset = make("size", tmp_path)
    ordinary = Temporary.write
    monkeypatch.setattr(Temporary, "write", lambda self, pieces, size: ordinary(self, [*pieces, b"more"], size + 4))
    assert one(listener, encoded(dataset), dataset.SOPInstanceUID).Status == 0x0110


def test_other_bytes_for_a_known_uid_are_kept_aside(listener, tmp_path, caplog):
    dataset = make("conflict", tmp_path)
    assert one(listener, encoded(dataset), dataset.SOPInstanceUID).Status == 0
    row = listener.instance(dataset.SOPInstanceUID)
    kept = (listener.archive / row.path).read_bytes()
    dataset.SeriesDescription = "changed"
    for _ in range(2):
        assert one(listener, encoded(dataset), dataset.SOPInstanceUID).Status == 0xC000
    assert (listener.archive / row.path).read_bytes() == kept
    assert listener.instance(dataset.SOPInstanceUID) == row
    _kept_once(listener, row)
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("DCM-207")]
    assert len(told) == 2
    assert row.path in told[0]
    assert re.search(r"conflicts/[0-9a-f]+/[0-9a-f]+-[0-9a-f]{16}\.dcm", told[0]), told


def test_a_uid_of_another_study_is_stored_aside_and_reported(listener, tmp_path, caplog):
    """Only the index knows, and it is asked after the answer: the object is kept, but never becomes part of the study."""
    dataset = make("reused", tmp_path)
    assert one(listener, encoded(dataset), dataset.SOPInstanceUID).Status == 0
    row = listener.instance(dataset.SOPInstanceUID)
    dataset.StudyInstanceUID = generate_uid()
    for _ in range(2):
        assert one(listener, encoded(dataset), dataset.SOPInstanceUID).Status == 0
        assert listener.study(dataset.StudyInstanceUID) is None
    assert listener.instance(dataset.SOPInstanceUID) == row
    _kept_once(listener, row)
    assert caplog.text.count("ASM-313") == 2


def _kept_once(listener, row):
    (aside,) = (listener.archive / "conflicts").rglob(f"{Path(row.path).stem}-*.dcm")
    with listener.database.read() as reading:
        audits = reading.exec(select(Audit).where(Audit.action == "instance.conflict")).all()
    assert [audit.detail["kept_as"] for audit in audits].count(aside.relative_to(listener.archive).as_posix()) == 1


def test_a_lost_file_is_taken_again(listener, tmp_path):
    dataset = make("lost", tmp_path)
    assert one(listener, encoded(dataset), dataset.SOPInstanceUID).Status == 0
    path = listener.archive / listener.instance(dataset.SOPInstanceUID).path
    path.unlink()
    assert one(listener, encoded(dataset), dataset.SOPInstanceUID).Status == 0
    assert path.read_bytes().endswith(encoded(dataset))


def test_every_packaged_transfer_syntax_is_stored_bit_for_bit(listener, tmp_path):
    wanted = [
        path
        for path in PACKAGED.glob("*.dcm")
        if path.name.startswith(("MR_small", "SC_rgb_", "JPEG2000", "CT_small", "image_dfl"))
    ]
    for path in wanted:
        shutil.copy(path, tmp_path)
    summary = send_folder(tmp_path, "127.0.0.1", listener.port, associations=3)
    assert sum(summary.outcomes.values()) == summary.total == len(wanted) - len(summary.skipped)
    # MR_small comes in several encodings under one UID, and some files are damaged: those and only those are refused.
    assert set(summary.outcomes) <= {"0000", "C000", "A900"}
    stored = [row for row in map(_same_as(listener), wanted) if row]
    syntaxes = {row.transfer_syntax_uid for row in stored}
    assert len(stored) == summary.outcomes["0000"] >= 15
    assert {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.91"} <= syntaxes


def _same_as(listener):
    def look(path):
        source = dcmread(path, stop_before_pixels=True)
        row = listener.instance(source.get("SOPInstanceUID", ""))
        if row is None or row.transfer_syntax_uid != source.file_meta.TransferSyntaxUID:
            return None
        kept = listener.archive / row.path
        meta = dcmread(kept, stop_before_pixels=True).file_meta
        assert meta.MediaStorageSOPInstanceUID == source.SOPInstanceUID
        same = kept.read_bytes()[layout_of(kept).dataset_offset :] == path.read_bytes()[layout_of(path).dataset_offset :]
        return row if same else None

    return look


def test_parallel_senders_of_one_study_lose_no_count(listener, tmp_path):
    for number in range(40):
        image = np.full((16, 16), number, dtype=np.uint8)
        write_image(
            tmp_path / f"{number}.dcm", image, StudyFacts("CT", "P2", "parallel", ACQUIRED, instance=number + 1, series=number % 3)
        )
    assert send_folder(tmp_path, "127.0.0.1", listener.port, associations=8).complete
    assert listener.study(study_instance_uid("parallel")).instances == 40
    listener.close_studies()
    ((row, event),) = listener.events(study_instance_uid("parallel"))
    assert sum(series.instances for series in event.series) == 40
    assert len(event.series) == 3
    assert row.event_id == f"{event.study_key}:1"


def test_event_holds_no_identity_and_names_real_folders(listener, tmp_path):
    dataset = make("event", tmp_path, "DX", patient_id="SECRET-ID", body_part="chest", accession_number="ACC-9")
    assert one(listener, encoded(dataset), dataset.SOPInstanceUID, dataset.SOPClassUID).Status == 0
    listener.close_studies()
    ((row, event),) = listener.events(dataset.StudyInstanceUID)
    names = listener.context.pseudonyms
    assert (event.modality, event.body_part, event.revision, event.completed_by) == ("DX", "CHEST", 1, "quiet_period")
    assert (event.patient_key, event.acquired_at) == (names.patient("SECRET-ID"), ACQUIRED)
    assert listener.study(dataset.StudyInstanceUID).accession_key == names.accession("ACC-9")
    assert len(list((listener.archive / event.series[0].path).glob("*.dcm"))) == event.series[0].instances == 1
    for secret in (b"SECRET-ID", b"ACC-9", str(dataset.StudyInstanceUID).encode(), str(dataset.SOPInstanceUID).encode()):
        assert secret not in row.body


def test_a_late_instance_brings_the_next_revision(listener, tmp_path):
    for instance in (1, 2):
        dataset = make("late", tmp_path, instance=instance)
        assert one(listener, encoded(dataset), dataset.SOPInstanceUID).Status == 0
        listener.close_studies()
        assert listener.close_studies() == 0
    found = [event for _, event in listener.events(dataset.StudyInstanceUID)]
    assert [(event.revision, event.series[0].instances) for event in found] == [(1, 1), (2, 2)]


def test_unscored_modalities_are_announced_too(listener):
    path = PACKAGED / "SC_rgb_small_odd.dcm"
    send_folder(path, "127.0.0.1", listener.port)
    listener.close_studies()
    ((_, event),) = listener.events(dcmread(path).StudyInstanceUID)[-1:]
    assert event.modality not in {"MR", "CT", "CR", "DX"}


def test_the_trace_goes_on_into_the_event(listener, tmp_path):
    provider, ordinary = TracerProvider(), session.tracer
    session.tracer = provider.get_tracer("test")
    try:
        dataset = make("traced", tmp_path)
        assert one(listener, encoded(dataset), dataset.SOPInstanceUID).Status == 0
    finally:
        session.tracer = ordinary
    kept = listener.study(dataset.StudyInstanceUID).traceparent
    assert int(kept.split("-")[1], 16) != trace.INVALID_TRACE_ID
    listener.close_studies()
    ((row, _),) = listener.events(dataset.StudyInstanceUID)
    assert row.headers["traceparent"] == kept


def test_logs_hold_no_identity(listener, tmp_path, caplog):
    caplog.set_level("DEBUG")
    dataset = make("logged", tmp_path, patient_id="SECRET-LOG")
    one(listener, encoded(dataset), dataset.SOPInstanceUID)
    one(listener, encoded(dataset)[:-3], dataset.SOPInstanceUID)
    one(listener, encoded(dataset), "9.9.9\nFAKE LINE")
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith(("listeners", "services")))
    assert "DCM-206" in ours
    assert "DCM-202" in ours
    for secret in ("SECRET-LOG", str(dataset.SOPInstanceUID), str(dataset.StudyInstanceUID), "FAKE LINE"):
        assert secret not in ours
