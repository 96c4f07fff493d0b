"""UIDs of the results that we send to the PACS: derived, so that a repetition is the same object, and recognisable.

A UID is 2.25 and a UUID of version 8 (RFC 9562 §5.8, PS3.5 §B.2) whose first five bytes are `recla`; 82 bits are a hash of
what it stands for. So a result that comes back by auto-routing is known as one by its UID alone, without any table, also by
another installation and after the loss of the database.
"""

import hashlib
import uuid
from typing import Final

_MARK: Final = b"recla"
_VERSION: Final = 8
_ROOT: Final = "2.25."
_LONGEST: Final = 39


def result_uid(*parts: str | int) -> str:
    """The UID of a result, or of its series, that these parts identify."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    octets = bytearray(_MARK + digest[: 16 - len(_MARK)])
    octets[6] = _VERSION << 4 | octets[6] & 0x0F
    octets[8] = 0x80 | octets[8] & 0x3F
    return f"{_ROOT}{int.from_bytes(octets, 'big')}"


def is_result_uid(uid: str) -> bool:
    """Whether `result_uid` made it."""
    number = uid.removeprefix(_ROOT)
    if number == uid or not number.isascii() or not number.isdigit() or len(number) > _LONGEST or int(number) >> 128:
        return False
    found = uuid.UUID(int=int(number))
    return found.bytes.startswith(_MARK) and found.version == _VERSION
