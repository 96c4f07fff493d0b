"""Consumers, relay and process on a real wire: the embedded broker, or the Kafka that RECLAIM_TEST_KAFKA_BOOTSTRAP names."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from sqlmodel import col, select

from schemas.events import MaintenanceReport
from schemas.settings import DeadLetterSettings, KafkaSettings, OutboxSettings
from schemas.tables import Audit, DeadLetter, Lease, Outbox
from schemas.topics import LABEL, REPORT, TOPICS
from schemas.vocabulary import Status
from services.runtime import dead_letters, relay
from services.runtime.bus import connection_options
from services.runtime.consumer import Batch, BatchConsumer
from services.runtime.errors import Transient
from services.runtime.health import EX_CONFIG, EX_DATAERR, EX_SOFTWARE, Health
from services.runtime.messages import headers_of
from services.runtime.process import run
from services.runtime.service import Context, Service, StopSignal, Ticker, Worker
from services.runtime.topics_admin import TopicsDiffer, ensure_topics, wanted_partitions
from services.runtime.transaction import Transaction
from tests.bus_world import KAFKA, POISON, Evaluator, Joiner, World, bus, emit_labels, everything_once, label, make_context, until


@pytest.fixture(scope="module")
def kafka() -> Iterator[KafkaSettings]:
    with bus() as settings:
        yield settings


@pytest.fixture
def world(sqlite_url: str, kafka: KafkaSettings, tmp_path: Path) -> Iterator[Context]:
    context = make_context(sqlite_url, kafka, tmp_path / "state")
    yield context
    context.database.close()


@asynccontextmanager
async def running(context: Context, *services: Service) -> AsyncIterator[Health]:
    health = Health()
    task = asyncio.create_task(run(services, context, health))
    try:
        yield health
    finally:
        health.stop.set()
        await asyncio.wait_for(task, 30)


async def send_raw(kafka: KafkaSettings, topic: str, messages: list[tuple[bytes, list[tuple[str, bytes]]]]) -> None:
    await ensure_topics(kafka)
    producer = AIOKafkaProducer(**connection_options(kafka), acks="all")
    await producer.start()
    try:
        for body, headers in messages:
            await producer.send_and_wait(topic, body, key=b"k", headers=headers)
    finally:
        await producer.stop()


def letters(context: Context, *consumers: str) -> list[DeadLetter]:
    with context.database.read() as session:
        return list(session.exec(select(DeadLetter).where(col(DeadLetter.consumer).in_(consumers))))


async def test_events_flow_through_two_consumers_once_each(world: Context) -> None:
    keys = emit_labels(world.database, 500)
    services = [Service("world", consumers=(Joiner(), Evaluator())), relay.build(world)]
    async with running(world, *services) as health:
        await until(lambda: everything_once(world.database, keys), 40, "all labels joined and evaluated")
        assert health.exit_code == 0


async def test_poison_lands_in_the_dead_letters_once_and_the_next_message_flows(world: Context, kafka: KafkaSettings) -> None:
    good = label()
    rubbish = [
        (b"\xff\xfe not json", [("ce_id", b"rubbish-body")]),
        (b"{}", [("ce_id", b"empty-object")]),
        (b"{}", [("ce_id", b"\xff\xfe"), ("x", b"\xc3\x28")]),
        (b"{}", [("no", b"id")]),
        (label(POISON).model_dump_json().encode(), [("ce_id", b"poison-value")]),
    ]
    fine = [(good.model_dump_json().encode(), [("ce_id", good.study_key.encode())])]
    await send_raw(kafka, LABEL.name, rubbish + fine)
    async with running(world, Service("world", consumers=(Joiner(), Evaluator())), relay.build(world)):
        await until(lambda: everything_once(world.database, [good.study_key]), 30, "the message after the poison")
        await until(lambda: len(letters(world, "ground_truth")) >= 5, 10, "five dead letters")
    found = {letter.event_id: letter for letter in letters(world, "ground_truth")}
    assert {"rubbish-body", "empty-object", "poison-value"} <= set(found)
    assert len(found) == 5
    assert found["poison-value"].reason == "the value is poison"
    announced = await read_topic(kafka, LABEL.dead_letter, "poison-value")
    assert len(announced) == 1
    assert announced[0]["dlq_reason"] == "the value is poison"


async def read_topic(kafka: KafkaSettings, topic: str, ce_id: str) -> list[dict[str, str]]:
    """Headers of all messages with this CloudEvents id."""
    consumer = AIOKafkaConsumer(topic, **connection_options(kafka), auto_offset_reset="earliest", group_id=None)
    await consumer.start()
    found = []
    try:
        for _ in range(12):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                heads = [{name: value.decode(errors="replace") for name, value in record.headers} for record in records]
                found += [head for head in heads if head.get("ce_id") == ce_id]
    finally:
        await consumer.stop()
    return found


async def test_a_replayed_letter_is_handled_or_waits_again(world: Context, kafka: KafkaSettings) -> None:
    (key,) = emit_labels(world.database, 1, POISON)
    cured = False

    class Fussy(Joiner):
        def apply(self, tx: Transaction, batch: Batch, prepared: None) -> None:
            if not cured:
                super().apply(tx, batch, prepared)
            for event in batch:
                tx.audit("test", "cured", event.data.study_key)

    def waiting() -> list[DeadLetter]:
        with world.database.read() as session:
            found = dead_letters.list_letters(session, consumer="ground_truth")
        return [letter for letter in found if key.encode() in letter.body]

    async with running(world, Service("world", consumers=(Fussy(),)), relay.build(world)):
        await until(lambda: len(waiting()) == 1, 20, "the first rejection")
        assert dead_letters.replay(world.database, consumer="ground_truth", actor="user:test") >= 1
        await until(lambda: len(waiting()) == 1 and waiting()[0].replays == 1, 20, "the second rejection")
        cured = True
        assert dead_letters.replay(world.database, ids=[waiting()[0].id or 0], actor="user:test") == 1
        await until(lambda: _audited(world, "cured", key) == 1, 20, "the cured message")
        assert waiting() == []
    event_id = next(letter.event_id for letter in letters(world, "ground_truth") if key.encode() in letter.body)
    assert len(await read_topic(kafka, LABEL.dead_letter, event_id)) == 2


def _audited(context: Context, action: str, subject: str) -> int:
    with context.database.read() as session:
        return len(session.exec(select(Audit).where(Audit.action == action, Audit.subject == subject)).all())


async def test_a_transient_fault_is_retried_until_it_passes(world: Context) -> None:
    keys = emit_labels(world.database, 20)
    attempts = 0

    class Shaky(Joiner):
        def prepare(self, batch: Batch) -> None:
            nonlocal attempts
            attempts += 1
            if attempts <= 2:
                raise Transient("the archive is away")

    async with running(world, Service("w", consumers=(Shaky(), Evaluator())), relay.build(world)) as health:
        await until(lambda: everything_once(world.database, keys), 30, "all events after the fault")
        assert health.exit_code == 0
    assert attempts >= 3


async def test_a_bug_ends_the_process_with_its_code_and_loses_nothing(world: Context, caplog: pytest.LogCaptureFixture) -> None:
    keys = emit_labels(world.database, 5)

    class Broken(Joiner):
        def apply(self, tx: Transaction, batch: Batch, prepared: None) -> None:
            raise ZeroDivisionError

    code = await asyncio.wait_for(run([Service("w", consumers=(Broken(),)), relay.build(world)], world), 30)
    assert code == EX_SOFTWARE
    critical = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert critical
    assert critical[0].exc_info
    async with running(world, Service("w", consumers=(Joiner(), Evaluator())), relay.build(world)):
        await until(lambda: everything_once(world.database, keys), 30, "the events that met the bug")


async def test_too_many_rejections_stop_the_consumer(sqlite_url: str, kafka: KafkaSettings, tmp_path: Path) -> None:
    world = make_context(sqlite_url, kafka, tmp_path, dead_letters=DeadLetterSettings(max_consecutive=10))
    emit_labels(world.database, 30, POISON)
    code = await asyncio.wait_for(run([Service("w", consumers=(Joiner(),)), relay.build(world)], world), 30)
    assert code == EX_DATAERR
    # The group is left with an uncommitted batch: read it away, so that later tests of this module start clean.
    calm = make_context(sqlite_url, kafka, tmp_path)
    (key,) = emit_labels(calm.database, 1)
    async with running(calm, Service("w", consumers=(Joiner(), Evaluator())), relay.build(calm)):
        await until(lambda: everything_once(calm.database, [key]), 30, "a good message after them")


async def test_topics_have_the_configured_partitions(kafka: KafkaSettings) -> None:
    await ensure_topics(kafka)
    await ensure_topics(kafka)
    with pytest.raises(TopicsDiffer, match="RECLAIM_KAFKA_PARTITIONS"):
        await ensure_topics(kafka.model_copy(update={"partitions": kafka.partitions + 1}))


async def test_a_process_refuses_topics_that_differ(world: Context) -> None:
    await ensure_topics(world.settings.kafka)
    other = world.settings.kafka.model_copy(update={"partitions": 7})
    settings = world.settings.model_copy(update={"kafka": other})
    code = await run([Service("w", consumers=(Joiner(),))], Context(settings, world.database, world.clock, world.pseudonyms))
    assert code == EX_CONFIG


async def test_the_relay_keeps_order_per_key_and_sends_large_events_in_parts(world: Context, kafka: KafkaSettings) -> None:
    """More than one producer batch (1 MiB) at once, and one event that no broker takes."""
    model = f"order-{id(world)}"
    with world.database.transaction() as tx:
        for number in range(60):
            tx.emit(REPORT, _report(model, f"{number}", "x" * 60_000))
        refused = tx.emit(REPORT, _report(model, "too large", "x" * 3_000_000))
        last = tx.emit(REPORT, _report(model, "last", ""))
    async with running(world, relay.build(world)):
        await until(lambda: _sent(world, last), 30, "the last event")
    bodies = [report["report_id"] for report in await _reports(kafka, model, 61)]
    assert bodies == [*[str(number) for number in range(60)], "last"]
    (letter,) = letters(world, "relay")
    assert letter.event_id == refused


def _report(model: str, report_id: str, summary: str) -> MaintenanceReport:
    paths = {"location": "r.html", "markdown": "r.md", "data": "r.json"}
    facts = {"model": model, "version": 1, "kind": "routine", "status": Status.HEALTHY, "title": "t", "summary": summary}
    return MaintenanceReport(report_id=report_id, **facts, **paths, written_at="2026-03-02T08:00:00Z")


def _sent(context: Context, event_id: str) -> bool:
    with context.database.read() as session:
        return session.exec(select(Outbox).where(Outbox.event_id == event_id)).one().sent_at is not None


async def _reports(kafka: KafkaSettings, model: str, count: int) -> list[dict[str, str]]:
    consumer = AIOKafkaConsumer(REPORT.name, **connection_options(kafka), auto_offset_reset="earliest", group_id=None)
    await consumer.start()
    found: list[dict[str, str]] = []
    try:
        for _ in range(100):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += [json.loads(record.value) for record in records if record.key == model.encode()]
            if len(found) >= count:
                return found
    finally:
        await consumer.stop()
    return found


async def test_two_processes_of_one_group_share_the_partitions(world: Context, tmp_path: Path) -> None:
    def by_process(keys: set[str]) -> set[str]:
        with world.database.read() as session:
            rows = session.exec(select(Audit).where(Audit.action == "joined")).all()
        return {row.actor for row in rows if row.subject in keys}

    with World(world, tmp_path / "log") as processes:
        processes.start("relay", "relay", "evaluate")
        processes.start("one", "join")
        processes.start("two", "join")
        for _ in range(20):
            keys = await asyncio.to_thread(emit_labels, world.database, 60)
            await until(lambda keys=keys: everything_once(world.database, keys), 40, "a round of labels")
            if len(by_process(set(keys))) == 2:
                break
        assert len(by_process(set(keys))) == 2
        assert set((await asyncio.to_thread(processes.stop)).values()) == {0}


async def test_a_second_relay_waits_for_the_first(sqlite_url: str, kafka: KafkaSettings, tmp_path: Path) -> None:
    contexts = [make_context(sqlite_url, kafka, tmp_path, outbox=OutboxSettings(lease_s=1)) for _ in range(2)]
    first, second = StopSignal(), StopSignal()
    one = asyncio.create_task(relay.Relay(contexts[0]).run(first))
    emitted = emit_labels(contexts[0].database, 1)
    await until(lambda: _all_sent(contexts[0]), 20, "the first relay at work")
    two = asyncio.create_task(relay.Relay(contexts[1]).run(second))
    await asyncio.sleep(1.5)
    assert not two.done()
    first.set()
    await one
    emit_labels(contexts[0].database, 1)
    await until(lambda: _all_sent(contexts[0]), 20, "the second relay at work")
    second.set()
    await two
    assert emitted


def _all_sent(context: Context) -> bool:
    with context.database.read() as session:
        return not session.exec(select(Outbox.id).where(col(Outbox.sent_at).is_(None))).all()


async def test_tickers_and_workers_need_no_broker_and_one_process_ticks(sqlite_url: str, tmp_path: Path) -> None:
    nowhere = make_context(sqlite_url, KafkaSettings(bootstrap="127.0.0.1:1"), tmp_path)
    ticked: list[tuple[str, datetime]] = []
    worked: list[bool] = []

    async def work(stop: StopSignal) -> None:
        worked.append(True)
        await stop.wait()

    def service(name: str) -> Service:
        def tick(tx: Transaction) -> None:
            lease = tx.session.get_one(Lease, "tick:shared")
            ticked.append((name, lease.expires_at))

        return Service(name, tickers=(Ticker("shared", 0.05, tick),), workers=(Worker(name, work),))

    async with running(nowhere, service("a")), running(nowhere, service("b")):
        await until(lambda: len(ticked) >= 10 and len(worked) == 2, 10, "ten ticks and two workers")
        seen = list(ticked)  # who stops gives the lease back, and the other may tick at once
    handed_over = [after - before for (one, before), (other, after) in pairwise(seen) if one != other]
    assert all(later >= timedelta(seconds=5.05) for later in handed_over), "ticked before the other's lease ended"


async def test_a_broker_that_is_away_is_waited_for(sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nowhere = make_context(sqlite_url, KafkaSettings(bootstrap="127.0.0.1:1"), tmp_path)
    async with running(nowhere, Service("w", consumers=(Joiner(),)), relay.build(nowhere)):
        await until(lambda: sum("no Kafka broker answers" in line for line in caplog.messages) >= 2, 20, "two readable lines")


@pytest.mark.skipif(bool(KAFKA), reason="the guard serves the embedded broker only")
async def test_eight_producers_on_one_partition_lose_nothing(world: Context, kafka: KafkaSettings) -> None:
    """Without the guard a live reader silently skips a few of these."""
    await ensure_topics(kafka)
    total, producers = 12_000, 8
    seen: list[str] = []

    class Reader(BatchConsumer[None]):
        name, topics, max_records, polls_ahead = "reader", (LABEL,), 500, 3

        def apply(self, tx: Transaction, batch: Batch, prepared: None) -> None:
            seen.extend(event.event_id for event in batch if event.event_id.startswith("race-"))

    body = label().model_dump_json().encode() + b" " * 20_000

    async def produce(number: int) -> None:
        producer = AIOKafkaProducer(**connection_options(kafka), acks="all", linger_ms=0)
        await producer.start()
        for item in range(total // producers):
            await producer.send_and_wait(LABEL.name, body, partition=1, headers=[("ce_id", f"race-{number}-{item}".encode())])
        await producer.stop()

    async with running(world, Service("w", consumers=(Reader(),))):
        await asyncio.sleep(2)
        await asyncio.gather(*(produce(number) for number in range(producers)))
        await until(lambda: len(seen) >= total, 40, f"{total} messages")
    assert len(seen) == len(set(seen)) == total


def test_every_topic_has_a_dead_letter_topic_with_equal_partitions() -> None:
    wanted = wanted_partitions(KafkaSettings(partitions=3))
    assert set(wanted) == {name for topic in TOPICS for name in (topic.name, f"{topic.name}.dlq")}
    assert set(wanted.values()) == {3}


def test_headers_of_a_published_event_carry_its_trace() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert headers_of(LABEL, "x", datetime(2026, 1, 1, tzinfo=UTC), trace)["traceparent"] == trace
