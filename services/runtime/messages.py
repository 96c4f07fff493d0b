"""CloudEvents 1.0 in Kafka binary mode: attributes as `ce_` headers, data as the JSON body.

Source: CloudEvents 1.0.2, Kafka protocol binding §3.2. `traceparent` follows W3C Trace Context.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Generic, NamedTuple, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from schemas.events import Event
from schemas.topics import BY_NAME, Topic
from services.runtime.errors import InvalidInput

SOURCE = "/reclaim"
MAX_ID = 64
REPLACEMENT: Final = "\ufffd"
E_co = TypeVar("E_co", bound=Event, covariant=True)


def text_of(value: bytes | None) -> str:
    """Any bytes as a text that a database takes: without NUL, which PostgreSQL refuses, and without what is not UTF-8."""
    text = str(value or b"", "utf-8", "replace")
    return text.replace("\0", REPLACEMENT) if "\0" in text else text


class Headers(Mapping[str, str]):
    """Headers as the bus has them, made to texts (`text_of`) when they are asked for: of most messages only two ever are."""

    __slots__ = ("_pairs", "_raw", "_texts")

    def __init__(self, raw: Iterable[tuple[str, bytes | None]]) -> None:
        self._pairs = tuple(raw)
        self._raw = dict(self._pairs)
        self._texts: dict[str, str] | None = None

    def get(self, name: str, default: Any = None) -> Any:
        """As of a dict; does not make texts of the others."""
        if REPLACEMENT in name:
            return self._all().get(name, default)
        return text_of(self._raw[name]) if name in self._raw and "\0" not in name else default

    def _all(self) -> dict[str, str]:
        if self._texts is None:
            self._texts = {name.replace("\0", REPLACEMENT): text_of(value) for name, value in self._pairs}
        return self._texts

    def __getitem__(self, name: str) -> str:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


class Record(NamedTuple):
    """A message as it lies on the bus. A tuple, like `Received`: there are thousands of them in a poll."""

    topic: str
    partition: int
    offset: int
    key: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def event_id(self) -> str:
        """CloudEvents id, or the position for a message without a valid one: equal rubbish is not the same event."""
        identity = self.headers.get("ce_id", "")
        return identity if 0 < len(identity) <= MAX_ID else f"{self.topic}/{self.partition}/{self.offset}"


class Received(NamedTuple, Generic[E_co]):
    """A validated event with its envelope. `traceparent` is that of our processing span, to hand on to effects.

    `data` is None where the consumer has read it before (`BatchConsumer.read`).
    """

    event_id: str
    topic: Topic
    data: E_co
    record: Record
    traceparent: str = ""

    def traced(self, traceparent: str) -> "Received[E_co]":
        """The same event under another span."""
        return self._replace(traceparent=traceparent)


def headers_of(topic: Topic, event_id: str, at: datetime, traceparent: str = "") -> dict[str, str]:
    """Envelope of an event that we publish."""
    headers = {
        "ce_specversion": "1.0",
        "ce_id": event_id,
        "ce_source": f"{SOURCE}/{topic.publisher}",
        "ce_type": topic.ce_type,
        "ce_time": at.isoformat(),
        "content-type": "application/json",
    }
    return headers | ({"traceparent": traceparent} if traceparent else {})


def decode(record: Record) -> Received[Event]:
    """Validate a message against its topic's contract; raises InvalidInput that names what is wrong, never the value."""
    topic = BY_NAME.get(record.topic)
    if topic is None:
        raise InvalidInput(f"{record.topic} is not a topic of this service")
    identity = record.headers.get("ce_id")
    if not identity:
        raise InvalidInput("the CloudEvents header ce_id is missing")
    if len(identity) > MAX_ID:
        raise InvalidInput(f"the CloudEvents header ce_id is longer than {MAX_ID} characters")
    try:
        data = topic.model.__pydantic_validator__.validate_json(record.body)  # what `model_validate_json` calls
    except ValidationError as error:
        raise InvalidInput(_faults(error)) from None
    return Received(identity, topic, data, record, record.headers.get("traceparent", ""))


def _faults(error: ValidationError) -> str:
    faults: Sequence[str] = [
        f"{'.'.join(map(str, item['loc'])) or 'body'}: {_fault(item)}" for item in error.errors(include_input=False)
    ]
    return f"the body breaks its contract ({'; '.join(faults[:5])})"


def _fault(item: ErrorDetails) -> str:
    """What is wrong, and what a text has to look like; both come from the contract, not from the message."""
    pattern = item.get("ctx", {}).get("pattern")
    return f"{item['type']}, must match {pattern}" if pattern else item["type"]
