"""Requests that are like earlier ones of their association: known at sight they mean, and are answered, what parsing says."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from listeners.dicom import answers
from listeners.dicom.association import MOST_USUAL, Acceptance, AcceptedContext, Association
from listeners.dicom.commands import Command
from listeners.dicom.pdu import DATA_HEADER, ProtocolError, encode_message
from tests.dicom_wire import CT, EXPLICIT, association_request, command, p_data

STORE = 0x0001
CONTEXTS = {1: AcceptedContext(1, CT, EXPLICIT, is_storage=True), 3: AcceptedContext(3, "1.2.9", EXPLICIT, is_storage=True)}
FIELDS = ("field", "message_id", "has_dataset", "sop_class_uid", "sop_instance_uid", "encoded")


def machine(peer_max_pdu=16_384):
    association = Association(lambda _: Acceptance(b"<accepted>", CONTEXTS, peer_max_pdu), 0)
    list(association.receive(memoryview(association_request())))
    return association


def spoilt(encoded, damage):
    """The same with single bytes changed; `damage`: places and values."""
    data = bytearray(encoded)
    for place, value in damage:
        data[place % len(data)] = value
    return bytes(data)


odd_uids = st.sampled_from(["", "1.2", "x", "1." * 31 + "1", "1" * 70])
uids = st.one_of(st.integers(1, 10**7).map(lambda number: f"1.2.3.{number}"), odd_uids)
requests = st.tuples(
    st.sampled_from([1, 3]),
    st.builds(
        command,
        st.just(STORE),
        sop_class=st.sampled_from([CT, "1.2.9"]),
        instance=uids,
        message_id=st.integers(0, 0xFFFF),
        further=st.sampled_from([b"", b"", b"", struct.pack("<HHLH", 0, 0x1031, 2, 7)]),
    ),
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=1),
)


def parsed(encoded):
    try:
        return Command(encoded)
    except ProtocolError:
        return None


def end_object(association, context):
    """An object of one byte, taken past the state machine."""
    header = p_data(context, 2, b"x")[:DATA_HEADER]
    assert association.resume(memoryview(header), 0) == DATA_HEADER
    assert association.take(1) is not None


@settings(max_examples=150)
@given(st.lists(requests, min_size=1, max_size=8), st.sampled_from([0, 64, 16_384]))
def test_what_is_known_at_sight_means_what_parsing_says(several, peer_max_pdu):
    association = machine(peer_max_pdu)
    for context, whole, damage in several:
        encoded = spoilt(whole, damage)
        request = association.begin(memoryview(p_data(context, 3, encoded)), 0)
        expected = parsed(encoded)
        if expected is None or expected.field != STORE or not expected.has_dataset:
            assert request is None
            continue
        assert request is not None
        assert [getattr(request.command, name) for name in FIELDS] == [getattr(expected, name) for name in FIELDS]
        assert request.context is CONTEXTS[context]
        for answer in (answers.STORED, answers.DISK_FULL, answers.BROKEN_DATASET.at(0x7FE00010)):
            response = expected.response(answer.status, answer.comment, answer.tag)
            assert association.store_response(request, answer) == encode_message(context, response, None, peer_max_pdu)
        end_object(association, context)


def test_the_second_of_a_kind_is_not_parsed(monkeypatch):
    association = machine()
    words = [p_data(1, 3, command(STORE, instance=f"1.2.3.{number}", message_id=number)) for number in (1, 2)]
    assert association.begin(memoryview(words[0]), 0) is not None
    end_object(association, 1)
    monkeypatch.delattr(Command, "_is_usual_store")
    begun = association.begin(memoryview(words[1]), 0)
    assert (begun.command.message_id, begun.command.sop_instance_uid) == (2, "1.2.3.2")
    monkeypatch.delattr(Command, "response")
    assert b"1.2.3.2" in association.store_response(begun, answers.STORED)


def test_the_rest_of_a_command_is_known_by_its_headers():
    association = machine()
    words = p_data(1, 3, command(STORE, instance="1.2.3.1"))
    assert association.missing(memoryview(words[:20]), 0) == 0  # nothing is known yet
    assert association.begin(memoryview(words), 0) is not None
    assert association.missing(memoryview(words[:20]), 0) == 0  # an object is under way
    end_object(association, 1)
    assert [association.missing(memoryview(words[:some]), 0) for some in (5, DATA_HEADER, 20, len(words))] == [
        *(0, len(words) - DATA_HEADER, len(words) - 20, 0),
    ]
    assert association.missing(memoryview(b"x" + words[:20]), 1) == len(words) - 20
    assert association.missing(memoryview(p_data(3, 3, command(STORE))[:20]), 0) == 0


def test_what_is_remembered_of_requests_is_bounded():
    association = machine()
    for length in range(1, 60):
        assert association.begin(memoryview(p_data(1, 3, command(STORE, instance="1" * length))), 0) is not None
        end_object(association, 1)
        assert len(association._usuals) <= MOST_USUAL
