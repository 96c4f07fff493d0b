"""Resources that end, settings that are none."""

import asyncio
import errno
import json
import socket
import struct
import threading
import time

import pytest
from sqlalchemy import event

from listeners.dicom import reception
from listeners.dicom.app import build
from listeners.dicom.echo import echo
from listeners.dicom.scp import StorageScp
from listeners.dicom.send import send_folder
from schemas.settings import DicomSettings
from services.assembly import files, writer
from services.assembly.files import ArchiveFiles
from services.assembly.index import ArchiveIndex
from services.assembly.writer import IndexWriter
from services.runtime.clock import SystemClock
from services.runtime.database import Database
from services.runtime.errors import InvalidInput, Transient
from services.runtime.identity import Pseudonyms
from services.runtime.migrations import upgrade
from services.runtime.service import Context, StopSignal
from tests.dicom_listener import Listener, WatchedWriter, associated, encoded, make, one, refused, store
from tests.dicom_wire import rejection


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


def test_too_little_space_at_association_time_is_a_transient_rejection(own):
    with own(min_free_bytes=1 << 60) as listener:
        assert rejection(listener.port) == (2, 3, 1)
        assert echo("127.0.0.1", listener.port, called_ae="ANY"), "a health check needs no space"


def test_space_that_ends_inside_an_association_answers_a700(own, tmp_path, monkeypatch):
    monkeypatch.setattr(reception, "SPACE_KNOWN_S", 0.0)
    dataset = make("full", tmp_path)
    with own() as listener, associated(listener.port) as association:
        monkeypatch.setattr(ArchiveFiles, "free_bytes", lambda _: -1)
        refused(listener, [], store(association, encoded(dataset), dataset.SOPInstanceUID), 0xA700)
        monkeypatch.undo()
        assert store(association, encoded(dataset), dataset.SOPInstanceUID).Status == 0


@pytest.mark.postgres
def test_a_database_that_is_away_delays_rows_until_the_queue_is_full(tmp_path, postgres_server, monkeypatch):
    """Files are the promise: they are acknowledged without the database as long as the queue of rows has room."""
    monkeypatch.setattr(reception, "ROOM_WAIT_S", 0.05)
    monkeypatch.setattr(WatchedWriter, "__init__", lambda self, files, index: IndexWriter.__init__(self, files, index, capacity=2))
    database = Database(postgres_server.url)
    upgrade(database)
    database.close()
    datasets = [make("away", tmp_path, instance=number) for number in range(4)]
    with Listener(tmp_path / "state", postgres_server.url) as listener:
        postgres_server.stop()
        with associated(listener.port) as association:
            statuses = [store(association, encoded(each), each.SOPInstanceUID).Status for each in datasets]
        assert statuses == [0, 0, 0xA700, 0xA700]
        assert rejection(listener.port) == (2, 3, 1)
        postgres_server.start()
        assert listener.study(datasets[0].StudyInstanceUID).instances == 2
        for each in datasets:
            assert one(listener, encoded(each), each.SOPInstanceUID).Status == 0
            assert listener.instance(each.SOPInstanceUID) is not None
        assert listener.study(datasets[0].StudyInstanceUID).instances == 4


class FullDisk:
    """No page may be added to the SQLite file while `full`, as on a full disk: SQLite itself raises SQLITE_FULL."""

    def __init__(self, database):
        self.full, self.attempts = True, 0
        event.listen(database.engine, "begin", self._limit)

    def _limit(self, connection):
        self.attempts += self.full
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages if self.full else 10**9}")

    def come_back_after(self, attempts):
        end = time.monotonic() + 10
        while self.attempts < attempts and time.monotonic() < end:
            time.sleep(0.01)
        self.full = False


def test_rows_wait_for_space_in_the_database(own, tmp_path, caplog):
    datasets = [make("space", tmp_path, instance=number) for number in range(40)]
    with own() as listener, associated(listener.port) as association:
        disk = FullDisk(listener.database)
        assert {store(association, encoded(each), each.SOPInstanceUID).Status for each in datasets} == {0}
        disk.come_back_after(6)
        assert all(listener.instance(each.SOPInstanceUID) for each in datasets)
    assert "ASM-311" in caplog.text
    assert "ASM-312" not in caplog.text


def test_a_conflict_waits_for_space_in_the_database(own, tmp_path, monkeypatch):
    first, other, after = make("first", tmp_path), make("other", tmp_path), make("after", tmp_path)
    other.SOPInstanceUID = first.SOPInstanceUID
    with own() as listener, associated(listener.port) as association:
        assert store(association, encoded(first), first.SOPInstanceUID).Status == 0
        assert listener.instance(first.SOPInstanceUID) is not None
        disk = FullDisk(listener.database)
        wide = "x" * 8000  # so that the record of the conflict needs a page
        noted = listener._writer._index.note_conflict
        monkeypatch.setattr(
            listener._writer._index, "note_conflict", lambda *some, **more: noted(*some[:3], some[3] + wide, **more)
        )
        assert store(association, encoded(other), other.SOPInstanceUID).Status == 0
        disk.come_back_after(4)
        assert store(association, encoded(after), after.SOPInstanceUID).Status == 0
        assert listener.instance(after.SOPInstanceUID) is not None
        assert len(list((listener.archive / "conflicts").rglob("*.dcm"))) == 1


@pytest.mark.parametrize(
    ("error", "message"), [(PermissionError(errno.EACCES, "not permitted"), "ASM-314"), (TypeError("a defect"), "ASM-312")]
)
def test_a_conflict_that_cannot_be_moved_holds_nobody_up(own, tmp_path, monkeypatch, caplog, error, message):
    first, other, after = make("first", tmp_path), make("other", tmp_path), make("after", tmp_path)
    other.SOPInstanceUID = first.SOPInstanceUID
    with own() as listener, associated(listener.port) as association:
        assert store(association, encoded(first), first.SOPInstanceUID).Status == 0
        assert listener.instance(first.SOPInstanceUID) is not None

        def refuse(*_):
            raise error

        monkeypatch.setattr(writer, "keep_aside", refuse)
        for each in (other, after):
            assert store(association, encoded(each), each.SOPInstanceUID).Status == 0
        assert listener.instance(after.SOPInstanceUID) is not None
        assert len(listener.files()) == 3
    assert message in caplog.text


def test_an_index_writer_that_dies_ends_the_process(own, tmp_path, monkeypatch):
    make("dies", tmp_path)
    listener = own()

    def defect(*_):
        raise IndexError("a defect")

    monkeypatch.setattr(IndexWriter, "_write", defect)
    (worker,) = build(listener.context).workers

    async def serve():
        serving = asyncio.create_task(worker.run(StopSignal()))
        announcement = listener.settings.state_dir / "run" / "dicom.json"
        while not announcement.exists():  # noqa: ASYNC110 - a file sets no event
            await asyncio.sleep(0.01)
        port = json.loads(announcement.read_text())["port"]
        await asyncio.to_thread(send_folder, tmp_path / "dies.dcm", "127.0.0.1", port)
        await asyncio.wait_for(serving, 20)

    with pytest.raises(RuntimeError, match="ASM-315"):
        asyncio.run(serve())
    listener.database.close()


def test_space_that_ends_while_an_object_comes_answers_a700(own, tmp_path, monkeypatch):
    monkeypatch.setattr(reception, "SPACE_KNOWN_S", 0.0)
    monkeypatch.setattr(files, "BYTES_BETWEEN_CHECKS", 500)
    dataset = make("grows", tmp_path)
    with own(min_free_bytes=1) as listener, associated(listener.port) as association:
        answers = iter([1])  # for the request; the association is there already
        monkeypatch.setattr(ArchiveFiles, "free_bytes", lambda _: next(answers, 0))
        refused(listener, [], store(association, encoded(dataset), dataset.SOPInstanceUID), 0xA700)
        monkeypatch.undo()
        assert store(association, encoded(dataset), dataset.SOPInstanceUID).Status == 0


@pytest.mark.parametrize("failure", [RuntimeError("can't start new thread"), MemoryError()])
def test_connections_without_a_thread_leave_nothing(sqlite_context, monkeypatch, failure):
    archive = ArchiveFiles(sqlite_context.settings.archive_dir)
    index = ArchiveIndex(sqlite_context.database, sqlite_context.pseudonyms)
    scp = StorageScp(DicomSettings(host="127.0.0.1", port=0), reception.Reception(archive, index, SystemClock(), 0))
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == "dicom-association":
            raise failure
        start(thread)

    port = scp.start()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port), 5) as peer:
            assert peer.recv(1) == b""
    monkeypatch.undo()
    assert echo("127.0.0.1", port, called_ae="ANY")
    scp.stop()
    assert not scp._running()
    assert not scp._pending
    archive.close()


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
    dicom = sqlite_context.settings.dicom.model_copy(update={"sop_classes": ("1.2.840.10008.1.1",)})
    settings = sqlite_context.settings.model_copy(update={"dicom": dicom})
    with pytest.raises(InvalidInput, match=r"1\.2\.840\.10008\.1\.1'"):
        build(Context(settings, sqlite_context.database, sqlite_context.clock, sqlite_context.pseudonyms))
