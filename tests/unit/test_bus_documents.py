"""The AsyncAPI document is what is published, and enough to write a consumer from; the compose file fits the settings."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from listeners.cli.catalogue import BUILDERS
from schemas.events import MaintenanceReport
from schemas.settings import Settings
from schemas.tables import Outbox
from schemas.topics import REPORT, TOPICS
from schemas.vocabulary import Status
from services.runtime.asyncapi import as_yaml
from services.runtime.database import Database

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "docs" / "asyncapi.yaml"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_the_committed_document_is_the_generated_one() -> None:
    assert COMMITTED.read_text() == as_yaml(), "run `make asyncapi`"


class Stranger:
    """Somebody who has the YAML file and nothing else."""

    def __init__(self, text: str, topic: str) -> None:
        self.document: dict[str, Any] = yaml.safe_load(text)
        (channel,) = [item for item in self.document["channels"].values() if item["address"] == topic]
        (reference,) = channel["messages"].values()
        self.message = self._resolve(reference["$ref"])

    def _resolve(self, reference: str) -> dict[str, Any]:
        node: Any = self.document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step.replace("~1", "/")]
        return dict(node)

    def check(self, part: str, instance: Any) -> None:
        """Validate headers or payload against its schema with the whole document in reach of `$ref`."""
        schema = {**self.message[part], "components": self.document["components"]}
        Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(instance)


@pytest.fixture
def published(sqlite_database: Database) -> Outbox:
    """A real report event as the relay would publish it."""
    paths = {"location": "a/report.html", "markdown": "a/report.md", "data": "a/report.json"}
    report = MaintenanceReport(
        report_id="r1",
        model="chest",
        version=3,
        kind="routine",
        status=Status.DEGRADED,
        title="Chest",
        summary="Two. Sentences.",
        written_at=datetime(2026, 3, 2, tzinfo=UTC),
        **paths,
    )
    with sqlite_database.transaction() as tx:
        tx.emit(REPORT, report, cause=TRACE)
    with sqlite_database.read() as session:
        return session.query(Outbox).one()


def test_a_stranger_can_read_reports_with_the_document_alone(published: Outbox) -> None:
    stranger = Stranger(COMMITTED.read_text(), "maintenance.report.v1")
    assert published.headers["traceparent"] == TRACE
    stranger.check("headers", published.headers)
    stranger.check("payload", json.loads(published.body))
    assert stranger.message["contentType"] == published.headers["content-type"]
    assert "model" in stranger.message["bindings"]["kafka"]["key"]["description"]
    assert published.key == json.loads(published.body)["model"]


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("headers", {"ce_id": None}),
        ("headers", {"ce_type": "org.reclaim.agent.reply.v1"}),
        ("headers", {"ce_specversion": "0.3"}),
        ("headers", {"traceparent": "rubbish"}),
        ("payload", {"status": "splendid"}),
        ("payload", {"version": "three"}),
        ("payload", {"location": None}),
    ],
)
def test_the_document_tells_wrong_messages_from_right_ones(published: Outbox, part: str, change: dict[str, str | None]) -> None:
    instance = dict(published.headers) if part == "headers" else json.loads(published.body)
    instance = {name: value for name, value in (instance | change).items() if value is not None}
    with pytest.raises(ValidationError):
        Stranger(COMMITTED.read_text(), "maintenance.report.v1").check(part, instance)


def test_every_topic_and_its_dead_letters_are_documented() -> None:
    channels = yaml.safe_load(COMMITTED.read_text())["channels"]
    assert set(channels) == {name for topic in TOPICS for name in (topic.name, topic.dead_letter)}


def _compose() -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose" / "compose.yaml").read_text())
    return made


def test_compose_names_real_settings_only() -> None:
    fields = Settings.model_fields
    for service in _compose()["services"].values():
        for name in service.get("environment", {}):
            if not name.startswith("RECLAIM_"):
                continue
            plain = name.removeprefix("RECLAIM_").lower()
            group, _, member = plain.partition("_")
            assert plain in fields or member in fields[group].annotation.model_fields, name


def test_compose_runs_every_service_once() -> None:
    commands = [service["command"] for service in _compose()["services"].values() if "serve" in service.get("command", [])]
    assert sorted(name for command in commands for name in command[1:]) == sorted(BUILDERS)


def test_compose_gives_processes_time_to_finish() -> None:
    relay = _compose()["services"]["relay"]
    assert float(relay["stop_grace_period"].removesuffix("s")) > float(relay["environment"]["RECLAIM_KAFKA_GRACEFUL_TIMEOUT_S"])


def test_compose_asks_for_every_variable_in_the_example() -> None:
    text = (ROOT / "deploy" / "compose" / "compose.yaml").read_text()
    example = (ROOT / "deploy" / "compose" / "env.example").read_text()
    named = {line.split("=")[0] for line in example.splitlines() if line and not line.startswith("#")}
    assert all(f"${{{name}" in text for name in named)
    assert all(f"{name}=" in example for name in {part.split(":")[0].split("}")[0] for part in text.split("${")[1:]})


def test_compose_and_the_development_kafka_are_one_version() -> None:
    pom = (ROOT / "deploy" / "kafka" / "pom.xml").read_text()
    version = _compose()["services"]["kafka"]["image"].split(":")[1]
    assert f"<kafka.version>{version}</kafka.version>" in pom


def test_the_collector_is_valid() -> None:
    collector = yaml.safe_load((ROOT / "deploy" / "compose" / "collector.yaml").read_text())
    for pipeline in collector["service"]["pipelines"].values():
        for kind in ("receivers", "processors", "exporters"):
            assert set(pipeline[kind]) <= set(collector[kind])
