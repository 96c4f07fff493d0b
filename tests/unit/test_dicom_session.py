"""The receive loop over a connection without network: data sets that go past the state machine mean what they mean through it."""

import os
import struct
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from listeners.dicom import environment as shared
from listeners.dicom import session
from listeners.dicom.acceptance import Rules
from listeners.dicom.association import Acceptance, AcceptedContext, Association, Closed, StoreBegun, StoreEnded
from listeners.dicom.commands import Command
from listeners.dicom.environment import Environment
from listeners.dicom.gate import Gate
from listeners.dicom.pdu import DATA_HEADER
from listeners.dicom.reception import Reception
from listeners.dicom.session import Session
from schemas.settings import DicomSettings
from services.assembly.files import ArchiveFiles
from services.assembly.index import ArchiveIndex
from services.assembly.writer import IndexWriter
from services.runtime.archive import instance_path
from services.runtime.clock import SystemClock
from tests.dicom_wire import ABORT, CT, EXPLICIT, RELEASE_RQ, association_request, command, p_data

CONTEXTS = {1: AcceptedContext(1, CT, EXPLICIT, is_storage=True)}
STORE, MAX_PDU, ENDLESS = 0x0001, 4096, 1 << 30


class Scripted:
    """A peer that says its words in given pieces and then closes; `whole` is granted, or cut short, as a kernel may."""

    def __init__(self, stream, sizes, cuts=()):
        self._stream, self._sizes, self._cuts = stream, list(sizes), list(cuts)
        self._at = 0
        self.sent = b""

    def handshake(self, seconds):
        """Nothing to do."""

    def set_timeout(self, seconds):
        """Never too late."""

    def receive(self, buffer, *, whole=False):
        sizes = self._cuts if whole else self._sizes
        most = sizes.pop() if sizes else ENDLESS
        piece = self._stream[self._at : self._at + min(most, len(buffer))]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def send(self, data):
        self.sent += data

    def interrupt(self):
        """Nobody waits."""

    def close(self, *, wait):
        """Nothing to close."""


@pytest.fixture
def environment(sqlite_context, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # some hundred objects, and no power cut
    files = ArchiveFiles(sqlite_context.settings.archive_dir)
    index = ArchiveIndex(sqlite_context.database, sqlite_context.pseudonyms)
    writer = IndexWriter(files, index)  # never started: the rows wait
    settings_ = DicomSettings(max_pdu=MAX_PDU, max_object_bytes=100_000)
    reception = Reception(files, index, SystemClock(), 0, writer=writer, max_object_bytes=settings_.max_object_bytes)
    yield Environment(settings_, reception, {}, Rules(settings_, (CT,), ()), Gate(settings_, reception))
    files.close()


def element(tag, vr, value):
    value += b"\0" * (len(value) % 2)
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    return head + (struct.pack("<2xL" if vr == b"OW" else "<H", len(value))) + value


def dataset(uid, pixels):
    return b"".join(
        (
            element(0x00080016, b"UI", CT.encode()),
            element(0x00080018, b"UI", uid.encode()),
            element(0x00080060, b"CS", b"CT"),
            element(0x0020000D, b"UI", b"1.2.3.4"),
            element(0x0020000E, b"UI", b"1.2.3.5"),
            element(0x7FE00010, b"OW", pixels),
        )
    )


def sending(uid, data, sizes):
    """A C-STORE whose data set comes in fragments of these sizes, several to a PDU where they are small."""
    stream, at = p_data(1, 3, command(STORE, instance=uid)), 0
    for size in sizes:
        stream += p_data(1, 0, data[at : at + size])
        at += size
    rest = [data[start : start + MAX_PDU - 6] for start in range(at, len(data), MAX_PDU - 6)] or [b""]
    for piece in rest[:-1]:
        stream += p_data(1, 0, piece)
    return stream + p_data(1, 2, rest[-1])


def served(environment, stream, sizes, cuts, room, whole_from, monkeypatch, pace=session.PACE_BYTES):
    """What a session says to a stream, and the data sets that it stores, by name; the archive is empty again afterwards.

    Where nothing is awaited whole, everything goes through the state machine's `receive`. Fragments of `pace` bytes and more are
    received in runs.
    """
    with monkeypatch.context() as patch:
        patch.setattr(session, "WHOLE_FROM", whole_from)
        patch.setattr(session, "PACE_BYTES", pace)
        if whole_from == ENDLESS:
            patch.setattr(Association, "begin", lambda *_: None)
            patch.setattr(Association, "resume", lambda *_: 0)
            patch.setattr(Command, "_is_usual_store", lambda *_: False)
        connection = Scripted(stream, sizes, cuts)
        Session(connection, "127.0.0.1", environment, lambda _: None, room).run()
    stored = {path: path.read_bytes() for path in environment.reception.files.root.rglob("*.dcm")}
    rows = len(environment.reception.writer._queue)
    environment.reception.writer._queue.clear()
    for path in stored:
        path.unlink()
    assert not [path for path in environment.reception.files.root.rglob("incoming/*/*") if path.is_file()]
    return connection.sent, {path.name: data for path, data in stored.items()}, rows


pieces = st.lists(st.integers(1, 3000), max_size=30)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_both_ways_store_and_answer_the_same(environment, monkeypatch, data):
    stream, expected = association_request(), {}
    for number in range(data.draw(st.integers(1, 3))):
        uid = f"1.2.3.{number}"
        content = dataset(uid, data.draw(st.binary(max_size=64)) * data.draw(st.integers(0, 300)))
        stream += sending(uid, content, data.draw(st.lists(st.integers(0, 2000), max_size=5)))
        expected[Path(instance_path("", "", uid)).name] = content
    if data.draw(st.booleans()):
        stream += RELEASE_RQ
    else:  # the peer vanishes somewhere: what was answered is stored, whichever way it came
        stream = stream[: data.draw(st.integers(0, len(stream)))]
    slow = served(environment, stream, data.draw(pieces), (), 6000, ENDLESS, monkeypatch)
    sizes, cuts, room = data.draw(pieces), data.draw(pieces), data.draw(st.integers(64, 9000))
    pace = data.draw(st.sampled_from([1, 300, session.PACE_BYTES]))
    fast = served(environment, stream, sizes, cuts, room, data.draw(st.integers(1, 200)), monkeypatch, pace)
    assert fast == slow
    assert all(data.endswith(expected[name]) for name, data in fast[1].items())
    if stream.endswith(RELEASE_RQ):
        assert fast[1].keys() == expected.keys()
        assert fast[2] == len(expected)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_both_ways_end_damaged_streams_alike(environment, monkeypatch, data):
    sizes = data.draw(st.sampled_from([[900, 300], [400] * 6]))
    stream = bytearray(association_request() + sending("1.2.3.1", dataset("1.2.3.1", bytes(3000)), sizes) + RELEASE_RQ)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(len(association_request()), len(stream) - 1))
        stream[at] = data.draw(st.integers(0, 255))
    slow = served(environment, bytes(stream), data.draw(pieces), (), 6000, ENDLESS, monkeypatch)
    pace = data.draw(st.sampled_from([1, session.PACE_BYTES]))
    fast = served(environment, bytes(stream), data.draw(pieces), data.draw(pieces), 2000, 1, monkeypatch, pace)
    assert fast == slow


def test_an_object_without_end_is_cut_off_whichever_way_it_comes(environment, monkeypatch):
    stream = association_request() + p_data(1, 3, command(STORE)) + p_data(1, 0, bytes(4000)) * 100
    for whole_from, pace in ((1, session.PACE_BYTES), (1, 1000), (ENDLESS, 1000)):
        sent, stored, _ = served(environment, stream, (), (), 9000, whole_from, monkeypatch, pace)
        assert sent.endswith(struct.pack(">BBLBBBB", ABORT, 0, 4, 0, 0, 2, 0))
        assert stored == {}


def test_fragments_with_the_same_headers_are_received_in_one_run(environment, monkeypatch):
    content = dataset("1.2.3.1", bytes(range(250)) * 200)
    stream = association_request() + sending("1.2.3.1", content, [4000] * 10) + RELEASE_RQ
    seen = []
    resume = Association.resume
    monkeypatch.setattr(Association, "resume", lambda *arguments: seen.append(1) or resume(*arguments))
    sent, stored, rows = served(environment, stream, (), (), 6000, 1, monkeypatch, 4000)
    assert ([data[-len(content) :] for data in stored.values()], rows, sent.count(b"1.2.3.1")) == ([content], 1, 1)
    # the first one, the first of the two largest, and the last one
    assert len(seen) == 3


@pytest.mark.parametrize("cut", [1, 12, 2000, 4011])
def test_a_run_that_breaks_off_stores_nothing(environment, monkeypatch, cut):
    stream = association_request() + sending("1.2.3.1", dataset("1.2.3.1", bytes(40_000)), [4000] * 9)
    stream = stream[: len(association_request()) + len(p_data(1, 3, command(STORE, instance="1.2.3.1"))) + 5 * 4012 + cut]
    _, stored, rows = served(environment, stream, (), (), 6000, 1, monkeypatch, 4000)
    assert (stored, rows) == ({}, 0)


def test_a_command_that_comes_in_two_pieces_is_taken_at_sight(environment, monkeypatch):
    """DCMTK writes the headers of a PDU and its content one after the other: the second may come a moment later."""
    objects = [sending(f"1.2.3.{number}", dataset(f"1.2.3.{number}", b"x" * 100), []) for number in (1, 2)]
    first = len(association_request()), len(objects[0])
    seen = []
    receive = Association.receive
    monkeypatch.setattr(Association, "receive", lambda self, data: seen.append(bytes(data)) or receive(self, data))
    sizes = [ENDLESS, 12, *reversed(first)]  # popped from the end
    connection = Scripted(association_request() + b"".join(objects) + RELEASE_RQ, sizes)
    Session(connection, "127.0.0.1", environment, lambda _: None, 6000).run()
    assert seen == [association_request(), RELEASE_RQ]
    assert len(list(environment.reception.files.root.rglob("*.dcm"))) == 2


def test_a_command_of_which_only_the_headers_come_ends_with_the_connection(environment):
    stream = association_request() + sending("1.2.3.1", dataset("1.2.3.1", b"x" * 100), []) + p_data(1, 3, command(STORE))[:30]
    for sizes in (
        [],
        [len(association_request())],
        [12, len(stream) - len(association_request()) - 30, len(association_request())],
    ):
        connection = Scripted(stream, sizes)
        Session(connection, "127.0.0.1", environment, lambda _: None, 6000).run()
        assert connection.sent.count(b"1.2.3.1") == 1
        assert environment.reception.writer._queue.pop().facts.sop_instance_uid == "1.2.3.1"


def machine():
    association = Association(lambda _: Acceptance(b"<accepted>", CONTEXTS, 4096), 0)
    list(association.receive(memoryview(association_request())))
    return association


@settings(max_examples=150)
@given(st.binary(max_size=700), st.lists(st.integers(0, 200), max_size=6), st.lists(st.integers(0, 2000), max_size=20), st.data())
def test_what_is_taken_is_what_would_have_been_received(content, sizes, cuts, data):
    """Any mixture of `take` and `receive` leads to the same data set, and `data_ahead` never promises a header."""
    stream = sending("1.2.3", content, sizes) + RELEASE_RQ
    association, kept, events = machine(), b"", []
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    for start, end in pairwise(edges):
        at = start
        while at < end:
            ahead = association.data_ahead
            left = memoryview(bytearray(stream[at:end]))
            if not ahead and data.draw(st.booleans()) and (begun := association.begin(left, 0)):
                actions, count = [StoreBegun(begun)], DATA_HEADER + len(begun.command.encoded)
            elif not ahead and data.draw(st.booleans()) and (count := association.resume(left, 0)):
                actions = []
            elif ahead and data.draw(st.booleans()):
                count = min(ahead, end - at, data.draw(st.integers(1, 500)))
                kept += stream[at : at + count]
                ended = association.take(count)
                actions = [ended and StoreEnded(ended)]
            else:
                count = min(end - at, data.draw(st.integers(1, 500)))
                actions = list(association.receive(memoryview(bytearray(stream[at : at + count]))))
            for action in filter(None, actions):
                if isinstance(action, memoryview):
                    kept += action
                else:
                    events.append(action)
            at += count
    assert kept == content
    assert [type(event) for event in events if type(event) in (StoreBegun, StoreEnded, Closed)] == [StoreBegun, StoreEnded, Closed]
    assert association.data_ahead == 0


@pytest.mark.parametrize(
    "words",
    [
        p_data(1, 1, command(STORE)),
        p_data(3, 3, command(STORE)),
        p_data(1, 3, command(STORE))[:-1],
        p_data(1, 3, command(STORE, dataset=False)),
        p_data(1, 3, command(0x0030)),
        p_data(1, 3, command(STORE)[:-1]),
        p_data(1, 2, command(STORE)),
        RELEASE_RQ,
        b"",
    ],
    ids=["a part", "no context", "cut", "no data set", "an echo", "damaged", "a data set", "a release", "nothing"],
)
def test_only_a_whole_store_command_is_begun_past_the_state_machine(words):
    assert machine().begin(memoryview(words), 0) is None
    again = machine()
    assert again.begin(memoryview(p_data(1, 3, command(STORE))), 0) is not None
    assert again.begin(memoryview(p_data(1, 3, command(STORE))), 0) is None


@pytest.mark.parametrize(
    "words",
    [b"", p_data(1, 3, command(STORE)), p_data(1, 3, command(STORE)) + p_data(3, 0, b"x" * 99)[:40], p_data(1, 1, b"x" * 99)[:40]],
    ids=["between messages", "between PDUs", "another context", "a command"],
)
def test_nothing_is_ahead_but_data_of_the_store_under_way(words):
    association = machine()
    list(association.receive(memoryview(words)))
    assert association.data_ahead == 0


def test_many_buffers_take_little_memory():
    sizes = [shared.buffer_bytes(others) for others in range(1000)]
    assert sizes[:60] == [shared.BUFFER_BYTES] * 60
    assert sum(sizes[:200]) < 20_000_000
    assert min(sizes) == shared.SMALLEST_BUFFER_BYTES
