"""The whole loop on the wire: DCMTK in, labels in, evaluation, order, report out; read by who knows only the document."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiokafka import AIOKafkaConsumer
from jsonschema import Draft202012Validator, FormatChecker

from schemas.topics import TOPICS
from schemas.vocabulary import CaseRole
from tests.loop_checks import check_once, everything_outside_the_archive, read_topics, settled
from tests.loop_samples import Sample, identities, samples, write_labels
from tests.loop_world import BATCH, ROOT, Loop, label_all, wait_for

COUNTS = {CaseRole.TRIGGER: 2 * BATCH, CaseRole.TUNE: 10, CaseRole.GATE: 8}
KAFKA = os.environ.get("RECLAIM_TEST_KAFKA_BOOTSTRAP", "")
WAY = (
    "reporting maintenance.order.v1",
    "agents evaluation.completed.v1",
    "evaluation evaluation.batch.ready.v1",
    "ground_truth ground-truth.label.v1",
    "DICOM association",
)
"""Spans from the report back to the association of the C-STORE, by name; others may lie between them."""


async def strangers_reports(bootstrap: str, report_ids: set[str]) -> list[dict[str, Any]]:
    """Read maintenance.report.v1 knowing nothing but docs/asyncapi.yaml; fails on a message that breaks the document."""
    document = yaml.safe_load((ROOT / "docs" / "asyncapi.yaml").read_text())
    [channel] = [name for name in document["channels"] if name == "maintenance.report.v1"]
    message = _at(document, document["channels"][channel]["messages"]["Message"]["$ref"])
    check_headers, check_body = (_validator(document, message[part]) for part in ("headers", "payload"))
    consumer: AIOKafkaConsumer[bytes, bytes] = AIOKafkaConsumer(
        document["channels"][channel]["address"], bootstrap_servers=bootstrap, auto_offset_reset="earliest"
    )
    await consumer.start()
    found: dict[str, dict[str, Any]] = {}
    try:
        while report_ids - {item["body"]["report_id"] for item in found.values()}:
            batches = await consumer.getmany(timeout_ms=20_000)
            assert batches, f"only {len(found)} of {len(report_ids)} reports came"
            for record in (record for batch in batches.values() for record in batch):
                headers, body = {name: value.decode() for name, value in record.headers}, json.loads(record.value)
                check_headers.validate(headers)
                check_body.validate(body)
                assert record.key.decode() == body["model"]
                found[headers["ce_id"]] = {"headers": headers, "body": body}
    finally:
        await consumer.stop()
    return [item for item in found.values() if item["body"]["report_id"] in report_ids]


def _at(document: Any, reference: str) -> Any:
    for part in reference.removeprefix("#/").split("/"):
        document = document[part.replace("~1", "/").replace("~0", "~")]
    return document


def _validator(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator(schema | {"components": document["components"]}, format_checker=FormatChecker())


def play(loop: Loop, folder: Path) -> list[Sample]:
    """Studies over both senders, labels over both ways in, until everything that follows has happened."""
    chosen = samples(folder / "first", COUNTS, truthful=False)
    # The labels of the patients who judge no alarm come first: then the remedy finds cases to work with.
    chosen.sort(key=lambda item: item.role is CaseRole.TRIGGER)
    half = len(chosen) // 2
    assert loop.storescu([item.file for item in chosen[:half]]) == {item.file for item in chosen[:half]}
    (folder / "send").mkdir()
    for item in chosen[half:]:
        (folder / "send" / item.file.name).hardlink_to(item.file)
    sent = loop.cli("send", str(folder / "send"))
    assert sent.returncode == 0, sent.stdout + sent.stderr
    imported = loop.cli("labels", "import", str(write_labels(folder / "labels.csv", chosen[:half])))
    assert imported.returncode == 0, imported.stdout + imported.stderr
    wait_for("all predictions", 60, lambda: loop.scalar('SELECT count(*) FROM "case"') == len(chosen))
    label_all(loop, chosen[half:])
    wait_for("the end of everything", 120, lambda: settled(loop, chosen))
    return chosen


def broker_of(loop: Loop) -> str:
    """Where `reclaim up` says that its broker is."""
    found = re.search(r"running at broker (\S+);", loop.log.read_text())
    assert found, "the log does not name the broker"
    return found.group(1)


def spans_by_id(state: Path) -> dict[str, dict[str, Any]]:
    lines = (line for file in (state / "traces").glob("*.jsonl*") for line in file.read_text().splitlines())
    return {span["context"]["span_id"]: span for span in map(json.loads, lines)}


def way_back(traceparent: str, spans: dict[str, dict[str, Any]]) -> list[str]:
    """Names of the spans from a traceparent to the root, all of its trace."""
    _, trace_id, span_id, _ = traceparent.split("-")
    names: list[str] = []
    span = spans.get(f"0x{span_id}")
    while span is not None:
        assert span["context"]["trace_id"] == f"0x{trace_id}"
        names.append(span["name"])
        span = spans.get(span["parent_id"] or "")
    return names


async def prove(loop: Loop, folder: Path) -> None:
    """Play, then hold the outcome to the contract, the trace and the silence about identities."""
    chosen = play(loop, folder)
    check_once(loop, chosen)
    written = {row[0] for row in loop.query("SELECT report_id FROM report")}
    assert "degraded" in {row[0] for row in loop.query("SELECT status FROM evaluation")}
    bootstrap = broker_of(loop)
    reports = await strangers_reports(bootstrap, written)
    for report in reports:
        for part in ("location", "markdown", "data"):
            assert (loop.context.settings.reports_dir / report["body"][part]).stat().st_size > 200
    records = await read_topics(bootstrap, [name for topic in TOPICS for name in (topic.name, topic.dead_letter)])
    assert loop.stop() == 0, loop.tail()
    monitoring = [report for report in reports if report["body"]["kind"] == "monitoring"]
    assert monitoring
    spans = spans_by_id(loop.state)
    for report in monitoring:
        names = way_back(report["headers"]["traceparent"], spans)
        assert [name for name in names if name in WAY] == list(WAY), names
    no_identity(loop, chosen, records)


def no_identity(loop: Loop, chosen: list[Sample], records: Any) -> None:
    """Nothing planted in the files is outside archive and identity tables; the search itself finds what is there."""
    planted = re.compile("|".join(map(re.escape, identities(chosen))).encode())
    places = everything_outside_the_archive(loop, records)
    assert len(places) > 100
    assert {f"table {name}" for name in ("outbox", "case", "agent_run", "audit")} <= places.keys()
    assert [(name, found.group()) for name, content in places.items() if (found := planted.search(content))] == []
    archived = b"".join(file.read_bytes() for file in loop.context.settings.archive_dir.rglob("*") if file.is_file())
    assert {item.uid.encode() for item in chosen} <= set(planted.findall(archived))


@pytest.mark.dcmtk
async def test_from_c_store_to_report(make_loop: Any, storescu: Path, tmp_path: Path) -> None:
    await prove(make_loop().start(), tmp_path)


@pytest.mark.slow
@pytest.mark.dcmtk
@pytest.mark.postgres
async def test_from_c_store_to_report_on_postgresql(
    make_loop: Any, storescu: Path, tmp_path: Path, postgres_database_url: str
) -> None:
    loop = make_loop(RECLAIM_DATABASE_URL=postgres_database_url)
    assert loop.context.database.engine.dialect.name == "postgresql"
    await prove(loop.start(), tmp_path)


@pytest.mark.slow
@pytest.mark.dcmtk
@pytest.mark.kafka
@pytest.mark.skipif(
    not KAFKA, reason="NOT TESTED on Apache Kafka: start one with `make kafka`, name it in RECLAIM_TEST_KAFKA_BOOTSTRAP"
)
async def test_from_c_store_to_report_on_apache_kafka(make_loop: Any, storescu: Path, tmp_path: Path) -> None:
    loop = make_loop(RECLAIM_KAFKA_BOOTSTRAP=KAFKA).start()
    assert loop.run_state().broker_pid == 0
    await prove(loop, tmp_path)
