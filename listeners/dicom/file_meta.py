"""DICOM File Meta Information (PS3.10 §7.1) for data sets that are stored as sent."""

import struct
from functools import lru_cache
from typing import Final

from services.runtime import implementation

IMPLEMENTATION_CLASS_UID: Final = implementation.IMPLEMENTATION_CLASS_UID
IMPLEMENTATION_VERSION_NAME: Final = implementation.IMPLEMENTATION_VERSION_NAME
_PREAMBLE: Final = b"\x00" * 128 + b"DICM"
_SHORT_HEADER: Final = 8
_GROUP_LENGTH: Final = struct.Struct("<HH2sHL")


def encode_file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, source_ae: str) -> bytes:
    """Preamble, prefix and file meta group, to be followed by the data set. All UIDs are valid ones."""
    before, after = _around_instance(sop_class_uid, len(sop_instance_uid), transfer_syntax_uid, source_ae)
    return b"".join((before, sop_instance_uid.encode("ascii", "replace"), after))


@lru_cache(256)
def _around_instance(sop_class_uid: str, instance_length: int, transfer_syntax_uid: str, source_ae: str) -> tuple[bytes, bytes]:
    """Everything before and after a SOP Instance UID of that length."""
    instance = _text(0x0003, b"UI", "0" * instance_length)
    before = struct.pack("<HH2s2xLH", 2, 0x0001, b"OB", 2, 0x0100) + _text(0x0002, b"UI", sop_class_uid)
    after = (
        _text(0x0010, b"UI", transfer_syntax_uid),
        _text(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
        _text(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
        _text(0x0016, b"AE", source_ae),
    )
    length = len(before) + len(instance) + sum(map(len, after))
    header, padding = instance[:_SHORT_HEADER], instance[_SHORT_HEADER + instance_length :]
    group_length = _GROUP_LENGTH.pack(2, 0x0000, b"UL", 4, length)
    return b"".join((_PREAMBLE, group_length, before, header)), b"".join((padding, *after))


def _text(element: int, vr: bytes, value: str) -> bytes:
    data = value.encode("ascii", "replace")
    if len(data) % 2:
        data += b"\x00" if vr == b"UI" else b" "
    return struct.pack("<HH2sH", 2, element, vr, len(data)) + data
