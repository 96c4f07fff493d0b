"""Modality Performed Procedure Step as SCP (PS3.4 Annex F.7): N-CREATE and N-SET, as a signal that a study is complete.

Kept are the step's UID, its status, its studies and the instances it names; nothing that identifies a patient. Attributes that
are not used are not checked: a step with a flaw elsewhere is a better signal than none.
"""

import logging
from collections.abc import Collection, Iterator
from typing import Final

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from listeners.dicom.normalized import (
    CLASS_INSTANCE_CONFLICT,
    DUPLICATE_INSTANCE,
    INVALID_ATTRIBUTE_VALUE,
    INVALID_INSTANCE,
    NO_SUCH_INSTANCE,
    NOT_AUTHORIZED,
    PROCESSING_FAILURE,
    SUCCESS,
    Refused,
    answering,
    items_of,
    printable_ae,
    references_in,
    required,
    text_of,
    uid_of,
)
from listeners.dicom.operations import MPPS, N_CREATE_RQ, N_SET_RQ, Handlers, Operation, Reply
from schemas.vocabulary import StepState
from services.assembly.commitments import Reference
from services.assembly.headers import is_valid_uid
from services.assembly.signals import create_step, set_step
from services.assembly.steps import StepRefusal
from services.runtime.database import Database

logger = logging.getLogger(__name__)
NO_LONGER_UPDATED: Final = 0xA710
"""Error ID of PS3.4 F.7.2.2.3: the Performed Procedure Step Object may no longer be updated."""

_ADD_IT: Final = "add its title to RECLAIM_DICOM_MPPS_AE_TITLES if it is a modality that announces steps"

_REFUSALS: Final[dict[StepRefusal, tuple[int, str, str, str]]] = {
    StepRefusal.DUPLICATE: (DUPLICATE_INSTANCE, "MPS-201", "A step with this SOP Instance UID exists", "the sender is at fault"),
    StepRefusal.UNKNOWN: (NO_SUCH_INSTANCE, "MPS-202", "No step with this SOP Instance UID", "its N-CREATE was refused or lost"),
    StepRefusal.FOREIGN: (
        NOT_AUTHORIZED,
        "MPS-208",
        "The step was created by another AE",
        "let the AE title that created it end it",
    ),
    StepRefusal.FINAL: (PROCESSING_FAILURE, "MPS-203", "The step has ended and may no longer be updated", "the sender is at fault"),
}


def mpps_handlers(database: Database, ae_titles: Collection[str] = ()) -> Handlers:
    """N-CREATE and N-SET of Modality Performed Procedure Step.

    `ae_titles` are those that may create a step, which completes a study by naming its instances; empty: everybody.
    """

    def create(operation: Operation) -> Reply:
        if ae_titles and operation.peer.calling_ae not in ae_titles:
            raise Refused(NOT_AUTHORIZED, "MPS-209", "This AE may not announce steps", _ADD_IT)
        _require_class(operation, "AffectedSOPClassUID")
        step_uid = text_of(operation.command, "AffectedSOPInstanceUID") or str(generate_uid())
        _require_uid(step_uid)
        dataset = required(operation.dataset, "PerformedProcedureStepStatus")
        if _status(dataset) is not StepState.IN_PROGRESS:
            raise Refused(INVALID_ATTRIBUTE_VALUE, "MPS-204", "A new step has to be IN PROGRESS")
        studies, references = _studies(dataset), _references(dataset)
        with database.transaction() as tx:
            outcome = create_step(tx, step_uid, studies, printable_ae(operation.peer.calling_ae), references)
        return _reply(operation, outcome, MPPS, step_uid)

    def update(operation: Operation) -> Reply:
        _require_class(operation, "RequestedSOPClassUID")
        step_uid = text_of(operation.command, "RequestedSOPInstanceUID")
        _require_uid(step_uid)
        dataset = operation.dataset or Dataset()
        status = _status(dataset) if "PerformedProcedureStepStatus" in dataset else None
        references = _references(dataset)
        with database.transaction() as tx:
            outcome = set_step(tx, step_uid, printable_ae(operation.peer.calling_ae), status, references)
        return _reply(operation, outcome, MPPS, step_uid)

    return {
        (MPPS, N_CREATE_RQ): answering("N-CREATE (MPPS)", create),
        (MPPS, N_SET_RQ): answering("N-SET (MPPS)", update),
    }


def _reply(operation: Operation, outcome: StepState | StepRefusal, sop_class_uid: str, step_uid: str) -> Reply:
    if isinstance(outcome, StepRefusal):
        raise Refused(*_REFUSALS[outcome], error_id=NO_LONGER_UPDATED if outcome is StepRefusal.FINAL else None)
    logger.info("MPS-100 a step of %s is %s", printable_ae(operation.peer.calling_ae), outcome)
    return Reply(SUCCESS, elements={"AffectedSOPClassUID": sop_class_uid, "AffectedSOPInstanceUID": step_uid})


def _require_class(operation: Operation, keyword: str) -> None:
    if text_of(operation.command, keyword) != MPPS:
        raise Refused(CLASS_INSTANCE_CONFLICT, "MPS-205", "SOP Class UID is not Modality Performed Procedure Step")


def _require_uid(step_uid: str) -> None:
    if not is_valid_uid(step_uid):
        raise Refused(INVALID_INSTANCE, "MPS-206", "SOP Instance UID is not a valid UID")


def _status(dataset: Dataset) -> StepState:
    try:
        return StepState(text_of(dataset, "PerformedProcedureStepStatus"))
    except ValueError:
        raise Refused(INVALID_ATTRIBUTE_VALUE, "MPS-207", "PerformedProcedureStepStatus is no defined term") from None


def _studies(dataset: Dataset) -> list[str]:
    required(dataset, "ScheduledStepAttributesSequence")
    items = items_of(dataset, "ScheduledStepAttributesSequence")
    return [uid_of(required(item, "StudyInstanceUID"), "StudyInstanceUID") for item in items]


def _references(dataset: Dataset) -> tuple[Reference, ...] | None:
    """What the Performed Series Sequence names; None when the request leaves it as it is."""
    if "PerformedSeriesSequence" not in dataset:
        return None
    return references_in(_named(dataset), INVALID_ATTRIBUTE_VALUE)


def _named(dataset: Dataset) -> Iterator[Dataset]:
    for series in items_of(dataset, "PerformedSeriesSequence"):
        yield from items_of(series, "ReferencedImageSequence")
        yield from items_of(series, "ReferencedNonImageCompositeSOPInstanceSequence")
