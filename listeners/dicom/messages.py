"""Messages that are rare: decoded and encoded by pydicom and pynetdicom, and dealt with by the handler of their service."""

import logging
from io import BytesIO
from typing import Any, Final

from pydicom.dataset import Dataset
from pynetdicom.dsutils import decode, encode

from listeners.dicom.association import UNRECOGNIZED_OPERATION, Message, Request
from listeners.dicom.commands import NO_DATASET, RESPONSE
from listeners.dicom.operations import Handlers, Operation, Peer, Reply
from listeners.dicom.reception import printable

logger = logging.getLogger(__name__)
PROCESSING_FAILURE: Final = 0x0110
_DATASET_FOLLOWS: Final = 0x0001
_IMPLICIT: Final = "1.2.840.10008.1.2"


def answer(message: Message, handlers: Handlers, peer: Peer) -> tuple[bytes, bytes | None]:
    """Encoded command set and data set of the response; never raises."""
    request = message.request
    handler = handlers.get((request.context.abstract_syntax, request.command.field))
    if handler is None:
        logger.warning(
            "DCM-321 %s asks for operation %04X, which we do not offer there: answered 0211",
            printable(peer.calling_ae),
            request.command.field,
        )
        return request.command.response(UNRECOGNIZED_OPERATION), None
    try:
        return _encoded(request, handler(_operation(message, peer)))
    except Exception as error:  # noqa: BLE001 - the peer must hear of it, whatever the handler's defect is
        logger.error("DCM-904 operation %04X failed: %s", request.command.field, type(error).__name__)  # noqa: TRY400
        return request.command.response(PROCESSING_FAILURE), None


def _operation(message: Message, peer: Peer) -> Operation:
    context, data = message.request.context, message.dataset
    command = decode(BytesIO(message.request.command.encoded), True, True)
    implicit = context.transfer_syntax == _IMPLICIT
    dataset = None if data is None else decode(BytesIO(data), implicit, True)
    return Operation(command, dataset, context.abstract_syntax, context.transfer_syntax, peer)


def _encoded(request: Request, reply: Reply) -> tuple[bytes, bytes | None]:
    implicit = request.context.transfer_syntax == _IMPLICIT
    data = None if reply.dataset is None else encode(reply.dataset, implicit, True)
    command = Dataset()
    command.CommandGroupLength = 0
    command.AffectedSOPClassUID = request.context.abstract_syntax
    command.CommandField = request.command.field | RESPONSE
    command.MessageIDBeingRespondedTo = request.command.message_id
    command.CommandDataSetType = NO_DATASET if data is None else _DATASET_FOLLOWS
    command.Status = reply.status
    for keyword, value in reply.elements.items():
        setattr(command, keyword, value)
    command.CommandGroupLength = len(_checked(encode(command, True, True))) - 12
    return _checked(encode(command, True, True)), data


def _checked(encoded: Any) -> bytes:
    if not encoded:
        raise ValueError("the reply cannot be encoded")
    return bytes(encoded)
