"""`GET /ready`: whether what is sent to this machine can be taken now, for load balancers and monitoring."""

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from aiohttp import web
from sqlalchemy.exc import SQLAlchemyError

from services.runtime.errors import Transient
from services.runtime.run_state import read_state
from services.runtime.service import Context

KNOWN_S: Final = 5.0
"""So long an answer holds: whoever asks without end must not use up the listener's associations."""


class Readiness:
    """Answers from one look at a time."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._looking = asyncio.Lock()
        self._until = 0.0
        self._problems: list[str] = []

    async def get(self, _: web.Request) -> web.Response:
        """200 when all is well, else 503; the body names each problem."""
        async with self._looking:
            if time.monotonic() >= self._until:
                self._problems = await asyncio.to_thread(problems_of, self._context)
                self._until = time.monotonic() + KNOWN_S
        state = "not ready" if self._problems else "ready"
        return web.json_response({"status": state, "problems": self._problems}, status=503 if self._problems else 200)


def problems_of(context: Context) -> list[str]:
    """Why objects would be refused or wait; blocks for some seconds at most."""
    return [*_database(context), *_disk(context), *_listener(context)]


def _database(context: Context) -> Iterator[str]:
    try:
        with context.database.read() as session:
            session.connection().exec_driver_sql("SELECT 1")
    except (Transient, SQLAlchemyError, OSError):
        yield "the database does not answer"


def _disk(context: Context) -> Iterator[str]:
    archive = context.settings.archive_dir
    try:
        free = shutil.disk_usage(next(each for each in (archive, *archive.parents) if each.exists())).free
    except OSError:
        yield "the archive's disk does not answer"
        return
    if free < context.settings.dicom.min_free_bytes:
        yield "less disk space is free than RECLAIM_DICOM_MIN_FREE_BYTES: objects are refused"


def _listener(context: Context) -> Iterator[str]:
    """Of the listener that `reclaim up` runs here. One of another process or machine is asked with C-ECHO by who watches it."""
    from listeners.dicom.echo import echo_ourselves, lets_us_in  # noqa: PLC0415 - 45 MB, for who asks

    state_dir, dicom = context.settings.state_dir, context.settings.dicom
    state = read_state(state_dir)
    if state is None:
        return
    port = _port(state_dir / "run" / "dicom.json")
    if "dicom" in state.misconfigured:
        yield "the DICOM listener does not start with its settings: its last lines name them"
    elif port is None:
        yield "the DICOM listener has not opened its port"
    elif lets_us_in(dicom) and not echo_ourselves(dicom, port):
        yield "the DICOM listener does not answer C-ECHO"


def _port(note: Path) -> int | None:
    try:
        return int(json.loads(note.read_text(encoding="utf-8"))["port"])
    except (OSError, ValueError, KeyError):
        return None
