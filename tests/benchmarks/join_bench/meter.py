"""Time and memory of one run, and what it ended as."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from .workload import BATCH


@dataclass
class Meter:
    """From the first message in hand to the last effect: wall, the process's own CPU time and its memory.

    What reads the result back and compares it comes after that and is not counted.
    """

    wall: float = 0.0
    cpu: float = 0.0
    peak: float = 0.0
    """Most resident memory until the end, MB."""
    _running: bool = field(default=False)

    def begin(self) -> None:
        """Start, once."""
        if not self._running:
            self._running = True
            self.wall, self.cpu = -time.perf_counter(), -time.process_time()

    def end(self) -> None:
        """Stop."""
        self.wall += time.perf_counter()
        self.cpu += time.process_time()
        self.peak = peak_megabytes()


@dataclass(frozen=True)
class Outcome:
    """What a join made of the workload. `batches` is None for peers, which only join."""

    truths: dict[str, str]
    batches: list[int] | None
    left_open: int = 0

    def faults(self, wanted: dict[str, str]) -> list[str]:
        """What is not as it must be."""
        wrong = sum(self.truths.get(study) != truth for study, truth in wanted.items())
        found = [f"{wrong} of {len(wanted)} cases without their truth"] if wrong else []
        if len(self.truths) > len(wanted):
            found.append("cases that were never sent")
        full, rest = divmod(len(wanted), BATCH)
        if self.batches is not None and (self.batches != [BATCH] * full or self.left_open != rest):
            found.append(f"{len(self.batches)} batches and {self.left_open} open cases, wanted {full} and {rest}")
        return found


def peak_megabytes() -> float:
    """The most resident memory of this process so far."""
    line = next(line for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
