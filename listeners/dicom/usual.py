"""The C-STORE requests of one association are alike: all but Message ID and Affected SOP Instance UID are the last one's bytes.

So a P-DATA-TF with such a command is known by one comparison under a mask, and its response of success is three pieces around
the same two values. What differs in anything else is read and answered by `commands` and `pdu` as ever.
"""

from typing import Final

from listeners.dicom.commands import Command
from listeners.dicom.pdu import DATA_HEADER, encode_message

_ELEMENT_HEADER: Final = 8
_MESSAGE_ID_TO_INSTANCE: Final = 2 + 10 + 10
"""Of a response: the value of Message ID Being Responded To, then Command Data Set Type and Status."""


class Usual:
    """What the requests of a presentation context have in common with `command`, which came whole in one PDU behind `header`.

    `command.places` says that it is of the usual elements. `size` is the PDU's.
    """

    __slots__ = ("_after_id", "_before_id", "_expected", "_mask", "_model", "_places", "context_id", "size")

    def __init__(self, context_id: int, header: bytes, command: Command, peer_max_pdu: int) -> None:
        assert command.places is not None
        self.context_id = context_id
        self._model, self._places = command, command.places
        message_at, instance_at = command.places
        pdu = header + command.encoded
        self.size = len(pdu)
        mask = bytearray(b"\xff") * self.size
        mask[DATA_HEADER + message_at : DATA_HEADER + message_at + 2] = bytes(2)
        mask[DATA_HEADER + instance_at :] = bytes(len(command.encoded) - instance_at)
        self._mask = int.from_bytes(mask, "little")
        self._expected = int.from_bytes(pdu, "little") & self._mask
        self._before_id, self._after_id = self._around(command, peer_max_pdu)

    def _around(self, command: Command, peer_max_pdu: int) -> tuple[bytes, bytes]:
        """The response of success without its two values; empty where it is not one PDU, or does not echo the UID as it came."""
        response = encode_message(self.context_id, command.response(0), None, peer_max_pdu)
        instance = command.encoded[self._places[1] - _ELEMENT_HEADER :]
        is_whole = not peer_max_pdu or len(response) - 6 <= peer_max_pdu
        if not is_whole or not response.endswith(instance):
            return b"", b""
        instance_at = len(response) - len(instance)
        message_at = instance_at - _MESSAGE_ID_TO_INSTANCE
        return response[:message_at], response[message_at + 2 : instance_at]

    def next(self, data: memoryview, position: int) -> Command | None:
        """The command that begins there, where it is whole and like the others."""
        pdu = bytes(data[position : position + self.size])
        if int.from_bytes(pdu, "little") & self._mask != self._expected or len(pdu) != self.size:
            return None
        return Command(pdu[DATA_HEADER:], self._model)

    def success(self, command: Command) -> bytes | None:
        """The P-DATA-TF that answers such a command with status 0000; None where it has to be encoded."""
        if not self._before_id or command.model is not self._model:
            return None
        message_at, instance_at = self._places
        encoded = command.encoded
        message_id, instance = encoded[message_at : message_at + 2], encoded[instance_at - _ELEMENT_HEADER :]
        return b"".join((self._before_id, message_id, self._after_id, instance))
