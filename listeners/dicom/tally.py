"""Metrics of one association, collected and reported once a second: a report costs more than the count."""

import time
from collections import Counter
from typing import Final

from services.runtime.telemetry import count, observe

INTERVAL_S: Final = 1.0


class Tally:
    """Counts C-STORE requests of `peer`; for one thread. Call `report` at the end."""

    def __init__(self) -> None:
        self.peer = "unknown"
        self._instances: Counter[int] = Counter()
        self._bytes = 0
        self._seconds: list[float] = []
        self._due = 0.0

    def add(self, status: int, size: int, seconds: float) -> None:
        """One request was answered with `status`, `seconds` after its last byte."""
        self._instances[status] += 1
        self._bytes += size
        self._seconds.append(seconds)
        now = time.monotonic()
        if now > self._due:
            self._due = now + INTERVAL_S
            self.report()

    def report(self) -> None:
        """Hand over what was counted since the last report."""
        for status, number in self._instances.items():
            count("reclaim.dicom.instances", number, status=f"{status:04X}", peer=self.peer)
        if self._bytes:
            count("reclaim.dicom.bytes", self._bytes, peer=self.peer)
        for seconds in self._seconds:
            observe("reclaim.dicom.store.seconds", seconds)
        self._instances.clear()
        self._seconds.clear()
        self._bytes = 0
