"""From one C-STORE request to its answer. Knows nothing of the network: any receive loop may call it, from any thread.

Success is answered only after the file is on stable storage under its final name (promise 1). The row of the index is
derived from it: an `IndexWriter` enters it a moment later, or, without one, it is entered before the answer.
"""

import errno
import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from opentelemetry import trace
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from listeners.dicom import answers
from listeners.dicom.answers import Answer
from listeners.dicom.file_meta import encode_file_meta
from services.assembly.conflicts import keep_aside
from services.assembly.files import ArchiveFiles, NotPart10Error, Temporary, same_dataset
from services.assembly.headers import (
    InstanceFacts,
    Memory,
    MissingElement,
    UnreadableHeader,
    foresee_facts,
    is_valid_uid,
    read_facts,
)
from services.assembly.index import ArchiveIndex, StoredFile
from services.assembly.outlines import Common
from services.assembly.reindex import enter_file, read_stored
from services.assembly.repository import Recorded
from services.assembly.sources import FileSource
from services.assembly.writer import IndexWriter
from services.runtime.clock import Clock
from services.runtime.errors import Transient
from services.runtime.transaction import current_traceparent

logger = logging.getLogger(__name__)
tracer = trace.get_tracer("reclaim.dicom")
MOST_OBJECT_BYTES: Final = 1 << 31
HEAD_BYTES: Final = 1 << 14
"""Kept in memory while an instance comes: its header, usually."""
ROOM_WAIT_S: Final = 5.0
SPACE_KNOWN_S: Final = 0.02
"""So long the disk's free space is taken for what it was: a system call less for nearly every instance under load."""
MOST_REMEMBERED: Final = 16
"""Senders of whose objects something is remembered when their association ends: some tens of kilobytes each."""
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Refused(Exception):  # noqa: N818 - named for what the sender hears
    """The instance is not stored; `answer` says why."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.message_id)
        self.answer = answer


class StoreHead(NamedTuple):
    """What is known of a C-STORE before its data set comes. UIDs are the command's and not to be trusted."""

    context_sop_class_uid: str
    affected_sop_class_uid: str
    affected_sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae: str
    has_dataset: bool = True
    traceparent: str = ""


@dataclass(frozen=True)
class StoreRequest:
    """A whole C-STORE request. `dataset` is encoded as sent; UIDs are the command's and not to be trusted."""

    context_sop_class_uid: str
    affected_sop_class_uid: str
    affected_sop_instance_uid: str
    transfer_syntax_uid: str
    dataset: bytes
    calling_ae: str


class Reception:
    """Checks, stores and indexes instances; thread-safe."""

    def __init__(
        self,
        files: ArchiveFiles,
        index: ArchiveIndex,
        clock: Clock,
        min_free_bytes: int,
        *,
        writer: IndexWriter | None = None,
        max_object_bytes: int = MOST_OBJECT_BYTES,
        classes_of_ae: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.files = files
        self.index = index
        self.clock = clock
        self.writer = writer
        self.max_object_bytes = max_object_bytes
        self._min_free_bytes = min_free_bytes
        self._classes_of_ae = classes_of_ae or {}
        self._space_until = 0.0
        self._common = lru_cache(MOST_REMEMBERED)(lambda sender: Common())  # noqa: ARG005 - one for each

    def receive(self, request: StoreRequest) -> Answer:
        """Deal with one whole request inside its own span; never raises."""
        with tracer.start_as_current_span("C-STORE", kind=trace.SpanKind.SERVER) as span:
            incoming = self.begin(
                StoreHead(
                    context_sop_class_uid=request.context_sop_class_uid,
                    affected_sop_class_uid=request.affected_sop_class_uid,
                    affected_sop_instance_uid=request.affected_sop_instance_uid,
                    transfer_syntax_uid=request.transfer_syntax_uid,
                    calling_ae=request.calling_ae,
                    traceparent=current_traceparent(),
                )
            )
            incoming.write([request.dataset])
            answer = incoming.finish()
            span.set_attribute("dicom.status", f"0x{answer.status:04X}")
            span.set_attribute("dicom.bytes", len(request.dataset))
            span.set_attribute("reclaim.message_id", answer.message_id)
            if not answer.is_success:
                span.set_status(trace.StatusCode.ERROR, answer.comment)
        return answer

    def begin(self, head: StoreHead, memory: Memory | None = None) -> "Incoming":
        """Begin to take an instance. Never raises: what is refused already is taken and thrown away, and `finish` says why.

        `memory` is the sender's own, from one instance to the next.
        """
        return Incoming(self, head, memory)

    def memory_of(self, sender: str) -> Memory:
        """For one association of a sender, which may have several."""
        return Memory(self._common(sender))

    def has_space(self) -> bool:
        """Whether the disk has more room than the limit, or had it a moment ago; raises OSError."""
        now = time.monotonic()
        if now < self._space_until:
            return True
        has_space = self.files.free_bytes() >= self._min_free_bytes
        self._space_until = now + SPACE_KNOWN_S if has_space else 0.0
        return has_space

    def check_head(self, head: StoreHead) -> None:
        """Raise Refused for a request that cannot be stored whatever its data set."""
        if not head.has_dataset:
            raise Refused(answers.NO_DATASET)
        if head.affected_sop_class_uid != head.context_sop_class_uid:
            raise Refused(answers.CLASS_NOT_NEGOTIATED)
        if not is_valid_uid(head.affected_sop_instance_uid):
            raise Refused(answers.INVALID_INSTANCE_UID)
        permitted = self._classes_of_ae.get(head.calling_ae)
        if permitted is not None and head.affected_sop_class_uid not in permitted:
            raise Refused(answers.NOT_AUTHORIZED)
        if not self.has_space():
            raise Refused(answers.DISK_FULL)
        if self.writer is not None and not self.writer.has_room(ROOM_WAIT_S):
            raise Refused(answers.INDEX_BEHIND)

    def file_away(self, temporary: Temporary, file: StoredFile) -> Answer:
        """Publish a checked, synchronised file and have it indexed; other bytes for a known UID go aside."""
        path = file.path
        if self.writer is None and self._is_known_elsewhere(file, path):
            return self._refuse_conflict(temporary.path, path)
        if self.files.publish(temporary.path, path):
            return self._enter(file, path, answers.STORED)
        if not self._holds_same(Path(temporary.path), path):
            return self._refuse_conflict(temporary.path, path)
        return self._enter(file, path, answers.RESENT)

    def _enter(self, file: StoredFile, path: str, answer: Answer) -> Answer:
        if self.writer is not None:
            self.writer.submit(file)
            return answer
        recorded = self.index.enter(file)
        if recorded is Recorded.CONFLICT:
            return self._refuse_conflict(self.files.root / path, path)
        return answers.STORED if recorded is Recorded.NEW else answers.RESENT

    def _is_known_elsewhere(self, file: StoredFile, path: str) -> bool:
        known = self.index.known_as(file.facts.sop_instance_uid)
        return known is not None and known.path != path

    def _holds_same(self, temporary: Path, path: str) -> bool:
        """Whether the archive's file has the data set just received. A file that a crash left without row gets it now."""
        present = self.files.root / path
        try:
            if same_dataset(temporary, present):
                return True
            if self.writer is not None:
                self.writer.submit(read_stored(present))
            else:
                enter_file(self.index, self.files.root, present)
        except (NotPart10Error, UnreadableHeader, MissingElement):
            logger.warning("DCM-208 %s is damaged: restore it from a backup", path)
        return False

    def _refuse_conflict(self, source: str | Path, path: str) -> Answer:
        kept_as = keep_aside(self.files, self.index, source, path, acknowledged=False)
        return answers.CONFLICT.about(path, kept_as)


class Incoming:
    """One instance under way: `write` its data set piece by piece, then `finish` or `abandon`; for one thread."""

    def __init__(self, reception: Reception, head: StoreHead, memory: Memory | None) -> None:
        self._reception = reception
        self._head = head
        self._memory = memory
        self._temporary: Temporary | None = None
        self._meta = b""
        self._head_bytes = b""
        self._begun = False
        self._foreseen: tuple[InstanceFacts, int] | None = None
        self._answer: Answer | None = None
        self.received = 0
        self._guarded(self._open)

    @property
    def is_endless(self) -> bool:
        """Whether so much came beyond the largest object that the peer is better cut off than answered."""
        return self.received > 2 * self._reception.max_object_bytes

    def write(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Take a part of the data set; never raises."""
        size = sum(map(len, pieces))
        self.received += size
        temporary = self._temporary
        if temporary is None:  # it was refused
            return
        if self.received > self._reception.max_object_bytes:
            self._refuse(answers.TOO_LARGE)
            return
        if not self._begun and pieces:
            self._begun = True
            self._head_bytes = _beginning(pieces, HEAD_BYTES)
            if self._memory is not None:
                self._foreseen = foresee_facts(self._head_bytes, self._head.transfer_syntax_uid, self._memory)
            pieces, size = [self._meta, *pieces], size + len(self._meta)
        try:
            temporary.write(pieces, size)
        except OSError as error:
            self._refuse(_of_os_error(error))

    def finish(self) -> Answer:
        """Check and store what came, and clean up; never raises."""
        answer = self.conclude()
        self.abandon()
        return answer

    def conclude(self) -> Answer:
        """The same without cleaning up: for callers that send the answer first and `abandon` then."""
        if self._answer is None:
            self._guarded(self._store)
        assert self._answer is not None
        if self._answer.status or logger.isEnabledFor(logging.DEBUG):
            _log(self._answer, self._head, self.received)
        return self._answer

    def abandon(self) -> None:
        """Remove the temporary file: what is stored has its final name by then."""
        if self._temporary is not None:
            self._temporary.discard()
            self._temporary = None

    def _open(self) -> None:
        head = self._head
        self._reception.check_head(head)
        self._meta = encode_file_meta(
            head.affected_sop_class_uid, head.affected_sop_instance_uid, head.transfer_syntax_uid, printable(head.calling_ae)
        )
        self._temporary = self._reception.files.open_temporary()

    def _store(self) -> None:
        assert self._temporary is not None
        facts = self._checked_facts(self._temporary)
        if self._temporary.size != len(self._meta) + self.received:
            raise AssertionError("the file is not what was received")
        self._temporary.sync()
        head, reception, no_digest = self._head, self._reception, ""
        file = StoredFile(
            facts,
            head.transfer_syntax_uid,
            self.received,
            no_digest,
            reception.clock.now(),
            printable(head.calling_ae),
            head.traceparent,
            reception.index.path_of(facts),
        )
        self._answer = reception.file_away(self._temporary, file)

    def _checked_facts(self, temporary: Temporary) -> InstanceFacts:
        """The index's elements of a data set that agrees with its command; raises Refused with the status of DICOM's tables."""
        if self._foreseen is not None and self._foreseen[1] == self.received:
            facts = self._foreseen[0]
        else:
            source = FileSource(temporary.descriptor, len(self._meta), self.received, self._head_bytes)
            facts = read_checked(source, self._head.transfer_syntax_uid, self._memory)
        if facts.sop_class_uid != self._head.affected_sop_class_uid:
            raise Refused(answers.CLASS_MISMATCH)
        if facts.sop_instance_uid != self._head.affected_sop_instance_uid:
            raise Refused(answers.INSTANCE_MISMATCH)
        return facts

    def _refuse(self, answer: Answer) -> None:
        self._answer = answer
        self.abandon()

    def _guarded(self, step: Callable[[], None]) -> None:
        """Run a step; every exception becomes the answer that DICOM has for it."""
        try:
            step()
        except Refused as refused:
            self._refuse(refused.answer)
        except (Transient, PoolTimeoutError):
            self._refuse(answers.INDEX_AWAY)
        except MemoryError:
            self._refuse(answers.STORAGE_AWAY)
        except OSError as error:
            self._refuse(_of_os_error(error))
        except Exception as error:  # noqa: BLE001 - the sender must hear the right status whatever the defect is
            _log_defect(error)
            self._refuse(answers.FAILED)


def read_checked(source: FileSource, transfer_syntax_uid: str, memory: Memory | None = None) -> InstanceFacts:
    """The index's elements of a data set in a file, whose structure holds to its last byte; raises Refused."""
    try:
        return read_facts(source, transfer_syntax_uid, memory)
    except UnreadableHeader as error:
        raise Refused(answers.BROKEN_DATASET.at(error.tag)) from None
    except MissingElement as error:
        raise Refused(answers.MISSING_UID.at(error.tag)) from None


def _beginning(pieces: Sequence[bytes | memoryview], most: int) -> bytes:
    if len(pieces[0]) >= most or len(pieces) == 1:
        return bytes(pieces[0][:most])
    found = b""
    for piece in pieces:
        found += piece[: most - len(found)]
        if len(found) == most:
            break
    return found


@lru_cache(256)
def printable(ae_title: str) -> str:
    """An AE title as it may stand in a log line."""
    return "".join(character if " " < character <= "~" else "?" for character in ae_title.strip())[:16]


def _of_os_error(error: OSError) -> Answer:
    return answers.DISK_FULL if error.errno in _NO_SPACE else answers.STORAGE_AWAY


def _log(answer: Answer, head: StoreHead, size: int) -> None:
    if answer.is_success:
        logger.debug("%s stored %d bytes", answer.message_id, size)
        return
    logger.warning(
        "%s C-STORE from %s answered %04X (%s)%s: %s",
        answer.message_id,
        printable(head.calling_ae),
        answer.status,
        answer.comment,
        f" at {answer.tag >> 16:04X},{answer.tag & 0xFFFF:04X}" if answer.tag else "",  # brackets would have the rest masked
        answer.advice,
    )


def _log_defect(error: Exception) -> None:
    """Where a defect struck, without the exception's text: drivers put parameters, and so identities, into it."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    place = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    logger.error("DCM-902 %s at %s", type(error).__name__, place)
