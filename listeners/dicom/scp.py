"""The listener's socket: accepts connections, gives each a thread, and keeps silent ones from using up what others need."""

import contextlib
import errno
import ipaddress
import logging
import os
import select
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from typing import Final

from listeners.dicom.acceptance import Rules
from listeners.dicom.connection import Connection, PlainConnection, TlsConnection, tls_context
from listeners.dicom.environment import Environment, buffer_bytes
from listeners.dicom.gate import Gate
from listeners.dicom.operations import Handlers
from listeners.dicom.presentation import storage_classes
from listeners.dicom.reception import Reception
from listeners.dicom.session import Session
from schemas.settings import DicomSettings
from services.runtime.errors import InvalidInput, Transient

logger = logging.getLogger(__name__)
GRACE_S: Final = 5.0
BACKLOG: Final = 256
PAUSE_S: Final = 0.05
_OUT_OF_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass
class StorageScp:
    """Verification and Storage SCP, and whatever `handlers` offer; `start` and `stop` block."""

    settings: DicomSettings
    reception: Reception
    handlers: Handlers = field(default_factory=dict)
    _sessions: dict[Session, threading.Thread] = field(default_factory=dict)
    _pending: dict[Session, None] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _listener: socket.socket | None = None
    _acceptor: threading.Thread | None = None
    _wake: tuple[int, int] = (-1, -1)

    def start(self) -> int:
        """Listen and return the port in use; raises Transient when the address is taken, InvalidInput for unusable settings."""
        self._networks = networks(self.settings.allowed_networks)
        self._tls = tls_context(self.settings)
        rules = Rules(self.settings, storage_classes(self.settings), {uid for uid, _ in self.handlers})
        gate = Gate(self.settings, self.reception)
        self._environment = Environment(self.settings, self.reception, self.handlers, rules, gate)
        self._listener = _listen(self.settings.host, self.settings.port)
        self._wake = os.pipe()
        self._acceptor = threading.Thread(target=self._accept_all, args=(self._listener,), name="dicom-accept", daemon=True)
        self._acceptor.start()
        return int(self._listener.getsockname()[1])

    def stop(self) -> None:
        """Stop listening, let what is under way finish for a moment, then abort the rest: nothing unacknowledged counts."""
        if self._listener is None or self._acceptor is None:
            return
        os.write(self._wake[1], b"x")
        self._acceptor.join()
        self._listener.close()
        self._listener = None
        end = time.monotonic() + GRACE_S
        while (running := self._running()) and time.monotonic() < end:
            for session in running:
                if session.is_idle:
                    session.end()
            time.sleep(PAUSE_S)
        for session, thread in self._running().items():
            session.end()
            thread.join(GRACE_S)
        for descriptor in self._wake:
            os.close(descriptor)

    def _running(self) -> dict[Session, threading.Thread]:
        with self._lock:
            return dict(self._sessions)

    def _accept_all(self, listener: socket.socket) -> None:
        poller = select.poll()  # select.select knows no descriptor beyond 1,023
        poller.register(listener, select.POLLIN)
        poller.register(self._wake[0], select.POLLIN)
        while self._wake[0] not in dict(poller.poll()):
            try:
                connection, address = listener.accept()
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    self._make_room()
                continue
            self._welcome(connection, str(address[0]))

    def _welcome(self, connection: socket.socket, address: str) -> None:
        if self._networks and not is_within(address, self._networks):
            logger.warning("DCM-310 connection from %s refused: it is in none of RECLAIM_DICOM_ALLOWED_NETWORKS", address)
            connection.close()
            return
        session: Session | None = None
        try:
            room = buffer_bytes(len(self._sessions))
            session = Session(_wrap(connection, self._tls), address, self._environment, self._on_established, room)
            thread = threading.Thread(target=self._serve, args=(session,), name="dicom-association", daemon=True)
            with self._lock:
                self._sessions[session] = thread
                self._pending[session] = None
                surplus = len(self._pending) > self.settings.max_pending_connections
            if surplus:
                self._end_oldest_pending()
            thread.start()
        except (OSError, RuntimeError, MemoryError) as error:  # the peer has gone, or the system has no more threads
            logger.warning("DCM-320 connection from %s dropped (%s)", address, type(error).__name__)
            connection.close()
            if session is not None:
                self._forget(session)

    def _serve(self, session: Session) -> None:
        try:
            session.run()
        finally:
            self._forget(session)

    def _forget(self, session: Session) -> None:
        with self._lock:
            self._pending.pop(session, None)
            self._sessions.pop(session, None)

    def _on_established(self, session: Session) -> None:
        with self._lock:
            self._pending.pop(session, None)

    def _end_oldest_pending(self) -> None:
        """Who negotiates does it within milliseconds: the connection that has been silent for longest is the least loss."""
        with self._lock:
            oldest = next(iter(self._pending), None)
            if oldest is not None:
                del self._pending[oldest]
        if oldest is not None:
            oldest.end("pushed out")

    def _make_room(self) -> None:
        logger.error("DCM-322 no descriptors left: raise the limit (`ulimit -n`) or lower RECLAIM_DICOM_MAX_ASSOCIATIONS")
        self._end_oldest_pending()
        time.sleep(PAUSE_S)


def networks(configured: tuple[str, ...]) -> tuple[Network, ...]:
    """Networks in CIDR notation; InvalidInput names one that is none."""
    found = []
    for text in configured:
        try:
            found.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            raise InvalidInput(f"RECLAIM_DICOM_ALLOWED_NETWORKS: {text} is no network such as 10.1.0.0/16") from None
    return tuple(found)


def is_within(address: str, allowed: tuple[Network, ...]) -> bool:
    """Whether an address lies in one of the networks; IPv4 in IPv6 counts as IPv4."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return any((mapped or found) in network for network in allowed)


def check_settings(settings: DicomSettings) -> None:
    """Raise InvalidInput for settings that `start` could not use."""
    storage_classes(settings)
    networks(settings.allowed_networks)
    tls_context(settings)


def _wrap(connection: socket.socket, context: ssl.SSLContext | None) -> Connection:
    return PlainConnection(connection) if context is None else TlsConnection(connection, context)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        with contextlib.suppress(OSError):
            listener.close()
        raise Transient(f"DCM-301 port {port} cannot be opened ({error.strerror}): is another listener running?") from None
    return listener
