"""Framing of the DICOM Upper Layer (PS3.8 §9.3): bytes in any pieces to PDUs and PDV fragments. Knows no socket.

What a P-DATA-TF carries is passed on piece by piece as it arrives, so memory does not grow with the PDU. Control PDUs are
collected up to a limit of their own.
"""

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias


class PduType(IntEnum):
    """PDU types (PS3.8 §9.3.1)."""

    ASSOCIATE_RQ = 0x01
    ASSOCIATE_AC = 0x02
    ASSOCIATE_RJ = 0x03
    P_DATA = 0x04
    RELEASE_RQ = 0x05
    RELEASE_RP = 0x06
    ABORT = 0x07


class AbortReason(IntEnum):
    """Reasons of an A-ABORT by the service provider (PS3.8 Table 9-26)."""

    NOT_SPECIFIED = 0
    UNRECOGNIZED_PDU = 1
    UNEXPECTED_PDU = 2
    UNEXPECTED_PARAMETER = 5
    INVALID_PARAMETER = 6


LONGEST_REQUEST: Final = 1 << 18
"""Of an A-ASSOCIATE-RQ: 128 presentation contexts with 64 transfer syntaxes each come to less."""

RELEASE_RP: Final = struct.pack(">BBLL", PduType.RELEASE_RP, 0, 4, 0)
_PDU_HEADER: Final = struct.Struct(">BxL")
_PDV_HEADER: Final = struct.Struct(">LBB")
_P_DATA: Final = struct.Struct(">BxLLBB")
_HEADER_BYTES: Final = 6
DATA_HEADER: Final = 12
"""Bytes before the data of a P-DATA-TF: its own header, and that of its first PDV."""
_TYPES: Final = {int(kind): kind for kind in PduType}
_SHORT_BYTES: Final = 4
_MOST_KNOWN: Final = 16


class ProtocolError(Exception):
    """The peer breaks the protocol; the association ends with an A-ABORT of this reason. The text never quotes the peer."""

    def __init__(self, reason: AbortReason, what: str) -> None:
        super().__init__(what)
        self.reason = reason


class Control(NamedTuple):
    """A whole PDU other than P-DATA-TF, without its header of six bytes."""

    type: PduType
    body: bytes


class Fragment(NamedTuple):
    """A piece of one PDV. `data` is valid until the next `feed`; `ends` says that it is the PDV's last piece."""

    context_id: int
    is_command: bool
    is_last: bool
    data: memoryview
    ends: bool


Item: TypeAlias = Control | Fragment


class PduReader:
    """Cuts a byte stream into control PDUs and PDV fragments; `expected` is what may come now."""

    def __init__(self, max_pdu: int, expected: Iterable[PduType]) -> None:
        self.expected = frozenset(expected)
        self._max_pdu = max_pdu
        self._header = bytearray()
        self._control: bytearray | None = None
        self._type = PduType.ABORT
        self._pdu_left = 0
        self._pdv_left = 0
        self._pdv = (0, False, False)
        self._known: dict[bytes, tuple[int, tuple[int, bool, bool]]] = {}
        self.plain_header = b""
        """Of the PDV under way, or just ended, where `begin_data` took it in."""

    @property
    def is_between_pdus(self) -> bool:
        """Whether nothing of a PDU has arrived that is not whole yet."""
        return not (self._header or self._pdu_left or self._control is not None)

    def data_left(self, context_id: int) -> int:
        """Bytes to come of the PDV under way, if it is one of this context's data set."""
        context, is_command, _ = self._pdv
        return 0 if is_command or context != context_id else self._pdv_left

    def whole_command(self, data: memoryview, position: int) -> tuple[int, bytes] | None:
        """Context and bytes of the command that begins there, where it is whole and alone in its P-DATA-TF.

        Nothing is taken in: the caller goes on at its end, `DATA_HEADER` and its length further, or feeds it.
        """
        start = position + DATA_HEADER
        if self._pdu_left or self._header or self._control is not None or len(data) < start:
            return None
        kind, length, pdv_length, context, control = _P_DATA.unpack_from(data, position)
        end = start + pdv_length - 2
        if kind != PduType.P_DATA or control & 3 != 3 or length != pdv_length + 4 or not start < end <= len(data):
            return None
        if self._max_pdu and length > self._max_pdu:
            return None
        return context, bytes(data[start:end])

    def begin_data(self, data: memoryview, position: int, context_id: int) -> int:
        """Take in the twelve bytes there if they begin a P-DATA-TF of one fragment of this context's data set; returns its length.

        Everything else, header or not, is left to `feed`: 0.
        """
        if self._pdu_left or self._header or self._control is not None:
            return 0
        header = bytes(data[position : position + DATA_HEADER])
        known = self._known.get(header) or self._read_data_header(header)
        if known is None or known[1][0] != context_id:
            return 0
        self._pdv_left, self._pdv = known
        self._pdu_left = self._pdv_left
        self.plain_header = header
        return self._pdv_left

    def length_of(self, header: bytes) -> int:
        """Of the fragment that a `plain_header` begins."""
        return self._known[header][0]

    def _read_data_header(self, header: bytes) -> tuple[int, tuple[int, bool, bool]] | None:
        """Length, and context with flags, of what these bytes begin, which are remembered: an association has few that differ."""
        if len(header) < DATA_HEADER:
            return None
        kind, length, pdv_length, context, control = _P_DATA.unpack(header)
        left = pdv_length - 2
        if kind != PduType.P_DATA or control & 1 or length != pdv_length + 4 or left <= 0:
            return None
        if self._max_pdu and length > self._max_pdu:
            return None
        if len(self._known) == _MOST_KNOWN:
            self._known.clear()
        self._known[header] = found = left, (context, False, bool(control & 2))
        return found

    def skip(self, count: int) -> bool:
        """So many bytes of the PDV under way, at most all, were taken past this reader; whether they end the last PDV."""
        self._pdv_left -= count
        self._pdu_left -= count
        return not self._pdv_left and self._pdv[2]

    def feed(self, data: memoryview) -> Iterable[Item]:
        """Items that these bytes complete or carry on, in order, as they are asked for; raises ProtocolError."""
        position, end = 0, len(data)
        while position < end:
            if self._pdv_left:
                start, position = position, min(position + self._pdv_left, end)
                self._pdv_left -= position - start
                self._pdu_left -= position - start
                yield Fragment(*self._pdv, data[start:position], not self._pdv_left)
            elif self._control is not None:
                start, position = position, min(position + self._pdu_left, end)
                self._control += data[start:position]
                self._pdu_left -= position - start
                if not self._pdu_left:
                    yield self._take_control()
            elif self._header or end - position < _HEADER_BYTES:
                position = self._collect_header(data, position, end)
                if len(self._header) == _HEADER_BYTES:
                    header = bytes(self._header)
                    self._header.clear()
                    yield from self._begin(header, 0)
            else:
                yield from self._begin(data, position)
                position += _HEADER_BYTES

    def _begin(self, header: bytes | memoryview, position: int) -> Iterable[Item]:
        """Take in the header of a PDU, or of a PDV inside of one; an item is whole already when nothing follows."""
        if not self._pdu_left:
            self._begin_pdu(*_PDU_HEADER.unpack_from(header, position))
            return ()
        self._begin_pdv(*_PDV_HEADER.unpack_from(header, position))
        return () if self._pdv_left else (Fragment(*self._pdv, memoryview(b""), ends=True),)

    def _collect_header(self, data: memoryview, position: int, end: int) -> int:
        stop = min(position + _HEADER_BYTES - len(self._header), end)
        self._header += data[position:stop]
        return stop

    def _take_control(self) -> Control:
        assert self._control is not None
        body, self._control = bytes(self._control), None
        return Control(self._type, body)

    def _begin_pdu(self, number: int, length: int) -> None:
        kind = _TYPES.get(number)
        if kind is None:
            raise ProtocolError(AbortReason.UNRECOGNIZED_PDU, "something that is no PDU")
        self._type = kind
        if kind not in self.expected:
            raise ProtocolError(AbortReason.UNEXPECTED_PDU, f"an unexpected {self._type.name} PDU")
        if self._type is PduType.P_DATA:
            if length < _HEADER_BYTES or (self._max_pdu and length > self._max_pdu):
                raise ProtocolError(AbortReason.INVALID_PARAMETER, "a P-DATA PDU beyond the negotiated maximum length, or empty")
        else:
            most = LONGEST_REQUEST if self._type is PduType.ASSOCIATE_RQ else _SHORT_BYTES
            if not _SHORT_BYTES <= length <= most:
                raise ProtocolError(AbortReason.INVALID_PARAMETER, f"a {self._type.name} PDU of impossible length")
            self._control = bytearray()
        self._pdu_left = length

    def _begin_pdv(self, length: int, context_id: int, control: int) -> None:
        self._pdu_left -= _HEADER_BYTES
        left = length - 2
        if left < 0 or left > self._pdu_left or 0 < self._pdu_left - left < _HEADER_BYTES:
            raise ProtocolError(AbortReason.INVALID_PARAMETER, "a PDV that does not fit its PDU")
        self._pdv = (context_id, bool(control & 1), bool(control & 2))
        self._pdv_left, self.plain_header = left, b""


def encode_reject(result: int, source: int, reason: int) -> bytes:
    """An A-ASSOCIATE-RJ (PS3.8 §9.3.4)."""
    return struct.pack(">BBLBBBB", PduType.ASSOCIATE_RJ, 0, 4, 0, result, source, reason)


def encode_abort(reason: AbortReason) -> bytes:
    """An A-ABORT by the service provider (PS3.8 §9.3.8)."""
    return struct.pack(">BBLBBBB", PduType.ABORT, 0, 4, 0, 0, 2, reason)


def encode_message(context_id: int, command: bytes, dataset: bytes | None, max_pdu: int) -> bytes:
    """P-DATA-TF PDUs of one DIMSE message, none longer than the peer's maximum (0: no limit)."""
    parts = _fragments(context_id, 1, command, max_pdu)
    return parts if dataset is None else parts + _fragments(context_id, 0, dataset, max_pdu)


def _fragments(context_id: int, kind: int, data: bytes, max_pdu: int) -> bytes:
    if not max_pdu or len(data) + _HEADER_BYTES <= max_pdu:
        return _fragment(context_id, kind | 2, data)
    most = max(max_pdu - _HEADER_BYTES, 1)
    starts = range(0, len(data), most)
    return b"".join(
        _fragment(context_id, kind | (2 if start + most >= len(data) else 0), data[start : start + most]) for start in starts
    )


def _fragment(context_id: int, control: int, data: bytes) -> bytes:
    return _P_DATA.pack(PduType.P_DATA, len(data) + _HEADER_BYTES, len(data) + 2, context_id, control) + data
