"""The whole service for tests: `reclaim up` in its own process on free ports, a small model, studies on disk, real senders.

The images are two textures that a small network tells apart after a few epochs. Every file carries identities that are
found nowhere else, so that a search for them finds any leak.
"""

import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import pydicom
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from sqlalchemy import text

from listeners.cli.context import open_context
from listeners.dicom.echo import echo
from listeners.dicom.synthesize import StudyFacts, study_instance_uid, write_image
from listeners.training import TrainingRequest, train_and_register
from schemas.settings import Settings
from schemas.topics import LABEL, ORDER, PREDICTION, REPORT, TOPICS
from schemas.vocabulary import CaseRole
from services.ground_truth.domain import role_of
from services.runtime.identity import Pseudonyms
from services.runtime.run_state import RunState, read_state
from services.runtime.service import Context

ROOT: Final = Path(__file__).parents[1]
STORESCU: Final = Path("/usr/bin/storescu")
"""DCMTK's; pynetdicom installs another program of the same name."""
MODEL, TASK, CLASSES = "texture", "texture-kind", ("disc", "stripes")
EDGE: Final = 32
KEY: Final = "a key for the tests of the whole loop, never used elsewhere"
START: Final = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
BATCH: Final = 12
NAME, BIRTH_DATE, ACCESSION = "KANARIE^VOGEL", "19010217", "KANARIE-ACC"
QUICK: Final[dict[str, str]] = {
    "RECLAIM_DICOM_HOST": "127.0.0.1",
    "RECLAIM_DICOM_QUIET_PERIOD_S": "0.5",
    "RECLAIM_PSEUDONYM_KEY": KEY,
    "RECLAIM_JOIN_BATCH_SIZE": str(BATCH),
    "RECLAIM_REMEDIATION_EPOCHS": "2",
    "RECLAIM_REMEDIATION_LEASE_S": "6",
    "RECLAIM_REMEDIATION_MAX_ATTEMPTS": "9",
    "RECLAIM_REMEDIATION_MIN_TUNE_CASES": "8",
    "RECLAIM_REMEDIATION_MIN_GATE_CASES": "6",
    "RECLAIM_OUTBOX_LEASE_S": "2",
    "RECLAIM_KAFKA_SESSION_TIMEOUT_MS": "6000",
    "RECLAIM_KAFKA_GRACEFUL_TIMEOUT_S": "5",
    "OMP_NUM_THREADS": "1",
}


def free_ports(count: int) -> list[int]:
    """Ports that are free now, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def wait_for(what: str, seconds: float, look: Callable[[], Any], every: float = 0.2) -> Any:
    """Look until there is something true; fails with `what` when time runs out."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(every)
    return found


def texture(label: str, generator: np.random.Generator) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A disc or stripes in noise, uint8 [EDGE, EDGE]."""
    rows, columns = np.mgrid[0:EDGE, 0:EDGE].astype(float)
    if label == "disc":
        centre = EDGE / 2 + generator.uniform(-3, 3, 2)
        signal_ = ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) < (EDGE / 4) ** 2
    else:
        signal_ = np.sin(rows * 2 * np.pi / 6 + generator.uniform(0, 6)) > 0
    noisy = 60 + 120 * signal_ + generator.normal(0, 15, (EDGE, EDGE))
    return np.clip(noisy, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Sample:
    """One study on disk. `label` is the truth that will be told, `shown` what the image shows."""

    file: Path
    uid: str
    key: str
    patient_id: str
    role: CaseRole
    shown: str
    label: str
    labelled_at: datetime


def write_sample(folder: Path, number: int, shown: str, label: str, patient_id: str, role: CaseRole) -> Sample:
    """A single-image MR study full of identities."""
    folder.mkdir(parents=True, exist_ok=True)
    seed, file = f"loop-{folder.name}-{number}", folder / f"{number:04d}.dcm"
    at = START + timedelta(minutes=30 * number)
    facts = StudyFacts(
        modality="MR",
        patient_id=patient_id,
        seed=seed,
        acquired_at=at,
        body_part="HEAD",
        manufacturer="Aurora",
        accession_number=f"{ACCESSION}{number}",
    )
    write_image(file, texture(shown, np.random.default_rng(number)), facts)
    dataset = pydicom.dcmread(file)
    dataset.PatientName, dataset.PatientBirthDate = NAME, BIRTH_DATE
    dataset.OtherPatientIDs = f"{patient_id}-OTHER"
    dataset.ReferringPhysicianName = NAME
    dataset.save_as(file)
    uid = study_instance_uid(seed)
    return Sample(file, uid, Pseudonyms(KEY.encode()).study(uid), patient_id, role, shown, label, at + timedelta(days=2))


def samples(folder: Path, counts: Mapping[CaseRole, int], *, truthful: bool) -> list[Sample]:
    """Studies of different patients, `counts` of each role; without `truthful` every label is the other class."""
    pseudonyms, shares = Pseudonyms(KEY.encode()), (Settings().join.tune_share, Settings().join.gate_share)
    left, found, patient = dict(counts), [], 0
    while any(left.values()):
        patient += 1
        name = f"KANARIE-PID-{folder.name}-{patient}"
        role = role_of(pseudonyms.patient(name), *shares)
        if left.get(role, 0) > 0:
            left[role] -= 1
            shown = CLASSES[len(found) % 2]
            label = shown if truthful else CLASSES[1 - len(found) % 2]
            found.append(write_sample(folder, len(found), shown, label, name, role))
    return found


def write_labels(path: Path, chosen: Iterable[Sample]) -> Path:
    """A CSV file for the import."""
    rows = [f"{item.uid},{TASK},{item.label},{item.labelled_at.isoformat()}" for item in chosen]
    path.write_text("\n".join(["study,task,label,labelled_at", *rows]) + "\n")
    return path


def identities(chosen: Iterable[Sample]) -> list[str]:
    """All strings in the files that must not leave the archive."""
    found = {NAME, "KANARIE", "1901-02-17", "1901-2-17", BIRTH_DATE}
    for item in chosen:
        dataset = pydicom.dcmread(item.file, stop_before_pixels=True)
        found |= {item.uid, item.patient_id, str(dataset.SeriesInstanceUID), str(dataset.SOPInstanceUID)}
    return sorted(found)


def train_model(context: Context, folder: Path) -> int:
    """Train, baseline and register the model as `reclaim models train` does."""
    rows = ["path,label,patient,split"]
    for split, count in (("train", 60), ("valid", 20), ("test", 120)):
        for number in range(count):
            shown, patient = CLASSES[number % 2], f"development-{split}-{number}"
            file = folder / split / f"{number}.dcm"
            file.parent.mkdir(parents=True, exist_ok=True)
            facts = StudyFacts(modality="MR", patient_id=patient, seed=patient, acquired_at=START, body_part="HEAD")
            write_image(file, texture(shown, np.random.default_rng([number, count])), facts)
            rows.append(f"{split}/{number}.dcm,{shown},{patient},{split}")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(rows) + "\n")
    request = TrainingRequest(manifest=manifest, name=MODEL, task=TASK, modalities=("MR",), network="small", size=EDGE, epochs=12)
    return train_and_register(context, request, lambda _: None).version


class Loop:
    """`reclaim up` over one state folder; may be killed and started again on the same ports."""

    def __init__(self, state: Path, log: Path, **overrides: str) -> None:
        self.state, self.log = state, log
        self.dicom_port, self.http_port = free_ports(2)
        ports = {"RECLAIM_DICOM_PORT": str(self.dicom_port), "RECLAIM_HTTP_PORT": str(self.http_port)}
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RECLAIM_")}
        self.environment |= QUICK | ports | {"RECLAIM_STATE_DIR": str(state)} | overrides
        self.process: subprocess.Popen[bytes] | None = None
        self.context = self._open()

    def _open(self) -> Context:
        """The service's settings in this process, without touching this process's environment for longer than it takes."""
        before = {name: value for name, value in os.environ.items() if name.startswith("RECLAIM_")}
        wanted = {name: value for name, value in self.environment.items() if name.startswith("RECLAIM_")}
        try:
            for name in before:
                del os.environ[name]
            os.environ.update(wanted)
            return open_context(Settings())
        finally:
            for name in wanted:
                os.environ.pop(name, None)
            os.environ.update(before)

    def start(self, seconds: float = 90) -> "Loop":
        """Start it and return when it answers C-ECHO and HTTP."""
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "listeners.cli", "up"]
            self.process = subprocess.Popen(command, env=self.environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        wait_for("the listener's answer to C-ECHO", seconds, lambda: self._runs() and self.echoes())
        wait_for("the HTTP endpoint", seconds, lambda: self._runs() and self.http("GET", "/health")[0] == 200)
        return self

    def _runs(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"reclaim up ended with {self.process.returncode}:\n{self.tail()}"
        return True

    def echoes(self) -> bool:
        with socket.socket() as probe:  # pynetdicom logs an error for every refused connection
            if probe.connect_ex(("127.0.0.1", self.dicom_port)):
                return False
        return echo("127.0.0.1", self.dicom_port, called_ae="RECLAIM")

    def tail(self, characters: int = 4000) -> str:
        return self.log.read_text(errors="replace")[-characters:]

    def run_state(self) -> RunState:
        """The running processes; waits while they are being replaced."""
        return wait_for("a running supervisor", 60, lambda: read_state(self.state))  # type: ignore[no-any-return]

    def kill(self, name: str) -> None:
        """SIGKILL one child, the broker, or the supervisor (all its children die with it)."""
        if name == "supervisor":
            assert self.process is not None
            self.process.kill()
            self.process.wait()
            return
        state = self.run_state()
        pid = state.broker_pid if name == "broker" else state.children[name]
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> int:
        """Orderly end; returns the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)

    def close(self) -> None:
        """End whatever is left."""
        if self.process is not None and self.process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(self.process.pid).children(recursive=True):
                    child.kill()
            self.process.kill()
            self.process.wait()
        self.context.database.close()

    def cli(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A `reclaim` command with this loop's settings."""
        command = [sys.executable, "-m", "listeners.cli", *arguments]
        wanted = self.environment | {"COLUMNS": "200"} | environment
        return subprocess.run(command, env=wanted, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    def http(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        """Status and text of a request; status 0 when nobody answers."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.http_port}{path}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"} | headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def post_labels(self, chosen: Sequence[Sample]) -> tuple[int, str]:
        """Hand in labels over HTTP."""
        fields = [
            {"study": item.uid, "task": TASK, "label": item.label, "labelled_at": item.labelled_at.isoformat()} for item in chosen
        ]
        return self.http("POST", "/api/labels", fields)

    def storescu(self, files: Sequence[Path]) -> set[Path]:
        """Push files with DCMTK; returns those that were acknowledged with success."""
        command = [str(STORESCU), "-v", "-aec", "RECLAIM", "-aet", "DCMTK", "-to", "20", "127.0.0.1", str(self.dicom_port)]
        done = subprocess.run(
            [*command, *map(str, files)], capture_output=True, text=True, errors="replace", timeout=120, check=False
        )
        return acknowledged(done.stdout + done.stderr)

    def query(self, statement: str, **values: Any) -> list[Any]:
        """Rows of a plain SELECT."""
        with self.context.database.read() as session:
            return list(session.connection().execute(text(statement), values))

    def scalar(self, statement: str, **values: Any) -> Any:
        return self.query(statement, **values)[0][0]


def acknowledged(output: str) -> set[Path]:
    """Files that storescu -v reports as stored."""
    found: set[Path] = set()
    current: Path | None = None
    for line in output.splitlines():
        if match := re.search(r"Sending file: (.+)$", line):
            current = Path(match.group(1).strip())
        elif "Received Store Response (Success)" in line and current is not None:
            found.add(current)
    return found


KINDS: Final = ("dicom", "bus", "inference", "agents", "upkeep", "broker", "supervisor")
"""What can be killed."""


def send_all(loop: Loop, chosen: Sequence[Sample], seconds: float = 120) -> None:
    """Push studies until each is acknowledged once; what was acknowledged is not sent again, so a lost one stays lost."""
    left, deadline = [item.file for item in chosen], time.monotonic() + seconds
    while left:
        assert time.monotonic() < deadline, f"{len(left)} files are not acknowledged:\n{loop.tail()}"
        done = loop.storescu(left[:20])
        left = [file for file in left if file not in done]
        if not done:
            time.sleep(0.5)


def label_all(loop: Loop, chosen: Sequence[Sample], seconds: float = 90) -> None:
    """Hand in labels over HTTP until they are taken; an answer that got lost is asked for again."""
    for start in range(0, len(chosen), 6):
        part = chosen[start : start + 6]
        wait_for("the labels' acceptance", seconds, lambda part=part: loop.post_labels(part)[0] == 202)  # type: ignore[misc]


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
    orders = loop.query("SELECT order_id, kind, evaluation_id, state FROM maintenance_order")
    caused = Counter((kind, evaluation) for _, kind, evaluation, _ in orders if evaluation)
    assert max(caused.values(), default=0) <= 1, caused
    sent = Counter(body["order_id"] for body in bodies(loop, ORDER.name))
    assert sent == Counter(order for order, _, _, state in orders if state not in {"refused", "awaiting_approval"})
    jobs = Counter(row[0] for row in loop.query("SELECT order_id FROM job"))
    assert jobs == Counter(order for order, kind, _, state in orders if kind == "remedy" and state != "refused")
    reports = [row[0] for row in loop.query("SELECT report_id FROM report")]
    assert Counter(body["report_id"] for body in bodies(loop, REPORT.name)) == Counter(reports)
    assert {path.name for path in loop.context.settings.reports_dir.glob("*")} == set(reports)


class Killer:
    """Kills one process after another at random moments and starts the service again when the supervisor is hit."""

    def __init__(self, loop: Loop, seed: int) -> None:
        self.loop, self.dice, self.killed = loop, random.Random(seed), list[str]()

    def strike(self, name: str) -> None:
        """Kill now."""
        self.killed.append(name)
        self.loop.kill(name)
        if name == "supervisor":
            self.loop.start()

    def later(self, name: str, low: float, high: float) -> None:
        """Kill at a random moment between two delays in seconds."""
        time.sleep(self.dice.uniform(low, high))
        self.strike(name)


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
