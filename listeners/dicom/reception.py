"""From one C-STORE request to its answer. Knows nothing of the network: any receive loop may call it, from any thread.

Success is answered only after file and index row are on stable storage (DESIGN promise 1).
"""

import errno
import hashlib
import logging
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from opentelemetry import trace
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from listeners.dicom import answers
from listeners.dicom.answers import Answer
from listeners.dicom.file_meta import encode_file_meta
from listeners.dicom.structure import BrokenStructureError, check_structure, plain_dataset
from services.assembly.files import CONFLICTS, ArchiveFiles, NotPart10Error, dataset_digest
from services.assembly.headers import InstanceFacts, MissingElement, UnreadableHeader, is_valid_uid, read_facts
from services.assembly.index import ArchiveIndex, StoredFile
from services.assembly.reindex import enter_file
from services.assembly.repository import Recorded
from services.runtime.clock import Clock
from services.runtime.errors import Transient

logger = logging.getLogger(__name__)
tracer = trace.get_tracer("reclaim.dicom")
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Refused(Exception):  # noqa: N818 - named for what the sender hears
    """The instance is not stored; `answer` says why."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.message_id)
        self.answer = answer


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

    def __init__(self, files: ArchiveFiles, index: ArchiveIndex, clock: Clock, min_free_bytes: int) -> None:
        self._files = files
        self._index = index
        self._clock = clock
        self._min_free_bytes = min_free_bytes

    def receive(self, request: StoreRequest) -> Answer:
        """Deal with one request inside its own span; never raises."""
        with tracer.start_as_current_span("C-STORE", kind=trace.SpanKind.SERVER) as span:
            answer = self._answer(request)
            span.set_attribute("dicom.status", f"0x{answer.status:04X}")
            span.set_attribute("dicom.bytes", len(request.dataset))
            span.set_attribute("reclaim.message_id", answer.message_id)
            if not answer.is_success:
                span.set_status(trace.StatusCode.ERROR, answer.comment)
        _log(answer, request)
        return answer

    def _answer(self, request: StoreRequest) -> Answer:
        try:
            facts = checked_facts(request)
            return self._store(request, facts)
        except Refused as refused:
            return refused.answer
        except (Transient, PoolTimeoutError):
            return answers.INDEX_AWAY
        except MemoryError:
            return answers.STORAGE_AWAY
        except OSError as error:
            return answers.DISK_FULL if error.errno in _NO_SPACE else answers.STORAGE_AWAY
        except Exception as error:  # noqa: BLE001 - the sender must hear the right status whatever the defect is
            _log_defect(error)
            return answers.FAILED

    def _store(self, request: StoreRequest, facts: InstanceFacts) -> Answer:
        file = self._file_of(request, facts)
        known = self._index.known_as(facts.sop_instance_uid)
        path = self._index.path_of(facts)
        if known and known.sha256 == file.sha256 and known.path == path and (self._files.root / path).is_file():
            return answers.RESENT
        self._require_space(len(request.dataset))
        meta = encode_file_meta(
            facts.sop_class_uid, facts.sop_instance_uid, request.transfer_syntax_uid, _printable(request.calling_ae)
        )
        temporary = self._files.write((meta, request.dataset))
        try:
            return self._file_away(temporary, path, file)
        finally:
            self._files.discard(temporary)

    def _file_away(self, temporary: Path, path: str, file: StoredFile) -> Answer:
        """Publish the temporary file and commit its row; other bytes for a known UID go aside."""
        if not self._files.publish(temporary, path) and not self._holds_same(path, file):
            return self._set_aside(temporary, path, file)
        recorded = self._index.enter(file)
        if recorded is Recorded.CONFLICT:
            return self._withdraw(path, file)
        return answers.STORED if recorded is Recorded.NEW else answers.RESENT

    def _holds_same(self, path: str, file: StoredFile) -> bool:
        """Whether the archive's file has the bytes just received. A file that a crash left without row gets it now."""
        present = self._files.root / path
        try:
            if dataset_digest(present) == file.sha256:
                return True
            enter_file(self._index, self._files.root, present)
        except (NotPart10Error, UnreadableHeader, MissingElement):
            logger.warning("DCM-208 %s is damaged: restore it from a backup", path)
        return False

    def _withdraw(self, path: str, file: StoredFile) -> Answer:
        """The index knows this UID elsewhere (another study or series) or with other bytes: nothing new stays in the archive."""
        known = self._index.known_as(file.facts.sop_instance_uid)
        present = self._files.root / path
        if known is None or known.path != path:
            return self._set_aside(present, path, file)
        if dataset_digest(present) == known.sha256:
            return answers.RESENT
        return self._set_aside(present, path, file)

    def _set_aside(self, source: Path, path: str, file: StoredFile) -> Answer:
        study_key, name = Path(path).parts[1], Path(path).stem
        kept_as = f"{CONFLICTS}/{study_key}/{name}-{file.sha256[:16]}.dcm"
        if self._files.publish(source, kept_as):
            self._index.note_conflict(study_key, kept_as, file.sha256)
        self._files.discard(source)
        raise Refused(answers.CONFLICT)

    def _require_space(self, size: int) -> None:
        if self._files.free_bytes() - size < self._min_free_bytes:
            raise Refused(answers.DISK_FULL)

    def _file_of(self, request: StoreRequest, facts: InstanceFacts) -> StoredFile:
        return StoredFile(
            facts=facts,
            transfer_syntax_uid=request.transfer_syntax_uid,
            size=len(request.dataset),
            sha256=hashlib.sha256(request.dataset).hexdigest(),
            received_at=self._clock.now(),
            calling_ae=_printable(request.calling_ae),
        )


def checked_facts(request: StoreRequest) -> InstanceFacts:
    """The index's elements of a data set that agrees with its command; raises Refused with the status of DICOM's tables."""
    if request.affected_sop_class_uid != request.context_sop_class_uid:
        raise Refused(answers.CLASS_NOT_NEGOTIATED)
    if not is_valid_uid(request.affected_sop_instance_uid):
        raise Refused(answers.INVALID_INSTANCE_UID)
    facts = _facts(request)
    if facts.sop_class_uid != request.affected_sop_class_uid:
        raise Refused(answers.CLASS_MISMATCH)
    if facts.sop_instance_uid != request.affected_sop_instance_uid:
        raise Refused(answers.INSTANCE_MISMATCH)
    return facts


def _facts(request: StoreRequest) -> InstanceFacts:
    try:
        plain, syntax = plain_dataset(request.dataset, request.transfer_syntax_uid)
        check_structure(plain, syntax)
        return read_facts(plain, syntax)
    except BrokenStructureError as error:
        raise Refused(answers.BROKEN_DATASET.at(error.tag)) from None
    except UnreadableHeader:
        raise Refused(answers.BROKEN_DATASET) from None
    except MissingElement as error:
        raise Refused(answers.MISSING_UID.at(error.tag)) from None


def _printable(ae_title: str) -> str:
    """An AE title as it may stand in a log line."""
    return "".join(character if " " < character <= "~" else "?" for character in ae_title.strip())[:16]


def _log(answer: Answer, request: StoreRequest) -> None:
    if answer.is_success:
        logger.debug("%s stored %d bytes from %s", answer.message_id, len(request.dataset), _printable(request.calling_ae))
        return
    logger.warning(
        "%s C-STORE from %s answered %04X (%s)%s: %s",
        answer.message_id,
        _printable(request.calling_ae),
        answer.status,
        answer.comment,
        f" at ({answer.tag >> 16:04X},{answer.tag & 0xFFFF:04X})" if answer.tag else "",
        answer.advice,
    )


def _log_defect(error: Exception) -> None:
    """Where a defect struck, without the exception's text: drivers put parameters, and so identities, into it."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    place = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    logger.error("DCM-902 %s at %s", type(error).__name__, place)
