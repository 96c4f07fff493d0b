"""The SCP on the wire: pynetdicom negotiates and receives, `Reception` decides. Replace the receive loop here.

pynetdicom's own log lines quote UIDs and values; they are switched off and replaced by ours.
"""

import logging
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

import pynetdicom
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.transport import ThreadedAssociationServer

from listeners.dicom.answers import FAILED, Answer
from listeners.dicom.file_meta import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from listeners.dicom.presentation import TRANSFER_SYNTAXES, VERIFICATION, storage_classes
from listeners.dicom.reception import Reception, StoreRequest
from schemas.settings import DicomSettings
from services.runtime.errors import Transient

logger = logging.getLogger(__name__)
NEGOTIATION_TIMEOUT_S: Final = 30.0
GRACE_S: Final = 5.0
_C_STORE_RQ: Final = 0x0001
_NO_DATA_SET: Final = 0x0101


@dataclass
class StorageScp:
    """Verification and Storage SCP; `start` and `stop` are blocking, handlers run in pynetdicom's threads."""

    settings: DicomSettings
    reception: Reception
    _server: ThreadedAssociationServer | None = None
    _ae: AE | None = None

    def start(self) -> int:
        """Listen and return the port in use; raises Transient when the address is taken."""
        _silence_pynetdicom()
        self._ae = _application_entity(self.settings)
        handlers = [
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_C_ECHO, _on_echo),
            (evt.EVT_CONN_OPEN, self._on_connection),
            (evt.EVT_DIMSE_RECV, _on_message),
            (evt.EVT_REJECTED, _on_rejected),
            (evt.EVT_ABORTED, _on_aborted),
        ]
        address = (self.settings.host, self.settings.port)
        try:
            self._server = self._ae.start_server(address, block=False, evt_handlers=handlers)
        except OSError as error:
            raise Transient(
                f"DCM-301 port {address[1]} cannot be opened ({error.strerror}): is another listener running?"
            ) from None
        assert self._server is not None
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Stop listening, let associations finish for a moment, then abort the rest: nothing unacknowledged counts."""
        if self._server is None or self._ae is None:
            return
        self._server.shutdown()
        end = time.monotonic() + GRACE_S
        while self._server.active_associations and time.monotonic() < end:
            time.sleep(0.05)
        for association in self._server.active_associations:
            association.abort()
        self._server = None

    def _on_connection(self, event: Any) -> None:
        """Time limits that pynetdicom leaves out: a peer that stalls inside a PDU ends after the network timeout."""
        connection: socket.socket = event.assoc.dul.socket.socket
        connection.settimeout(self.settings.network_timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_store(self, event: Any) -> Dataset:
        try:
            return _response(self.reception.receive(_request(event)))
        except Exception as error:  # noqa: BLE001 - an exception that leaves here would become C211 without a word
            logger.error("DCM-903 C-STORE handler failed: %s", type(error).__name__)  # noqa: TRY400 - the text may quote values
            return _response(FAILED)


def _application_entity(settings: DicomSettings) -> AE:
    ae = AE(settings.ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.maximum_associations = settings.max_associations
    ae.maximum_pdu_size = settings.max_pdu
    ae.network_timeout = settings.network_timeout_s
    ae.dimse_timeout = settings.network_timeout_s
    ae.acse_timeout = min(NEGOTIATION_TIMEOUT_S, settings.network_timeout_s)
    ae.add_supported_context(VERIFICATION)
    for uid in storage_classes(settings.sop_classes):
        ae.add_supported_context(uid, list(TRANSFER_SYNTAXES))
    return ae


def _request(event: Any) -> StoreRequest:
    request, context = event.request, event.context
    dataset = request.DataSet
    return StoreRequest(
        context_sop_class_uid=str(context.abstract_syntax),
        affected_sop_class_uid=str(request.AffectedSOPClassUID or ""),
        affected_sop_instance_uid=str(request.AffectedSOPInstanceUID or ""),
        transfer_syntax_uid=str(context.transfer_syntax),
        dataset=dataset.getvalue() if dataset else b"",
        calling_ae=str(event.assoc.requestor.ae_title),
    )


def _response(answer: Answer) -> Dataset:
    """Status with Error Comment (0000,0902) and Offending Element (0000,0901), PS3.7 Annex C."""
    response = Dataset()
    response.Status = answer.status
    if not answer.is_success:
        response.ErrorComment = answer.comment
    if answer.tag:
        response.OffendingElement = answer.tag
    return response


def _on_echo(_event: Any) -> int:
    return 0x0000


def _on_message(event: Any) -> None:
    """End the association of a C-STORE that announces no data set: pynetdicom would leave it without any answer."""
    command = event.message.command_set
    if command.get("CommandField") == _C_STORE_RQ and command.get("CommandDataSetType") == _NO_DATA_SET:
        # abort() waits for the thread that this handler runs in
        threading.Thread(target=event.assoc.abort, name="dicom-abort", daemon=True).start()


def _on_rejected(event: Any) -> None:
    logger.warning("DCM-302 association from %s rejected: %s", _peer(event), "see the sender's log for the reason it was given")


def _on_aborted(event: Any) -> None:
    logger.warning("DCM-303 association from %s ended early: what was not answered with success has to be sent again", _peer(event))


def _peer(event: Any) -> str:
    return str(event.assoc.requestor.address)


def _silence_pynetdicom() -> None:
    pynetdicom._config.LOG_HANDLER_LEVEL = "none"  # noqa: SLF001 - the documented way to configure the library
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
