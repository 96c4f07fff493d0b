"""Reads the parts of a STOW-RS body one by one, each into a file of bounded memory; no part is kept after its turn.

A part lies in memory up to 1 MiB and then in an unnamed temporary file, which the kernel removes with the process.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Final, TypeVar

from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp.http_exceptions import HttpProcessingError

IN_MEMORY: Final = 1 << 20
CHUNK: Final = 1 << 18
PACE_BYTES: Final = 1 << 16
"""So much content has to come in the time in which silence would end a request: a drip would hold its slot for ever."""
T = TypeVar("T")
Spool = SpooledTemporaryFile[bytes]


class BrokenBodyError(Exception):
    """The body is not multipart/related to its end."""


@dataclass(frozen=True)
class Part:
    """One part. `file` is at most as large as allowed, to be closed by whoever takes it; `whole` is false where more came."""

    file: Spool
    whole: bool
    is_dicom: bool


def check_content_type(request: web.Request) -> None:
    """Refuse (415) what is not multipart/related with type application/dicom, (400) what lacks a boundary."""
    kind = request.headers.get("Content-Type", "")
    main, *parameters = (piece.strip() for piece in kind.split(";"))
    named = {name.strip().lower(): value.strip().strip('"') for name, _, value in (piece.partition("=") for piece in parameters)}
    if main.lower() != "multipart/related" or named.get("type", "application/dicom").lower() != "application/dicom":
        raise web.HTTPUnsupportedMediaType(text='the body must be multipart/related; type="application/dicom"')
    if not named.get("boundary"):
        raise web.HTTPBadRequest(text="the Content-Type lacks its boundary")


async def read_parts(request: web.Request, limit: int, timeout_s: float, folder: Path) -> AsyncIterator[Part]:
    """The parts of the body, each of at most `limit` bytes; of a longer one only the beginning is kept.

    Raises BrokenBodyError where the body is no multipart (any more), TimeoutError when nothing, or next to nothing, comes for
    `timeout_s`, OSError when a part cannot be kept on disk.
    """
    reader, pace = _reader(request), _Pace(timeout_s)
    while (part := await pace.guarded(reader.next())) is not None:
        if not isinstance(part, BodyPartReader):
            raise BrokenBodyError
        yield await _read(part, limit, pace, folder)


def _reader(request: web.Request) -> MultipartReader:
    try:
        return MultipartReader(request.headers, request.content)
    except (ValueError, AssertionError, KeyError) as error:
        raise BrokenBodyError(type(error).__name__) from None


async def _read(part: BodyPartReader, limit: int, pace: "_Pace", folder: Path) -> Part:
    spool: Spool = SpooledTemporaryFile(max_size=IN_MEMORY, dir=str(folder))  # noqa: SIM115 - whoever takes the part closes it
    size, whole = 0, True
    try:
        while not part.at_eof():
            chunk = await pace.guarded(part.read_chunk(CHUNK))
            pace.count(len(chunk))
            kept = chunk[: limit - size]
            whole = whole and len(kept) == len(chunk)
            size += len(kept)
            if size <= IN_MEMORY:
                spool.write(kept)
            elif kept:
                await asyncio.to_thread(spool.write, kept)
    except BaseException:
        spool.close()
        raise
    return Part(spool, whole, _is_dicom(part))


def _is_dicom(part: BodyPartReader) -> bool:
    """Whether the part says that it is DICOM (or says nothing), as plain bytes."""
    kind = part.headers.get("Content-Type", "application/dicom").partition(";")[0].strip().lower()
    encoding = part.headers.get("Content-Transfer-Encoding", "binary").strip().lower()
    packing = part.headers.get("Content-Encoding", "identity").strip().lower()
    return kind == "application/dicom" and encoding in ("binary", "8bit", "7bit") and packing == "identity"


class _Pace:
    """Guards the steps of a reader. The time spent waiting for the sender counts, not that spent storing what it sent."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._waited_s = 0.0
        self._bytes = 0

    def count(self, size: int) -> None:
        """Content came."""
        self._bytes += size
        if self._bytes >= PACE_BYTES:
            self._waited_s, self._bytes = 0.0, 0

    async def guarded(self, read: Awaitable[T]) -> T:
        """One step; whatever the reader thinks of a malformed body becomes BrokenBodyError. A lost connection stays one."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s - self._waited_s):
                return await read
        except (TimeoutError, OSError):
            raise
        except (ValueError, AssertionError, KeyError, IndexError, RuntimeError, HttpProcessingError) as error:
            raise BrokenBodyError(type(error).__name__) from None
        finally:
            self._waited_s += time.monotonic() - began
