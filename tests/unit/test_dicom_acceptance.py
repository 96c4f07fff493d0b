"""Association requests: any bytes end in an answer, and what is accepted can be read by pynetdicom."""

import contextlib
import re
import struct
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import UID_dictionary
from pynetdicom._globals import ALL_TRANSFER_SYNTAXES
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.presentation import build_context, negotiate_as_acceptor
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import _STORAGE_CLASSES, uid_to_service_class

from listeners.dicom.acceptance import Rules, read_request
from listeners.dicom.association import Acceptance
from listeners.dicom.commands import Command
from listeners.dicom.file_meta import IMPLEMENTATION_VERSION_NAME
from listeners.dicom.operations import Peer
from listeners.dicom.pdu import LONGEST_REQUEST, ProtocolError
from listeners.dicom.presentation import TRANSFER_SYNTAXES, storage_classes
from schemas.settings import DicomSettings
from services.runtime.errors import InvalidInput
from tests.dicom_wire import CT, EXPLICIT, VERIFICATION, association_request, command

RULES = Rules(DicomSettings(), (CT,), ("1.2.840.10008.1.20.1",))
BODY = association_request((CT, EXPLICIT, "1.2.840.10008.1.2"), (VERIFICATION, EXPLICIT), ("1.2.3", EXPLICIT))[6:]


def accept(body):
    request, peer = read_request(body, "127.0.0.1")
    RULES.refusal(request, peer)
    RULES.proposes_storage(request)
    return RULES.accept(request)


def test_what_is_accepted():
    acceptance = accept(BODY)
    assert {number: context.abstract_syntax for number, context in acceptance.contexts.items()} == {1: CT, 3: VERIFICATION}
    assert acceptance.contexts[1].is_storage
    assert not acceptance.contexts[3].is_storage
    assert acceptance.peer_max_pdu == 16382
    response = A_ASSOCIATE_AC()
    response.decode(acceptance.response)
    results = {item.presentation_context_id: item.result for item in response.presentation_context}
    assert results == {1: 0, 3: 0, 5: 3}


def item(kind, body):
    return struct.pack(">BBH", kind, 0, len(body)) + body


def context(number, syntaxes=1, abstract=1):
    names = item(0x30, CT.encode()) * abstract + item(0x40, EXPLICIT.encode()) * syntaxes
    return item(0x20, struct.pack(">BBBB", number, 0, 0, 0) + names)


def body_of(*items):
    user = item(0x50, item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3"))
    return (
        BODY[:68]
        + item(0x10, b"1.2.840.10008.3.1.1.1")
        + b"".join(items)
        + (b"" if any(part[0] == 0x50 for part in items) else user)
    )


def test_as_many_contexts_as_there_can_be():
    body = body_of(*(context(number, 64) for number in range(1, 256, 2)))
    assert len(body) < LONGEST_REQUEST
    assert len(accept(body).contexts) == 128


@pytest.mark.parametrize(
    "items",
    [
        [context(1), context(1)],
        [context(2)],
        [context(1, 65)],
        [context(1, abstract=65)],
        [item(0x50, item(0x51, struct.pack(">L", 16384)) + item(0x54, b"x") * 256)],
        [item(0x50, item(0x51, struct.pack(">L", 16384))), item(0x50, b"")],
        [item(0x10, b"1.2")],
        [item(0x99, b"")] * 300,
        [context(1) + b"\x20"],
        [item(0x20, b"\1\0\0\0" + item(0x30, b"1.2")[:-1])],
        [item(0x50, item(0x51, b"\0\0\x40\0")[:-1])],
    ],
    ids=[
        "an id twice",
        "an even id",
        "too many transfer syntaxes",
        "too many abstract syntaxes",
        "too much about the user",
        "two users",
        "two application contexts",
        "unknown items without end",
        "a byte too many",
        "a context cut short",
        "a user cut short",
    ],
)
def test_what_no_request_may_hold_is_refused(items):
    with pytest.raises(ProtocolError):
        read_request(body_of(*items), "127.0.0.1")


@settings(max_examples=300)
@given(st.data())
def test_damaged_requests_end_in_an_answer(data):
    body = bytearray(BODY)
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(body) - 1))
        if data.draw(st.booleans()):
            body[at] = data.draw(st.integers(0, 255))
        else:
            del body[at : at + data.draw(st.integers(1, 30))]
        if not body:
            return
    with contextlib.suppress(ProtocolError):
        assert isinstance(accept(bytes(body)), Acceptance)


@given(st.binary(max_size=400))
def test_any_bytes_end_in_an_answer(body):
    with contextlib.suppress(ProtocolError):
        accept(bytes(68) + body)


@given(st.binary(max_size=200))
def test_any_command_set_ends_in_an_answer(encoded):
    with contextlib.suppress(ProtocolError):
        Command(encoded).response(0x0110, "x" * 200, 0x00080018)


def meaning(encoded):
    """All that a command set says; the error's text where it says nothing."""
    try:
        found = Command(encoded)
    except ProtocolError as error:
        return str(error)
    return found.field, found.message_id, found.has_dataset, found.sop_class_uid, found.sop_instance_uid, found.response(0)


@given(st.from_regex(r"[0-9.]{0,65}", fullmatch=True), st.integers(0, 0xFFFF), st.booleans(), st.data())
def test_the_usual_command_means_what_it_means_to_the_parser(uid, message_id, dataset, data):
    encoded = bytearray(command(0x0001, instance=uid, message_id=message_id, dataset=dataset))
    for _ in range(data.draw(st.integers(0, 2))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.sampled_from([0, 1, 2, 0x10, 0x31, 0x41, 0xFF]))
    quick = meaning(bytes(encoded))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Command, "_is_usual_store", lambda *_: False)
        assert meaning(bytes(encoded)) == quick


def test_the_usual_command_is_recognized():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Command, "_parse", lambda *_: pytest.fail("parsed"))
        assert meaning(command(0x0001, instance="1.2.34", message_id=513))[:3] == (1, 513, True)


@pytest.mark.parametrize("title", ["A\nB", "\x1b[31mX", "é"])
def test_titles_are_the_peers(title):
    """They arrive as sent: whoever logs them makes them printable."""
    body = bytearray(BODY)
    body[20:36] = title.encode("latin-1").ljust(16)
    with contextlib.suppress(ProtocolError):
        _, peer = read_request(bytes(body), "127.0.0.1")
        assert isinstance(peer, Peer)


uids = st.sampled_from([CT, VERIFICATION, "1.2.840.10008.1.20.1", "1.2.3"])
syntaxes = st.lists(st.sampled_from([EXPLICIT, "1.2.840.10008.1.2", "1.2.840.10008.1.2.4.70", "1.2.9"]), min_size=1, unique=True)


@settings(max_examples=150)
@given(st.lists(st.tuples(uids, syntaxes), min_size=1, max_size=6), st.integers(0, 1 << 20))
def test_negotiation_is_pynetdicoms(proposed, max_pdu):
    """Except for the order of preference: the sender's, implicit VR last."""
    pdu = association_request(*((uid, *names) for uid, names in proposed), calling="SCANNER 1", max_pdu=max_pdu)
    request, peer = read_request(pdu[6:], "10.0.0.1")
    assert peer == Peer("SCANNER 1", "RECLAIM", "10.0.0.1")
    acceptance = RULES.accept(request)
    assert acceptance.peer_max_pdu == max_pdu
    theirs, ours = A_ASSOCIATE_RQ(), A_ASSOCIATE_AC()
    theirs.decode(pdu)
    ours.decode(acceptance.response)
    answer = ours.to_primitive()
    assert (answer.calling_ae_title, answer.called_ae_title, answer.maximum_length_received) == ("SCANNER 1", "RECLAIM", 131072)
    asked = theirs.to_primitive().presentation_context_definition_list
    for context, answered in zip(asked, answer.presentation_context_definition_results_list, strict=True):
        names = RULES._syntaxes.get(str(context.abstract_syntax))
        supported = [] if names is None else [build_context(context.abstract_syntax, preferred(context, names) or sorted(names))]
        ((expected,), _) = negotiate_as_acceptor([context], supported)
        assert (answered.context_id, answered.result) == (expected.context_id, expected.result)
        assert answered.transfer_syntax == expected.transfer_syntax
        assert (context.context_id in acceptance.contexts) is (expected.result == 0)
    assert acceptance.response[-len(IMPLEMENTATION_VERSION_NAME) :] == IMPLEMENTATION_VERSION_NAME.encode()


def preferred(asked, known):
    common = [uid for uid in asked.transfer_syntax if uid in known]
    return sorted(common, key=lambda uid: uid == "1.2.840.10008.1.2")


def test_no_transfer_syntax_of_dicom_is_forgotten():
    left_out = {uid for uid in ALL_TRANSFER_SYNTAXES if uid not in TRANSFER_SYNTAXES}
    referenced = {f"1.2.840.10008.1.2.4.{number}" for number in (94, 95, 204, 205)}
    assert left_out == referenced | {uid for uid in ALL_TRANSFER_SYNTAXES if uid.startswith("1.2.840.10008.1.2.7")}
    retired = {
        uid for uid, (name, kind, _, note, _) in UID_dictionary.items() if kind == "Transfer Syntax" and note and "JPEG" in name
    }
    assert len(retired) == 14
    assert set(TRANSFER_SYNTAXES) <= set(ALL_TRANSFER_SYNTAXES) | retired
    assert retired <= set(TRANSFER_SYNTAXES), "archives hold what old modalities sent"


def test_no_storage_class_of_dicom_is_forgotten():
    current = {uid for uid in _STORAGE_CLASSES.values() if uid_to_service_class(uid) is StorageServiceClass}
    assert len(current) > 160
    retired = {
        uid
        for uid, (name, kind, domain, note, _) in UID_dictionary.items()
        if kind == "SOP Class" and note and not domain and re.search(r"Storage( - Trial)?$", name) and ".4.1.1." in uid
    }
    assert len(retired) == 16
    assert set(storage_classes(DicomSettings())) == current | retired


def test_a_site_adds_classes_and_may_take_only_some():
    private = "1.3.12.2.1107.5.9.1"
    every = storage_classes(DicomSettings())
    assert storage_classes(DicomSettings(sop_classes=(private, CT))) == (*every, private)
    assert storage_classes(DicomSettings(only_sop_classes=(CT,))) == (CT,)
    assert storage_classes(DicomSettings(only_sop_classes=(CT,), sop_classes=(private,))) == (CT, private)


@pytest.mark.parametrize("setting", ["sop_classes", "only_sop_classes"])
@pytest.mark.parametrize("uid", ["MR", "1.2.840.10008.5.1.4.1.2.2.1", VERIFICATION, "1..2", ""])
def test_what_is_no_storage_class_cannot_be_configured(setting, uid):
    with pytest.raises(InvalidInput, match=f"RECLAIM_DICOM_{setting.upper()}"):
        storage_classes(DicomSettings(**{setting: (uid,)}))


def test_a_listener_loads_no_library_that_objects_do_not_need():
    """What is loaded stays in memory for weeks: pydicom, pynetdicom and numpy come with the first request that needs them."""
    script = "import sys; sys.argv[1:] = ['serve']; import listeners.cli.main, listeners.dicom.app; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pydicom", "pynetdicom", "numpy", "scipy", "torch", "requests", "PIL"} & set(loaded)
