"""Bytes of a data set by position, read forwards: from memory, from a file, or inflated as they are asked for.

A source holds a window of a few KiB, never the data set. Positions must not decrease from call to call.
"""

import os
import zlib
from typing import IO, Final, Protocol

MOST_INFLATED_BYTES: Final = 1 << 28
FREE_INFLATED_BYTES: Final = 1 << 24
MOST_INFLATION: Final = 20
"""A deflated data set may grow to 16 MiB, or to 20 times its size where that is more, but never beyond 256 MiB."""
LONGEST_TRAILER: Final = 9
"""After a deflated data set: a padding byte (PS3.5 §A.5), and the eight bytes of a gzip trailer that some writers leave."""
_CHUNK: Final = 1 << 16


class BrokenStructureError(ValueError):
    """The data set does not end where its elements end. `tag` is the element at fault."""

    def __init__(self, reason: str, tag: int = 0) -> None:
        super().__init__(reason)
        self.tag = tag


class Source(Protocol):
    """Where a walk reads from."""

    def read(self, position: int, count: int) -> bytes:
        """Up to `count` bytes from `position`; fewer only at the end, none behind it."""

    @property
    def size(self) -> int:
        """Bytes in all; known at the latest when a `read` reached the end."""


class BytesSource:
    """A data set in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, position: int, count: int) -> bytes:
        """See `Source`."""
        return self._data[position : position + count]


class FileSource:
    """A data set in a file from `offset` to its end. `head` is its beginning, as far as somebody has it in memory."""

    def __init__(self, descriptor: int, offset: int, size: int, head: bytes = b"") -> None:
        self._descriptor = descriptor
        self._offset = offset
        self.head = head
        self.size = size

    def read(self, position: int, count: int) -> bytes:
        """See `Source`; raises OSError."""
        end = min(position + count, self.size)
        if end <= len(self.head):
            return self.head[position:end]
        return os.pread(self._descriptor, end - position, self._offset + position) if position < end else b""


class StreamSource:
    """A data set in a seekable stream from `offset` to its end."""

    def __init__(self, stream: IO[bytes], offset: int) -> None:
        self._stream = stream
        self._offset = offset
        stream.seek(0, os.SEEK_END)
        self.size = max(stream.tell() - offset, 0)

    def read(self, position: int, count: int) -> bytes:
        """See `Source`; raises OSError."""
        self._stream.seek(self._offset + position)
        return self._stream.read(count)


class InflatedSource:
    """What a deflated source inflates to (PS3.5 §A.5); raises BrokenStructureError for damage and for bombs."""

    def __init__(self, deflated: Source) -> None:
        self._deflated = deflated
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._taken = 0
        self._window = bytearray()
        self._base = 0

    @property
    def size(self) -> int:
        """Bytes inflated so far: all of them once the end was reached."""
        return self._base + len(self._window)

    def read(self, position: int, count: int) -> bytes:
        """See `Source`."""
        while self.size < position + count and self._inflate():
            if position > self._base:
                passed = min(position - self._base, len(self._window))
                del self._window[:passed]
                self._base += passed
        start = position - self._base
        return bytes(self._window[start : start + count])

    def _inflate(self) -> bool:
        if self._inflater.eof:
            return False
        pending = self._inflater.unconsumed_tail
        if not pending:
            pending = self._deflated.read(self._taken, _CHUNK)
            self._taken += len(pending)
            if not pending:
                raise BrokenStructureError("the deflated data set is cut short")
        try:
            self._window += self._inflater.decompress(pending, _CHUNK)
        except zlib.error:
            raise BrokenStructureError("the deflated data set is damaged") from None
        self._check()
        return True

    def _check(self) -> None:
        most = min(MOST_INFLATED_BYTES, max(FREE_INFLATED_BYTES, MOST_INFLATION * self._deflated.size))
        if self.size > most:
            raise BrokenStructureError("the deflated data set is larger than can be taken")
        left = self._deflated.size - self._taken + len(self._inflater.unused_data)
        if self._inflater.eof and left > LONGEST_TRAILER:
            raise BrokenStructureError("bytes follow the deflated data set")
