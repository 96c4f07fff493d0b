"""The listener on the wire, one server for all tests: every row of DICOM.md §3.1 and §5 that this listener answers."""

import asyncio
import json
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom.data
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA
from sqlmodel import select

from listeners.dicom import reception
from listeners.dicom.app import build
from listeners.dicom.echo import echo
from listeners.dicom.send import find_items, partition, send_folder
from listeners.dicom.synthesize import StudyFacts, study_instance_uid, write_image
from schemas.events import StudyReceived
from schemas.settings import DatabaseSettings, DicomSettings, Settings
from schemas.tables import Audit, Instance, Outbox, Study
from services.assembly.completion import complete_studies
from services.assembly.files import layout_of
from services.assembly.rules import Rules
from services.runtime.clock import SystemClock
from services.runtime.database import Database
from services.runtime.errors import InvalidInput, Transient
from services.runtime.identity import Pseudonyms
from services.runtime.migrations import upgrade
from services.runtime.service import Context, StopSignal

MR, CT, SC = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7"
EXPLICIT = str(ExplicitVRLittleEndian)
PACKAGED = Path(pydicom.data.__file__).parent / "test_files"
ACQUIRED = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)


class Listener:
    """A listener of the real service in this process, its own event loop and thread."""

    def __init__(self, folder, database_url, **dicom):
        self.settings = Settings(
            state_dir=folder,
            database=DatabaseSettings(url=database_url),
            dicom=DicomSettings(host="127.0.0.1", port=0, min_free_bytes=0, **dicom),
        )
        self.database = Database(database_url, SystemClock())
        self.context = Context(self.settings, self.database, SystemClock(), Pseudonyms(b"k" * 32))
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self):
        self._thread.start()
        assert self._started.wait(10)
        announcement = self.settings.state_dir / "run" / "dicom.json"
        for _ in range(200):
            if announcement.exists():
                self.port = json.loads(announcement.read_text())["port"]
                return self
            time.sleep(0.02)
        raise AssertionError("the listener did not start")

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive(), "the listener did not stop"
        self.database.close()

    async def _run(self):
        self._loop, self._stop = asyncio.get_running_loop(), StopSignal()
        self._started.set()
        (worker,) = build(self.context).workers
        await worker.run(self._stop)

    @property
    def archive(self):
        return self.settings.archive_dir

    def files(self):
        return sorted(path for path in self.archive.rglob("*.dcm"))

    def temporary(self):
        return [path for path in (self.archive / "incoming").rglob("*") if path.is_file() and path.suffix != ".lock"]

    def instance(self, uid):
        with self.database.read() as session:
            return session.get(Instance, str(uid))

    def study(self, uid):
        with self.database.read() as session:
            return session.get(Study, str(uid))

    def close_studies(self):
        with self.database.transaction() as tx:
            return complete_studies(tx, self.context.pseudonyms, Rules(0.0))

    def events(self, study_uid):
        key = self.context.pseudonyms.study(study_uid)
        with self.database.read() as session:
            rows = session.exec(select(Outbox).where(Outbox.key == key).order_by(Outbox.id)).all()
        return [(row, StudyReceived.model_validate_json(row.body)) for row in rows]


@pytest.fixture(scope="module")
def listener(tmp_path_factory, sqlite_template):
    folder = tmp_path_factory.mktemp("listener")
    shutil.copy(sqlite_template, folder / "database.sqlite")
    with Listener(folder / "state", f"sqlite:///{folder / 'database.sqlite'}", sop_classes=(SC,)) as running:
        yield running


@contextmanager
def associated(port, *contexts, **options):
    ae = AE("TEST")
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = options.get("timeout", 10)
    for uid, syntax in contexts or ((MR, EXPLICIT),):
        ae.add_requested_context(uid, syntax)
    association = ae.associate("127.0.0.1", port, max_pdu=options.get("max_pdu", 16382))
    yield association
    if association.is_established:
        association.release()


def make(seed, tmp_path, modality="MR", **facts):
    path = tmp_path / f"{seed}.dcm"
    image = np.random.default_rng(abs(hash(seed)) % 1000).integers(0, 255, (32, 32), dtype=np.uint8)
    write_image(path, image, StudyFacts(modality, facts.pop("patient_id", "P1"), seed, ACQUIRED, **facts))
    return dcmread(path)


def encoded(dataset):
    out = BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    raw = out.getvalue()
    return raw[144 + struct.unpack_from("<L", raw, 140)[0] :]


def _request(data, instance_uid, sop_class=MR):
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop_class, instance_uid
    request.DataSet = BytesIO(data)
    return request


def store(association, data, instance_uid, sop_class=MR, context=None):
    """A C-STORE of exactly these bytes; returns the response's command set, None when the association was ended."""
    request = _request(data, instance_uid, sop_class)
    association._reactor_checkpoint.clear()
    association.dimse.send_msg(request, context or association.accepted_contexts[0].context_id)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return response


def one(listener, data, uid, sop_class=MR, syntax=EXPLICIT, context_class=None):
    with associated(listener.port, (context_class or sop_class, syntax)) as association:
        return store(association, data, uid, sop_class)


def refused(listener, before, response, status):
    assert response.Status == status
    assert 0 < len(response.ErrorComment) <= 64
    assert listener.files() == before
    assert listener.temporary() == []


# What is refused, and with which status


def test_sop_class_of_dataset_differs_from_command(listener, tmp_path):
    dataset, before = make("class-mismatch", tmp_path), listener.files()
    response = one(listener, encoded(dataset), dataset.SOPInstanceUID, CT)
    refused(listener, before, response, 0xA900)
    assert response.OffendingElement in ([0x00080016], 0x00080016)


def test_instance_uid_of_dataset_differs_from_command(listener, tmp_path):
    before = listener.files()
    refused(listener, before, one(listener, encoded(make("uid-mismatch", tmp_path)), generate_uid()), 0xA900)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", [None, "", "../../etc", "1." * 40])
def test_missing_or_invalid_filing_uid(listener, tmp_path, keyword, value):
    dataset, before = make(f"filing-{keyword}-{value}"[:20].replace("/", "_"), tmp_path), listener.files()
    if value is None:
        del dataset[keyword]
    else:
        setattr(dataset, keyword, value)
    refused(listener, before, one(listener, encoded(dataset), dataset.SOPInstanceUID), 0xA900)


@pytest.mark.parametrize("cut", [1, 500, 1100])
def test_dataset_cut_inside_an_element(listener, tmp_path, cut):
    dataset, before = make("cut", tmp_path), listener.files()
    refused(listener, before, one(listener, encoded(dataset)[:-cut], dataset.SOPInstanceUID), 0xC000)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", EXPLICIT, "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"])
def test_dataset_is_noise(listener, syntax):
    before, noise = listener.files(), np.random.default_rng(5).integers(0, 255, 5000, dtype=np.uint8).tobytes()
    refused(listener, before, one(listener, noise, generate_uid(), syntax=syntax), 0xC000)


def _send_by_hand(association, last_fragment, dataset_type):
    """A C-STORE command and, after it, one PDV of our own making."""
    message = C_STORE_RQ()
    message.primitive_to_message(_request(b"x", generate_uid()))
    message.command_set.CommandDataSetType = dataset_type
    command = next(iter(message.encode_msg(1, 16382)))
    association._reactor_checkpoint.clear()
    association.dul.send_pdu(command)
    if last_fragment is not None:
        fragment = P_DATA()
        fragment.presentation_data_value_list = [[1, last_fragment]]
        association.dul.send_pdu(fragment)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return response


def test_dataset_is_empty(listener):
    before = listener.files()
    with associated(listener.port) as association:
        response = _send_by_hand(association, b"\x02", 0x0001)
    refused(listener, before, response, 0xC000)


def test_a_store_without_dataset_ends_the_association(listener):
    before, began = listener.files(), time.monotonic()
    with associated(listener.port) as association:
        assert _send_by_hand(association, None, 0x0101) is None
    assert time.monotonic() - began < 3
    assert listener.files() == before


@pytest.mark.parametrize("uid", ["../../x", "1.2.3/4", "1..2", "1.2\n3"])
def test_invalid_instance_uid(listener, tmp_path, uid):
    dataset, before = make("invalid-uid", tmp_path), listener.files()
    dataset.SOPInstanceUID = uid
    refused(listener, before, one(listener, encoded(dataset), uid), 0x0117)


def test_sop_class_differs_from_the_context(listener, tmp_path):
    dataset, before = make("context", tmp_path), listener.files()
    refused(listener, before, one(listener, encoded(dataset), dataset.SOPInstanceUID, MR, context_class=CT), 0x0122)


def test_unknown_sop_class_is_not_negotiated(listener):
    with associated(listener.port, ("1.2.826.0.1.3680043.99.1", EXPLICIT)) as association:
        assert not association.accepted_contexts


def test_store_on_a_context_never_accepted_ends_the_association(listener, tmp_path):
    dataset, before = make("no-context", tmp_path), listener.files()
    with associated(listener.port, (MR, EXPLICIT)) as association:
        assert store(association, encoded(dataset), dataset.SOPInstanceUID, context=99) is None
    assert listener.files() == before


def test_aborted_in_the_middle_leaves_nothing(listener, tmp_path):
    dataset, before = make("aborted", tmp_path), listener.files()
    with associated(listener.port, max_pdu=4096) as association:
        message = C_STORE_RQ()
        message.primitive_to_message(_request(encoded(dataset) * 50, dataset.SOPInstanceUID))
        for part, _ in zip(message.encode_msg(1, 512), range(4), strict=False):
            association.dul.send_pdu(part)
        time.sleep(0.1)
        association.abort()
    assert listener.files() == before
    assert listener.temporary() == []
    assert listener.instance(dataset.SOPInstanceUID) is None


# What is stored


def test_identical_resend_is_silent(listener, tmp_path):
    dataset = make("resend", tmp_path)
    data = encoded(dataset)
    assert [one(listener, data, dataset.SOPInstanceUID).Status for _ in range(3)] == [0, 0, 0]
    assert listener.study(dataset.StudyInstanceUID).instances == 1
    listener.close_studies()
    assert one(listener, data, dataset.SOPInstanceUID).Status == 0
    assert listener.close_studies() == 0
    assert len(listener.events(dataset.StudyInstanceUID)) == 1


def test_other_bytes_for_a_known_uid_are_kept_aside(listener, tmp_path):
    dataset = make("conflict", tmp_path)
    assert one(listener, encoded(dataset), dataset.SOPInstanceUID).Status == 0
    row = listener.instance(dataset.SOPInstanceUID)
    kept = (listener.archive / row.path).read_bytes()
    dataset.SeriesDescription = "changed"
    for _ in range(2):
        assert one(listener, encoded(dataset), dataset.SOPInstanceUID).Status == 0xC000
    dataset.StudyInstanceUID = generate_uid()
    assert one(listener, encoded(dataset), dataset.SOPInstanceUID).Status == 0xC000
    assert (listener.archive / row.path).read_bytes() == kept
    assert listener.instance(dataset.SOPInstanceUID) == row
    assert listener.study(dataset.StudyInstanceUID) is None
    aside = list((listener.archive / "conflicts").rglob(f"{Path(row.path).stem}-*.dcm"))
    assert len(aside) == 2
    with listener.database.read() as session:
        audits = session.exec(select(Audit).where(Audit.action == "instance.conflict")).all()
    assert {audit.detail["kept_as"] for audit in audits} >= {path.relative_to(listener.archive).as_posix() for path in aside}


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


# What is announced


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
    provider, ordinary = TracerProvider(), reception.tracer
    reception.tracer = provider.get_tracer("test")
    try:
        dataset = make("traced", tmp_path)
        assert one(listener, encoded(dataset), dataset.SOPInstanceUID).Status == 0
    finally:
        reception.tracer = ordinary
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


# Real peers


def dcmtk(name):
    """A program of DCMTK; pynetdicom installs its own under the same names beside the interpreter."""
    folders = [folder for folder in ("/usr/bin", "/usr/local/bin", "/opt/homebrew/bin") if Path(folder) != Path(sys.prefix) / "bin"]
    found = shutil.which(name, path=":".join(folders))
    if found is None or "dcmtk" not in subprocess.run([found, "--version"], check=False, capture_output=True, text=True).stdout:
        pytest.skip(f"NOT TESTED against DCMTK: {name} is not installed (Debian package: dcmtk)")
    return found


@pytest.mark.dcmtk
def test_dcmtk_echo(listener):
    assert subprocess.run([dcmtk("echoscu"), "127.0.0.1", str(listener.port)], check=False, timeout=20).returncode == 0


@pytest.mark.dcmtk
@pytest.mark.parametrize("modality", ["MR", "CT", "CR", "DX"])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_dcmtk_reads_and_sends_synthesised_images(listener, tmp_path, modality, depth):
    path = tmp_path / "image.dcm"
    image = np.random.default_rng(1).integers(0, 250, (31, 33)).astype(depth)
    write_image(path, image, StudyFacts(modality, "P3", f"dcmtk-{modality}-{depth.__name__}", ACQUIRED))
    dumped = subprocess.run([dcmtk("dcmdump"), path], check=False, capture_output=True, text=True, timeout=20)
    assert (dumped.returncode, dumped.stderr) == (0, "")
    subprocess.run([dcmtk("storescu"), "-R", "127.0.0.1", str(listener.port), path], check=True, timeout=20)
    dataset = dcmread(path)
    row = listener.instance(dataset.SOPInstanceUID)
    assert (listener.archive / row.path).read_bytes().endswith(encoded(dataset))
    offset = int(dataset.get("RescaleIntercept", 0))
    assert np.array_equal(dataset.pixel_array.astype(int) + offset, image.astype(int) + offset)


def test_echo_knows_a_silent_port(listener, free_port):
    assert echo("127.0.0.1", listener.port, called_ae="ANY")
    assert not echo("127.0.0.1", free_port, called_ae="ANY", timeout_s=1)


def test_sender_says_what_is_wrong(listener, tmp_path, free_port):
    with pytest.raises(FileNotFoundError):
        send_folder(tmp_path / "absent", "127.0.0.1", listener.port)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InvalidInput, match="no DICOM files"):
        send_folder(tmp_path, "127.0.0.1", listener.port)
    make("sender", tmp_path)
    with pytest.raises(Transient, match="nobody"):
        send_folder(tmp_path, "127.0.0.1", free_port)
    seen = []
    summary = send_folder(tmp_path, "127.0.0.1", listener.port, on_progress=lambda done, total: seen.append((done, total)))
    assert summary.complete
    assert seen == [(1, 1)]
    assert [path.name for path, _ in summary.skipped] == ["notes.txt"]
    assert "1 of 1 files stored" in summary.text()


def test_more_contexts_than_one_association_holds(tmp_path):
    skipped = []
    items = list(find_items(PACKAGED / "MR_small.dcm", skipped)) * 300
    spread = [type(item)(item.path, (f"1.2.{number}", EXPLICIT)) for number, item in enumerate(items)]
    shares = partition(spread, 2)
    assert sum(map(len, shares)) == 300
    assert all(len({item.pair for item in share}) <= 128 for share in shares)


# Peers that misbehave, and resources that end


@pytest.fixture
def own(tmp_path, sqlite_url):
    def start(**dicom):
        return Listener(tmp_path / "state", sqlite_url, **dicom)

    return start


def test_a_peer_that_stalls_inside_a_pdu_loses_its_slot(own):
    with own(network_timeout_s=1.0, max_associations=2) as listener, associated(listener.port, timeout=30) as stalled:
        stalled.dul.socket.socket.sendall(b"\x04\x00" + struct.pack(">L", 1000) + b"x" * 10)
        assert echo("127.0.0.1", listener.port, called_ae="ANY")
        began = time.monotonic()
        while stalled.is_established and time.monotonic() - began < 5:
            time.sleep(0.05)
        assert time.monotonic() - began < 3


def test_the_association_limit_is_a_transient_rejection(own, tmp_path):
    make("limit", tmp_path)
    with own(max_associations=1) as listener, associated(listener.port), pytest.raises(Transient, match="busy"):
        send_folder(tmp_path / "limit.dcm", "127.0.0.1", listener.port)


def test_below_the_free_space_limit_c_store_answers_a700(tmp_path, sqlite_url):
    dataset = make("full", tmp_path)
    listener = Listener(tmp_path / "state", sqlite_url)
    full = listener.settings.dicom.model_copy(update={"min_free_bytes": 1 << 60})
    listener.context = Context(
        listener.settings.model_copy(update={"dicom": full}), listener.database, SystemClock(), Pseudonyms(b"k" * 32)
    )
    with listener:
        refused(listener, [], one(listener, encoded(dataset), dataset.SOPInstanceUID), 0xA700)


@pytest.mark.postgres
def test_database_away_answers_a700_and_the_retry_succeeds(tmp_path, postgres_server):
    database = Database(postgres_server.url)
    upgrade(database)
    database.close()
    dataset = make("away", tmp_path)
    with Listener(tmp_path / "state", postgres_server.url) as listener:
        postgres_server.stop()
        response = one(listener, encoded(dataset), dataset.SOPInstanceUID)
        assert response.Status == 0xA700
        assert "Temporary" in response.ErrorComment
        postgres_server.start()
        assert one(listener, encoded(dataset), dataset.SOPInstanceUID).Status == 0
        assert listener.study(dataset.StudyInstanceUID).instances == 1


def test_a_taken_port_is_worth_another_try(own):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listener = own()
        dicom = listener.settings.dicom.model_copy(update={"port": taken.getsockname()[1]})
        context = Context(
            listener.settings.model_copy(update={"dicom": dicom}), listener.database, SystemClock(), Pseudonyms(b"k" * 32)
        )
        (worker,) = build(context).workers

        async def serve():
            await worker.run(StopSignal())

        with pytest.raises(Transient, match="DCM-301"):
            asyncio.run(serve())
        listener.database.close()


def test_a_configured_class_that_is_none_is_refused_at_start(sqlite_context):
    dicom = sqlite_context.settings.dicom.model_copy(update={"sop_classes": ("1.2.3",)})
    settings = sqlite_context.settings.model_copy(update={"dicom": dicom})
    with pytest.raises(InvalidInput, match=r"1\.2\.3"):
        build(Context(settings, sqlite_context.database, sqlite_context.clock, sqlite_context.pseudonyms))
