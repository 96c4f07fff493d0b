"""DICOM File Meta Information (PS3.10 §7.1) for data sets that are stored as sent."""

import struct
from typing import Final

from services.runtime import implementation

IMPLEMENTATION_CLASS_UID: Final = implementation.IMPLEMENTATION_CLASS_UID
IMPLEMENTATION_VERSION_NAME: Final = implementation.IMPLEMENTATION_VERSION_NAME
_PREAMBLE: Final = b"\x00" * 128 + b"DICM"


def encode_file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, source_ae: str) -> bytes:
    """Preamble, prefix and file meta group, to be followed by the data set. All UIDs are valid ones."""
    elements = b"".join(
        (
            struct.pack("<HH2s2xLH", 2, 0x0001, b"OB", 2, 0x0100),
            _text(0x0002, b"UI", sop_class_uid),
            _text(0x0003, b"UI", sop_instance_uid),
            _text(0x0010, b"UI", transfer_syntax_uid),
            _text(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
            _text(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
            _text(0x0016, b"AE", source_ae),
        )
    )
    return _PREAMBLE + struct.pack("<HH2sHL", 2, 0x0000, b"UL", 4, len(elements)) + elements


def _text(element: int, vr: bytes, value: str) -> bytes:
    data = value.encode("ascii", "replace")
    if len(data) % 2:
        data += b"\x00" if vr == b"UI" else b" "
    return struct.pack("<HH2sH", 2, element, vr, len(data)) + data
