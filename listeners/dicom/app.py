"""Builds the DICOM listener: one worker that serves until the process stops, and mends the index beside it."""

import asyncio
import contextlib
import gc
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from listeners.dicom.operations import MPPS, N_ACTION_RQ, N_CREATE_RQ, N_SET_RQ, PUSH_MODEL, Handlers, late
from listeners.dicom.reception import Reception
from listeners.dicom.scp import StorageScp, check_settings
from services.assembly.files import ArchiveFiles
from services.assembly.index import ArchiveIndex
from services.assembly.reindex import enter_missing
from services.assembly.writer import IndexWriter
from services.runtime.errors import Transient
from services.runtime.service import Context, Service, StopSignal, Worker

logger = logging.getLogger(__name__)
RECONCILE_RETRY_S: Final = 10.0
GARBAGE_THRESHOLD: Final = 20_000
"""New objects between two collections, instead of Python's 700: one instance makes a few hundred."""


def build(context: Context) -> Service:
    """The service; InvalidInput when SOP classes, networks or certificates are none."""
    check_settings(context.settings.dicom)

    async def run(stop: StopSignal) -> None:
        await serve(context, stop)

    return Service("dicom", workers=(Worker("dicom", run),))


async def serve(context: Context, stop: StopSignal) -> None:
    """Serve until `stop` is set; raises Transient when the port is taken."""
    with _open_files(context.settings.archive_dir, context.settings.dicom.min_free_bytes) as files:
        reception = _reception(context, files)
        assert reception.writer is not None
        scp = StorageScp(context.settings.dicom, reception, _handlers(context, reception.writer))
        background: list[asyncio.Task[None]] = []
        async with contextlib.AsyncExitStack() as ending:  # every step is taken, whatever another one raises
            ending.push_async_callback(_end, background, stop)
            ending.push_async_callback(asyncio.to_thread, reception.writer.stop)
            ending.push_async_callback(asyncio.to_thread, scp.stop)
            port = await asyncio.to_thread(scp.start)
            _collect_seldom()
            reception.writer.start()
            announcement = _announce(context.settings.state_dir, port)
            ending.callback(announcement.unlink, missing_ok=True)
            background.append(asyncio.create_task(_reconcile(context, files, stop)))
            logger.info("DCM-300 %s listens on %s port %d", context.settings.dicom.ae_title, context.settings.dicom.host, port)
            await _stopped_or_failed(stop, reception.writer)


async def _stopped_or_failed(stop: StopSignal, writer: IndexWriter) -> None:
    """Return at the end of the process; raises what ended the index writer."""
    stopping, failing = asyncio.create_task(stop.wait()), asyncio.wrap_future(writer.failure)
    await asyncio.wait((stopping, failing), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if failing.done():
        failing.result()


async def _end(tasks: list[asyncio.Task[None]], stop: StopSignal) -> None:
    for task in tasks:
        if not stop.is_set:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _handlers(context: Context, writer: IndexWriter) -> Handlers:
    """Everything on an association that is neither C-STORE nor C-ECHO."""

    def steps() -> Handlers:
        from listeners.dicom.mpps import mpps_handlers  # noqa: PLC0415 - see `late`

        return mpps_handlers(context.database, context.settings.dicom.mpps_ae_titles)

    def commitments() -> Handlers:
        from listeners.dicom.commitment import commitment_handlers  # noqa: PLC0415 - see `late`

        return commitment_handlers(context.database, context.settings.dicom.peers, writer.has_caught_up)

    return {**late(steps, (MPPS, N_CREATE_RQ), (MPPS, N_SET_RQ)), **late(commitments, (PUSH_MODEL, N_ACTION_RQ))}


def _reception(context: Context, files: ArchiveFiles) -> Reception:
    settings = context.settings.dicom
    index = ArchiveIndex(context.database, context.pseudonyms)
    return Reception(
        files,
        index,
        context.clock,
        settings.min_free_bytes,
        writer=IndexWriter(files, index),
        max_object_bytes=settings.max_object_bytes,
        classes_of_ae=settings.sop_classes_by_ae,
    )


def _collect_seldom() -> None:
    """What is loaded stays: no collection walks through it. Receiving makes many short-lived objects and no cycles."""
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)


@contextlib.contextmanager
def _open_files(root: Path, keep_free: int) -> Iterator[ArchiveFiles]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        files = ArchiveFiles(root, keep_free)
    except OSError as error:
        raise Transient(f"DCM-304 the archive cannot be opened ({error.strerror}): check its disk or mount") from None
    try:
        yield files
    finally:
        files.close()


async def _reconcile(context: Context, files: ArchiveFiles, stop: StopSignal) -> None:
    """Enter whole files that a crash left without row; beside the listener, so that nobody waits for it."""
    while not stop.is_set:
        try:
            summary = await asyncio.to_thread(enter_missing, context, files, stop.thread_event.is_set)
        except (Transient, OSError) as error:
            logger.warning("DCM-305 the index is not checked yet (%s); trying again", type(error).__name__)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), RECONCILE_RETRY_S)
        else:
            logger.info("DCM-306 index checked: %s", summary.text())
            return


def _announce(state_dir: Path, port: int) -> Path:
    """Write the port in use to `run/dicom.json`, for `doctor` and for port 0. On a full disk it stays unsaid."""
    path = state_dir / "run" / "dicom.json"
    fresh = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps({"port": port, "pid": os.getpid()}), encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        logger.warning(
            "DCM-307 %s cannot be written (%s): is the disk full? `reclaim doctor` may look at another port", path, error.strerror
        )
    return path
