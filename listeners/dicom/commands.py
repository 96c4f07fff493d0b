"""Command sets (PS3.7 §6.3 and Annex E) of the messages that come by the thousand, parsed and built by `struct`."""

import re
import struct
from collections.abc import Mapping
from typing import Final

from listeners.dicom.pdu import AbortReason, ProtocolError

C_STORE_RQ: Final = 0x0001
C_ECHO_RQ: Final = 0x0030
C_CANCEL_RQ: Final = 0x0FFF
RESPONSE: Final = 0x8000
NO_DATASET: Final = 0x0101

_AFFECTED_SOP_CLASS_UID: Final = 0x0002
_COMMAND_FIELD: Final = 0x0100
_MESSAGE_ID: Final = 0x0110
_MESSAGE_ID_RESPONDED_TO: Final = 0x0120
_DATASET_TYPE: Final = 0x0800
_STATUS: Final = 0x0900
_OFFENDING_ELEMENT: Final = 0x0901
_ERROR_COMMENT: Final = 0x0902
_AFFECTED_SOP_INSTANCE_UID: Final = 0x1000
_ELEMENT: Final = struct.Struct("<HHL")
_ANSWER: Final = struct.Struct("<" + 4 * "HHLH")
_GROUP_LENGTH: Final = struct.Struct("<HHLL")
_NO_DATASET: Final = NO_DATASET.to_bytes(2, "little")
_USUAL_STORE: Final = re.compile(
    rb"\0\0\0\0\x04\0\0\0....\0\0\x02\0(.)\0\0\0([0-9.]{1,64}\0?)\0\0\0\x01\x02\0\0\0\x01\0\0\0\x10\x01\x02\0\0\0(..)"
    rb"\0\0\0\x07\x02\0\0\0..\0\0\0\x08\x02\0\0\0(..)\0\0\0\x10(.)\0\0\0([0-9.]{1,64}\0?)",
    re.DOTALL,
)
"""A C-STORE-RQ of the elements that it must have and no others, in their order: lengths still have to be compared."""


class Command:
    """A request's command set, in Implicit VR Little Endian as always. Values are the sender's and not to be trusted.

    Affected SOP Class UID (0000,0002) and Affected SOP Instance UID (0000,1000) are without padding; bytes that are no ASCII
    become U+FFFD, which is in no UID. `places` are those of the values of Message ID and Affected SOP Instance UID in a
    C-STORE-RQ of the usual elements, None in all others; `model` is the command that this one is like.
    """

    __slots__ = (
        *("_instance", "class_value", "encoded", "field", "has_dataset", "message_id", "model", "places"),
        *("sop_class_uid", "sop_instance_uid"),
    )
    field: int
    message_id: int
    has_dataset: bool
    class_value: bytes | None
    _instance: bytes | None
    sop_class_uid: str
    sop_instance_uid: str
    places: tuple[int, int] | None

    def __init__(self, encoded: bytes, model: "Command | None" = None) -> None:
        """Parse; raises ProtocolError for what cannot even be answered. From a `model` only the values at its `places` differ."""
        self.encoded = encoded
        self.model = model
        self.places = None
        if model is not None and model.places is not None:
            self.places = message_at, instance_at = model.places
            self.field, self.has_dataset = model.field, model.has_dataset
            self.class_value, self.sop_class_uid = model.class_value, model.sop_class_uid
            self.message_id = encoded[message_at] | encoded[message_at + 1] << 8
            self._instance = encoded[instance_at:]
            self.sop_instance_uid = _text(self._instance)
            return
        if not self._is_usual_store(encoded):
            self._parse(_elements(encoded))
        self.sop_class_uid, self.sop_instance_uid = _text(self.class_value), _text(self._instance)

    def _is_usual_store(self, encoded: bytes) -> bool:
        """Take in what nearly every sender sends, at a quarter of the cost."""
        usual = _USUAL_STORE.fullmatch(encoded)
        if usual is None:
            return False
        class_length, sop_class, message_id, dataset_type, instance_length, instance = usual.groups()
        if len(sop_class) != class_length[0] or len(instance) != instance_length[0]:
            return False
        self.field, self.class_value, self._instance = C_STORE_RQ, sop_class, instance
        self.message_id = message_id[0] | message_id[1] << 8
        self.has_dataset = dataset_type != _NO_DATASET
        self.places = usual.start(3), usual.start(6)
        return True

    def _parse(self, found: Mapping[int, bytes]) -> None:
        self.field = field = _number(found, _COMMAND_FIELD)
        self.message_id = 0 if field == C_CANCEL_RQ or field & RESPONSE else _number(found, _MESSAGE_ID)
        self.has_dataset = _number(found, _DATASET_TYPE) != NO_DATASET
        self.class_value, self._instance = found.get(_AFFECTED_SOP_CLASS_UID), found.get(_AFFECTED_SOP_INSTANCE_UID)

    def response(self, status: int, comment: str = "", tag: int = 0) -> bytes:
        """The command set of the response without data set, with Error Comment and Offending Element where given."""
        shorts = _ANSWER.pack(
            *(0, _COMMAND_FIELD, 2, self.field | RESPONSE),
            *(0, _MESSAGE_ID_RESPONDED_TO, 2, self.message_id),
            *(0, _DATASET_TYPE, 2, NO_DATASET),
            *(0, _STATUS, 2, status),
        )
        body = _echoed(_AFFECTED_SOP_CLASS_UID, self.class_value) + shorts
        if tag:
            body += struct.pack("<HHLHH", 0, _OFFENDING_ELEMENT, 4, tag >> 16, tag & 0xFFFF)
        if comment:
            body += _encoded(_ERROR_COMMENT, comment.encode("ascii", "replace")[:64], b" ")
        body += _echoed(_AFFECTED_SOP_INSTANCE_UID, self._instance)
        return _GROUP_LENGTH.pack(0, 0, 4, len(body)) + body


def _echoed(element: int, value: bytes | None) -> bytes:
    return b"" if value is None else _encoded(element, value[:64], b"\x00")


def _text(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\x00 ").decode("ascii", "replace")


def _number(elements: Mapping[int, bytes], element: int) -> int:
    value = elements.get(element, b"")
    if len(value) != 2:
        raise ProtocolError(AbortReason.UNEXPECTED_PARAMETER, f"a command without (0000,{element:04X})")
    return value[0] | value[1] << 8


def _elements(encoded: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    position, end = 0, len(encoded)
    while position < end:
        if position + 8 > end:
            raise ProtocolError(AbortReason.INVALID_PARAMETER, "a command set that is cut short")
        group, element, length = _ELEMENT.unpack_from(encoded, position)
        position += 8
        if group != 0 or length > end - position:
            raise ProtocolError(AbortReason.INVALID_PARAMETER, "a command set that is none")
        found[element] = encoded[position : position + length]
        position += length
    return found


def _encoded(element: int, value: bytes, padding: bytes) -> bytes:
    padded = value + padding if len(value) % 2 else value
    return _ELEMENT.pack(0, element, len(padded)) + padded
