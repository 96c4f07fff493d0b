"""The whole service for tests: `reclaim up` in its own process on free ports, killed and started again, and real senders."""

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
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil
from sqlalchemy import text

from listeners.cli.context import open_context
from listeners.dicom.echo import echo
from schemas.settings import Settings
from services.runtime.run_state import RunState, read_state
from services.runtime.service import Context
from tests.loop_samples import KEY, TASK, Sample

ROOT: Final = Path(__file__).parents[1]
STORESCU: Final = Path("/usr/bin/storescu")
"""DCMTK's; pynetdicom installs another program of the same name."""
BATCH: Final = 12
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
