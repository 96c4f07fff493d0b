"""Command sets (PS3.7 §6.3 and Annex E) of the messages that come by the thousand, parsed and built by `struct`."""

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


class Command:
    """A request's command set, in Implicit VR Little Endian as always. Values are the sender's and not to be trusted."""

    __slots__ = ("_elements", "encoded", "field", "has_dataset", "message_id")

    def __init__(self, encoded: bytes) -> None:
        """Parse; raises ProtocolError for what cannot even be answered."""
        self.encoded = encoded
        self._elements = found = _elements(encoded)
        self.field = field = _number(found, _COMMAND_FIELD)
        self.message_id = 0 if field == C_CANCEL_RQ or field & RESPONSE else _number(found, _MESSAGE_ID)
        self.has_dataset = _number(found, _DATASET_TYPE) != NO_DATASET

    @property
    def sop_class_uid(self) -> str:
        """Affected SOP Class UID (0000,0002); bytes that are no ASCII become U+FFFD, which is in no UID."""
        return self._text(_AFFECTED_SOP_CLASS_UID)

    @property
    def sop_instance_uid(self) -> str:
        """Affected SOP Instance UID (0000,1000), likewise."""
        return self._text(_AFFECTED_SOP_INSTANCE_UID)

    def response(self, status: int, comment: str = "", tag: int = 0) -> bytes:
        """The command set of the response without data set, with Error Comment and Offending Element where given."""
        shorts = _ANSWER.pack(
            *(0, _COMMAND_FIELD, 2, self.field | RESPONSE),
            *(0, _MESSAGE_ID_RESPONDED_TO, 2, self.message_id),
            *(0, _DATASET_TYPE, 2, NO_DATASET),
            *(0, _STATUS, 2, status),
        )
        body = self._echoed(_AFFECTED_SOP_CLASS_UID) + shorts
        if tag:
            body += struct.pack("<HHLHH", 0, _OFFENDING_ELEMENT, 4, tag >> 16, tag & 0xFFFF)
        if comment:
            body += _encoded(_ERROR_COMMENT, comment.encode("ascii", "replace")[:64], b" ")
        body += self._echoed(_AFFECTED_SOP_INSTANCE_UID)
        return _GROUP_LENGTH.pack(0, 0, 4, len(body)) + body

    def _echoed(self, element: int) -> bytes:
        value = self._elements.get(element)
        return b"" if value is None else _encoded(element, value[:64], b"\x00")

    def _text(self, element: int) -> str:
        return self._elements.get(element, b"").rstrip(b"\x00 ").decode("ascii", "replace")


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
