"""From a DICOM file as it lies in a request's part (PS3.10 §7) to what the archive's reception is told of it."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Final

from pydicom.dataset import Dataset

from listeners.dicom.reception import StoreHead
from services.assembly.headers import is_valid_uid, read_facts
from services.assembly.pydicom_reading import read_dataset
from services.assembly.sources import StreamSource

SOURCE: Final = "STOW-RS"
"""Stands where an association's calling AE title does."""
_META_UIDS: Final = ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID")
_HEAD: Final = 144
MOST_META: Final = 65_536
_PIECE: Final = 1 << 20


class NotPart10(Exception):  # noqa: N818 - named for what the part is not
    """The part is no DICOM file with file meta information."""


@dataclass(frozen=True)
class FileMeta:
    """What the file meta information says; not to be trusted. `offset` is where the data set starts."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    offset: int


def read_meta(file: IO[bytes]) -> FileMeta:
    """The file meta information, read from the start of `file`; raises NotPart10."""
    file.seek(0)
    head = file.read(_HEAD)
    if len(head) < _HEAD or head[128:132] != b"DICM" or head[132:140] != b"\x02\x00\x00\x00UL\x04\x00":
        raise NotPart10
    length = int(struct.unpack_from("<L", head, 140)[0])
    if length > MOST_META:
        raise NotPart10
    try:
        meta = read_dataset(BytesIO(file.read(length)), is_implicit_VR=False, is_little_endian=True)
        uids = [_uid(meta, name) for name in _META_UIDS]
    except Exception:  # noqa: BLE001 - pydicom raises many kinds for rubbish, and their texts quote it
        raise NotPart10 from None
    return FileMeta(uids[0], uids[1], uids[2], _HEAD + length)


def head_of(meta: FileMeta, traceparent: str) -> StoreHead:
    """The file meta's UIDs in the place of a C-STORE command's."""
    return StoreHead(
        context_sop_class_uid=meta.sop_class_uid,
        affected_sop_class_uid=meta.sop_class_uid,
        affected_sop_instance_uid=meta.sop_instance_uid,
        transfer_syntax_uid=meta.transfer_syntax_uid,
        calling_ae=SOURCE,
        traceparent=traceparent,
    )


def pieces_of(file: IO[bytes], meta: FileMeta) -> Iterator[bytes]:
    """The data set as sent, piece by piece."""
    file.seek(meta.offset)
    while piece := file.read(_PIECE):
        yield piece


def study_of(file: IO[bytes], meta: FileMeta) -> str:
    """StudyInstanceUID (0020,000D) of the data set; raises UnreadableHeader or MissingElement."""
    return read_facts(StreamSource(file, meta.offset), meta.transfer_syntax_uid).study_uid


def shown(uid: str) -> str:
    """A UID as it may be repeated in an answer: what is none is not."""
    return uid if is_valid_uid(uid) else ""


def _uid(meta: Dataset, keyword: str) -> str:
    return str(meta.get(keyword) or "").strip("\x00 ")
