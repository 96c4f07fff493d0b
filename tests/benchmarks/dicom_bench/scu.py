"""A storage SCU over one socket, small enough that the server is what a benchmark measures and a soak test can break anything.

It notes when each request left and when its response came, sends objects exactly as they are encoded, and can stop in the
middle of a PDU. PS3.8 §9.3 (PDUs), PS3.7 §9.3.1 (C-STORE), §9.3.5 (C-ECHO). Standard library only: senders start at once.
"""

import socket
import ssl
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

VERIFICATION: Final = "1.2.840.10008.1.1"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
SUCCESS: Final = 0x0000
LARGEST_PDU: Final = 131_072
_APPLICATION_CONTEXT: Final = b"1.2.840.10008.3.1.1.1"
_IMPLEMENTATION_CLASS: Final = b"2.25.289719925082001582583020525647827915901"
_COMMAND: Final = struct.Struct("<HHL")
_HEADER: Final = struct.Struct(">BBL")


class Refused(Exception):  # noqa: N818 - named for what happened
    """The association was rejected or aborted, or no presentation context was accepted for an object."""


@dataclass(frozen=True)
class Item:
    """One object as it goes over the wire: `dataset` is encoded in `syntax`, without file meta information."""

    sop_class: str
    sop_instance: str
    syntax: str
    dataset: bytes


@dataclass(frozen=True)
class Response:
    """A C-STORE response with the seconds from the request's first byte to the response's last."""

    status: int
    seconds: float


class Scu:
    """One association as requestor. Raises Refused or OSError (ConnectionError, TimeoutError) where it ends early."""

    def __init__(
        self,
        address: tuple[str, int],
        contexts: Iterable[tuple[str, str]],
        *,
        calling: str = "BENCH",
        called: str = "RECLAIM",
        tls: ssl.SSLContext | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        plain = socket.create_connection(address, timeout_s)
        self.socket = tls.wrap_socket(plain) if tls else plain
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._message_id = 0
        try:
            self._negotiate(list(dict.fromkeys(contexts)), calling, called)
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.release()
        self.close()

    def store(self, item: Item) -> int:
        """Send one object and return the status of its response."""
        self.socket.sendall(self.request(item))
        return self.response()

    def echo(self) -> int:
        """C-ECHO; returns its status."""
        command = self._command(0x0030, VERIFICATION, has_dataset=False)
        self.socket.sendall(b"".join(_pdata(self._context(VERIFICATION, IMPLICIT_LITTLE), command, self._largest, is_command=True)))
        return self.response()

    def request(self, item: Item) -> bytes:
        """The P-DATA-TF PDUs of a C-STORE request, in the sizes that the acceptor takes."""
        context = self._context(item.sop_class, item.syntax)
        command = self._command(0x0001, item.sop_class, item.sop_instance, has_dataset=True)
        parts = _pdata(context, command, self._largest, is_command=True)
        parts += _pdata(context, item.dataset, self._largest, is_command=False)
        return b"".join(parts)

    def response(self) -> int:
        """Wait for the next response; returns its status."""
        return _status_of(self._next_message())

    def release(self) -> None:
        """A-RELEASE; waits for the answer."""
        self.socket.sendall(_HEADER.pack(5, 0, 4) + bytes(4))
        kind, _ = self._pdu()
        if kind != 6:
            raise Refused(f"PDU type {kind:#x} instead of A-RELEASE-RP")

    def close(self) -> None:
        """Drop the connection, as a pulled cable does not but a killed sender does."""
        self.socket.close()

    def _negotiate(self, contexts: Sequence[tuple[str, str]], calling: str, called: str) -> None:
        self.socket.sendall(_associate_rq(contexts, calling, called))
        kind, body = self._pdu()
        if kind != 2:
            raise Refused(f"PDU type {kind:#x} ({body.hex()}) instead of A-ASSOCIATE-AC")
        accepted, largest = _associate_ac(body)
        self._contexts = {pair: 2 * n + 1 for n, pair in enumerate(contexts) if 2 * n + 1 in accepted}
        self._largest = min(largest or LARGEST_PDU, LARGEST_PDU)

    def _context(self, abstract: str, syntax: str) -> int:
        context = self._contexts.get((abstract, syntax))
        if context is None:
            raise Refused(f"no presentation context for {abstract} in {syntax}")
        return context

    def _command(self, field: int, sop_class: str, sop_instance: str = "", *, has_dataset: bool) -> bytes:
        self._message_id = self._message_id % 65_535 + 1
        elements = [_uid(0x0002, sop_class), _us(0x0100, field), _us(0x0110, self._message_id)]
        elements += [_us(0x0700, 0)] if has_dataset else []
        elements += [_us(0x0800, 0x0001 if has_dataset else 0x0101)]
        elements += [_uid(0x1000, sop_instance)] if sop_instance else []
        body = b"".join(elements)
        return _COMMAND.pack(0, 0, 4) + struct.pack("<L", len(body)) + body

    def _next_message(self) -> bytes:
        """The command set of the next message; responses to C-STORE and C-ECHO have no data set."""
        command = b""
        while True:
            kind, body = self._pdu()
            if kind != 4:
                raise Refused(f"PDU type {kind:#x} ({body.hex()}) instead of a response")
            position = 0
            while position < len(body):
                (length,) = struct.unpack_from(">L", body, position)
                control = body[position + 5]
                command += body[position + 6 : position + 4 + length] if control & 1 else b""
                position += 4 + length
                if control == 3:
                    return command

    def _pdu(self) -> tuple[int, bytes]:
        kind, _, length = _HEADER.unpack(self._exactly(6))
        return kind, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise ConnectionResetError("the peer closed the connection")
            data += piece
        return bytes(data)


def _associate_rq(contexts: Sequence[tuple[str, str]], calling: str, called: str) -> bytes:
    items = _item(0x10, _APPLICATION_CONTEXT)
    for number, (abstract, syntax) in enumerate(contexts):
        inside = _item(0x30, abstract.encode()) + _item(0x40, syntax.encode())
        items += _item(0x20, bytes((2 * number + 1, 0, 0, 0)) + inside)
    items += _item(0x50, _item(0x51, struct.pack(">L", LARGEST_PDU)) + _item(0x52, _IMPLEMENTATION_CLASS))
    body = struct.pack(">HH16s16s32x", 1, 0, called.ljust(16).encode(), calling.ljust(16).encode()) + items
    return _HEADER.pack(1, 0, len(body)) + body


def _associate_ac(body: bytes) -> tuple[set[int], int]:
    """Accepted presentation context IDs and the acceptor's maximum PDU length (0: any)."""
    accepted, largest = set(), 0
    for kind, value in _items(body[68:]):
        if kind == 0x21 and value[2] == 0:
            accepted.add(value[0])
        if kind == 0x50:
            largest = next((struct.unpack(">L", inner)[0] for sub, inner in _items(value) if sub == 0x51), 0)
    return accepted, largest


def _items(data: bytes) -> Iterable[tuple[int, bytes]]:
    position = 0
    while position < len(data):
        kind, _, length = struct.unpack_from(">BBH", data, position)
        yield kind, data[position + 4 : position + 4 + length]
        position += 4 + length


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


def _pdata(context: int, data: bytes, largest: int, *, is_command: bool) -> list[bytes]:
    step, parts, view = largest - 6, [], memoryview(data)
    for start in range(0, len(data), step):
        piece = view[start : start + step]
        control = (1 if is_command else 0) | (2 if start + step >= len(data) else 0)
        parts += [struct.pack(">BBLLBB", 4, 0, len(piece) + 6, len(piece) + 2, context, control), bytes(piece)]
    return parts


def _uid(element: int, value: str) -> bytes:
    data = value.encode() + (b"\0" if len(value) % 2 else b"")
    return _COMMAND.pack(0, element, len(data)) + data


def _us(element: int, value: int) -> bytes:
    return _COMMAND.pack(0, element, 2) + struct.pack("<H", value)


def _status_of(command: bytes) -> int:
    position = 0
    while position < len(command):
        _, element, length = _COMMAND.unpack_from(command, position)
        if element == 0x0900:
            return int(struct.unpack_from("<H", command, position + 8)[0])
        position += 8 + length
    raise Refused("a response without Status")
