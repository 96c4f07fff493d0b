"""The limit: the same events joined in dicts of one process. Nothing survives its end."""

import asyncio
from collections.abc import Iterable
from typing import Any

from aiokafka import AIOKafkaConsumer

from schemas.events import Label, Prediction
from schemas.topics import BY_NAME, LABEL, PREDICTION

from .meter import Meter, Outcome
from .workload import BATCH, Workload

POLL = 2000


class DictJoin:
    """Validates, leaves out what came before, joins in any order, takes corrections, closes batches."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.predictions: dict[str, Prediction] = {}
        self.labels: dict[str, Label] = {}
        self.open: list[str] = []
        self.batch_of: dict[str, int] = {}
        self.batches: list[tuple[str, ...]] = []
        self.reopened = 0

    def take(self, topic: str, event_id: str, body: bytes) -> None:
        """One message."""
        if event_id in self.seen:
            return
        self.seen.add(event_id)
        event: Any = BY_NAME[topic].model.model_validate_json(body)
        if isinstance(event, Prediction):
            self._score(event)
        else:
            self._label(event)

    def _score(self, event: Prediction) -> None:
        if event.study_key not in self.predictions:
            self.predictions[event.study_key] = event
            if event.study_key in self.labels:
                self._joined(event.study_key)

    def _label(self, event: Label) -> None:
        known = self.labels.get(event.study_key)
        if known is not None and known.labelled_at >= event.labelled_at:
            return
        self.labels[event.study_key] = event
        if event.study_key not in self.predictions:
            return
        if known is None:
            self._joined(event.study_key)
        elif event.study_key in self.batch_of and known.value != event.value:
            self.reopened += 1

    def _joined(self, study: str) -> None:
        self.open.append(study)
        if len(self.open) == BATCH:
            for member in self.open:
                self.batch_of[member] = len(self.batches)
            self.batches.append(tuple(self.open))
            self.open = []

    def outcome(self) -> Outcome:
        """What was joined."""
        truths = {study: self.labels[study].value for study in self.predictions if study in self.labels}
        return Outcome(truths, [len(batch) for batch in self.batches], len(self.open))


def feed(work: Workload) -> tuple[Meter, Outcome]:
    """From a list, without a bus."""
    join, meter = DictJoin(), Meter()
    meter.begin()
    for record in work.records:
        join.take(record.topic, record.headers["ce_id"], record.body)
    meter.end()
    return meter, join.outcome()


async def _bus(events: int, bootstrap: str, group: str) -> tuple[Meter, Outcome]:
    join, meter = DictJoin(), Meter()
    consumer = AIOKafkaConsumer(
        PREDICTION.name,
        LABEL.name,
        bootstrap_servers=bootstrap,
        group_id=group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_partition_fetch_bytes=4_194_304,
        fetch_max_wait_ms=100,
    )
    await consumer.start()
    try:
        while len(join.seen) < events:
            polled = await consumer.getmany(timeout_ms=1000, max_records=POLL)
            meter.begin()
            for place, records in polled.items():
                _take_all(join, place.topic, records)
            await consumer.commit()
        meter.end()
    finally:
        await consumer.stop()
    return meter, join.outcome()


def _take_all(join: DictJoin, topic: str, records: Iterable[Any]) -> None:
    for record in records:
        identity = next(value for name, value in record.headers if name == "ce_id")
        join.take(topic, identity.decode(), record.value)


def bus(events: int, bootstrap: str, group: str) -> tuple[Meter, Outcome]:
    """From the broker, with aiokafka, offsets committed once per poll."""
    return asyncio.run(_bus(events, bootstrap, group))
