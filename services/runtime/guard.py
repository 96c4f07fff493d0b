"""The offset-contiguity guard of the embedded broker.

That broker advances a partition's high watermark before it stores the batch; a fetch in between returns the next batch
and the reader would skip messages silently. The guard sees the gap, drops what came after it and has the reader go back.
Apache Kafka leaves legal gaps (compaction, transactions), so the guard is off there.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

logger = logging.getLogger(__name__)


class Position(Protocol):
    """What the guard reads from a message of the client library."""

    topic: str
    partition: int
    offset: int


Place = tuple[str, int]
"""Topic and partition."""
Run = Sequence[Any]
"""Messages (`Position`) of one partition, at least one, as they came one after the other."""


@dataclass(frozen=True)
class Admission:
    """Messages that may be handled, and the offset to go back to for each partition that has a gap."""

    runs: list[Run]
    rewinds: dict[Place, int]


@dataclass
class OffsetGuard:
    """Next expected offset per partition. A gap that is still there after `retries` looks is accepted with an error line.

    Of a run without a gap it looks at the first and the last message only.
    """

    retries: int = 25
    _expected: dict[Place, int] = field(default_factory=dict)
    _looks: dict[Place, int] = field(default_factory=dict)

    def unknown(self, runs: Iterable[Run]) -> set[Place]:
        """Partitions whose first expected offset has to be asked for."""
        return {_place(run) for run in runs} - self._expected.keys()

    def expect(self, place: Place, offset: int) -> None:
        """State where reading of a partition begins."""
        self._expected.setdefault(place, offset)

    def forget(self, places: Iterable[Place]) -> None:
        """Drop what is known about partitions that were taken away or given."""
        for place in places:
            self._expected.pop(place, None)
            self._looks.pop(place, None)

    def admit(self, runs: Iterable[Run]) -> Admission:
        """Sort a poll into what may be handled and where to go back to. Changes nothing but the count of looks."""
        cursor = dict(self._expected)
        admitted: list[Run] = []
        rewinds: dict[Place, int] = {}
        for run in runs:
            place = _place(run)
            whole = run[-1].offset - run[0].offset == len(run) - 1 and run[0].offset <= cursor.get(place, run[0].offset)
            if whole and place not in rewinds:
                cursor[place] = run[-1].offset + 1
                admitted.append(run)
            elif part := list(self._until_gap(place, run, cursor, rewinds)):
                admitted.append(part)
        return Admission(admitted, rewinds)

    def _until_gap(self, place: Place, run: Run, cursor: dict[Place, int], rewinds: dict[Place, int]) -> Iterator[Position]:
        for record in run:
            if place in rewinds:
                return
            if record.offset > cursor.get(place, record.offset) and not self._given_up(place, cursor[place], record.offset):
                rewinds[place] = cursor[place]
                return
            cursor[place] = record.offset + 1
            yield record

    def advance(self, runs: Iterable[Run]) -> None:
        """Messages are handled: expect the ones after them."""
        for run in runs:
            place = _place(run)
            self._looks.pop(place, None)
            self._expected[place] = run[-1].offset + 1

    def _given_up(self, place: Place, expected: int, found: int) -> bool:
        looks = self._looks[place] = self._looks.get(place, 0) + 1
        if looks <= self.retries:
            return False
        logger.error("%s/%d: offsets %d to %d never came; the relay sends their events again", *place, expected, found - 1)
        return True


def _place(run: Run) -> Place:
    return run[0].topic, run[0].partition
