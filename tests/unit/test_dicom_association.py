"""The association without sockets: known conversations in any pieces, and bytes of every kind that must end in an answer."""

import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from listeners.dicom import answers
from listeners.dicom.association import (
    LONGEST_MESSAGE,
    Acceptance,
    AcceptedContext,
    Association,
    Closed,
    Message,
    Rejection,
    Send,
    StoreBegun,
    StoreEnded,
)
from listeners.dicom.commands import Command
from listeners.dicom.pdu import LONGEST_REQUEST, encode_message
from tests.dicom_wire import CT, EXPLICIT, RELEASE_RQ, VERIFICATION, association_request, command, element, p_data

CONTEXTS = {
    1: AcceptedContext(1, CT, EXPLICIT, is_storage=True),
    3: AcceptedContext(3, VERIFICATION, EXPLICIT, is_storage=False),
    5: AcceptedContext(5, "1.2.840.10008.1.20.1", EXPLICIT, is_storage=False),
}
STORE, ECHO, ACTION = 0x0001, 0x0030, 0x0130
ABORT, MAX_PDU = 7, 4096


def association(decision=None, max_pdu=MAX_PDU):
    return Association(lambda _: decision or Acceptance(b"<accepted>", CONTEXTS, 4096), max_pdu)


def run(machine, stream, cuts=()):
    """All actions of a stream that arrives in pieces; views are copied, as their bytes are gone after the call."""
    actions, edges = [], [0, *sorted(cuts), len(stream)]
    for start, end in pairwise(edges):
        taken = machine.receive(memoryview(bytearray(stream[start:end])))
        actions += [bytes(action) if isinstance(action, memoryview) else action for action in taken]
    return actions


def kinds(actions):
    return [type(action) for action in actions if not isinstance(action, bytes)]


def conversation(data, sizes):
    """Association, C-STORE of `data` in fragments of these sizes, C-ECHO, N-ACTION, release."""
    stream = association_request() + p_data(1, 3, command(STORE))
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    pieces.append(data[at:])
    for piece in pieces[:-1]:
        stream += p_data(1, 0, piece)
    stream += p_data(1, 2, pieces[-1])
    stream += p_data(3, 3, command(ECHO, sop_class=VERIFICATION, dataset=False))
    stream += p_data(5, 3, command(ACTION)) + p_data(5, 0, b"half ") + p_data(5, 2, b"done")
    return stream + RELEASE_RQ


@settings(max_examples=150)
@given(st.data())
def test_a_conversation_means_the_same_in_any_pieces(data):
    dataset = data.draw(st.binary(max_size=600))
    sizes = data.draw(st.lists(st.integers(0, 200), max_size=6))
    stream = conversation(dataset, sizes)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20))
    machine = association()
    actions = run(machine, stream, cuts)
    assert kinds(actions) == [Send, StoreBegun, StoreEnded, Send, Message, Send, Closed]
    begun, ended = (
        next(index for index, action in enumerate(actions) if type(action) is kind) for kind in (StoreBegun, StoreEnded)
    )
    assert b"".join(actions[begun + 1 : ended]) == dataset
    (message,) = (action for action in actions if isinstance(action, Message))
    assert message.dataset == b"half done"
    assert actions[-1] == Closed("")
    assert machine.is_closed


def test_byte_by_byte():
    stream = conversation(b"0123456789" * 20, [7, 0, 50])
    whole, single = run(association(), stream), run(association(), stream, range(1, len(stream)))
    assert kinds(whole) == kinds(single)


@settings(max_examples=300)
@given(st.data())
def test_damaged_streams_end_in_an_answer(data):
    """Whatever changes on the way: no exception, no memory beyond the limits, and after the end nothing more."""
    stream = bytearray(conversation(b"x" * 300, [100, 100]))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(stream) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "insert", "repeat"]))
        if kind == "set":
            stream[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del stream[at : at + data.draw(st.integers(1, 40))]
        elif kind == "insert":
            stream[at:at] = data.draw(st.binary(max_size=40))
        else:
            stream[at:at] = stream[at : at + 60]
        if not stream:
            return
    machine = association()
    _check_end(machine, run(machine, bytes(stream), data.draw(st.lists(st.integers(0, len(stream)), max_size=10))))


@settings(max_examples=300)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_end_in_an_answer(data, established):
    machine = association()
    if established:
        run(machine, association_request())
    _check_end(machine, run(machine, data, range(0, len(data), 7)))


def _check_end(machine, actions):
    closed = [index for index, action in enumerate(actions) if isinstance(action, Closed)]
    if machine.is_closed:
        assert closed == [len(actions) - 1] or not actions
        assert run(machine, b"\x04" * 50) == []
    else:
        assert closed == []
    assert len(machine._command) <= 1 << 15
    assert len(machine._dataset or b"") <= LONGEST_MESSAGE
    assert len(machine._reader._header) < 6
    assert len(machine._reader._control or b"") <= LONGEST_REQUEST


def aborted(actions):
    return isinstance(actions[-2], Send) and actions[-2].data[0] == ABORT and isinstance(actions[-1], Closed)


def test_limits_of_memory():
    machine = association(max_pdu=0)
    run(machine, association_request())
    assert aborted(run(machine, p_data(5, 3, command(ACTION)) + p_data(5, 0, bytes(LONGEST_MESSAGE + 1))))
    assert aborted(run(association(), struct.pack(">BBL", 1, 0, LONGEST_REQUEST + 1)))
    machine = association(max_pdu=0)
    run(machine, association_request())
    assert aborted(run(machine, p_data(1, 1, bytes(40_000))))


def established():
    machine = association()
    run(machine, association_request())
    return machine


def test_a_message_has_begun_with_its_first_fragment_even_an_empty_one():
    machine = established()
    assert machine.is_idle
    run(machine, p_data(1, 1, b""))
    assert not machine.is_idle
    assert aborted(run(machine, p_data(3, 1, b"xx")))


@pytest.mark.parametrize(
    ("before", "context", "kind"),
    [(b"", 1, 1), (p_data(1, 3, command(STORE)), 1, 0), (p_data(5, 3, command(ACTION)), 5, 0)],
    ids=["command", "stored data set", "other data set"],
)
def test_fragments_without_content_come_to_an_end(before, context, kind):
    machine = established()
    assert not any(isinstance(action, Closed) for action in run(machine, before + p_data(context, kind, b"") * 100))
    assert aborted(run(machine, p_data(context, kind, b"")))


def test_every_message_may_have_fragments_without_content():
    machine = established()
    empty = p_data(1, 3, command(STORE)) + p_data(1, 0, b"") * 60 + p_data(1, 2, b"x")
    for _ in range(3):
        assert kinds(run(machine, empty)) == [StoreBegun, StoreEnded]


def test_a_rejection_is_sent_and_nothing_more():
    machine = association(Rejection(1, 1, 3))
    assert run(machine, association_request() + p_data(1, 3, command(STORE))) == [Send(b"\x03\0\0\0\0\4\0\1\1\3"), Closed("")]


def test_data_before_the_association_is_unexpected():
    actions = run(association(), p_data(1, 3, command(STORE)))
    assert aborted(actions)
    assert actions[0].data[-1] == 2


@pytest.mark.parametrize("status", [0x0000, 0xA700, 0xC000])
def test_store_response(status):
    machine = association()
    run(machine, association_request())
    begun, *_ = run(machine, p_data(1, 3, command(STORE, instance="1.2.9", message_id=513)))
    answer = answers.BROKEN_DATASET.at(0x7FE00010) if status == 0xC000 else answers.DISK_FULL if status else answers.STORED
    response = machine.store_response(begun.request, answer)
    length = struct.unpack_from(">L", response, 2)[0]
    assert (response[0], length, response[10], response[11]) == (4, len(response) - 6, 1, 3)
    parsed = Command(response[12:])
    assert (parsed.field, parsed.has_dataset, parsed.sop_instance_uid) == (0x8001, False, "1.2.9")
    assert element(0x0120, struct.pack("<H", 513)) in response
    assert element(0x0900, struct.pack("<H", status)) in response
    assert (element(0x0901, struct.pack("<HH", 0x7FE0, 0x0010)) in response) is (status == 0xC000)
    assert answer.comment.encode() in response


@given(st.binary(max_size=500), st.binary(max_size=500), st.integers(7, 200))
def test_long_messages_fit_the_peers_maximum(commands, dataset, most):
    encoded = encode_message(1, commands, dataset, most)
    at, parts = 0, {0: b"", 1: b""}
    while at < len(encoded):
        length = struct.unpack_from(">L", encoded, at + 2)[0]
        assert length <= most
        parts[encoded[at + 11] & 1] += encoded[at + 12 : at + 6 + length]
        at += 6 + length
    assert parts == {1: commands, 0: dataset}
