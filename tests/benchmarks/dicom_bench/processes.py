"""What a process and its children cost, read from /proc (Linux only)."""

import contextlib
import os
import resource
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICK: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_SAMPLE_S: Final = 0.1


@dataclass(frozen=True)
class Cpu:
    """Seconds of processor time."""

    user: float
    kernel: float

    def __sub__(self, other: "Cpu") -> "Cpu":
        return Cpu(self.user - other.user, self.kernel - other.kernel)

    @property
    def total(self) -> float:
        """User and kernel time."""
        return self.user + self.kernel


def tree(pid: int) -> list[int]:
    """A process and its descendants, zombies included."""
    found, waiting = [], [pid]
    while waiting:
        current = waiting.pop()
        found.append(current)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{current}/task").iterdir():
                waiting.extend(int(child) for child in (task / "children").read_text().split())
    return found


def cpu_of(pid: int) -> Cpu:
    """Processor time of a process tree, with the children that its processes have waited for; in steps of 10 ms."""
    user = kernel = 0
    for member in tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            user += int(fields[11]) + int(fields[13])
            kernel += int(fields[12]) + int(fields[14])
    return Cpu(user / _TICK, kernel / _TICK)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process tree; pages that its processes share count once for each."""
    total = 0
    for member in tree(pid):
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{member}/statm").read_text().split()[1]) * _PAGE
    return total


def busy_seconds() -> float:
    """Processor time of everything on this machine since it started."""
    fields = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, _steal = fields
    return (user + nice + system + irq + softirq) / _TICK


def own_seconds() -> float:
    """Processor time of this process and of the children that it has waited for."""
    return sum(
        usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


@dataclass
class Cost:
    """What a run cost the server, and how much of the machine others took meanwhile (share of all cores)."""

    wall: float = 0.0
    cpu: Cpu = Cpu(0.0, 0.0)
    peak_bytes: int = 0
    foreign: float = 0.0


@contextlib.contextmanager
def watched(pid: int) -> Iterator[Cost]:
    """Measure a server's process tree for the length of the block; the Cost is complete at its end."""
    cost, stop = Cost(), threading.Event()
    sampler = threading.Thread(target=_sample, args=(pid, cost, stop), name="memory-sampler")
    sampler.start()
    server, machine, own, began = cpu_of(pid), busy_seconds(), own_seconds(), time.perf_counter()
    try:
        yield cost
    finally:
        cost.wall = cost.wall or time.perf_counter() - began
        elapsed = time.perf_counter() - began
        cost.cpu = cpu_of(pid) - server
        others = busy_seconds() - machine - cost.cpu.total - (own_seconds() - own)
        cost.foreign = max(0.0, others / elapsed / (os.cpu_count() or 1))
        stop.set()
        sampler.join()


def _sample(pid: int, cost: Cost, stop: threading.Event) -> None:
    while True:
        cost.peak_bytes = max(cost.peak_bytes, resident_bytes(pid))
        if stop.wait(_SAMPLE_S):
            return


def wait_for_lull(most_s: float, share: float = 0.15) -> None:
    """Wait until others take less than `share` of the cores, but no longer than `most_s`."""
    end = time.monotonic() + most_s
    while time.monotonic() < end:
        before, began = busy_seconds(), time.perf_counter()
        time.sleep(0.5)
        if (busy_seconds() - before) / (time.perf_counter() - began) / (os.cpu_count() or 1) < share:
            return
