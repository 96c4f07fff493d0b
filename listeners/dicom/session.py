"""One connection from handshake to end, in a thread of its own: carries out what the association's state machine asks for."""

import logging
import mmap
import time
from collections.abc import Callable, Iterator
from typing import Final

from opentelemetry import trace

from listeners.dicom.acceptance import read_request, told_of
from listeners.dicom.association import (
    Acceptance,
    Action,
    Association,
    Closed,
    Message,
    Rejection,
    Request,
    Send,
    StoreBegun,
    StoreEnded,
)
from listeners.dicom.connection import Connection, HandshakeFailed
from listeners.dicom.environment import BUFFER_BYTES, Environment
from listeners.dicom.operations import Peer
from listeners.dicom.pdu import DATA_HEADER
from listeners.dicom.reception import Incoming, StoreHead, printable
from listeners.dicom.tally import Tally
from services.assembly.headers import Memory
from services.runtime.telemetry import count
from services.runtime.transaction import current_traceparent

logger = logging.getLogger(__name__)
tracer = trace.get_tracer("reclaim.dicom")
LEAST_ROOM: Final = 1 << 16
"""What is received is written before less of the buffer than this, or than half of it, is left."""
WHOLE_FROM: Final = 1 << 15
"""From so many bytes of a data set on, the kernel collects them: the thread is woken once instead of for each segment."""
LOOPBACK: Final = ("127.0.0.1", "::1")
"""`reclaim doctor` and `GET /ready` shake hands from there, without a certificate of a peer."""
PACE_BYTES: Final = 1 << 16
"""A message under way must bring so much in every network timeout: a peer that drips is as dead as a silent one."""


class Session:
    """Serves one connection. `on_established` is called once when the peer has been let in."""

    def __init__(
        self,
        connection: Connection,
        address: str,
        environment: Environment,
        on_established: Callable[["Session"], None],
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        self._connection = connection
        self._environment = environment
        self._on_established = on_established
        self._association = Association(self._accept, environment.settings.max_pdu)
        self._peer = Peer("", "", address)
        self._label = "unknown"
        self._calling_ae = ""
        self._deadline = time.monotonic() + environment.settings.acse_timeout_s
        self._incoming: Incoming | None = None
        self._traceparent = ""
        self._holds_slot = False
        self._ending = self._is_endless = False
        self._rests = True  # nothing was under way after the last receive
        self._has_spoken = False
        self._window_began, self._window_bytes = 0.0, 0
        self._buffer = memoryview(mmap.mmap(-1, buffer_bytes))  # pages that nothing was received into take no memory
        self._least_room = min(LEAST_ROOM, buffer_bytes // 2)
        self._filled = 0
        self._pieces: list[memoryview] = []  # of the data set, to be written before their place in the buffer is used again
        self._data_bytes = 0
        self._memory = Memory()
        self._tally = Tally()
        self._outcome = ""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way that would be lost."""
        return self._incoming is None and self._association.is_idle

    def end(self, why: str = "") -> None:
        """Have the session end soon; for other threads."""
        self._ending = True
        self._outcome = self._outcome or why
        self._connection.interrupt()

    def run(self) -> None:
        """Serve until the association ends, then clean up; never raises."""
        with tracer.start_as_current_span("DICOM association", kind=trace.SpanKind.SERVER):
            self._traceparent = current_traceparent()
            try:
                self._connection.handshake(self._deadline - time.monotonic())
                self._serve()
            except TimeoutError:
                self._time_out()
            except HandshakeFailed as failed:
                self._outcome = "no TLS"
                level = logging.INFO if self._peer.address in LOOPBACK else logging.WARNING
                logger.log(level, "DCM-325 no TLS with %s: %s", self._peer.address, failed)
            except OSError as error:
                self._note_end(f"the connection broke ({type(error).__name__})")
            except Exception as error:  # noqa: BLE001 - a defect costs this association, never the listener
                logger.error("DCM-905 association failed: %s", type(error).__name__)  # noqa: TRY400 - the text may quote values
                self._abort("a defect")
            finally:
                self._clean_up()

    def _serve(self) -> None:
        association, connection = self._association, self._connection
        while not association.is_closed:
            if not association.is_established:
                connection.set_timeout(max(self._deadline - time.monotonic(), 0.001))
            ahead = association.data_ahead
            if not (self._receive_data(association, ahead) if ahead >= WHOLE_FROM else self._receive_any(association)):
                if self._ending:
                    self._abort(self._outcome or "the listener stops")
                else:
                    self._note_end("the peer closed the connection")
                return
            if self._is_endless:
                self._abort("an object without end")

    def _receive_any(self, association: Association) -> int:
        """Receive once and have the state machine say what it means; returns the number of bytes, 0 at the end."""
        room = self._room(self._least_room)
        size = self._connection.receive(room)
        if size:
            if self._rests:
                self._window_began, self._window_bytes = time.monotonic(), 0
            self._filled += size
            self._take_in(association, room, size)
        return size

    def _take_in(self, association: Association, room: memoryview, size: int) -> None:
        """Have the state machine say what the first `size` bytes of `room` mean."""
        incoming, before = self._incoming, self._data_bytes
        received = room[:size]
        taken = self._take_plain(association, received, 0)
        if taken < size and (missing := association.missing(received, taken)):
            received = self._await(room, size, missing)
            taken = self._take_plain(association, received, taken)
        if taken < len(received):
            self._carry_out(association.receive(received[taken:]))
        if not self._pieces:
            self._filled = 0
            if self._incoming is None and association.is_idle:
                self._rests = True
                return
        # of an object under way nothing but its own bytes counts as progress
        self._keep_pace(self._data_bytes - before if incoming is not None and incoming is self._incoming else size)

    def _await(self, room: memoryview, size: int, missing: int) -> memoryview:
        """What was received, with the rest of a command of which the sender has written the headers first, as DCMTK does."""
        rest = room[size : size + missing]
        count = self._connection.receive(rest, whole=True) if len(rest) == missing else 0
        self._filled += count
        return room[: size + count]

    def _take_plain(self, association: Association, received: memoryview, position: int) -> int:
        """Take what is plainly a C-STORE command, or more of the data set under way; returns where something else begins."""
        size = len(received)
        while position < size:
            ahead = association.data_ahead
            if ahead:
                end = position + ahead
                if end > size:
                    end, ahead = size, size - position
                self._pieces.append(received[position:end])
                self._data_bytes += ahead
                position = end
                ended = association.take(ahead)
                if ended is not None:
                    self._finish_store(ended)
            elif self._incoming is not None:
                start = association.resume(received, position)
                if not start:
                    break
                position = start
            else:
                begun = association.begin(received, position)
                if begun is None:
                    break
                self._begin_store(begun)
                position += DATA_HEADER + len(begun.command.encoded)
        return position

    def _receive_data(self, association: Association, ahead: int) -> int:
        """The same for bytes that are nothing but data set, past the state machine."""
        room = self._room(min(ahead, self._least_room))
        size = self._connection.receive(room[:ahead], whole=True)
        if size:
            self._filled += size
            self._take_data(association, room[:size])
            if header := association.repeated:
                return self._receive_run(association, header)
        return size

    def _take_data(self, association: Association, piece: memoryview) -> None:
        """Take more of a data set, which may end it."""
        size = len(piece)
        self._data_bytes += size
        self._pieces.append(piece)
        ended = association.take(size)
        if ended is not None:
            self._finish_store(ended)
            self._filled, self._rests = 0, True
        elif size >= PACE_BYTES:  # enough for every window
            self._window_began, self._window_bytes, self._rests = time.monotonic(), 0, False
        else:
            self._keep_pace(size)

    def _receive_run(self, association: Association, header: bytes) -> int:
        """Fragments behind the very headers of the last one, of which each is enough for every window; returns 0 at the end.

        Most of a large object comes so, and it changes nothing in the state machine: headers, content, written; headers,
        content, written. Everything else is left to it.
        """
        start, total = len(header), len(header) + association.length_of(header)
        if total < PACE_BYTES or total > len(self._buffer):
            return total
        self._flush()
        incoming, receive = self._incoming, self._connection.receive
        head, fragment, content = self._buffer[:start], self._buffer[:total], self._buffer[start:total]
        while incoming is not None and not self._is_endless:
            size = receive(fragment)
            if size < start or head != header:
                self._filled = size
                if size:
                    self._take_in(association, self._buffer, size)
                return size
            if size < total:
                size += receive(fragment[size:], whole=True)
            if size < total:
                return self._leave_run(association, size)
            incoming.write((content,))
            self._is_endless = incoming.is_endless
            self._data_bytes += total - start
            self._window_began, self._window_bytes = time.monotonic(), 0
        return total

    def _leave_run(self, association: Association, size: int) -> int:
        """Take the beginning of a fragment of which no more came; returns 0 where nothing came behind its headers."""
        start = association.resume(self._buffer, 0)
        self._filled = size
        if size > start:
            self._take_data(association, self._buffer[start:size])
        return size - start

    def _room(self, least: int) -> memoryview:
        """The unused part of the buffer; all of it where less than `least` would be left."""
        filled = self._filled
        if not filled:
            return self._buffer
        if len(self._buffer) - filled < least:
            self._flush()
            return self._buffer
        return self._buffer[filled:]

    def _carry_out(self, actions: Iterator[Action]) -> None:
        """Do everything that one piece of input asks for."""
        for action in actions:
            if isinstance(action, memoryview):
                self._pieces.append(action)
                self._data_bytes += len(action)
            else:
                self._perform(action)

    def _flush(self) -> None:
        if self._incoming is not None:
            self._incoming.write(self._pieces)
            self._is_endless = self._incoming.is_endless
        self._pieces.clear()
        self._filled = 0

    def _perform(self, action: Action) -> None:
        match action:
            case Send(data):
                self._connection.send(data)
                self._has_spoken = True
            case StoreBegun(request):
                self._begin_store(request)
            case StoreEnded(request):
                self._finish_store(request)
            case Message(request):
                from listeners.dicom import messages  # noqa: PLC0415 - see `operations.late`

                command, dataset = messages.answer(action, self._environment.handlers, self._peer)
                self._connection.send(self._association.message_response(request, command, dataset))
            case Closed(problem):
                self._note_end(problem)

    def _begin_store(self, request: Request) -> None:
        context, command = request
        head = StoreHead(
            context.abstract_syntax,
            command.sop_class_uid,
            command.sop_instance_uid,
            context.transfer_syntax,
            self._calling_ae,
            command.has_dataset,
            self._traceparent,
        )
        self._incoming = self._environment.reception.begin(head, self._memory)

    def _finish_store(self, request: Request) -> None:
        incoming = self._incoming
        assert incoming is not None
        incoming.write(self._pieces)
        self._pieces.clear()
        began = time.perf_counter()
        answer = incoming.conclude()
        self._connection.send(self._association.store_response(request, answer))
        incoming.abandon()
        self._incoming = None
        self._is_endless = False
        self._tally.add(answer.status, incoming.received, time.perf_counter() - began)

    def _accept(self, body: bytes) -> Acceptance | Rejection:
        environment = self._environment
        request, self._peer = read_request(body, self._peer.address)
        self._calling_ae = self._peer.calling_ae
        refusal = environment.rules.refusal(request, self._peer)
        if refusal is None:
            self._tally.peer = self._label = environment.gate.label(printable(self._calling_ae))
            refusal = environment.gate.admit(self._peer.address, stores=environment.rules.proposes_storage(request))
            self._holds_slot = refusal is None
        if refusal is not None:
            self._outcome = f"rejected {refusal.rejection.result}/{refusal.rejection.source}/{refusal.rejection.reason}"
            logger.warning("%s association of %s rejected: %s", refusal.message_id, self._name(), refusal.reason)
            return refusal.rejection
        acceptance = environment.rules.accept(request)
        if acceptance.refused:
            level = logging.INFO if acceptance.contexts else logging.WARNING
            logger.log(level, "DCM-324 not accepted of %s: %s", self._name(), told_of(acceptance.refused))
        self._memory = environment.reception.memory_of(self._name())
        self._on_established(self)
        self._connection.set_timeout(environment.settings.network_timeout_s)
        return acceptance

    def _keep_pace(self, size: int) -> None:
        """Raise TimeoutError for a peer that always sends something, and never enough."""
        now = time.monotonic()
        self._rests = self._incoming is None and self._association.is_idle
        if not self._association.is_established:
            if now > self._deadline:
                raise TimeoutError
        elif self._rests or self._window_bytes + size >= PACE_BYTES:
            self._window_began, self._window_bytes = now, 0
        else:
            self._window_bytes += size
            if now - self._window_began > self._environment.settings.network_timeout_s:
                raise TimeoutError

    def _time_out(self) -> None:
        """Without association there is nothing to abort: the connection is closed (PS3.8 §9.2.3, AA-2)."""
        problem = "the peer said nothing, or next to nothing, for too long"
        if self._association.is_established:
            self._abort(problem)
        else:
            self._note_end(problem)

    def _abort(self, problem: str) -> None:
        try:
            for action in self._association.abort(problem):
                self._perform(action)
        except OSError:
            self._note_end(problem)

    def _note_end(self, problem: str) -> None:
        if not problem:
            self._outcome = self._outcome or "released"
            return
        self._outcome = self._outcome or "aborted"
        if self._association.is_established:
            logger.warning(
                "DCM-303 association of %s ended early (%s): what was not answered with success has to be sent again",
                self._name(),
                problem,
            )
        else:
            logger.info("DCM-319 connection from %s ended without association (%s)", self._peer.address, problem)

    def _name(self) -> str:
        return f"{printable(self._peer.calling_ae) or 'somebody'} at {self._peer.address}"

    def _clean_up(self) -> None:
        if self._incoming is not None:
            self._incoming.abandon()
            self._incoming = None
        if self._holds_slot:
            self._environment.gate.leave(self._peer.address)
        self._tally.report()
        count("reclaim.dicom.associations", 1, outcome=self._outcome or "aborted", peer=self._label)
        self._connection.close(wait=self._has_spoken)
