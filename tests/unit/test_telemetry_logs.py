"""Log lines: readable, machine-readable, and without identities."""

import asyncio
import json
import logging
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource

from listeners.dicom import answers, reception
from schemas.settings import Settings, TelemetrySettings
from services.runtime import bus, logs, telemetry


@pytest.fixture(autouse=True)
def restored_root():
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ("stored 1.2.826.0.1.3680043.8.498.12345678901234567890", "3680043"),
        ("patient Doe^John^^Dr arrived", "Doe"),
        ("Müller^Jürgen", "Müller"),
        ("PatientID=MRN-4711, next", "4711"),
        ("Patient's Name: 'John Doe'", "John"),
        ("{'PatientBirthDate': '19700101'}", "19700101"),
        ("(0010,0020) Patient ID  LO: '4711'", "4711"),
        ("AccessionNumber: A-99", "A-99"),
    ],
)
def test_identities_are_masked(line: str, secret: str) -> None:
    assert secret not in logs.redact(line)


@pytest.mark.parametrize(
    "line", ["SOP class 1.2.840.10008.5.1.4.1.1.4 at 127.0.0.1:11112", "version 0.1.0: 12 cases, 3.5 s, x^2", "a1" * 16]
)
def test_harmless_text_stays(line: str) -> None:
    assert logs.redact(line) == line


@given(st.text(max_size=300))
def test_redaction_never_fails_and_is_stable(line: str) -> None:
    once = logs.redact(line)
    assert logs.redact(once) == once


@pytest.mark.parametrize("unit", ["a", "a.", "a^", "1.1.1.1.", "^", "a'^", "'"])
def test_a_long_hostile_line_costs_little(unit: str) -> None:
    started = time.process_time()
    logs.redact(unit * (32_000 // len(unit)))
    assert time.process_time() - started < 0.5


def test_a_long_message_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup(Settings(state_dir=tmp_path), "http")
    logging.getLogger("services.x").warning("%s", "x" * 100_000)
    logging.getLogger("aiohttp.server").error("Error handling request %s", "y" * 8000)
    out = capsys.readouterr().err
    assert len(out) < logs.MOST_CHARACTERS + 200
    assert "[cut]" in out
    assert "y" not in out


def test_text_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup(Settings(state_dir=tmp_path), "inference")
    logging.getLogger("services.inference").info("scored %d studies", 3)
    logging.getLogger("pydicom").warning("Invalid value '4711'")
    try:
        int("Doe^John")
    except ValueError:
        logging.getLogger("services.inference").exception("failed")
    out = capsys.readouterr().err
    assert "INFO    inference    scored 3 studies" in out
    assert "4711" not in out
    assert "Doe" not in out
    assert "ValueError" in out


def test_a_message_cannot_forge_lines_or_command_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup(Settings(state_dir=tmp_path), "inference")
    logging.getLogger("services.x").warning("%s", "one\n08:00:00 INFO two\r\x1b[2J\x9b\u2028")
    try:
        b"a".decode("\x1b[2J")
    except LookupError:
        logging.getLogger("services.x").exception("failed")
    out = capsys.readouterr().err
    assert out.splitlines()[0].endswith("one\\n08:00:00 INFO two\\r\\x1b[2J\\x9b\\u2028")
    assert "\x1b" not in out
    assert "Traceback (most recent call last):\n" in out


def test_a_broker_that_is_away_does_not_fill_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(time, "time_ns", lambda: int(now * 1e9))
    logs.setup(Settings(state_dir=tmp_path), "bus")
    client, ours = logging.getLogger("aiokafka.client"), logging.getLogger("services.runtime.bus")
    for number in range(200):
        client.error("Unable connect to node with id %s: %s", 111, f"attempt {number}")
        client.error("Unable to update metadata from %s", [111])
    for _ in range(3):
        ours.error("a consumer has a bug")
    now += logs.REPEATED_AFTER_S + 1
    client.error("Unable connect to node with id %s: %s", 111, "again")
    lines = [line.split("bus", 1)[1].strip() for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "Unable connect to node with id 111: attempt 0",
        "Unable to update metadata from [111]",
        *["a consumer has a bug"] * 3,
        "Unable connect to node with id 111: again (199 more like this)",
    ]


def test_a_batch_that_is_cut_off_at_the_end_is_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup(Settings(state_dir=tmp_path), "bus")
    for error in (asyncio.CancelledError(), ValueError("a bug")):
        try:
            raise error
        except (asyncio.CancelledError, ValueError) as found:
            bus._framework_logger().exception("%s: ", type(found).__name__)
    out = capsys.readouterr().err
    assert "CancelledError" not in out
    assert "a bug" in out


def test_json_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup(Settings(state_dir=tmp_path, log_format="json"), "inference")
    provider = telemetry.tracer_provider(Settings(state_dir=tmp_path, telemetry=TelemetrySettings(file=False)), "t", Resource({}))
    with provider.get_tracer("t").start_as_current_span("work") as span:
        logging.getLogger("services.x").warning("two\nlines of Doe^John")
    line = json.loads(capsys.readouterr().err)
    assert line["trace_id"] == format(span.get_span_context().trace_id, "032x")
    assert (line["level"], line["service"], line["message"]) == ("WARNING", "inference", "two\nlines of [name]")


def test_the_advice_stays_where_a_patient_element_is_at_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tag of a patient's element in brackets has the rest of its line masked."""
    logs.setup(Settings(state_dir=tmp_path), "dicom")
    reception._log(answers.BROKEN_DATASET.at(0x00100010), reception.StoreHead("", "", "", "", "CT1"), 0)
    said = capsys.readouterr().err
    assert f" at 0010,0010: {answers.BROKEN_DATASET.advice}" in said


def spans_in(folder: Path) -> list[str]:
    return [json.loads(line)["name"] for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kept", [True, False])
def test_spans_are_kept_on_this_machine_only_when_wanted(tmp_path: Path, kept: bool) -> None:
    settings = Settings(state_dir=tmp_path, telemetry=TelemetrySettings(file=kept))
    provider = telemetry.tracer_provider(settings, "inference", Resource({}))
    with provider.get_tracer("t").start_as_current_span("work"):
        pass
    provider.shutdown()
    assert spans_in(tmp_path / "traces") == (["work"] if kept else [])


def test_span_files_are_rotated_and_forgotten(tmp_path: Path) -> None:
    exporter = telemetry.JsonLinesExporter(tmp_path / "traces" / "a.jsonl", max_bytes=3000)
    provider = telemetry.tracer_provider(Settings(state_dir=tmp_path, telemetry=TelemetrySettings(file=False)), "t", Resource({}))
    for number in range(20):
        span = provider.get_tracer("t").start_span(f"work {number}")
        span.end()
        exporter.export([span])
    assert (tmp_path / "traces" / "a.jsonl").stat().st_size <= 3000
    assert (tmp_path / "traces" / "a.jsonl.1").stat().st_size <= 3000
    assert spans_in(tmp_path / "traces")[-1] == "work 19"
    for number in range(40):
        (tmp_path / "traces" / f"old{number}.jsonl").touch()
    telemetry.tracer_provider(Settings(state_dir=tmp_path), "t", Resource({})).shutdown()
    assert len(list((tmp_path / "traces").iterdir())) < telemetry.KEPT_FILES + 1


def test_metric_names_are_distinct_and_usable_without_setup() -> None:
    assert len(set(telemetry.COUNTERS + telemetry.HISTOGRAMS)) == len(telemetry.COUNTERS + telemetry.HISTOGRAMS)
    telemetry.handled("inference", 10, 2, 0.1)
    telemetry.shutdown()
