"""What all connections of a listener share, and how much memory each gets."""

from dataclasses import dataclass
from typing import Final

from listeners.dicom.acceptance import Rules
from listeners.dicom.gate import Gate
from listeners.dicom.operations import Handlers
from listeners.dicom.reception import Reception
from schemas.settings import DicomSettings

BUFFER_BYTES: Final = 132 * 1024
"""One PDU of DCMTK's greatest length with what comes before it. Fits the second-level cache; larger buffers cost several
times the kernel time (docs/decisions/0010)."""
ALL_BUFFERS_BYTES: Final = 1 << 23
SMALLEST_BUFFER_BYTES: Final = 1 << 15
"""The more connections there are, the smaller is the buffer of a new one."""


@dataclass(frozen=True)
class Environment:
    """What all sessions share."""

    settings: DicomSettings
    reception: Reception
    handlers: Handlers
    rules: Rules
    gate: Gate


def buffer_bytes(connections: int) -> int:
    """Of a new connection, beside so many others."""
    return max(SMALLEST_BUFFER_BYTES, min(BUFFER_BYTES, ALL_BUFFERS_BYTES // (connections + 1)))
