"""What the events of a poll say, made ready for the tables: the part of the join that needs neither database nor clock."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from typing import Any, Final, NamedTuple

import orjson

from schemas.events import Label, Prediction
from schemas.vocabulary import CaseRole
from services.ground_truth.domain import check_numbers, check_words, label_faults, newest_predictions, role_of, utc_fault
from services.ground_truth.sayings import Said, Sayings
from services.runtime.errors import InvalidInput
from services.runtime.messages import Received
from services.runtime.rows import json_text

Values = tuple[Any, ...]
EMPTY: Final = "[]"
Check = Callable[[Label], None]


class Refused(NamedTuple):
    """An event that nobody can use, and why."""

    event: Received[Any]
    error: InvalidInput


@dataclass
class Reading:
    """The events of a poll that can be used, and what they say.

    `words` are the labels' different words, `latest` the time of the latest label as a text.
    """

    events: list[Received[Any]] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    words: set[tuple[str, str | None, str, bool]] = field(default_factory=set)
    latest: str = ""
    studies: list[str] = field(default_factory=list)
    """All that they speak of, in order."""
    scores: list[Values] = field(default_factory=list)
    """The highest revision of each case in key order, as `statements.SCORE_COLUMNS` says."""
    roles: dict[str, CaseRole] = field(default_factory=dict)
    """Of every patient, by the shares in the settings."""
    said: list[Said] = field(default_factory=list)
    """What each of `labels` says."""
    sayings: Sayings = field(default_factory=Sayings)

    def without(self, check: Check, shares: tuple[float, float]) -> "Reading":
        """Without the labels that fail the check, which are refused."""
        found = _sorted_out(self.events, check)
        found.refused = [*self.refused, *found.refused]
        return _made_ready(found, shares)


def read(batch: Sequence[Received[Any]], shares: tuple[float, float]) -> Reading:
    """Check all that can be checked without knowing the models' classes and the time."""
    return _made_ready(_sorted_out(batch, lambda _: None), shares)


def _sorted_out(batch: Sequence[Received[Any]], check: Check) -> Reading:
    found, known = Reading(), set[tuple[object, ...]]()
    for event in batch:
        data = event.data
        try:
            if isinstance(data, Prediction):
                _check_prediction(data, known)
                found.predictions.append(data)
            else:
                words = (data.task, data.value, data.source, data.withdrawn)
                if words not in found.words or not MINYEAR < data.labelled_at.year < MAXYEAR:
                    _check_label(data)
                    found.words.add(words)
                check(data)
                found.labels.append(data)
            found.events.append(event)
        except InvalidInput as error:
            found.refused.append(Refused(event, error))
    return found


def _check_prediction(data: Prediction, known: set[tuple[object, ...]]) -> None:
    """Raise InvalidInput for a score that nobody can use; remembers the words, which are always the same few."""
    check_numbers(data)
    names, facets = data.probabilities, data.facets
    words = (data.model, data.task, data.predicted, len(names), *names, len(facets), *facets, *facets.values(), *data.findings)
    if words not in known:
        check_words(data)
        known.add(words)


def _check_label(label: Label) -> None:
    faults = label_faults(label.task, label.value or "", label.source, (), withdrawn=label.withdrawn)
    faults += ["labelled_at cannot be expressed in UTC"] if utc_fault(label.labelled_at) else []
    if faults:
        raise InvalidInput("; ".join(faults))


def _made_ready(found: Reading, shares: tuple[float, float]) -> Reading:
    found.scores = _score_rows(newest_predictions(found.predictions))
    found.roles = {patient: role_of(patient, *shares) for patient in {row[4] for row in found.scores}}
    times = texts_of([label.labelled_at for label in found.labels])
    found.latest = max(times, default="")
    found.said = [
        Said._make((label.study_key, label.task, label.source, None if label.withdrawn else label.value, time))
        for label, time in zip(found.labels, times, strict=True)
    ]
    found.sayings.add(found.said)
    found.studies = sorted({row[0] for row in found.scores}.union([item[0] for item in found.said]))
    return found


def _score_rows(predictions: Sequence[Prediction]) -> list[Values]:
    # In one time zone and as texts: comparing times of different ones takes several times as long.
    times = iter(texts_of([time for item in predictions for time in (item.acquired_at, item.scored_at)]))
    return [
        (
            item.study_key,
            item.model,
            item.version,
            item.task,
            item.patient_key,
            item.revision,
            item.serving,
            item.predicted,
            json_text(item.probabilities),
            json_text(item.facets),
            json_text(item.findings) if item.findings else EMPTY,
            next(times),
            next(times),
        )
        for item in predictions
    ]


def texts_of(times: Sequence[datetime]) -> list[str]:
    """As SQLAlchemy stores them on SQLite, so that times compare as texts."""
    return [_text(time) for time in orjson.loads(orjson.dumps(times))]


def text_of(time: datetime) -> str:
    """One time as such a text."""
    return texts_of([time])[0]


def _text(time: str) -> str:
    """From RFC 3339; what is in UTC is only cut, which takes a quarter of the time."""
    if time[-6:] != "+00:00":
        return datetime.fromisoformat(time).astimezone(UTC).isoformat(" ", "microseconds")[:26]
    fraction = time[20:26] if len(time) == len("2026-03-02T08:00:00.000000+00:00") else "000000"
    return f"{time[:10]} {time[11:19]}.{fraction}"
