"""The receivers that are compared: how each is started into an empty store, and which programs it needs."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dicom_bench.certificates import Certificate
from dicom_bench.scu import IMPLICIT_LITTLE, SUCCESS, VERIFICATION, Refused, Scu

ROOT: Final = Path(__file__).parents[3]
OURS: Final = "reclaim"
FORKING: Final = "DCMTK storescp +B --fork -pdu 131072"
FORKING_DURABLE: Final = "DCMTK storescp +B --fork -pdu 131072, fsync preloaded"
PLAIN: Final = "DCMTK storescp"
ORTHANC: Final = "Orthanc, SyncStorageArea"
PYNETDICOM: Final = "pynetdicom storescp"
DOCUMENTED: Final = "pynetdicom, documented handler"
RAW: Final = "raw socket to disk"
RAW_DURABLE: Final = "raw socket to disk, durable"
_START_S: Final = 90.0


@dataclass(frozen=True)
class Job:
    """How a server is wanted: `nodelay` sets TCP_NODELAY=1, which DCMTK and Orthanc obey, in its environment."""

    store: Path
    port: int
    nodelay: bool = True
    tls: Certificate | None = None


@dataclass(frozen=True)
class Server:
    """A receiver. `durable`: fsync before success, by its own documentation or source. `needs`: programs it cannot do without."""

    name: str
    command: Callable[[Job], list[str | Path]]
    needs: tuple[str, ...] = ()
    durable: bool = False
    speaks_dicom: bool = True
    speaks_tls: bool = False
    environment: Callable[[Job], Mapping[str, str]] = field(default=lambda _: {})

    def missing(self) -> str:
        """Why it cannot be started here; empty when it can."""
        return ", ".join(f"not installed: {name}" for name in self.needs if program(name) is None)


@dataclass(frozen=True)
class Running:
    """A started server."""

    process: subprocess.Popen[bytes]
    job: Job

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", self.job.port


def program(name: str) -> str | None:
    """Path of a system program. The virtual environment is passed over: pynetdicom's tools bear the names of DCMTK's."""
    folders = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/opt/homebrew/bin"]
    return shutil.which(name, path=os.pathsep.join(folders))


def _path(name: str) -> str:
    found = program(name)
    assert found, f"{name} is not installed"
    return found


def _ours(_: Job) -> list[str | Path]:
    return [sys.executable, "-m", "listeners.cli", "serve", "dicom"]


def our_environment(job: Job) -> dict[str, str]:
    """Settings of our listener: as installed, but for the place and for limits that 200 senders on one address would meet."""
    settings = {
        "RECLAIM_STATE_DIR": str(job.store),
        "RECLAIM_DICOM_HOST": "127.0.0.1",
        "RECLAIM_DICOM_PORT": str(job.port),
        "RECLAIM_DICOM_MAX_ASSOCIATIONS": "300",
        "RECLAIM_DICOM_MAX_ASSOCIATIONS_PER_PEER": "0",
        "RECLAIM_LOG_LEVEL": "WARNING",
    }
    if job.tls:
        settings["RECLAIM_DICOM_TLS_CERTIFICATE"] = str(job.tls.certificate)
        settings["RECLAIM_DICOM_TLS_KEY"] = str(job.tls.key)
        settings["RECLAIM_DICOM_TLS_CA"] = str(job.tls.certificate)
    return settings


def _dcmtk(*options: str) -> Callable[[Job], list[str | Path]]:
    def command(job: Job) -> list[str | Path]:
        tls = ["+tls", job.tls.key, job.tls.certificate, "+cf", job.tls.certificate] if job.tls else []
        return [_path("storescp"), *options, *tls, "-od", job.store, str(job.port)]

    return command


def _preloaded(job: Job) -> dict[str, str]:
    """Have a program bring what it wrote to stable storage before it closes a file; compiled here."""
    source, library = Path(__file__).with_name("durable_close.c"), job.store / "durable_close.so"
    subprocess.run([_path("cc"), "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, capture_output=True)
    return {"LD_PRELOAD": str(library)}


def _orthanc(job: Job) -> list[str | Path]:
    settings = {
        "StorageDirectory": str(job.store / "storage"),
        "IndexDirectory": str(job.store / "index"),
        "DicomPort": job.port,
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowEcho": True,
        "HttpServerEnabled": False,
        "SyncStorageArea": True,
        "OverwriteInstances": True,
        "Plugins": [],
    }
    file = job.store / "orthanc.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    return [_path("Orthanc"), file]


def _pynetdicom(job: Job) -> list[str | Path]:
    return [sys.executable, "-m", "pynetdicom", "storescp", "-ba", "127.0.0.1", "-od", job.store, str(job.port)]


def _script(name: str, *options: str) -> Callable[[Job], list[str | Path]]:
    return lambda job: [sys.executable, Path(__file__).parent / name, str(job.port), job.store, *options]


SERVERS: Final = {
    server.name: server
    for server in (
        Server(OURS, _ours, durable=True, speaks_tls=True, environment=our_environment),
        Server(FORKING, _dcmtk("+B", "--fork", "-pdu", "131072"), needs=("storescp",), speaks_tls=True),
        Server(
            FORKING_DURABLE,
            _dcmtk("+B", "--fork", "-pdu", "131072"),
            needs=("storescp", "cc"),
            durable=True,
            environment=_preloaded,
        ),
        Server(PLAIN, _dcmtk(), needs=("storescp",)),
        Server(ORTHANC, _orthanc, needs=("Orthanc",), durable=True),
        Server(PYNETDICOM, _pynetdicom),
        Server(DOCUMENTED, _script("documented_handler.py")),
        Server(RAW, _script("raw_writer.py"), speaks_dicom=False),
        Server(RAW_DURABLE, _script("raw_writer.py", "--durable"), durable=True, speaks_dicom=False),
    )
}


@contextlib.contextmanager
def started(server: Server, job: Job) -> Iterator[Running]:
    """A server that answers; ended, and waited for, at the end of the block. Its output lies in `server.log` of the store."""
    job.store.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RECLAIM_")}
    environment |= {"TCP_NODELAY": "1"} if job.nodelay else {}
    environment |= server.environment(job)
    with (job.store / "server.log").open("wb") as log:
        process = subprocess.Popen(server.command(job), env=environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_until_it_answers(server, job, process)
        yield Running(process, job)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # children that serve an association still


def _wait_until_it_answers(server: Server, job: Job, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError, Refused):
            if _answers(server, job):
                return
        time.sleep(0.05)
    raise SystemExit(f"{server.name} does not start:\n{(job.store / 'server.log').read_text()[-2000:]}")


def _answers(server: Server, job: Job) -> bool:
    address = ("127.0.0.1", job.port)
    if not server.speaks_dicom:
        socket.create_connection(address, 5).close()
        return True
    tls = job.tls.client_context() if job.tls else None
    with Scu(address, [(VERIFICATION, IMPLICIT_LITTLE)], tls=tls, timeout_s=5) as scu:
        return scu.echo() == SUCCESS


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
