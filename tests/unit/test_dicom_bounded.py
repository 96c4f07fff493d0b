"""Messages that are small on the wire and large when decoded: refused early, wherever the mass hides; large honest ones pass."""

import struct
import tracemalloc

import pytest
from pydicom.dataset import Dataset
from pynetdicom.dsutils import encode

from listeners.dicom import bounded
from listeners.dicom.association import LONGEST_MESSAGE, AcceptedContext, Message, Request
from listeners.dicom.bounded import MOST_STEPS
from listeners.dicom.commands import Command
from listeners.dicom.commitment import commitment_handlers
from listeners.dicom.messages import LONGEST_STEP, answer
from listeners.dicom.mpps import MPPS, mpps_handlers
from listeners.dicom.normalized import items_of, references_in
from listeners.dicom.operations import Peer
from services.assembly.commitments import MOST_REFERENCES
from services.assembly.reporter import PUSH_MODEL
from tests.dicom_wire import command, element

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
EVIL = Peer("EVIL", "RECLAIM", "192.0.2.9")
ITEM, END = struct.pack("<HHL", 0xFFFE, 0xE000, 0), struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
NO_ITEM = struct.pack("<HHL", 0x0009, 0x1001, 0)
ACTION = element(0x0003, PUSH_MODEL.encode()) + element(0x1001, b"1.2.840.10008.1.20.1.1") + element(0x1008, b"\1\0")


def status_of(field, body, further=b"", abstract=PUSH_MODEL, syntax=IMPLICIT):
    handlers = mpps_handlers(None) | commitment_handlers(None, {})
    request = Request(AcceptedContext(1, abstract, syntax, False), Command(command(field, sop_class=abstract, further=further)))
    response, _ = answer(Message(request, body), handlers, EVIL)
    return struct.unpack_from("<H", response, response.index(struct.pack("<HHL", 0, 0x0900, 2)) + 8)[0]


def mass(item):
    return item * ((LONGEST_MESSAGE - 100) // len(item))


@pytest.mark.parametrize(
    ("syntax", "body"),
    [
        (IMPLICIT, struct.pack("<HHL", 0x0008, 0x1199, 0xFFFFFFFF) + mass(ITEM) + END),
        (IMPLICIT, struct.pack("<HHL", 0x0008, 0x1140, 0xFFFFFFFF) + mass(NO_ITEM) + END),
        (IMPLICIT, struct.pack("<HHL", 0x0008, 0x1199, len(mass(ITEM))) + mass(ITEM)),
        (IMPLICIT, mass(struct.pack("<HHL", 0x0009, 0x1001, 0))),
        (EXPLICIT, struct.pack("<HH2sHL", 0x0008, 0x1199, b"SQ", 0, len(mass(ITEM))) + mass(ITEM)),
        (EXPLICIT, struct.pack("<HH2sHL", 0x0008, 0x1199, b"UN", 0, len(mass(ITEM))) + mass(ITEM)),
    ],
)
def test_a_message_of_a_million_empty_items_is_refused_in_bounded_memory(syntax, body, monkeypatch):
    assert body.count(ITEM) <= bounded.MOST_ITEMS or status_of(0x0130, body, ACTION, syntax=syntax) == 0x0213
    monkeypatch.setattr(bounded, "MOST_ITEMS", LONGEST_MESSAGE)
    monkeypatch.setattr(bounded, "MOST_STEPS", 20_000)  # the principle: the true limit takes seconds
    tracemalloc.start()
    try:
        assert status_of(0x0130, body, ACTION, syntax=syntax) == 0x0213
        assert tracemalloc.get_traced_memory()[1] < 60 << 20
    finally:
        tracemalloc.stop()


def test_a_uid_that_is_a_sequence_is_not_decoded(monkeypatch):
    monkeypatch.setattr(bounded, "MOST_ITEMS", LONGEST_MESSAGE)
    monkeypatch.setattr(bounded, "MOST_STEPS", 20_000)
    uid = struct.pack("<HH2sHL", 0x0008, 0x1155, b"SQ", 0, len(mass(ITEM))) + mass(ITEM)
    reference = struct.pack("<HH2sH", 0x0008, 0x1150, b"UI", 4) + b"1.2\0"
    items = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + reference + uid + struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
    body = struct.pack("<HH2sHL", 0x0008, 0x1199, b"SQ", 0, 0xFFFFFFFF) + items + END
    assert status_of(0x0130, body, ACTION, syntax=EXPLICIT) == 0x0106


def test_a_step_over_its_limit_is_refused():
    assert status_of(0x0140, ITEM * (LONGEST_STEP // 8 + 1), abstract=MPPS) == 0x0213


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("undefined", [True, False])
def test_the_largest_honest_request_passes(implicit, undefined, monkeypatch):
    """At a fiftieth of the size: decoding it all takes many seconds."""
    monkeypatch.setattr(bounded, "MOST_STEPS", MOST_STEPS // 50)
    one, sample = Dataset(), Dataset()
    one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.840.{'1' * 36}"
    one.is_undefined_length_sequence_item = undefined
    sample.ReferencedSOPSequence = [one]
    sample["ReferencedSOPSequence"].is_undefined_length = undefined
    encoded = encode(sample, implicit, True)
    start = encoded.index(ITEM[:4])
    item = encoded[start : len(encoded) - (8 if undefined else 0)]
    items = item * (min(MOST_REFERENCES, LONGEST_MESSAGE // len(item)) // 50)
    head = encoded[: start - 4] + struct.pack("<L", 0xFFFFFFFF if undefined else len(items))
    found = bounded.decode_bounded(head + items + (END if undefined else b""), implicit=implicit)
    assert len(references_in(items_of(found, "ReferencedSOPSequence"), 0x0115)) == 1
    assert len(found.ReferencedSOPSequence) == len(items) // len(item) > 1_000
