"""Storage Commitment Push Model as SCP (PS3.4 Annex J): N-ACTION in. The report goes out from `services.assembly.reporter`."""

import logging
from collections.abc import Callable, Mapping
from typing import Final

from listeners.dicom.normalized import (
    CLASS_INSTANCE_CONFLICT,
    DUPLICATE_TRANSACTION,
    INVALID_ARGUMENT,
    NO_SUCH_ACTION,
    NO_SUCH_INSTANCE,
    PROCESSING_FAILURE,
    RESOURCE_LIMITATION,
    SUCCESS,
    Refused,
    answering,
    items_of,
    printable_ae,
    references_in,
    text_of,
    uid_of,
)
from listeners.dicom.operations import N_ACTION_RQ, Handlers, Operation, Reply
from schemas.settings import PeerSettings
from services.assembly.commitments import Request
from services.assembly.reporter import ACTION_REQUEST, PUSH_MODEL, PUSH_MODEL_INSTANCE, peer_titled
from services.assembly.signals import Entered, request_commitment
from services.runtime.database import Database

logger = logging.getLogger(__name__)
INDEX_WAIT_S: Final = 5.0
_ANSWER: Final = {
    "AffectedSOPClassUID": PUSH_MODEL,
    "AffectedSOPInstanceUID": PUSH_MODEL_INSTANCE,
    "ActionTypeID": ACTION_REQUEST,
}
"""Optional in PS3.7 Table 10.1-7, and yet Orthanc takes a response without them for a broken one."""


def commitment_handlers(
    database: Database, peers: Mapping[str, PeerSettings], has_caught_up: Callable[[float], bool] = lambda _: True
) -> Handlers:
    """N-ACTION of the Storage Commitment Push Model. `peers` are those that a report can be sent to.

    `has_caught_up` waits until the index knows what was acknowledged so far: an object with the UID of another study is found
    by the index alone, and its sender must not be told that it is committed.
    """

    def handle(operation: Operation) -> Reply:
        _check_command(operation)
        request = _request(operation)
        if peer_titled(peers, request.peer_ae) is None:
            raise Refused(
                PROCESSING_FAILURE,
                "SCM-201",
                "No address is configured for this AE title",
                f"add the peer with ae_title {request.peer_ae} to dicom.peers, or the report cannot be delivered",
            )
        if not has_caught_up(INDEX_WAIT_S):
            raise Refused(RESOURCE_LIMITATION, "SCM-208", "Temporary: index is behind, ask again", "see `reclaim doctor`")
        with database.transaction() as tx:
            entered = request_commitment(tx, request)
        if entered is Entered.OTHER_CONTENT:
            raise Refused(DUPLICATE_TRANSACTION, "SCM-202", "Transaction UID is in use for other instances")
        logger.info("SCM-100 %s asks commitment of %d instances (%s)", request.peer_ae, len(request.references), entered)
        return Reply(SUCCESS, elements=_ANSWER)

    return {(PUSH_MODEL, N_ACTION_RQ): answering("N-ACTION (storage commitment)", handle)}


def _check_command(operation: Operation) -> None:
    if text_of(operation.command, "RequestedSOPClassUID") != PUSH_MODEL:
        raise Refused(CLASS_INSTANCE_CONFLICT, "SCM-203", "Requested SOP Class UID is not Storage Commitment Push Model")
    if text_of(operation.command, "RequestedSOPInstanceUID") != PUSH_MODEL_INSTANCE:
        raise Refused(NO_SUCH_INSTANCE, "SCM-204", "Requested SOP Instance UID is not the well-known one")
    if operation.command.get("ActionTypeID") != ACTION_REQUEST:
        raise Refused(NO_SUCH_ACTION, "SCM-205", "Action Type ID is not 1")


def _request(operation: Operation) -> Request:
    if operation.dataset is None:
        raise Refused(INVALID_ARGUMENT, "SCM-206", "The request has no Action Information")
    references = references_in(items_of(operation.dataset, "ReferencedSOPSequence"), INVALID_ARGUMENT)
    if not references:
        raise Refused(INVALID_ARGUMENT, "SCM-207", "Referenced SOP Sequence is missing or empty")
    return Request(
        transaction_uid=uid_of(operation.dataset, "TransactionUID", INVALID_ARGUMENT),
        peer_ae=printable_ae(operation.peer.calling_ae),
        own_ae=printable_ae(operation.peer.called_ae),
        references=references,
    )
