"""Associations that we open: known peers, time-outs on every step, TLS, and refusals in words that say what to do.

pynetdicom's own log lines quote UIDs and values; they are switched off here for every user of this module.
"""

import logging
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import pynetdicom
from pynetdicom import AE, evt
from pynetdicom.presentation import PresentationContext

from schemas.settings import PeerSettings
from services.runtime.errors import InvalidInput, Transient
from services.runtime.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

MAX_PDU: Final = 131_072
_TRANSIENT_REJECTION: Final = 0x02


class PeerAway(Transient):
    """Nobody who speaks DICOM answers at the peer's address."""


class PeerBusy(Transient):
    """The peer rejects associations for the moment (PS3.8 §9.3.4, result 2)."""


class PeerLost(Transient):
    """The association ended, or an answer did not come in time, before the exchange was complete."""


class PeerRefuses(InvalidInput):
    """The peer rejects or aborts the association and will do so again until somebody changes a setting."""


class PeerAcceptsNothing(PeerRefuses):
    """The peer accepts the association, but none of the proposed SOP classes in a proposed transfer syntax."""


@dataclass(frozen=True)
class Timeouts:
    """Limits in seconds: of connecting and negotiating, and of each answer and each byte after that."""

    connect_s: float = 10.0
    answer_s: float = 60.0


@dataclass(frozen=True)
class Peer:
    """A DICOM application entity and how to reach it. `name` is the one in our settings, or host:port."""

    name: str
    ae_title: str
    host: str
    port: int
    tls: PeerSettings | None = None

    @property
    def address(self) -> str:
        """For messages."""
        return f"{self.host}:{self.port}"


def peer(settings: Mapping[str, PeerSettings], name: str) -> Peer:
    """The peer of that name, or of that AE title where only one has it. InvalidInput names the known ones."""
    found = settings.get(name)
    if found is not None:
        return _peer(name, found)
    titled = [key for key, value in settings.items() if value.ae_title == name]
    if len(titled) == 1:
        return _peer(titled[0], settings[titled[0]])
    if titled:
        raise InvalidInput(f"AE title {name} belongs to several peers: say {' or '.join(sorted(titled))}")
    if not settings:
        raise InvalidInput(f"there is no DICOM peer {name!r}: none is set. Add [dicom.peers.{_section(name)}] to reclaim.toml")
    raise InvalidInput(f"there is no DICOM peer {name!r}; known (dicom.peers): {', '.join(sorted(settings))}")


def peers(settings: Mapping[str, PeerSettings]) -> list[Peer]:
    """All peers by name."""
    return [_peer(name, settings[name]) for name in sorted(settings)]


def _peer(name: str, found: PeerSettings) -> Peer:
    return Peer(name, found.ae_title, found.host, found.port, found if found.tls else None)


def _section(name: str) -> str:
    return name if name.isidentifier() else "NAME"


@contextmanager
def association(
    peer: Peer,
    contexts: Sequence[PresentationContext],
    *,
    calling_ae: str,
    timeouts: Timeouts = Timeouts(),
    roles: Sequence[Any] = (),
    handlers: Sequence[tuple[Any, ...]] = (),
) -> Iterator[Any]:
    """An established association, released at the end and aborted on an exception; raises as `open_association`."""
    opened = open_association(peer, contexts, calling_ae=calling_ae, timeouts=timeouts, roles=roles, handlers=handlers)
    try:
        yield opened
    except BaseException:
        opened.abort()
        raise
    opened.release()


def open_association(
    peer: Peer,
    contexts: Sequence[PresentationContext],
    *,
    calling_ae: str,
    timeouts: Timeouts = Timeouts(),
    roles: Sequence[Any] = (),
    handlers: Sequence[tuple[Any, ...]] = (),
) -> Any:
    """An established association. Raises PeerAway, PeerBusy or PeerRefuses with a sentence that says what to do."""
    silence_pynetdicom()
    ae = AE(calling_ae)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.connection_timeout = ae.acse_timeout = timeouts.connect_s
    ae.dimse_timeout = ae.network_timeout = timeouts.answer_s
    made = ae.associate(
        peer.host,
        peer.port,
        contexts=list(contexts),
        ae_title=peer.ae_title,
        max_pdu=MAX_PDU,
        ext_neg=list(roles),
        evt_handlers=[
            (evt.EVT_CONN_OPEN, _limit_silence, [timeouts.answer_s]),
            (evt.EVT_DATA_SENT, _acknowledge_at_once),
            *handlers,
        ],
        tls_args=(_tls_context(peer.tls), peer.host) if peer.tls else None,
    )
    if made.is_established:
        _keep_answers(made)
        return made
    raise _why_not(made, peer, calling_ae)


def accepted_pairs(association: Any) -> set[tuple[str, str]]:
    """(abstract syntax, transfer syntax) of every accepted context."""
    return {(str(each.abstract_syntax), str(each.transfer_syntax[0])) for each in association.accepted_contexts}


def status_words(response: Any) -> str:
    """Status and Error Comment of a response, for people."""
    comment = printable(str(response.get("ErrorComment", "") or ""))
    return f"{response.Status:04X}" + (f" ({comment})" if comment else "")


def printable(text: str, most: int = 64) -> str:
    """A peer's words as they may stand in a log line or on a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text.strip())[:most]


def silence_pynetdicom() -> None:
    """Switch the library's own log lines off."""
    pynetdicom._config.LOG_HANDLER_LEVEL = "none"  # noqa: SLF001 - the documented way to configure the library
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)


def _limit_silence(event: Any, seconds: float) -> None:
    """The library itself would wait for ever for the rest of a PDU."""
    connection: socket.socket = event.assoc.dul.socket.socket
    connection.settimeout(seconds)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _keep_answers(made: Any) -> None:
    """Leave every message to the operation that waits for it.

    The library's own thread, meant to pause during an operation, can wake late and take the answer off the queue, which then
    looks like a peer that fell silent. It asks without blocking; an operation blocks.
    """
    take = made.dimse.get_msg
    made.dimse.get_msg = lambda block=False: take(block=True) if block else (None, None)


def _acknowledge_at_once(event: Any) -> None:
    """Spare a peer that leaves Nagle's algorithm on 40 ms an answer (DCMTK, Orthanc): it waits for our acknowledgement.

    The option does not last, so it is set whenever an answer is about to come; Linux only.
    """
    with suppress(AttributeError, OSError):  # the connection may have ended meanwhile
        event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def _tls_context(settings: PeerSettings) -> ssl.SSLContext:
    """BCP 195: TLS 1.2 or newer, the peer's certificate checked, ours shown where the peer asks for it."""
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = settings.check_hostname
        if settings.certificate_file:
            context.load_cert_chain(settings.certificate_file, settings.key_file)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(f"the TLS files of peer {settings.ae_title} cannot be used ({error}): check dicom.peers") from None
    return context


def _why_not(made: Any, peer: Peer, calling_ae: str) -> Exception:
    if made.is_rejected:
        answer = made.acceptor.primitive
        reason = f"{answer.source_str}: {answer.reason_str}" if answer else "no reason given"
        if answer is not None and answer.result == _TRANSIENT_REJECTION:
            return PeerBusy(f"{peer.address} is busy and refuses associations for now ({reason})")
        return PeerRefuses(
            f"{peer.address} refuses the association of {calling_ae} to {peer.ae_title} ({reason}): "
            "enter our AE title at the peer, or correct its title here"
        )
    if made.is_aborted and made.acceptor.primitive is not None:
        return PeerAcceptsNothing(f"{peer.address} accepts none of the proposed types, or aborted the association")
    if peer.tls:
        return PeerAway(f"nobody answers at {peer.address} with TLS: is it up, and do both sides trust each other's certificate?")
    return PeerAway(f"nobody who speaks DICOM answers at {peer.address}: is it running, and are host and port right?")
