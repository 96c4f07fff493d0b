"""Bytes over one accepted connection, plain or TLS, with a time limit on every step; the kernel keeps the time where it can."""

import contextlib
import socket
import ssl
import struct
import time
from typing import Final, Protocol

from schemas.settings import DicomSettings
from services.runtime.errors import InvalidInput

CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM"
"""Of TLS 1.2; those of 1.3 are all good. What BCP 195 (RFC 9325 §4.2) recommends, forward secrecy always."""
LINGER_S: Final = 1.0
LINGER_BYTES: Final = 1 << 20
_QUICKACK: Final = getattr(socket, "TCP_QUICKACK", None)


class HandshakeFailed(ConnectionError):  # noqa: N818 - named for what happened
    """TLS was not agreed upon. The text says why and what to do; it never quotes the peer."""


class Connection(Protocol):
    """One peer's connection; `interrupt` may be called from any thread."""

    def handshake(self, seconds: float) -> None:
        """Make the connection usable; raises OSError (TimeoutError, HandshakeFailed)."""

    def set_timeout(self, seconds: float) -> None:
        """How long one `receive` or `send` may wait."""

    def receive(self, buffer: memoryview, *, whole: bool = False) -> int:
        """Bytes received, 0 when the peer has gone; raises OSError, TimeoutError when nothing came in time.

        `whole` asks for a full buffer; fewer bytes may come all the same, and do when time is up or the peer has gone.
        """

    def send(self, data: bytes) -> None:
        """Send everything; raises OSError."""

    def interrupt(self) -> None:
        """Have a waiting `receive` return 0 at once."""

    def close(self, *, wait: bool) -> None:
        """Close; where something was said, `wait` a moment for the peer to read it and to close first."""


class PlainConnection:
    """TCP. The socket blocks and the kernel limits the wait: no system call more than the transfer needs."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        connection.setblocking(True)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def handshake(self, seconds: float) -> None:
        """Nothing to do."""

    def set_timeout(self, seconds: float) -> None:
        """See `Connection`."""
        limit = struct.pack("@ll", int(seconds), max(int(seconds % 1 * 1e6), 0 if seconds >= 1 else 1))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def receive(self, buffer: memoryview, *, whole: bool = False) -> int:
        """See `Connection`."""
        try:
            return self._socket.recv_into(buffer, 0, socket.MSG_WAITALL if whole else 0)
        except BlockingIOError:
            raise TimeoutError from None

    def send(self, data: bytes) -> None:
        """See `Connection`.

        After it the kernel delays acknowledgements, for which a peer with Nagle's algorithm holds back its last segment:
        40 ms an object (RFC 1122 §4.2.3.2), unless it is told not to.
        """
        try:
            self._socket.sendall(data)
        except BlockingIOError:
            raise TimeoutError from None
        if _QUICKACK is not None:
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def interrupt(self) -> None:
        """See `Connection`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def close(self, *, wait: bool) -> None:
        """See `Connection`. The peer closes first (PS3.8 §9.2, state 13): closing over unread bytes would reset the connection."""
        if wait:
            with contextlib.suppress(OSError):
                self._drain()
        self._socket.close()

    def _drain(self) -> None:
        end, buffer, left = time.monotonic() + LINGER_S, memoryview(bytearray(1 << 14)), LINGER_BYTES
        while left > 0 and (rest := end - time.monotonic()) > 0:
            self._socket.settimeout(rest)
            count = self._socket.recv_into(buffer)  # TLS too: what comes is not looked at
            if not count:
                return
            left -= count


class TlsConnection(PlainConnection):
    """TLS over TCP; the handshake runs in the thread of the association, so that a silent peer holds up nobody."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(connection)
        self._tls = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        self._socket = self._tls

    def handshake(self, seconds: float) -> None:
        """See `Connection`."""
        self._tls.settimeout(seconds)
        try:
            self._tls.do_handshake()
        except ssl.SSLEOFError:
            raise
        except ssl.SSLError as error:
            raise HandshakeFailed(_words_on(error)) from None

    def set_timeout(self, seconds: float) -> None:
        """See `Connection`. OpenSSL does not pass the kernel's time limit on: Python keeps the time."""
        self._tls.settimeout(seconds)

    def receive(self, buffer: memoryview, *, whole: bool = False) -> int:  # noqa: ARG002 - OpenSSL cannot wait for more
        """See `Connection`: one record of TLS at most, whatever is asked for."""
        return self._socket.recv_into(buffer)

    def interrupt(self) -> None:
        """See `Connection`. The TCP connection's, not TLS's: that one belongs to another thread."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._tls, socket.SHUT_RD)


def tls_context(settings: DicomSettings) -> ssl.SSLContext | None:
    """TLS as the settings ask for, None without; InvalidInput when certificate or key cannot be used."""
    if settings.tls_certificate is None:
        if settings.tls_ca is not None or settings.tls_key is not None:
            raise InvalidInput("RECLAIM_DICOM_TLS_CERTIFICATE is missing: without it the listener would speak no TLS")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
        if settings.tls_ca is not None:
            context.load_verify_locations(settings.tls_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(
            f"RECLAIM_DICOM_TLS_*: certificate, key or CA cannot be used ({type(error).__name__}: {error})"
        ) from None
    return context


def _words_on(error: ssl.SSLError) -> str:
    """What is the matter and what to do, from OpenSSL's own names of reasons."""
    reason = str(error.reason or "").upper()
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "it shows no certificate: give it one that RECLAIM_DICOM_TLS_CA has signed"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted, {error.verify_message}: renew it, or add its CA to RECLAIM_DICOM_TLS_CA"
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "BAD_RECORD_TYPE", "PACKET_LENGTH_TOO_LONG"):
        return "it speaks no TLS: switch TLS on there, or send to another port"
    if reason in ("UNSUPPORTED_PROTOCOL", "VERSION_TOO_LOW", "NO_SHARED_CIPHER"):
        return "it offers neither TLS 1.3 nor TLS 1.2 with forward secrecy: set it to the BCP 195 profile"
    if "ALERT" in reason:
        return f"it does not accept our certificate or protocol, {reason}: give it the CA of RECLAIM_DICOM_TLS_CERTIFICATE"
    return reason or type(error).__name__
