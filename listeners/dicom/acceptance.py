"""Decides about association requests: who may call, and which presentation contexts are accepted in which transfer syntax.

The request is decoded and the response encoded here (PS3.8 §9.3.2, §9.3.3, Annex D): the memory and the milliseconds that a
general library takes for it count where associations are short.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from listeners.dicom.association import VERIFICATION, Acceptance, AcceptedContext, Rejection
from listeners.dicom.file_meta import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from listeners.dicom.operations import Peer
from listeners.dicom.pdu import AbortReason, PduType, ProtocolError
from listeners.dicom.presentation import NATIVE_SYNTAXES, TRANSFER_SYNTAXES
from schemas.settings import DicomSettings
from services.assembly.headers import is_valid_uid

APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"
_LAST_RESORT: Final = "1.2.840.10008.1.2"
_FIXED_BYTES: Final = 68
_ACCEPTED, _CLASS_UNKNOWN, _SYNTAXES_UNKNOWN = 0x00, 0x03, 0x04
_ITEM: Final = struct.Struct(">BxH")
_LENGTH: Final = struct.Struct(">L")
_APPLICATION, _CONTEXT, _RESULT, _ABSTRACT, _TRANSFER, _USER = 0x10, 0x20, 0x21, 0x30, 0x40, 0x50
_MAXIMUM_LENGTH, _IMPLEMENTATION_CLASS, _IMPLEMENTATION_VERSION = 0x51, 0x52, 0x55
_MOST_TOLD: Final = 5
_LONGEST_UID: Final = 65
"""With the padding that some senders add although PS3.8 has none."""
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

    def refusal(self, request: "Proposal", peer: Peer) -> Refusal | None:
        """Why this peer may not associate, whatever else is going on; None when it may."""
        if not request.protocol_version & 1:
            return VERSION_UNKNOWN
        if request.application_context != APPLICATION_CONTEXT:
            return CONTEXT_UNKNOWN
        if self._calling and peer.calling_ae not in self._calling:
            return CALLING_UNKNOWN
        if self._called and peer.called_ae not in self._called:
            return CALLED_UNKNOWN
        return None

    def proposes_storage(self, request: "Proposal") -> bool:
        """Whether objects may come."""
        return any(proposed.abstract_syntax in self._storage for proposed in request.contexts)

    def accept(self, request: "Proposal") -> Acceptance:
        """Negotiate the contexts of a request that is let in. Roles are the default ones: the peer is the user (PS3.7 D.3.3.4)."""
        results, contexts, refused = [], dict[int, AcceptedContext](), dict[str, int]()
        for proposed in sorted(request.contexts):
            result, syntax = self._chosen(proposed)
            results.append(_result(proposed.context_id, result, syntax))
            if result == _ACCEPTED:
                is_storage = proposed.abstract_syntax in self._storage
                accepted = AcceptedContext(proposed.context_id, proposed.abstract_syntax, syntax, is_storage)
                contexts[proposed.context_id] = accepted
            else:
                refused[proposed.abstract_syntax] = result
        for context in contexts.values():
            refused.pop(context.abstract_syntax, None)
        return Acceptance(_acceptance(request, b"".join(results), self._max_pdu), contexts, request.max_pdu, refused)

    def _chosen(self, proposed: "ProposedContext") -> tuple[int, str]:
        """Result (PS3.8 Table 9-18) and transfer syntax: the sender's first that we know, so that it has nothing to convert.

        Implicit VR comes last whatever the order: the sender would lose the VRs of private elements.
        """
        known = self._syntaxes.get(proposed.abstract_syntax)
        if known is None:
            return _CLASS_UNKNOWN, proposed.transfer_syntaxes[0]
        common = [uid for uid in proposed.transfer_syntaxes if uid in known]
        if not common:
            return _SYNTAXES_UNKNOWN, proposed.transfer_syntaxes[0]
        return _ACCEPTED, next((uid for uid in common if uid != _LAST_RESORT), _LAST_RESORT)


def told_of(refused: Mapping[str, int]) -> str:
    """What was proposed and not accepted, for the log: some of the SOP classes, and what to do about them."""
    unknown = [uid for uid, result in refused.items() if result == _CLASS_UNKNOWN]
    others = [uid for uid, result in refused.items() if result != _CLASS_UNKNOWN]
    parts = []
    if unknown:
        advice = "RECLAIM_DICOM_SOP_CLASSES adds private storage classes; no other service is offered"
        parts.append(f"SOP class {_some(unknown)}: {advice}")
    if others:
        parts.append(
            f"no transfer syntax of SOP class {_some(others)}: the sender has to offer another (docs/conformance.md, 4.2.1.4.1)"
        )
    return "; ".join(parts)


def _some(uids: Sequence[str]) -> str:
    shown = ", ".join(uid if is_valid_uid(uid) else "(no UID)" for uid in uids[:_MOST_TOLD])
    return shown if len(uids) <= _MOST_TOLD else f"{shown} and {len(uids) - _MOST_TOLD} more"


class ProposedContext(NamedTuple):
    """A presentation context as proposed, in the sender's order of transfer syntaxes."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


class Proposal(NamedTuple):
    """An A-ASSOCIATE-RQ. `titles` are both AE titles as sent; `max_pdu` is 0 where the peer sets no limit."""

    protocol_version: int
    titles: bytes
    application_context: str
    contexts: tuple[ProposedContext, ...]
    max_pdu: int


def read_request(body: bytes, address: str) -> tuple[Proposal, Peer]:
    """Decode the body of an A-ASSOCIATE-RQ: what it proposes, and who calls; raises ProtocolError."""
    _check_items(body)
    application, contexts, max_pdu = "", list[ProposedContext](), 0
    for kind, start, end in _items(body, _FIXED_BYTES, len(body)):
        if kind == _APPLICATION:
            application = _uid(body, start, end)
        elif kind == _CONTEXT:
            contexts.append(_proposed(body, start, end))
        else:
            max_pdu = _maximum_length(body, start, end)
    called, calling = (body[start : start + 16].decode("ascii", "replace").strip(" \x00") for start in (4, 20))
    if not called or not calling:
        raise _unreadable()
    proposal = Proposal(int.from_bytes(body[:2], "big"), body[4:36], application, tuple(contexts), max_pdu)
    return proposal, Peer(calling, called, address)


def _proposed(body: bytes, start: int, end: int) -> ProposedContext:
    abstract, syntaxes = list[str](), list[str]()
    for kind, first, last in _items(body, start + _ITEM.size, end):
        if kind not in (_ABSTRACT, _TRANSFER):
            raise _unreadable()
        (abstract if kind == _ABSTRACT else syntaxes).append(_uid(body, first, last))
    if len(abstract) != 1 or not syntaxes:
        raise _unreadable()
    return ProposedContext(body[start], abstract[0], tuple(syntaxes))


def _maximum_length(body: bytes, start: int, end: int) -> int:
    """Of the user information, all else of which is left alone (PS3.8 D.1, PS3.7 D.3.3)."""
    for kind, first, last in _items(body, start, end):
        if kind == _MAXIMUM_LENGTH:
            if last - first != _LENGTH.size:
                raise _unreadable()
            return int(_LENGTH.unpack_from(body, first)[0])
    return 0


def _uid(body: bytes, start: int, end: int) -> str:
    if not 0 < end - start <= _LONGEST_UID:
        raise _unreadable()
    return body[start:end].decode("ascii", "replace").rstrip("\x00 ")


def _check_items(body: bytes) -> None:
    """Raise ProtocolError for items that do not fit, or are more than there can be."""
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


def _item(kind: int, value: bytes) -> bytes:
    return _ITEM.pack(kind, len(value)) + value


def _result(context_id: int, result: int, syntax: str) -> bytes:
    return _item(_RESULT, struct.pack(">BxBx", context_id, result) + _item(_TRANSFER, syntax.encode("ascii", "replace")))


def _acceptance(request: Proposal, results: bytes, max_pdu: int) -> bytes:
    """An A-ASSOCIATE-AC (PS3.8 §9.3.3)."""
    user = (
        _item(_MAXIMUM_LENGTH, _LENGTH.pack(max_pdu))
        + _item(_IMPLEMENTATION_CLASS, IMPLEMENTATION_CLASS_UID.encode())
        + _item(_IMPLEMENTATION_VERSION, IMPLEMENTATION_VERSION_NAME.encode())
    )
    items = _item(_APPLICATION, APPLICATION_CONTEXT.encode()) + results + _item(_USER, user)
    body = struct.pack(">H2x32s32x", 1, request.titles) + items
    return struct.pack(">BxL", PduType.ASSOCIATE_AC, len(body)) + body
