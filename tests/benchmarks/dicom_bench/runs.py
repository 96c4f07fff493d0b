"""One run: a server into an empty store, a sender, what it took, and whether every byte arrived."""

import hashlib
import os
import shutil
import ssl
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from dicom_bench import raw_writer
from dicom_bench.certificates import Certificate
from dicom_bench.loads import Sample, dataset_offset, total_bytes
from dicom_bench.processes import wait_for_lull, watched
from dicom_bench.scu import SUCCESS, Refused, Scu
from dicom_bench.servers import Job, Running, Server, free_port, program, started

STORESCU: Final = "storescu"
OWN: Final = "own SCU"
_TIMEOUT_S: Final = 600
_ROOM_TO_KEEP: Final = 20_000_000_000


@dataclass(frozen=True)
class Cell:
    """What is sent and how. `sender`: DCMTK's storescu, or our SCU which also takes response times. `long`: many more objects."""

    load: str
    associations: int
    sender: str = STORESCU
    nodelay: bool = True
    tls: bool = False
    long: bool = False

    @property
    def client(self) -> str:
        """The sender in words."""
        if self.sender == OWN:
            return OWN
        return f"storescu{', TCP_NODELAY=1' if self.nodelay else ', as installed (Nagle)'}{', TLS' if self.tls else ''}"


@dataclass(frozen=True)
class Result:
    """One run. Milliseconds are of the server's processor per instance; `responses` are seconds, from our own SCU only."""

    instances: int
    seconds: float
    bytes: int
    user_ms: float
    kernel_ms: float
    peak_mb: float
    foreign: float
    stored: int
    identical: int
    responses: tuple[float, ...] = ()
    refused: int = 0

    @property
    def rate(self) -> float:
        """Instances a second that were answered with success."""
        return (self.instances - self.refused) / self.seconds


def run(server: Server, cell: Cell, samples: Sequence[Sample], scratch: Path, tls: Certificate | None, patience_s: float) -> Result:
    """One run from an empty store; raises SystemExit with the sender's words where something was not taken."""
    store = scratch / "store"
    shutil.rmtree(store, ignore_errors=True)
    job = Job(store, free_port(), nodelay=cell.nodelay, tls=tls if cell.tls else None)
    with started(server, job) as running:
        wait_for_lull(patience_s)
        os.sync()
        shares = [list(samples[start :: cell.associations]) for start in range(cell.associations)]
        measured = _measured(running, cell, server, shares)
        stored, identical = compare(store, samples) if server.speaks_dicom else _plain_files(store)
    _put_away(store, scratch / "done")
    return replace(measured, stored=stored, identical=identical)


def _put_away(store: Path, done: Path) -> None:
    """Keep a store until the end while there is room.

    ext4 without a journal steps over every inode that was deleted within the last minutes: the next server would pay for it.
    """
    if shutil.disk_usage(store).free < _ROOM_TO_KEEP:
        shutil.rmtree(store, ignore_errors=True)
        return
    done.mkdir(exist_ok=True)
    store.rename(done / str(sum(1 for _ in done.iterdir())))


def _measured(running: Running, cell: Cell, server: Server, shares: list[list[Sample]]) -> Result:
    responses: list[float] = []
    statuses: Counter[int] = Counter()
    with watched(running.process.pid) as cost:
        began = time.perf_counter()
        if not server.speaks_dicom:
            raw_writer.send(running.job.port, [[sample.path for sample in share] for share in shares])
        elif cell.sender == OWN:
            statuses = send_own(running, shares, responses)
        else:
            send_storescu(running, shares, nodelay=cell.nodelay)
        cost.wall = time.perf_counter() - began
    count = sum(map(len, shares))
    return Result(
        instances=count,
        seconds=cost.wall,
        bytes=sum(map(total_bytes, shares)),
        user_ms=1000 * cost.cpu.user / count,
        kernel_ms=1000 * cost.cpu.kernel / count,
        peak_mb=cost.peak_bytes / 1e6,
        foreign=cost.foreign,
        stored=0,
        identical=0,
        responses=tuple(responses),
        refused=statuses.total() - statuses[SUCCESS],
    )


def send_storescu(running: Running, shares: Sequence[Sequence[Sample]], *, nodelay: bool) -> None:
    """One storescu process for each share; all must exit 0."""
    environment = {name: value for name, value in os.environ.items() if name != "TCP_NODELAY"}
    environment |= {"TCP_NODELAY": "1"} if nodelay else {}
    binary, tls = program("storescu"), running.job.tls
    secure = ["+tls", tls.key, tls.certificate, "+cf", tls.certificate] if tls else []
    clients = []
    for share in filter(None, shares):
        command = [binary, "-R", "-aet", "BENCH", "-aec", "RECLAIM", *secure, "127.0.0.1", str(running.job.port)]
        command += [sample.path.name for sample in share]
        options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "env": environment, "cwd": share[0].path.parent}
        clients.append(subprocess.Popen(command, **options))
    for client in clients:
        _, complaints = client.communicate(timeout=_TIMEOUT_S)
        if client.returncode:
            raise SystemExit(f"storescu: {complaints.decode(errors='replace')[-1000:]}")


def send_own(running: Running, shares: Sequence[Sequence[Sample]], responses: list[float]) -> Counter[int]:
    """Our SCU, one thread for each share; adds response times, returns how often each status came (refused contexts: 0122)."""
    statuses: Counter[int] = Counter()
    failures: list[Exception] = []
    tls = running.job.tls.client_context() if running.job.tls else None

    def one(share: Sequence[Sample]) -> None:
        try:
            _send_share(running.address, share, tls, responses, statuses)
        except (OSError, Refused) as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(share,)) for share in shares if share]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise SystemExit(f"own SCU: {failures[0]!r}")
    return statuses


def _send_share(
    address: tuple[str, int],
    share: Sequence[Sample],
    tls: ssl.SSLContext | None,
    responses: list[float],
    statuses: Counter[int],
) -> None:
    contexts = list(dict.fromkeys((sample.sop_class, sample.syntax) for sample in share))[:128]
    with Scu(address, contexts, tls=tls) as scu:
        for sample in share:
            try:
                request = scu.request(sample.item())
            except Refused:
                statuses[0x0122] += 1
                continue
            began = time.perf_counter()
            scu.socket.sendall(request)
            status = scu.response()
            responses.append(time.perf_counter() - began)
            statuses[status] += 1


def compare(store: Path, samples: Sequence[Sample]) -> tuple[int, int]:
    """DICOM files in a store, and how many of them hold the data set of a sample byte for byte."""
    wanted = {sample.digest for sample in samples}
    stored, found = 0, set()
    for path in store.rglob("*"):
        if not path.is_file():
            continue
        content = path.read_bytes()
        try:
            offset = dataset_offset(content)
        except ValueError:
            continue
        stored += 1
        found.add(hashlib.sha256(content[offset:]).hexdigest())
    return stored, len(found & wanted)


def _plain_files(store: Path) -> tuple[int, int]:
    files = [path for path in store.iterdir() if path.suffix == "" and path.name[0].isdigit()]
    return len(files), 0


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value below which a share of all lies, in milliseconds; None without values."""
    if not values:
        return None
    if len(values) == 1:
        return 1000 * values[0]
    return 1000 * statistics.quantiles(values, n=1000, method="inclusive")[min(998, round(1000 * share) - 1)]
