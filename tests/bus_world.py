"""A small world on the bus for tests: two chained consumers with countable effects, runnable as processes that can be killed.

Labels reach `ground_truth`, which writes one audit row and emits one BatchReady each; that reaches `evaluation`, which
writes another audit row. Every label must leave exactly one row of each kind.

`python -m tests.bus_world ROLE…` runs roles in one process. WORLD_FAULT=POINT:N kills it (SIGKILL) at the N-th pass of a point.
"""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer
from sqlmodel import Session, select

from schemas.events import BatchReady, Label
from schemas.settings import DatabaseSettings, KafkaSettings, Settings, load_settings
from schemas.tables import Audit
from schemas.topics import BATCH_READY, LABEL
from services.runtime import outbox, relay
from services.runtime.clock import SystemClock
from services.runtime.consumer import Batch, BatchConsumer
from services.runtime.database import Database
from services.runtime.embedded import EmbeddedBroker
from services.runtime.errors import InvalidInput
from services.runtime.identity import Pseudonyms
from services.runtime.process import run
from services.runtime.service import Context, Service
from services.runtime.transaction import Transaction

KAFKA = os.environ.get("RECLAIM_TEST_KAFKA_BOOTSTRAP", "")
POISON = "poison"


class Joiner(BatchConsumer[None]):
    name, topics, max_records = "ground_truth", (LABEL,), 50

    def apply(self, tx: Transaction, batch: Batch, prepared: None) -> None:
        for event in batch:
            if event.data.value == POISON:
                raise InvalidInput("the value is poison")
            key = event.data.study_key
            tx.audit(f"pid:{os.getpid()}", "joined", key)
            ready = BatchReady(batch_id=key, model=key[:4], version=1, cases=1, closed_by="size")
            tx.emit(BATCH_READY, ready, event_id=f"ready-{key}", cause=event)


class Evaluator(BatchConsumer[None]):
    name, topics, max_records = "evaluation", (BATCH_READY,), 50

    def apply(self, tx: Transaction, batch: Batch, prepared: None) -> None:
        for event in batch:
            tx.audit(f"pid:{os.getpid()}", "evaluated", event.data.batch_id)


def label(value: str = "v", key: str | None = None) -> Label:
    return Label(study_key=key or uuid.uuid4().hex, task="t", value=value, source="s", labelled_at=datetime(2026, 3, 2, tzinfo=UTC))


def emit_labels(database: Database, count: int, value: str = "v") -> list[str]:
    labels = [label(value) for _ in range(count)]
    with database.transaction() as tx:
        for item in labels:
            tx.emit(LABEL, item)
    return [item.study_key for item in labels]


def effects(database: Database, action: str, keys: Sequence[str]) -> Counter[str]:
    wanted = set(keys)
    with database.read() as session:
        return Counter(
            subject for subject in session.exec(select(Audit.subject).where(Audit.action == action)) if subject in wanted
        )


def everything_once(database: Database, keys: Sequence[str]) -> bool:
    """All effects are there; raises at once when one is doubled."""
    for action in ("joined", "evaluated"):
        counted = effects(database, action, keys)
        doubled = {key: number for key, number in counted.items() if number > 1}
        assert not doubled, f"{action} more than once: {doubled}"
        if len(counted) < len(keys):
            return False
    return True


def wait_until(condition: Callable[[], bool], seconds: float, what: str, every: float = 0.1) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(every)


async def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.05)


def kafka_settings(broker: EmbeddedBroker | None) -> KafkaSettings:
    """Quick joins on the embedded broker; what a real broker's limits allow on Kafka."""
    if broker is None:
        return KafkaSettings(bootstrap=KAFKA)
    life = {"bootstrap": broker.bootstrap, "embedded": True, "incarnation": broker.incarnation}
    return KafkaSettings(**life, session_timeout_ms=2000, heartbeat_interval_ms=300, graceful_timeout_s=5)


@contextmanager
def bus() -> Iterator[KafkaSettings]:
    """The Kafka that the environment names, else an embedded broker of the test's own."""
    if KAFKA:
        yield kafka_settings(None)
        return
    with EmbeddedBroker() as broker:
        yield kafka_settings(broker)


def make_context(url: str, kafka: KafkaSettings, state: Path, **groups: Any) -> Context:
    settings = Settings(state_dir=state, database=DatabaseSettings(url=url), kafka=kafka, **groups)
    return Context(settings, Database(url), SystemClock(), Pseudonyms(b"test key, thirty-two bytes long!"))


def build(role: str, context: Context) -> Service:
    if role == "relay":
        return relay.build(context)
    return Service(role, consumers=({"join": Joiner, "evaluate": Evaluator}[role](),))


class World:
    """Processes of this world that share a database and a broker."""

    def __init__(self, context: Context, log: Path) -> None:
        self.context, self.log = context, log
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *roles: str, fault: str = "") -> None:
        settings = self.context.settings
        kafka = settings.kafka.model_dump(exclude_defaults=True)
        environment = {f"RECLAIM_KAFKA_{key.upper()}": str(value) for key, value in kafka.items()}
        environment |= {"RECLAIM_DATABASE_URL": settings.database_url, "RECLAIM_STATE_DIR": str(settings.state_dir)}
        environment |= {"RECLAIM_OUTBOX_LEASE_S": "2", "OMP_NUM_THREADS": "1"} | ({"WORLD_FAULT": fault} if fault else {})
        with self.log.open("ab") as output:
            command = [sys.executable, "-m", "tests.bus_world", *roles]
            root = Path(__file__).parent.parent
            process = subprocess.Popen(command, env=os.environ | environment, cwd=root, stdout=output, stderr=subprocess.STDOUT)
            self.processes[name] = process

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def wait_killed(self, name: str, seconds: float = 60) -> None:
        code = self.processes.pop(name).wait(seconds)
        assert code == -signal.SIGKILL, f"{name} ended with {code}:\n{self.log.read_text()[-3000:]}"

    def stop(self) -> dict[str, int]:
        for process in self.processes.values():
            process.terminate()
        codes = {name: process.wait(30) for name, process in self.processes.items()}
        self.processes.clear()
        return codes

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.context.database.close()


POINTS = (
    "transaction.before_commit",
    "transaction.after_commit",
    "apply.before",
    "apply.after",
    "offsets.before_commit",
    "offsets.after_commit",
    "publish.before",
    "publish.after",
    "mark.before",
    "mark.after",
)
RELAY_POINTS = POINTS[6:]


def _install_fault(spec: str) -> None:
    point, _, count = spec.partition(":")
    left = [int(count or 1)]

    def passed(name: str) -> None:
        if name == point:
            left[0] -= 1
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(owner: Any, attribute: str, before: str, after: str) -> None:
        original = getattr(owner, attribute)

        async def asynchronous(*args: Any, **kwargs: Any) -> Any:
            passed(before)
            result = await original(*args, **kwargs)
            passed(after)
            return result

        def synchronous(*args: Any, **kwargs: Any) -> Any:
            passed(before)
            result = original(*args, **kwargs)
            passed(after)
            return result

        setattr(owner, attribute, asynchronous if asyncio.iscoroutinefunction(original) else synchronous)

    around(Session, "commit", "transaction.before_commit", "transaction.after_commit")
    around(AIOKafkaConsumer, "commit", "offsets.before_commit", "offsets.after_commit")
    around(relay, "_publish", "publish.before", "publish.after")
    around(outbox, "mark_sent", "mark.before", "mark.after")
    for consumer in (Joiner, Evaluator):
        around(consumer, "apply", "apply.before", "apply.after")


async def main(roles: Sequence[str]) -> int:
    settings = load_settings()
    context = Context(settings, Database.from_settings(settings), SystemClock(), Pseudonyms(b"test key, thirty-two bytes long!"))
    return await run([build(role, context) for role in roles], context)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(name)s %(message)s")
    logging.getLogger("aiokafka").setLevel(logging.WARNING)
    if "WORLD_FAULT" in os.environ:
        _install_fault(os.environ["WORLD_FAULT"])
    sys.exit(asyncio.run(main(sys.argv[1:])))


def emit(database: Database, count: int = 1) -> list[str]:
    """Put labels into the outbox; their ids."""
    with database.transaction() as tx:
        return [tx.emit(LABEL, label()) for _ in range(count)]


def send_all(database: Database, broker: str) -> list[str]:
    """Say that a broker has what waits in the outbox; the ids."""
    with database.read() as session:
        rows = outbox.unsent(session, 1000)
    with database.transaction() as tx:
        outbox.mark_sent(tx, [row.id for row in rows], broker)
    return [row.event_id for row in rows]


def handle(database: Database, *event_ids: str, consumer: str = "ground_truth", by: str = "row") -> None:
    """Say that a consumer has dealt with events: with a row for each, or with one page for all."""
    with database.transaction() as tx:
        tx.claim(consumer, event_ids) if by == "row" else tx.note(consumer, event_ids)
