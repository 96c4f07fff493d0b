"""Decides about association requests: who may call, and which presentation contexts are accepted in which transfer syntax.

pynetdicom decodes the request, negotiates its contexts and encodes the response; the rules are ours.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import PresentationContext, build_context, negotiate_as_acceptor

from listeners.dicom.association import VERIFICATION, Acceptance, AcceptedContext, Rejection
from listeners.dicom.file_meta import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from listeners.dicom.operations import Peer
from listeners.dicom.pdu import AbortReason, PduType, ProtocolError
from listeners.dicom.presentation import NATIVE_SYNTAXES, TRANSFER_SYNTAXES
from schemas.settings import DicomSettings

APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"
_LAST_RESORT: Final = "1.2.840.10008.1.2"
_FIXED_BYTES: Final = 68
_ACCEPTED: Final = 0x00
_ITEM: Final = struct.Struct(">BxH")
_APPLICATION, _CONTEXT, _USER = 0x10, 0x20, 0x50
MOST_SYNTAXES: Final = 64
"""Transfer syntaxes of one presentation context; DICOM has fewer."""
MOST_USER_ITEMS: Final = 256
"""Roles and extended negotiation come to one each for a SOP class."""


@dataclass(frozen=True)
class Refusal:
    """Why an association is rejected: what the peer is told, and what the log says."""

    rejection: Rejection
    message_id: str
    reason: str


VERSION_UNKNOWN: Final = Refusal(Rejection(1, 2, 2), "DCM-311", "it speaks another version of the protocol")
CONTEXT_UNKNOWN: Final = Refusal(Rejection(1, 1, 2), "DCM-312", "it asks for another application context than DICOM's")
CALLING_UNKNOWN: Final = Refusal(Rejection(1, 1, 3), "DCM-313", "its title is not in RECLAIM_DICOM_CALLING_AE_TITLES")
CALLED_UNKNOWN: Final = Refusal(
    Rejection(1, 1, 7), "DCM-314", "it calls a title that is not in RECLAIM_DICOM_CALLED_AE_TITLES: correct it at the sender"
)
DISK_FULL: Final = Refusal(
    Rejection(2, 3, 1), "DCM-315", "too little disk space: free some or lower RECLAIM_DICOM_MIN_FREE_BYTES; senders retry"
)
INDEX_BEHIND: Final = Refusal(
    Rejection(2, 3, 1), "DCM-316", "the index is behind: check the database (`reclaim doctor`); senders retry"
)
TOO_MANY: Final = Refusal(
    Rejection(2, 3, 2), "DCM-317", "all associations are in use: raise RECLAIM_DICOM_MAX_ASSOCIATIONS; senders retry"
)
TOO_MANY_OF_PEER: Final = Refusal(
    Rejection(2, 3, 2), "DCM-318", "this address has all its associations: RECLAIM_DICOM_MAX_ASSOCIATIONS_PER_PEER; senders retry"
)


class Rules:
    """What this listener accepts, computed once; thread-safe."""

    def __init__(self, settings: DicomSettings, storage_classes: Iterable[str], other_classes: Iterable[str]) -> None:
        self._calling = frozenset(settings.calling_ae_titles)
        self._called = frozenset(settings.called_ae_titles)
        self._max_pdu = settings.max_pdu
        self._storage = frozenset(storage_classes)
        self._syntaxes = dict.fromkeys((VERIFICATION, *other_classes), frozenset(NATIVE_SYNTAXES))
        self._syntaxes.update(dict.fromkeys(self._storage, frozenset(TRANSFER_SYNTAXES)))

    def refusal(self, request: A_ASSOCIATE, protocol_version: int, peer: Peer) -> Refusal | None:
        """Why this peer may not associate, whatever else is going on; None when it may."""
        if not protocol_version & 1:
            return VERSION_UNKNOWN
        if request.application_context_name != APPLICATION_CONTEXT:
            return CONTEXT_UNKNOWN
        if self._calling and peer.calling_ae not in self._calling:
            return CALLING_UNKNOWN
        if self._called and peer.called_ae not in self._called:
            return CALLED_UNKNOWN
        return None

    def proposes_storage(self, request: A_ASSOCIATE) -> bool:
        """Whether objects may come."""
        return any(str(proposed.abstract_syntax) in self._storage for proposed in request.presentation_context_definition_list)

    def accept(self, request: A_ASSOCIATE) -> Acceptance:
        """Negotiate the contexts of a request that is let in; raises ProtocolError when they make no sense."""
        try:
            results, roles = self._negotiate(request)
            response = A_ASSOCIATE_AC(_acceptance(request, results, roles, self._max_pdu)).encode()
            contexts = {result.context_id: self._context(result) for result in results if result.result == _ACCEPTED}
            return Acceptance(response, contexts, request.maximum_length_received or 0)
        except Exception:  # noqa: BLE001 - pynetdicom raises many kinds for values that make no sense
            raise ProtocolError(AbortReason.INVALID_PARAMETER, "an association request that makes no sense") from None

    def _negotiate(self, request: A_ASSOCIATE) -> tuple[list[Any], list[Any]]:
        wanted = {
            item.sop_class_uid: (item.scu_role, item.scp_role)
            for item in request.user_information
            if isinstance(item, SCP_SCU_RoleSelectionNegotiation)
        }
        results: list[Any] = []
        roles: list[Any] = []
        for proposed in request.presentation_context_definition_list:
            result, role = negotiate_as_acceptor([proposed], self._supported(proposed), wanted)
            results += result
            roles += role
        return results, roles

    def _supported(self, proposed: PresentationContext) -> list[PresentationContext]:
        """Our side of one proposed context: its syntaxes in the sender's order, so that it has nothing to convert.

        Implicit VR comes last whatever the order: the sender would lose the VRs of private elements.
        """
        known = self._syntaxes.get(str(proposed.abstract_syntax))
        if known is None:
            return []
        common = sorted((uid for uid in proposed.transfer_syntax if uid in known), key=lambda uid: uid == _LAST_RESORT)
        return [build_context(str(proposed.abstract_syntax), common or sorted(known))]

    def _context(self, result: Any) -> AcceptedContext:
        abstract_syntax = str(result.abstract_syntax)
        return AcceptedContext(result.context_id, abstract_syntax, str(result.transfer_syntax[0]), abstract_syntax in self._storage)


def read_request(body: bytes, address: str) -> tuple[A_ASSOCIATE, int, Peer]:
    """Decode the body of an A-ASSOCIATE-RQ: request, protocol version, and who calls; raises ProtocolError."""
    _check_items(body)
    try:
        pdu = A_ASSOCIATE_RQ()
        pdu.decode(struct.pack(">BxL", PduType.ASSOCIATE_RQ, len(body)) + body)
        request = pdu.to_primitive()
        peer = Peer(str(request.calling_ae_title).strip(), str(request.called_ae_title).strip(), address)
    except Exception:  # noqa: BLE001 - pynetdicom raises many kinds for values that make no sense
        raise _unreadable() from None
    return request, pdu.protocol_version, peer


def _check_items(body: bytes) -> None:
    """Raise ProtocolError for items that do not fit, or are more than there can be: pynetdicom takes seconds for thousands."""
    if len(body) < _FIXED_BYTES:
        raise _unreadable()
    single = {_APPLICATION, _USER}
    numbers: set[int] = set()
    for kind, start, end in _items(body, _FIXED_BYTES, len(body)):
        if kind == _CONTEXT:
            if end - start < _ITEM.size or body[start] in numbers or not body[start] & 1:
                raise _unreadable()
            numbers.add(body[start])
            _check_number(body, start + _ITEM.size, end, MOST_SYNTAXES + 1)
        elif kind in single:
            single.remove(kind)
            if kind == _USER:
                _check_number(body, start, end, MOST_USER_ITEMS)
        else:
            raise _unreadable()


def _check_number(body: bytes, start: int, end: int, most: int) -> None:
    for number, _ in enumerate(_items(body, start, end)):
        if number >= most:
            raise _unreadable()


def _items(body: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Type, start and end of the value of each item between these positions (PS3.8 §9.3.2)."""
    while start < end:
        value = start + _ITEM.size
        if value > end:
            raise _unreadable()
        kind, length = _ITEM.unpack_from(body, start)
        start = value + length
        if start > end:
            raise _unreadable()
        yield kind, value, start


def _unreadable() -> ProtocolError:
    return ProtocolError(AbortReason.INVALID_PARAMETER, "an association request that cannot be read")


def _acceptance(request: A_ASSOCIATE, results: list[Any], roles: list[Any], max_pdu: int) -> A_ASSOCIATE:
    length, implementation, version = (
        MaximumLengthNotification(),
        ImplementationClassUIDNotification(),
        ImplementationVersionNameNotification(),
    )
    length.maximum_length_received = max_pdu
    implementation.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    response = A_ASSOCIATE()
    response.application_context_name = APPLICATION_CONTEXT
    response.calling_ae_title, response.called_ae_title = request.calling_ae_title, request.called_ae_title
    response.result, response.result_source = 0x00, 0x01
    response.presentation_context_definition_results_list = results
    response.user_information = [length, implementation, version, *roles]
    return response
