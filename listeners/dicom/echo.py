"""C-ECHO client, to find out whether somebody who speaks DICOM answers."""

import socket
import ssl
from typing import Final

from listeners.dicom.peers import verify
from listeners.dicom.scp import is_within, networks
from schemas.settings import DicomSettings
from services.runtime.errors import InvalidInput, Transient
from services.runtime.scu import Peer, Timeouts

TIMEOUT_S: Final = 5.0


def lets_us_in(settings: DicomSettings) -> bool:
    """Whether our listener speaks at all with who calls from this machine."""
    allowed = networks(settings.allowed_networks)
    return not allowed or is_within("127.0.0.1", allowed)


def echo_ourselves(settings: DicomSettings, port: int) -> bool:
    """Whether our own listener answers on this machine, by a title that it lets in.

    Where it speaks TLS the handshake is the answer: the certificates that peers need may not be ours to show.
    """
    if settings.tls_certificate is not None:
        return _shakes_hands(port)
    called = settings.ae_title if settings.ae_title in settings.called_ae_titles else next(iter(settings.called_ae_titles), "")
    calling = next(iter(settings.calling_ae_titles), "RECLAIM_SCU")
    return echo("127.0.0.1", port, called_ae=called or settings.ae_title, calling_ae=calling)


def _shakes_hands(port: int) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # we ask whether somebody answers; nothing is sent
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as plain, context.wrap_socket(plain):
            return True
    except OSError:
        return False


def echo(host: str, port: int, *, called_ae: str, calling_ae: str = "RECLAIM_SCU", timeout_s: float = TIMEOUT_S) -> bool:
    """Whether the peer accepts an association and answers C-ECHO with success; never raises for a silent peer."""
    try:
        verify(Peer(f"{host}:{port}", called_ae, host, port), calling_ae, Timeouts(timeout_s, timeout_s))
    except (InvalidInput, Transient):
        return False
    return True
