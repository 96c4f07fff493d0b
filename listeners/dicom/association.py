"""One association as a state machine without sockets, clocks or disks: bytes in, actions out (PS3.8 §9.2, acceptor's side).

Verification is answered here. The data set of a C-STORE passes through piece by piece; the caller writes it and sends
`store_response`. Other messages are collected, up to a limit, and handed over whole.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from listeners.dicom.answers import STORED, Answer
from listeners.dicom.commands import C_CANCEL_RQ, C_ECHO_RQ, C_STORE_RQ, RESPONSE, Command
from listeners.dicom.pdu import (
    DATA_HEADER,
    RELEASE_RP,
    AbortReason,
    Control,
    Fragment,
    PduReader,
    PduType,
    ProtocolError,
    encode_abort,
    encode_message,
    encode_reject,
)
from listeners.dicom.usual import Usual

VERIFICATION: Final = "1.2.840.10008.1.1"
LONGEST_COMMAND: Final = 1 << 15
LONGEST_MESSAGE: Final = 1 << 23
"""Of the data set of a message other than C-STORE: a commitment request for 50,000 instances."""
MOST_EMPTY: Final = 100
"""Fragments without content in one message: nobody needs them, and they pass every limit of size."""
MOST_USUAL: Final = 16
"""Of so many kinds of C-STORE requests (by presentation context and length of the UID) the next one is known at sight."""
UNRECOGNIZED_OPERATION: Final = 0x0211
CLASS_NOT_SUPPORTED: Final = 0x0122
_BEFORE: Final = (PduType.ASSOCIATE_RQ, PduType.ABORT)
_DURING: Final = (PduType.P_DATA, PduType.RELEASE_RQ, PduType.ABORT)


@dataclass(frozen=True, slots=True)
class AcceptedContext:
    """An accepted presentation context; `is_storage` says whether C-STORE is its operation."""

    context_id: int
    abstract_syntax: str
    transfer_syntax: str
    is_storage: bool


@dataclass(frozen=True)
class Acceptance:
    """What was negotiated. `response` is the encoded A-ASSOCIATE-AC, `peer_max_pdu` 0 where the peer sets no limit.

    `refused` are the proposed SOP classes of which no context was accepted, as sent, with PS3.8's result (Table 9-18).
    """

    response: bytes
    contexts: dict[int, AcceptedContext]
    peer_max_pdu: int
    refused: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Rejection:
    """Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 Table 9-21)."""

    result: int
    source: int
    reason: int


Acceptor: TypeAlias = Callable[[bytes], Acceptance | Rejection]
"""Decides about the body of an A-ASSOCIATE-RQ; raises ProtocolError when it cannot be read."""


class Request(NamedTuple):
    """A request under way, with the context that it came on."""

    context: AcceptedContext
    command: Command


class Send(NamedTuple):
    """Send these bytes."""

    data: bytes


class StoreBegun(NamedTuple):
    """The data set of this C-STORE comes next."""

    request: Request


class StoreEnded(NamedTuple):
    """It is whole: check, store, and send `store_response`."""

    request: Request


class Message(NamedTuple):
    """A whole message that is neither C-STORE nor C-ECHO; answer it with `message_response`."""

    request: Request
    dataset: bytes | None


class Closed(NamedTuple):
    """Nothing more is sent or taken: close the connection. `problem` says why, empty after an orderly end."""

    problem: str


Action: TypeAlias = Send | StoreBegun | memoryview | StoreEnded | Message | Closed
"""A memoryview is the next piece of the data set of the C-STORE under way, valid until the next `receive`."""


class Association:
    """The acceptor's side of one association; not thread-safe."""

    def __init__(self, accept: Acceptor, max_pdu: int) -> None:
        self._accept = accept
        self._reader = PduReader(max_pdu, _BEFORE)
        self._contexts: dict[int, AcceptedContext] = {}
        self._peer_max_pdu = 0
        self._command = bytearray()
        self._in_command = False
        self._empty = 0
        self._dataset: bytearray | None = None
        self._request: Request | None = None
        self._context_id = 0
        self._usuals: dict[bytes, Usual] = {}  # by the headers before the command: contexts and lengths differ
        self._usual: Usual | None = None
        self.data_ahead = 0
        """So many bytes come next that are nothing but data set of the C-STORE under way: `receive` them, or `take` them."""
        self.is_established = False
        self.is_closed = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing has begun that is not finished: no PDU, no message."""
        return self._request is None and not self._in_command and self._reader.is_between_pdus

    def begin(self, data: memoryview, position: int) -> Request | None:
        """Take in the C-STORE command that stands whole at `position`; its data set begins `DATA_HEADER` and its length further.

        None for everything else, nothing of it taken: that is for `receive`.
        """
        if not self.is_idle or self.is_closed or not self.is_established:
            return None
        header = bytes(data[position : position + DATA_HEADER])
        self._usual = usual = self._usuals.get(header)
        command = None if usual is None else usual.next(data, position)
        if usual is None or command is None:
            request = self._read_store(data, position, header)
        else:
            request = Request(self._contexts[usual.context_id], command)
        if request is not None:
            self._request, self._dataset = request, None
            self._context_id, self._empty = request.context.context_id, 0
        return request

    def missing(self, data: memoryview, position: int) -> int:
        """How many bytes are still to come of the command at `position`, where its headers are those of an earlier C-STORE's."""
        if not self.is_idle or self.is_closed:
            return 0
        usual = self._usuals.get(bytes(data[position : position + DATA_HEADER]))
        return 0 if usual is None else max(0, position + usual.size - len(data))

    def _read_store(self, data: memoryview, position: int, header: bytes) -> Request | None:
        """The same by parsing; the next one like it need not be parsed."""
        found = self._reader.whole_command(data, position)
        context = None if found is None else self._contexts.get(found[0])
        if found is None or context is None or not context.is_storage or len(found[1]) > LONGEST_COMMAND:
            return None
        try:
            command = Command(found[1])
        except ProtocolError:
            return None
        if command.field != C_STORE_RQ or not command.has_dataset:
            return None
        if command.places is not None:
            if len(self._usuals) == MOST_USUAL:
                self._usuals.clear()
            self._usuals[header] = Usual(context.context_id, header, command, self._peer_max_pdu)
        return Request(context, command)

    def resume(self, data: memoryview, position: int) -> int:
        """Take in the headers of the next fragment of the data set under way, where it begins a PDU at `position`.

        Returns where its bytes begin, which are then ahead; 0 for everything else: that is for `receive`.
        """
        if self._request is None or self._dataset is not None:
            return 0
        self.data_ahead = self._reader.begin_data(data, position, self._context_id)
        return position + DATA_HEADER if self.data_ahead else 0

    @property
    def repeated(self) -> bytes:
        """The headers of the fragment that was whole with the last `take`, if `resume` took them in and it was not the last one.

        Where the next fragment of the data set begins with the same bytes, the two together leave the state machine as it is.
        """
        return b"" if self.data_ahead or self._request is None else self._reader.plain_header

    def length_of(self, header: bytes) -> int:
        """Of the fragment that begins with such headers."""
        return self._reader.length_of(header)

    def take(self, count: int) -> Request | None:
        """`count` bytes of those ahead, at least one, were received and written without passing through here.

        Returns the C-STORE whose data set they end: check, store, and send `store_response`.
        """
        self.data_ahead -= count
        if not self._reader.skip(count):
            return None
        request, self._request = self._request, None
        return request

    def receive(self, data: memoryview) -> Iterator[Action]:
        """Actions that these bytes call for, to be carried out one by one and all before the next call; never raises."""
        try:
            for item in self._reader.feed(data):
                if self.is_closed:
                    return
                if isinstance(item, Control):
                    yield from self._control(item)
                elif item.is_command or self._dataset is not None:
                    yield from self._fragment(item)
                else:
                    request = self._store_request(item)
                    if item.data:
                        yield item.data
                    else:
                        self._note_empty()
                    if item.ends and item.is_last:
                        self._request = None
                        yield StoreEnded(request)
        except ProtocolError as error:
            yield from self.abort(str(error), error.reason)
        finally:
            is_store = self._request is not None and self._dataset is None
            self.data_ahead = self._reader.data_left(self._context_id) if is_store else 0

    def abort(self, problem: str, reason: AbortReason = AbortReason.NOT_SPECIFIED) -> Iterator[Action]:
        """End the association from this side."""
        if not self.is_closed:
            self.is_closed = True
            yield Send(encode_abort(reason))
            yield Closed(problem)

    def store_response(self, request: Request, answer: Answer) -> bytes:
        """The C-STORE-RSP to send."""
        if self._usual is not None and answer.status == STORED.status and not (answer.comment or answer.tag):
            response = self._usual.success(request.command)
            if response is not None:
                return response
        command = request.command.response(answer.status, answer.comment, answer.tag)
        return encode_message(request.context.context_id, command, None, self._peer_max_pdu)

    def message_response(self, request: Request, command: bytes, dataset: bytes | None) -> bytes:
        """Any encoded response to send."""
        return encode_message(request.context.context_id, command, dataset, self._peer_max_pdu)

    def _control(self, pdu: Control) -> Iterable[Action]:
        match pdu.type:
            case PduType.ASSOCIATE_RQ:
                return self._negotiate(pdu.body)
            case PduType.RELEASE_RQ:
                self.is_closed = True
                return (Send(RELEASE_RP), Closed("" if self._request is None else "a release inside a message"))
            case _:
                self.is_closed = True
                return (Closed("an abort by the peer"),)

    def _negotiate(self, body: bytes) -> Iterable[Action]:
        decision = self._accept(body)
        if isinstance(decision, Rejection):
            self.is_closed = True
            return (Send(encode_reject(decision.result, decision.source, decision.reason)), Closed(""))
        self._contexts = decision.contexts
        self._peer_max_pdu = decision.peer_max_pdu
        self._reader.expected = frozenset(_DURING)
        self.is_established = True
        return (Send(decision.response),)

    def _store_request(self, fragment: Fragment) -> Request:
        """The C-STORE that a fragment of a data set belongs to."""
        request = self._request
        if request is None or fragment.context_id != self._context_id:
            raise ProtocolError(AbortReason.UNEXPECTED_PARAMETER, "a data set without command")
        return request

    def _note_empty(self) -> None:
        self._empty += 1
        if self._empty > MOST_EMPTY:
            raise ProtocolError(AbortReason.NOT_SPECIFIED, "fragments without content")

    def _fragment(self, fragment: Fragment) -> Iterable[Action]:
        if not fragment.data:
            self._note_empty()
        if fragment.is_command:
            return self._command_fragment(fragment)
        assert self._dataset is not None
        return self._message_fragment(self._store_request(fragment), fragment, self._dataset)

    def _message_fragment(self, request: Request, fragment: Fragment, dataset: bytearray) -> Iterable[Action]:
        if len(dataset) + len(fragment.data) > LONGEST_MESSAGE:
            raise ProtocolError(AbortReason.NOT_SPECIFIED, "a message that is too long")
        dataset += fragment.data
        if not (fragment.ends and fragment.is_last):
            return ()
        self._request = self._dataset = None
        return (Message(request, bytes(dataset)),)

    def _command_fragment(self, fragment: Fragment) -> Iterable[Action]:
        if self._request is not None or (self._in_command and fragment.context_id != self._context_id):
            raise ProtocolError(AbortReason.UNEXPECTED_PARAMETER, "a command inside another message")
        if len(self._command) + len(fragment.data) > LONGEST_COMMAND:
            raise ProtocolError(AbortReason.INVALID_PARAMETER, "a command set that is too long")
        self._context_id, self._in_command = fragment.context_id, True
        self._command += fragment.data
        if not (fragment.ends and fragment.is_last):
            return ()
        encoded = bytes(self._command)
        self._command.clear()
        self._in_command, self._empty = False, 0
        context = self._contexts.get(fragment.context_id)
        if context is None:
            raise ProtocolError(AbortReason.INVALID_PARAMETER, "a presentation context that was not accepted")
        return self._message(Request(context, Command(encoded)))

    def _message(self, request: Request) -> Iterable[Action]:
        command, context = request.command, request.context
        if command.field == C_CANCEL_RQ:
            return ()  # every operation is answered before the next is read: there is nothing to cancel
        if command.field & RESPONSE:
            raise ProtocolError(AbortReason.UNEXPECTED_PARAMETER, "a response that nobody asked for")
        if command.field == C_ECHO_RQ and not command.has_dataset:
            status = 0x0000 if context.abstract_syntax == VERIFICATION else CLASS_NOT_SUPPORTED
            return (Send(self.message_response(request, command.response(status), None)),)
        if command.field == C_STORE_RQ and context.is_storage:
            return self._begin_store(request)
        if not command.has_dataset:
            return (Message(request, None),)
        self._request, self._dataset = request, bytearray()
        return ()

    def _begin_store(self, request: Request) -> Iterable[Action]:
        if not request.command.has_dataset:
            return (StoreBegun(request), StoreEnded(request))
        self._request, self._dataset = request, None
        return (StoreBegun(request),)
