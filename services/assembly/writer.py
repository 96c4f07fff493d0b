"""One thread that enters stored files into the index in batches, behind the receivers of all associations.

The file on disk is the promise; the row is derived from it. Rows that a crash takes with it are found again at the next
start (`reindex.enter_missing`). The queue has a limit: `has_room` is what slows the senders down when the database does
not keep up.
"""

import contextlib
import logging
import threading
import time
import traceback
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import Final

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from services.assembly.conflicts import keep_aside
from services.assembly.files import ArchiveFiles, NotPart10Error
from services.assembly.index import ArchiveIndex, StoredFile
from services.assembly.repository import Recorded
from services.runtime.errors import Transient

logger = logging.getLogger(__name__)
PAUSE_S: Final = 0.02
LONGEST_PAUSE_S: Final = 0.1
LONGEST_COLLECTION_S: Final = 0.5
"""A batch is collected until nothing came for 20 ms, at most for 500 ms: senders at full speed share commits, and the last
row of a study does not wait. Where the last batch took longer than 20 ms to write, the machine is busy and so are the senders:
then until nothing came for as long, at most 100 ms."""
MOST_AT_ONCE: Final = 512
CAPACITY: Final = 5000
SHORTEST_RETRY_S: Final = 0.1
LONGEST_RETRY_S: Final = 5.0


class IndexWriter:
    """Enters files in the order in which they were submitted; thread-safe.

    `failure` never has a result; it raises when no row will be written any more, and the process had better end.
    """

    def __init__(self, files: ArchiveFiles, index: ArchiveIndex, capacity: int = CAPACITY) -> None:
        self._files = files
        self._index = index
        self._capacity = capacity
        self._queue: deque[StoredFile] = deque()
        self._wake = threading.Event()
        self._drained = threading.Condition()
        self._stopping = False
        self._written = 0
        self._waiting = 0
        self._pause_s = PAUSE_S
        self._thread: threading.Thread | None = None
        self.failure: Future[None] = Future()

    def start(self) -> None:
        """Begin to write."""
        self._thread = threading.Thread(target=self._run, name="dicom-index")
        self._thread.start()

    def stop(self) -> None:
        """Write what is left, unless the database is away, and end; what is not written is found at the next start."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def is_behind(self) -> bool:
        """Whether three quarters of the queue are in use: no time to accept further associations."""
        return len(self._queue) * 4 >= self._capacity * 3

    def has_room(self, wait_s: float) -> bool:
        """Whether one more file can be submitted, waiting a while if need be."""
        if len(self._queue) < self._capacity:
            return True
        with self._drained:
            return self._drained.wait_for(lambda: len(self._queue) < self._capacity, wait_s)

    def has_caught_up(self, wait_s: float) -> bool:
        """Whether everything submitted so far is entered, and what contradicts it is found; waits a while if need be."""
        with self._drained:
            target = self._written + len(self._queue)
            self._waiting += 1
            try:
                return self._drained.wait_for(lambda: self._written >= target, wait_s)
            finally:
                self._waiting -= 1

    def submit(self, file: StoredFile) -> None:
        """Have a published file entered soon. Never blocks: ask `has_room` before taking an instance."""
        self._queue.append(file)
        if not self._wake.is_set():
            self._wake.set()

    def _run(self) -> None:
        with contextlib.suppress(Transient, DBAPIError):  # a database that is away costs the first study the time
            self._index.prepare()
        try:
            self._write_until_stopped()
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end this thread alone
            logger.critical("ASM-315 no rows are written any more (%s at %s)", _name(error), _place(error))
            self.failure.set_exception(RuntimeError("ASM-315 the index writer has a bug: report it, and start the listener again"))

    def _write_until_stopped(self) -> None:
        while True:
            self._wake.wait()
            self._collect()
            self._wake.clear()
            written = self._write_next()
            if self._queue:
                self._wake.set()
            if self._stopping and (not self._queue or not written):
                return

    def _collect(self) -> None:
        end, seen = time.monotonic() + LONGEST_COLLECTION_S, 0
        while seen < len(self._queue) < MOST_AT_ONCE and not (self._stopping or self._waiting) and time.monotonic() < end:
            seen = len(self._queue)
            time.sleep(self._pause_s)

    def _write_next(self) -> bool:
        """Write the rows that wait, up to so many at once; false when it had to give up because everything ends."""
        batch = [self._queue[number] for number in range(min(MOST_AT_ONCE, len(self._queue)))]
        retry_s, began = SHORTEST_RETRY_S, time.monotonic()
        while batch:
            try:
                self._write(batch)
                break
            except (Transient, DBAPIError, MemoryError, OSError) as error:
                logger.warning(
                    "ASM-311 %d rows wait for the index (%s): is the database up, and has it space?", len(self._queue), _name(error)
                )
                if self._stopping:
                    return False
                time.sleep(retry_s)
                retry_s = min(2 * retry_s, LONGEST_RETRY_S)
        self._pause_s = min(max(PAUSE_S, time.monotonic() - began), LONGEST_PAUSE_S)
        with self._drained:
            for _ in batch:
                self._queue.popleft()
            self._written += len(batch)
            self._drained.notify_all()
        return True

    def _write(self, batch: list[StoredFile]) -> None:
        """Enter a batch; raises what may pass. Only a row that is itself to blame is left out."""
        try:
            outcomes = self._index.enter_all(batch)
        except Exception as error:
            if _may_pass(error):
                raise
            if len(batch) == 1:
                _log_defect(error)
                return
            for file in batch:
                self._write([file])
            return
        for file, outcome in zip(batch, outcomes, strict=True):
            if outcome is Recorded.CONFLICT:
                self._keep_aside(self._index.path_of(file.facts))

    def _keep_aside(self, path: str) -> None:
        try:
            kept_as = keep_aside(self._files, self._index, self._files.root / path, path)
        except (FileNotFoundError, NotPart10Error):
            return  # a second submission of the same file: it is aside already
        except OSError as error:  # it has no row where it lies: the next check of the index finds it
            logger.error("ASM-314 %s cannot be set aside (%s): check the disk, run `reclaim archive reindex`", path, error.strerror)  # noqa: TRY400
            return
        except Exception as error:
            if _may_pass(error):
                raise
            _log_defect(error)
            return
        logger.warning(
            "ASM-313 an object came whose SOP Instance UID belongs to another study or series; it is kept as %s: ask the sender's "
            "vendor why it uses a UID twice",
            kept_as,
        )


def _name(error: Exception) -> str:
    return type(error).__name__


def _may_pass(error: Exception) -> bool:
    """Whether the fault is outside the row: the database says so of everything but what it holds against values."""
    outside = isinstance(error, (Transient, DBAPIError, MemoryError, OSError))
    return outside and not isinstance(error, (DataError, IntegrityError))


def _place(error: Exception) -> str:
    """Where a defect struck, without the exception's text, which may hold identities."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))


def _log_defect(error: Exception) -> None:
    logger.error(
        "ASM-312 a stored file has no row (%s at %s): report it, then run `reclaim archive reindex`", _name(error), _place(error)
    )
