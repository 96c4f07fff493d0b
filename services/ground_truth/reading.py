"""What the events of a poll say, made ready for the tables: the part of the join that needs neither database nor clock."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from operator import itemgetter
from typing import Any, Final, NamedTuple

import orjson

from schemas.events import Label, Prediction
from schemas.vocabulary import CaseRole
from services.ground_truth.domain import CaseKey, check_numbers, check_words, label_faults, role_of, utc_fault
from services.ground_truth.sayings import Said, Sayings
from services.ground_truth.statements import PATIENT, REVISION, SCORE_COLUMNS
from services.runtime.errors import InvalidInput
from services.runtime.messages import Received
from services.runtime.rows import json_text

Values = tuple[Any, ...]
Score = tuple[str, str, int, int]
"""(study_key, model, version, revision)"""
EMPTY: Final = "[]"
IN_UTC: Final = '+00:00"'
MICROSECONDS: Final = len("2026-03-02 08:00:00.000000")
_PLAIN: Final = itemgetter(*SCORE_COLUMNS[:8])
Check = Callable[[Label], None]


class Refused(NamedTuple):
    """The place of an event that nobody can use, and why."""

    place: int
    error: InvalidInput


@dataclass
class Reading:
    """What the events of a poll say, as far as they can be used. An event is named by its place in the poll.

    `words` are the labels' different words, `latest` the time of the latest label as a text.
    """

    refused: list[Refused] = field(default_factory=list)
    words: set[tuple[str, str | None, str, bool]] = field(default_factory=set)
    latest: str = ""
    studies: list[str] = field(default_factory=list)
    """All that they speak of, in order."""
    scores: list[Values] = field(default_factory=list)
    """The highest revision of each case in key order, the first of equals, as `statements.SCORE_COLUMNS` says."""
    scored: list[tuple[int, Score]] = field(default_factory=list)
    """Every event with a score."""
    roles: dict[str, CaseRole] = field(default_factory=dict)
    """Of every patient, by the shares in the settings."""
    said: list[tuple[int, Said]] = field(default_factory=list)
    """Every event with a label."""
    sayings: Sayings = field(default_factory=Sayings)

    def last(self, studies: Collection[str]) -> int | None:
        """The place of the last event that belongs to one of the studies."""
        score = next((place for place, case in reversed(self.scored) if case[0] in studies), None)
        label = next((place for place, item in reversed(self.said) if item[0] in studies), None)
        return max((place for place in (score, label) if place is not None), default=None)


def read(batch: Iterable[Received[Any]], shares: tuple[float, float], check: Check = lambda _: None) -> Reading:
    """Check all that can be checked without knowing the models' classes and the time, and `check` the labels.

    Of each event it keeps a row, so that the event is gone before the next one is made.
    """
    found, scores, labels = Reading(), _Scores(), _Labels(check)
    for place, event in enumerate(batch):
        data = event.data
        try:
            if isinstance(data, Prediction):
                found.scored.append((place, scores.take(data)))
            else:
                labels.take(place, data)
        except InvalidInput as error:
            found.refused.append(Refused(place, error))
    found.scores = scores.rows()
    found.roles = {patient: role_of(patient, *shares) for patient in {row[PATIENT] for row in found.scores}}
    found.words, found.said = labels.words, labels.said()
    found.latest = max((item.at for _, item in found.said), default="")
    found.sayings.add(item for _, item in found.said)
    found.studies = sorted({row[0] for row in found.scores}.union([item[0] for _, item in found.said]))
    return found


class _Scores:
    """Scores of a poll, of each case the highest revision."""

    def __init__(self) -> None:
        self._rows: dict[CaseKey, Values] = {}
        self._times: dict[CaseKey, tuple[datetime, datetime]] = {}
        self._words = set[tuple[object, ...]]()

    def take(self, data: Prediction) -> Score:
        """One more; raises InvalidInput for a score that nobody can use."""
        self._check(data)
        key, revision = (data.study_key, data.model, data.version), data.revision
        known = self._rows.get(key)
        if known is None or revision > known[REVISION]:
            self._rows[key] = _row(data)
            self._times[key] = (data.acquired_at, data.scored_at)
        return (*key, revision)

    def _check(self, data: Prediction) -> None:
        """Remembers the words, which are always the same few."""
        check_numbers(data)
        names, facets = data.probabilities, data.facets
        words = (data.model, data.task, data.predicted, len(names), *names, len(facets), *facets, *facets.values(), *data.findings)
        if words not in self._words:
            check_words(data)
            self._words.add(words)

    def rows(self) -> list[Values]:
        """In key order."""
        # In one time zone and as texts: comparing times of different ones takes several times as long.
        keys = sorted(self._rows)
        times = iter(texts_of([time for key in keys for time in self._times[key]]))
        return [(*self._rows[key], next(times), next(times)) for key in keys]


def _row(item: Prediction) -> Values:
    """But for the times, which stand last."""
    return (
        *_PLAIN(item.__dict__),
        json_text(item.probabilities),
        json_text(item.facets),
        json_text(item.findings) if item.findings else EMPTY,
    )


class _Labels:
    """Labels of a poll."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self.words = set[tuple[str, str | None, str, bool]]()
        self._said: list[tuple[int, tuple[str, str, str, str | None], datetime]] = []

    def take(self, place: int, data: Label) -> None:
        """One more; raises InvalidInput for a label that nobody can use."""
        words = (data.task, data.value, data.source, data.withdrawn)
        if words not in self.words or not MINYEAR < data.labelled_at.year < MAXYEAR:
            _check_label(data)
            self.words.add(words)
        self._check(data)
        value = None if data.withdrawn else data.value
        self._said.append((place, (data.study_key, data.task, data.source, value), data.labelled_at))

    def said(self) -> list[tuple[int, Said]]:
        """In the order of arrival."""
        times = texts_of([time for *_, time in self._said])
        return [(place, Said._make((*item, time))) for (place, item, _), time in zip(self._said, times, strict=True)]


def _check_label(label: Label) -> None:
    faults = label_faults(label.task, label.value or "", label.source, (), withdrawn=label.withdrawn)
    faults += ["labelled_at cannot be expressed in UTC"] if utc_fault(label.labelled_at) else []
    if faults:
        raise InvalidInput("; ".join(faults))


def texts_of(times: Sequence[datetime]) -> list[str]:
    """As SQLAlchemy stores them on SQLite, so that times compare as texts."""
    together = orjson.dumps(times).decode()
    if together.count(IN_UTC) < len(times):
        return [_text(time) for time in orjson.loads(together)]
    # As is usual: what is done to all at once takes a quarter of the time.
    plain = orjson.loads(together.replace(IN_UTC, '"').replace("T", " "))
    return [time if len(time) == MICROSECONDS else f"{time}.000000" for time in plain]


def text_of(time: datetime) -> str:
    """One time as such a text."""
    return texts_of([time])[0]


def _text(time: str) -> str:
    """From RFC 3339."""
    return datetime.fromisoformat(time).astimezone(UTC).isoformat(" ", "microseconds")[:MICROSECONDS]
