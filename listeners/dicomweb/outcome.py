"""What became of a request's instances, as DICOM JSON and as an HTTP status (PS3.18 §10.5.3 and Annex I, Table I.1-1)."""

from dataclasses import dataclass, field
from typing import Any, Final

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from listeners.dicom import answers
from listeners.dicom.answers import Answer
from listeners.dicomweb.part10 import FileMeta, shown

TOO_LARGE: Final = Answer(
    0xA700, "WEB-101", "Out of resources: the instance is too large", "raise RECLAIM_DICOM_MAX_OBJECT_BYTES if it shall be stored"
)
NO_DICOM: Final = Answer(0xC000, "WEB-102", "The part is not a DICOM file", "the sender is at fault: ask its vendor")
STUDY_MISMATCH: Final = Answer(
    0xA901, "WEB-103", "StudyInstanceUID is not that of the address", "the sender is at fault: post to /dicomweb/studies"
)
SYNTAX_NOT_SUPPORTED: Final = Answer(
    0xC122, "WEB-104", "Transfer syntax not supported", "the sender has to convert it; see docs/conformance.md"
)
CLASS_NOT_SUPPORTED: Final = Answer(
    0x0122, "WEB-105", "SOP class not supported", "add it to RECLAIM_DICOM_SOP_CLASSES if it shall be stored"
)
BROKEN_BODY: Final = Answer(
    0xC000, "WEB-106", "The body is not multipart/related to its end", "the sender or a proxy cut or changed it: send it again"
)
TOO_MANY: Final = Answer(0xA700, "WEB-107", "Too many instances in one request", "send the study in several requests")

_FULL: Final = (answers.DISK_FULL.message_id,)
_AWAY: Final = (answers.STORAGE_AWAY.message_id, answers.INDEX_AWAY.message_id)
_LARGE: Final = (TOO_LARGE.message_id, answers.TOO_LARGE.message_id, TOO_MANY.message_id)


@dataclass(frozen=True)
class Result:
    """One part's answer; `meta` is None where the part names no instance."""

    answer: Answer
    meta: FileMeta | None = None


@dataclass
class Outcome:
    """All parts' answers, in the order of the parts, and what ended the request before its end."""

    results: list[Result] = field(default_factory=list)

    @property
    def stored(self) -> int:
        """Instances that are in the archive, durably."""
        return sum(result.answer.is_success for result in self.results)

    def status(self) -> int:
        """200 all stored, 202 some; none: 400 syntax, 413 size, 507 or 503 where trying again helps, 409 everything else."""
        if self.results and self.stored == len(self.results):
            return 200
        if self.stored:
            return 202
        reasons = {result.answer.message_id for result in self.results}
        if not reasons or BROKEN_BODY.message_id in reasons:
            return 400
        for status, which in ((507, _FULL), (503, (*_FULL, *_AWAY)), (413, _LARGE)):
            if reasons.issubset(which):
                return status
        return 409

    def as_json(self) -> dict[str, Any]:
        """The Store Instances Response Module. Nothing is coerced, so there is no Warning Reason; nothing is retrievable."""
        response = Dataset()
        response.RetrieveURL = ""
        good = [_reference(result) for result in self.results if result.answer.is_success]
        failed = [_failure(result) for result in self.results if not result.answer.is_success and result.meta]
        others = [_failure(result) for result in self.results if not result.answer.is_success and not result.meta]
        for keyword, items in (("ReferencedSOPSequence", good), ("FailedSOPSequence", failed), ("OtherFailuresSequence", others)):
            if items:
                setattr(response, keyword, Sequence(items))
        return dict(response.to_json_dict())


def _reference(result: Result) -> Dataset:
    item = Dataset()
    if result.meta:
        item.ReferencedSOPClassUID = shown(result.meta.sop_class_uid)
        item.ReferencedSOPInstanceUID = shown(result.meta.sop_instance_uid)
        item.RetrieveURL = ""
    return item


def _failure(result: Result) -> Dataset:
    item = Dataset()
    if result.meta:
        item.ReferencedSOPClassUID = shown(result.meta.sop_class_uid)
        item.ReferencedSOPInstanceUID = shown(result.meta.sop_instance_uid)
    item.FailureReason = result.answer.status
    return item
