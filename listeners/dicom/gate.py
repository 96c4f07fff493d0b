"""Who is inside: slots of associations in all and by address, and whether disk and index can take more."""

import threading
from collections import Counter
from typing import Final

from listeners.dicom.acceptance import DISK_FULL, INDEX_BEHIND, TOO_MANY, TOO_MANY_OF_PEER, Refusal
from listeners.dicom.reception import Reception
from schemas.settings import DicomSettings

_MOST_NAMES: Final = 100


class Gate:
    """Counts associations; thread-safe. A connection counts only once its request was let in."""

    def __init__(self, settings: DicomSettings, reception: Reception) -> None:
        self._most = settings.max_associations
        self._most_of_peer = settings.max_associations_per_peer
        self._reception = reception
        self._lock = threading.Lock()
        self._inside: Counter[str] = Counter()
        self._names: set[str] = set()

    def admit(self, address: str, *, stores: bool) -> Refusal | None:
        """Take a slot, or say why there is none. An association that stores nothing is not kept from a full disk."""
        if stores and (problem := self._congestion()):
            return problem
        with self._lock:
            if self._inside.total() >= self._most:
                return TOO_MANY
            if self._most_of_peer and self._inside[address] >= self._most_of_peer:
                return TOO_MANY_OF_PEER
            self._inside[address] += 1
        return None

    def leave(self, address: str) -> None:
        """Give the slot back."""
        with self._lock:
            self._inside[address] -= 1
            if not self._inside[address]:
                del self._inside[address]

    def label(self, calling_ae: str) -> str:
        """A peer's title as a label of metrics: the first hundred, so that nobody can make endless time series."""
        with self._lock:
            if calling_ae not in self._names and len(self._names) >= _MOST_NAMES:
                return "other"
            self._names.add(calling_ae)
        return calling_ae

    def _congestion(self) -> Refusal | None:
        try:
            if not self._reception.has_space():
                return DISK_FULL
        except OSError:
            return DISK_FULL
        writer = self._reception.writer
        return INDEX_BEHIND if writer is not None and writer.is_behind else None
