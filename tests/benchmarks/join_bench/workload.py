"""The events of the join's benchmark: scores and labels of the same studies, corrected and repeated ones, in a fixed disorder."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from schemas import topics
from schemas.events import Label, Prediction
from services.runtime.messages import Record, headers_of

START: Final = datetime(2026, 3, 2, 8, tzinfo=UTC)
CLASSES: Final = ("glioma", "meningioma", "none", "pituitary")
MODEL: Final = "tumour"
CORRECTED: Final = 0.01
"""Share of studies whose label is corrected later."""
REPEATED: Final = 0.02
"""Share of events that come twice."""
BATCH: Final = 500
"""Cases of an evaluation batch."""
PARTITIONS: Final = 4


@dataclass(frozen=True)
class Workload:
    """Records in the order in which they are to be read, and what they have to end as."""

    records: Sequence[Record]
    truths: dict[str, str]
    """Study to its final label."""
    events: int
    """Different events among the records."""


def make(cases: int, seed: int = 1) -> Workload:
    """`cases` scored and labelled studies. Equal arguments give equal events, so every process makes the same."""
    chance = random.Random(seed)
    truths: dict[str, str] = {}
    records: list[Record] = []
    for number in range(cases):
        key = f"{chance.getrandbits(128):032x}"
        found = list(_events(key, number, chance))
        truths[key] = found[-1].data.value
        records += [_record(event, chance) for event in found]
    events = len(records)
    records += chance.sample(records, int(REPEATED * events))
    chance.shuffle(records)
    return Workload(_placed(records), truths, events)


@dataclass(frozen=True)
class _Event:
    data: Prediction | Label


def _events(key: str, number: int, chance: random.Random) -> Iterator[_Event]:
    at = START + timedelta(seconds=number)
    yield _Event(_prediction(key, at, chance))
    yield _Event(_label(key, chance.choice(CLASSES), at + timedelta(days=1)))
    if chance.random() < CORRECTED:
        yield _Event(_label(key, chance.choice(CLASSES), at + timedelta(days=2)))


def _prediction(key: str, at: datetime, chance: random.Random) -> Prediction:
    shares = [chance.random() for _ in CLASSES]
    probabilities = {name: share / sum(shares) for name, share in zip(CLASSES, shares, strict=True)}
    return Prediction(
        study_key=key,
        patient_key=f"{chance.getrandbits(128):032x}",
        revision=1,
        model=MODEL,
        version=1,
        serving=True,
        task=MODEL,
        probabilities=probabilities,
        predicted=max(CLASSES, key=probabilities.__getitem__),
        acquired_at=at,
        scored_at=at + timedelta(minutes=3),
        facets={
            "Modality": "MR",
            "Manufacturer": "SIEMENS",
            "StationName": "MR2",
            "ProtocolName": "t1_mprage",
            "SliceThickness": "1",
        },
    )


def _label(key: str, value: str, at: datetime) -> Label:
    return Label(study_key=key, task=MODEL, value=value, source="http:pathology", labelled_at=at)


def _record(event: _Event, chance: random.Random) -> Record:
    topic = topics.PREDICTION if isinstance(event.data, Prediction) else topics.LABEL
    identity = f"{chance.getrandbits(256):064x}"  # as long as the hashes that name scores and imported labels
    headers = headers_of(topic, identity, START)
    return Record(topic.name, 0, 0, event.data.study_key, headers, event.data.model_dump_json().encode())


def _placed(records: Sequence[Record]) -> list[Record]:
    """Each in the partition of its study, with running offsets."""
    ends: dict[tuple[str, int], int] = {}
    placed = []
    for record in records:
        partition = int(record.key[:8], 16) % PARTITIONS
        offset = ends.get((record.topic, partition), 0)
        ends[record.topic, partition] = offset + 1
        placed.append(Record(record.topic, partition, offset, record.key, record.headers, record.body))
    return placed
