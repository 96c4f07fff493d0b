"""The service under soak: listener, assembly and relay as processes that can be killed, a broker, and a reader of the bus."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import IO, Final, Self

from aiokafka import AIOKafkaConsumer
from dicom_bench.processes import resident_bytes
from dicom_bench.scu import IMPLICIT_LITTLE, SUCCESS, VERIFICATION, Refused, Scu
from dicom_bench.servers import free_port

from schemas.settings import KafkaSettings
from schemas.topics import STUDY_RECEIVED
from services.runtime.embedded import EmbeddedBroker
from services.runtime.parenthood import die_with_parent
from services.runtime.topics_admin import ensure_topics

QUIET_S: Final = 2.0
_START_S: Final = 300.0
SERVICES: Final = ("dicom", "assembly", "relay")


class World:
    """Started services on scratch state. Use it from the thread that lives longest: its processes die with that thread."""

    def __init__(self, folder: Path, database: str = "") -> None:
        self.state, self._folder = folder / "state", folder
        self.address = ("127.0.0.1", free_port())
        self.lives: Counter[str] = Counter()
        self.peak_bytes = 0
        self.brokers_lost = 0
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._seen: Counter[tuple[str, int]] = Counter()
        self._database = database
        self._logs: list[IO[bytes]] = []

    def __enter__(self) -> Self:
        self.state.mkdir(parents=True, exist_ok=True)
        self._start_broker()
        for name in SERVICES:
            self.start(name)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()
        self.reader.stop()
        self._broker.stop()
        for log in self._logs:
            log.close()

    def start(self, name: str) -> None:
        """Start a service; the listener's readiness is waited for, since senders would only spin."""
        log = (self._folder / f"{name}.log").open("ab")
        self._logs.append(log)
        command = [sys.executable, "-m", "listeners.cli", "serve", name]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RECLAIM_")} | self.environment
        self._processes[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log, preexec_fn=die_with_parent)  # noqa: PLW1509 - a system call
        self.lives[name] += 1
        if name == "dicom":
            self._wait_until_it_answers()

    def replace_broker(self) -> None:
        """SIGKILL to the broker, which forgets everything, and what `reclaim up` does then: clients end, another broker starts."""
        self._broker.kill()
        self.kill("relay")
        self.reader.stop()
        self._start_broker()
        self.start("relay")

    def _start_broker(self) -> None:
        self._broker = EmbeddedBroker(self._folder / "broker.log").start()
        asyncio.run(ensure_topics(KafkaSettings(bootstrap=self._broker.bootstrap, embedded=True)))
        self.reader = BusReader(self._broker.bootstrap, self._seen)

    @property
    def environment(self) -> dict[str, str]:
        """Settings: as installed, but for places, a short quiet period and no spans."""
        return {
            "RECLAIM_STATE_DIR": str(self.state),
            "RECLAIM_DATABASE_URL": self._database,
            "RECLAIM_DICOM_HOST": self.address[0],
            "RECLAIM_DICOM_PORT": str(self.address[1]),
            "RECLAIM_DICOM_QUIET_PERIOD_S": str(QUIET_S),
            "RECLAIM_DICOM_MIN_FREE_BYTES": "0",
            "RECLAIM_KAFKA_BOOTSTRAP": self._broker.bootstrap,
            "RECLAIM_KAFKA_EMBEDDED": "true",
            "RECLAIM_KAFKA_INCARNATION": self._broker.incarnation,
            "RECLAIM_TELEMETRY_FILE": "false",
        }

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self._processes[name].kill()
        self._processes[name].wait()

    def watch(self) -> None:
        """Note the listener's memory, replace a broker that is gone; raises RuntimeError where a service ended of itself."""
        if not self._broker.alive():
            self.brokers_lost += 1
            self.replace_broker()
        self.peak_bytes = max(self.peak_bytes, resident_bytes(self._processes["dicom"].pid))
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended of itself with {process.returncode}:\n{self.tail(name)}")

    def stop(self) -> dict[str, int]:
        """SIGTERM to all; their exit codes."""
        for process in self._processes.values():
            process.terminate()
        return {name: process.wait(60) for name, process in self._processes.items()}

    def tail(self, name: str) -> str:
        """The end of a service's log."""
        return (self._folder / f"{name}.log").read_text(errors="replace")[-2000:]

    def _wait_until_it_answers(self) -> None:
        end = time.monotonic() + _START_S
        while time.monotonic() < end and self._processes["dicom"].poll() is None:
            with contextlib.suppress(OSError, Refused), Scu(self.address, [(VERIFICATION, IMPLICIT_LITTLE)], timeout_s=5) as scu:
                if scu.echo() == SUCCESS:
                    return
            time.sleep(0.05)
        raise RuntimeError(f"the listener does not start:\n{self.tail('dicom')}")


class BusReader:
    """Reads every study event of one broker, in a thread of its own; `seen` counts (study key, revision)."""

    def __init__(self, bootstrap: str, seen: Counter[tuple[str, int]]) -> None:
        self.seen = seen
        self._bootstrap, self._stopping = bootstrap, threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._read()), name="bus-reader")
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join()

    async def _read(self) -> None:
        consumer = AIOKafkaConsumer(STUDY_RECEIVED.name, bootstrap_servers=self._bootstrap, auto_offset_reset="earliest")
        await consumer.start()
        try:
            while not self._stopping.is_set():
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    self.seen.update((record.key.decode(), json.loads(record.value)["revision"]) for record in records)
        finally:
            with contextlib.suppress(asyncio.CancelledError):  # of its own tasks, where the broker is gone
                await consumer.stop()
