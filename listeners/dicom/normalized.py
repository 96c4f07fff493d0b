"""What the handlers of normalized services (PS3.7 §10) share: reading elements that a peer controls, and refusing in words.

A handler never raises: whatever happens becomes a status of PS3.7 Annex C with an Error Comment and a log line.
"""

import functools
import logging
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from listeners.dicom.bounded import TooManyError, decode_sequence, is_sequence
from listeners.dicom.operations import Operation, OperationHandler, Reply
from services.assembly.commitments import MOST_REFERENCES, Reference
from services.assembly.headers import is_valid_uid
from services.runtime.errors import Transient

logger = logging.getLogger(__name__)

SUCCESS: Final = 0x0000
INVALID_ATTRIBUTE_VALUE: Final = 0x0106
PROCESSING_FAILURE: Final = 0x0110
DUPLICATE_INSTANCE: Final = 0x0111
NO_SUCH_INSTANCE: Final = 0x0112
INVALID_ARGUMENT: Final = 0x0115
INVALID_INSTANCE: Final = 0x0117
CLASS_INSTANCE_CONFLICT: Final = 0x0119
MISSING_ATTRIBUTE: Final = 0x0120
MISSING_ATTRIBUTE_VALUE: Final = 0x0121
NO_SUCH_ACTION: Final = 0x0123
NOT_AUTHORIZED: Final = 0x0124
DUPLICATE_TRANSACTION: Final = 0x0131
RESOURCE_LIMITATION: Final = 0x0213
_DATABASE_AWAY: Final = "Temporary: database not available, send again"
_AT_FAULT: Final = "the sender is at fault: ask its vendor"


@dataclass(eq=False)
class Refused(Exception):  # noqa: N818 - named for what the peer hears
    """The request is not carried out. `comment` has at most 64 characters and no identities; `error_id` goes to (0000,0903)."""

    status: int
    message_id: str
    comment: str
    advice: str = _AT_FAULT
    error_id: int | None = None


def answering(name: str, handle: Callable[[Operation], Reply]) -> OperationHandler:
    """`handle` as a handler that never raises and logs every refusal. `name` is the service's, for the log."""

    @functools.wraps(handle)
    def answer(operation: Operation) -> Reply:
        try:
            return handle(operation)
        except TooManyError:
            return _refuse(name, operation, Refused(RESOURCE_LIMITATION, "DCM-608", "Too many elements and items"))
        except Refused as refused:
            return _refuse(name, operation, refused)
        except (Transient, PoolTimeoutError):
            return _refuse(name, operation, Refused(RESOURCE_LIMITATION, "DCM-601", _DATABASE_AWAY, "see `reclaim doctor`"))
        except Exception as error:  # noqa: BLE001 - the peer must hear a status whatever the defect is
            logger.error("DCM-902 %s at %s", type(error).__name__, _place_of(error))  # noqa: TRY400 - its text may hold identities
            advice = "this is a defect: report it with the line before"
            return _refuse(name, operation, Refused(PROCESSING_FAILURE, "DCM-602", "Processing failure", advice))

    return answer


def required(dataset: Dataset | None, keyword: str) -> Dataset:
    """The data set; Refused when it or the element is absent (0120) or empty (0121)."""
    element = None if dataset is None else _element(dataset, keyword)
    if dataset is None or element is None:
        raise Refused(MISSING_ATTRIBUTE, "DCM-603", f"{keyword} is missing"[:64])
    if element.is_empty:
        raise Refused(MISSING_ATTRIBUTE_VALUE, "DCM-604", f"{keyword} is empty"[:64])
    return dataset


def text_of(dataset: Dataset, keyword: str) -> str:
    """An element's first value as text, empty when it is absent."""
    if is_sequence(dataset, Tag(keyword)):
        raise Refused(INVALID_ATTRIBUTE_VALUE, "DCM-607", f"{keyword} cannot be read"[:64])
    element = _element(dataset, keyword)
    value = element.value if element is not None else None
    if value is None or isinstance(value, bytes):
        return ""
    first = next(iter(value), "") if isinstance(value, list | tuple) or type(value).__name__ == "MultiValue" else value
    return str(first).replace("\x00", "").strip()


def uid_of(dataset: Dataset, keyword: str, status: int = INVALID_ATTRIBUTE_VALUE) -> str:
    """A UID; Refused with `status` when it is none."""
    value = text_of(dataset, keyword)
    if not is_valid_uid(value):
        raise Refused(status, "DCM-605", f"{keyword} is no valid UID"[:64])
    return value


def items_of(dataset: Dataset, keyword: str) -> Iterator[Dataset]:
    """Items of a sequence, none when it is absent or no sequence."""
    element = _element(dataset, keyword)
    if element is not None and element.VR == "SQ":
        yield from element.value or ()


def _element(dataset: Dataset, keyword: str) -> DataElement | None:
    """An element, None when it is absent. It is decoded here, and Refused when that is not possible; raises TooManyError."""
    tag = Tag(keyword)
    try:
        if dictionary_VR(tag) == "SQ":
            decode_sequence(dataset, tag)
        return dataset.get(tag)
    except TooManyError:
        raise
    except Exception:  # noqa: BLE001 - pydicom raises many kinds; none may quote a value
        raise Refused(INVALID_ATTRIBUTE_VALUE, "DCM-607", f"{keyword} cannot be read"[:64]) from None


def references_in(items: Iterator[Dataset], status: int) -> tuple[Reference, ...]:
    """SOP Instance Reference macro (PS3.3 10.8) of each item, each once; Refused with `status` for one that is invalid."""
    found: dict[Reference, None] = {}
    for item in items:
        found[Reference(uid_of(item, "ReferencedSOPClassUID", status), uid_of(item, "ReferencedSOPInstanceUID", status))] = None
        if len(found) > MOST_REFERENCES:
            raise Refused(RESOURCE_LIMITATION, "DCM-606", f"More than {MOST_REFERENCES} instances are named")
    return tuple(found)


def printable_ae(title: str) -> str:
    """An AE title as it may stand in a log line and in the database."""
    return "".join(character if " " < character <= "~" else "?" for character in title.strip())[:16]


def _refuse(name: str, operation: Operation, refused: Refused) -> Reply:
    logger.warning(
        "%s %s from %s answered %04X (%s): %s",
        refused.message_id,
        name,
        printable_ae(operation.peer.calling_ae),
        refused.status,
        refused.comment,
        refused.advice,
    )
    elements: dict[str, object] = {"ErrorComment": refused.comment}
    if refused.error_id is not None:
        elements["ErrorID"] = refused.error_id
    return Reply(refused.status, elements=elements)


def _place_of(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
