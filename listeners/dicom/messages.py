"""Messages that are rare: decoded and encoded by pydicom and pynetdicom, and dealt with by the handler of their service."""

import contextlib
import logging
import threading
from io import BytesIO
from typing import Any, Final

from pydicom.dataset import Dataset
from pynetdicom.dsutils import decode, encode

from listeners.dicom.association import UNRECOGNIZED_OPERATION, Message, Request
from listeners.dicom.bounded import TooManyError, decode_bounded
from listeners.dicom.commands import NO_DATASET, RESPONSE
from listeners.dicom.operations import N_CREATE_RQ, N_SET_RQ, Handlers, Operation, OperationHandler, Peer, Reply
from listeners.dicom.reception import printable

logger = logging.getLogger(__name__)
PROCESSING_FAILURE: Final = 0x0110
RESOURCE_LIMITATION: Final = 0x0213
LONGEST_STEP: Final = 1 << 20
"""Of the data set of N-CREATE and N-SET: a performed procedure step of 8,000 instances."""
SMALL: Final = 1 << 16
"""Up to this size as many are dealt with at once as there are associations."""
_DATASET_FOLLOWS: Final = 0x0001
_IMPLICIT: Final = "1.2.840.10008.1.2"
_one_large = threading.Lock()


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
        return _encoded(request, _handled(message, handler, peer))
    except TooManyError:
        logger.warning("DCM-323 a message of %s holds too much: answered 0213", printable(peer.calling_ae))
        return request.command.response(RESOURCE_LIMITATION), None
    except Exception as error:  # noqa: BLE001 - the peer must hear of it, whatever the handler's defect is
        logger.error("DCM-904 operation %04X failed: %s", request.command.field, type(error).__name__)  # noqa: TRY400
        return request.command.response(PROCESSING_FAILURE), None


def _handled(message: Message, handler: OperationHandler, peer: Peer) -> Reply:
    """One large message at a time in the whole process: each may need some hundred MB and some seconds."""
    size = len(message.dataset or b"")
    if size > LONGEST_STEP and message.request.command.field in (N_CREATE_RQ, N_SET_RQ):
        raise TooManyError
    with _one_large if size > SMALL else contextlib.nullcontext():
        return handler(_operation(message, peer))


def _operation(message: Message, peer: Peer) -> Operation:
    context, data = message.request.context, message.dataset
    command = decode(BytesIO(message.request.command.encoded), True, True)
    implicit = context.transfer_syntax == _IMPLICIT
    dataset = None if data is None else decode_bounded(data, implicit=implicit)
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
