"""What must hold of the whole service's tables and messages once everything has settled."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from schemas.topics import LABEL, ORDER, PREDICTION, REPORT, TOPICS
from schemas.vocabulary import CaseRole
from tests.loop_samples import Sample
from tests.loop_world import BATCH, Loop


def settled(loop: Loop, chosen: Sequence[Sample]) -> bool:
    """Everything that these studies and labels cause has happened."""
    batches = sum(item.role is CaseRole.TRIGGER for item in chosen) // BATCH
    open_orders = "SELECT count(*) FROM maintenance_order WHERE state IN ('proposed', 'accepted', 'running')"
    return (
        loop.scalar('SELECT count(*) FROM "case" WHERE version = 1 AND truth IS NOT NULL') == len(chosen)
        and loop.scalar("SELECT count(DISTINCT batch_id) FROM evaluation WHERE version = 1") == batches
        and loop.scalar("SELECT count(DISTINCT cause) FROM agent_run") >= batches
        and loop.scalar(open_orders) == 0
        and loop.scalar("SELECT count(*) FROM job WHERE state IN ('queued', 'running')") == 0
        and loop.scalar("SELECT count(*) FROM outbox WHERE sent_at IS NULL") == 0
        and not _unread(loop)
    )


def _unread(loop: Loop) -> list[str]:
    """Events in the outbox that one of their readers has not dealt with yet."""
    handled = {(row[0], row[1]) for row in loop.query("SELECT consumer, event_id FROM inbox")}
    pages = loop.query("SELECT consumer, event_ids FROM inbox_page")
    handled |= {(consumer, event_id) for consumer, event_ids in pages for event_id in json.loads(event_ids)}
    readers = {topic.name: topic.readers for topic in TOPICS}
    events = loop.query("SELECT topic, event_id FROM outbox")
    return [event for topic, event in events for reader in readers[topic] if (reader, event) not in handled]


def bodies(loop: Loop, topic: str) -> list[dict[str, Any]]:
    """Data of all events of a topic that were ever put into the outbox, in order."""
    rows = loop.query("SELECT body FROM outbox WHERE topic = :topic ORDER BY id", topic=topic)
    return [json.loads(bytes(row[0])) for row in rows]


def check_once(loop: Loop, chosen: Sequence[Sample]) -> None:
    """Every acknowledged instance predicted once, every label joined once, batches exact, orders and reports not doubled."""
    truths = {item.key: item.label for item in chosen}
    once = Counter(truths.keys())
    assert Counter(row[0] for row in loop.query("SELECT study_key FROM study WHERE revision = 1")) == once
    assert loop.scalar("SELECT count(*) FROM instance") == len(chosen)
    predicted = [body for body in bodies(loop, PREDICTION.name) if body["version"] == 1]
    assert Counter(body["study_key"] for body in predicted) == once
    assert Counter(body["study_key"] for body in bodies(loop, LABEL.name)) == once
    assert dict(tuple(row) for row in loop.query('SELECT study_key, truth FROM "case" WHERE version = 1')) == truths
    assert loop.scalar("SELECT count(*) FROM ground_truth") == len(chosen)
    _check_batches(loop, sum(item.role is CaseRole.TRIGGER for item in chosen) // BATCH)
    _check_orders(loop)
    assert loop.query("SELECT topic, consumer, reason FROM dead_letter") == []


def _check_batches(loop: Loop, expected: int) -> None:
    batches = loop.query("SELECT number, cases, batch_id FROM batch WHERE version = 1 ORDER BY number")
    assert [(number, cases) for number, cases, _ in batches] == [(number, BATCH) for number in range(1, expected + 1)]
    held = loop.query('SELECT batch_id, count(*) FROM "case" WHERE batch_id IS NOT NULL AND version = 1 GROUP BY batch_id')
    assert dict(tuple(row) for row in held) == {row[2]: BATCH for row in batches}
    evaluated = Counter(row[0] for row in loop.query("SELECT batch_id FROM evaluation WHERE version = 1"))
    assert evaluated == Counter(row[2] for row in batches)


def _check_orders(loop: Loop) -> None:
    orders = loop.query("SELECT order_id, kind, evaluation_id, state, remedy FROM maintenance_order")
    # After the gate's no the next rung is ordered for the same evaluation; the same rung twice would be a repetition.
    caused = Counter((kind, evaluation, remedy) for _, kind, evaluation, _, remedy in orders if evaluation)
    assert max(caused.values(), default=0) <= 1, caused
    sent = Counter(body["order_id"] for body in bodies(loop, ORDER.name))
    assert sent == Counter(order for order, _, _, state, _ in orders if state not in {"refused", "awaiting_approval"})
    jobs = Counter(row[0] for row in loop.query("SELECT order_id FROM job"))
    assert jobs == Counter(order for order, kind, _, state, _ in orders if kind == "remedy" and state != "refused")
    reports = [row[0] for row in loop.query("SELECT report_id FROM report")]
    assert Counter(body["report_id"] for body in bodies(loop, REPORT.name)) == Counter(reports)
    assert {path.name for path in loop.context.settings.reports_dir.glob("*")} == set(reports)


async def read_topics(bootstrap: str, topics: Sequence[str]) -> list[ConsumerRecord[bytes, bytes]]:
    """Everything on these topics now, read without a group."""
    consumer: AIOKafkaConsumer[bytes, bytes] = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    found: list[ConsumerRecord[bytes, bytes]] = []
    try:
        known = await consumer.topics()
        places = [TopicPartition(name, part) for name in topics if name in known for part in range(4)]
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        deadline = asyncio.get_running_loop().time() + 30
        while any([await consumer.position(place) < end for place, end in ends.items()]):
            assert asyncio.get_running_loop().time() < deadline, "the topics cannot be read to their ends"
            for batch in (await consumer.getmany(timeout_ms=300)).values():
                found += batch
    finally:
        await consumer.stop()
    return found


def everything_outside_the_archive(loop: Loop, records: Iterable[ConsumerRecord[bytes, bytes]]) -> dict[str, bytes]:
    """Name to content of files, log, tables without identities and messages."""
    found = {"the log": loop.log.read_bytes()}
    for file in sorted(loop.state.rglob("*")):
        inside = file.relative_to(loop.state)
        if file.is_file() and inside.parts[0] != "archive" and not file.name.startswith("reclaim.sqlite"):
            found[f"{inside}"] = file.read_bytes() + str(inside).encode()
    for (table,) in _tables(loop):
        if table not in {"study", "instance"}:
            rows = loop.query(f'SELECT * FROM "{table}"')
            found[f"table {table}"] = "\n".join(_shown(value) for row in rows for value in row).encode()
    for record in records:
        name = f"{record.topic}/{record.partition}/{record.offset}"
        found[name] = b"\n".join([record.key or b"", record.value or b"", *(value or b"" for _, value in record.headers)])
    return found


def _shown(value: Any) -> str:
    return bytes(value).decode(errors="replace") if isinstance(value, bytes | memoryview) else str(value)


def _tables(loop: Loop) -> list[Any]:
    if loop.context.database.engine.dialect.name == "sqlite":
        return loop.query("SELECT name FROM sqlite_master WHERE type = 'table'")
    return loop.query("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
