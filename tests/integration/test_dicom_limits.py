"""Resources that end, settings that are none."""

import asyncio
import socket
import struct
import time

import pytest

from listeners.dicom import reception
from listeners.dicom.app import build
from listeners.dicom.echo import echo
from listeners.dicom.send import send_folder
from services.assembly.files import ArchiveFiles
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
