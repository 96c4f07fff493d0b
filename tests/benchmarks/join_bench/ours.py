"""The join of this project: its own consumer, transaction and tables."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sqlalchemy import text

from schemas.settings import DatabaseSettings, JoinSettings, KafkaSettings, Settings
from services.ground_truth.app import CONSUMER
from services.ground_truth.handlers import Join
from services.runtime import bus as wire
from services.runtime import telemetry
from services.runtime.clock import SystemClock
from services.runtime.consumer import BatchConsumer, Decoded, decode_for, process
from services.runtime.database import Database
from services.runtime.health import Health
from services.runtime.identity import Pseudonyms
from services.runtime.messages import Record
from services.runtime.migrations import upgrade
from services.runtime.process import run
from services.runtime.service import Context, Service

from .meter import Meter, Outcome
from .workload import BATCH, Workload

SETTINGS = JoinSettings(batch_size=BATCH, tune_share=0.0, gate_share=0.0)


class Watched(Join):
    """Notes what came."""

    def __init__(self) -> None:
        super().__init__(SETTINGS)
        self.seen: set[str] = set()

    def apply(self, tx: Any, batch: Any, prepared: Any) -> None:
        """As the service does, with a note of what came."""
        super().apply(tx, batch, prepared)
        self.seen.update(event.event_id for event in batch)


def open_database(url: str) -> Database:
    """A migrated database."""
    database = Database(url)
    upgrade(database)
    return database


def feed(work: Workload, url: str) -> tuple[Meter, Outcome]:
    """From a list, without a bus, as many records at a time as the consumer takes from one poll."""
    database, meter = open_database(url), Meter()
    join, size = Join(SETTINGS), Join.max_records
    meter.begin()
    for start in range(0, len(work.records), size):
        process(database, join, work.records[start : start + size])
    meter.end()
    return meter, outcome(database)


def bus(events: int, url: str, bootstrap: str, incarnation: str, state: Path) -> tuple[Meter, Outcome]:
    """From the broker, in the runtime that the service has."""
    context, meter = make_context(url, bootstrap, incarnation, state), Meter()
    with patch.object(wire, "decode_for", _metered(meter)):
        asyncio.run(_run(context, Watched(), meter, events))
    return meter, outcome(context.database)


def _metered(meter: Meter) -> Callable[[BatchConsumer[Any], Iterable[Record]], Decoded]:
    """Starts the meter with the first poll in hand, before it is decoded."""

    def decode(consumer: BatchConsumer[Any], records: Iterable[Record]) -> Decoded:
        meter.begin()
        return decode_for(consumer, records)

    return decode


def make_context(url: str, bootstrap: str, incarnation: str, state: Path) -> Context:
    """What a process of the service is given."""
    life = {"bootstrap": bootstrap, "embedded": True, "incarnation": incarnation}
    kafka = KafkaSettings(**life, session_timeout_ms=2000, heartbeat_interval_ms=300)
    settings = Settings(state_dir=state, database=DatabaseSettings(url=url), kafka=kafka)
    return Context(settings, open_database(url), SystemClock(), Pseudonyms(b"benchmark key, thirty-two bytes!"))


async def _run(context: Context, join: Watched, meter: Meter, events: int) -> None:
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    telemetry.setup(context.settings, "join")  # as `reclaim serve` does
    health = Health()

    async def watch() -> None:
        while len(join.seen) < events or handled(context.database) < events:  # noqa: ASYNC110 - another thread counts
            await asyncio.sleep(0.02)
        meter.end()
        health.stop.set()

    watching = asyncio.create_task(watch())
    await run([Service(CONSUMER, consumers=(join,))], context, health)
    await watching


def handled(database: Database) -> int:
    """Different events whose effects are committed."""
    with database.read() as session:
        pages = session.execute(text("SELECT event_ids FROM inbox_page")).scalars().all()
    return len({event_id for page in pages for event_id in json.loads(page)})


def outcome(database: Database) -> Outcome:
    """What stands in the tables, each batch by the cases that name it."""
    with database.read() as session:
        truths = {row[0]: row[1] for row in session.execute(text('SELECT study_key, truth FROM "case" WHERE truth IS NOT NULL'))}
        sizes = session.execute(text('SELECT count(*) FROM "case" WHERE batch_id IS NOT NULL GROUP BY batch_id')).scalars().all()
        announced = session.execute(
            text("SELECT count(*) FROM outbox JOIN batch ON outbox.event_id = batch.batch_id AND batch.cases = :n"), {"n": BATCH}
        ).scalar_one()
        left_open = session.execute(text("SELECT count(*) FROM \"case\" WHERE state = 'joined'")).scalar_one()
    database.close()
    found = list(sizes) if announced == len(sizes) else [announced]
    return Outcome(truths, found, left_open)
