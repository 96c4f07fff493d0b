"""Decodes what a peer sent with pydicom, in bounded memory and time: an empty item costs eight bytes on the wire and 700 here.

pydicom takes any tag for an item, switches VRs as it goes and decodes some sequences late; so its own reads are counted
rather than the message walked beforehand.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Final

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

from services.assembly.commitments import MOST_REFERENCES
from services.assembly.pydicom_reading import read_dataset, read_sequence

MOST_STEPS: Final = 7 * MOST_REFERENCES // 2
"""Elements and items of one message: a reference is an item of two elements, and of a delimiter where the item has no length."""
MOST_ITEMS: Final = 2 * MOST_REFERENCES
_ITEM: Final = b"\xfe\xff\x00\xe0"
_HEADER: Final = 8


class TooManyError(ValueError):
    """More elements and items than any request of ours needs."""


class _CountedReads(BytesIO):
    """Every element and every item begins with a read of eight bytes."""

    steps = 0

    def read(self, size: int | None = -1, /) -> bytes:
        if size == _HEADER:
            self.steps += 1
            if self.steps > MOST_STEPS:
                raise TooManyError
        return super().read(size)


@contextmanager
def _counted(data: bytes) -> Iterator[_CountedReads]:
    """The bytes to read from; TooManyError whatever pydicom has made of it on its way up."""
    if data.count(_ITEM) > MOST_ITEMS:
        raise TooManyError
    source = _CountedReads(data)
    try:
        yield source
    except Exception:
        if source.steps > MOST_STEPS:
            raise TooManyError from None
        raise


def decode_bounded(data: bytes, *, implicit: bool) -> Dataset:
    """A data set in little endian; raises TooManyError, and what pydicom raises."""
    with _counted(data) as source:
        return read_dataset(source, implicit, True)


def decode_sequence(dataset: Dataset, tag: BaseTag) -> None:
    """Decode a sequence of defined length, which pydicom leaves for the first access; raises as `decode_bounded`."""
    raw = dataset.get_item(tag) if tag in dataset else None
    if not isinstance(raw, RawDataElement) or raw.VR not in (None, "SQ", "UN") or not raw.value:
        return
    implicit = raw.is_implicit_VR or raw.VR == "UN"
    with _counted(raw.value) as source:
        items = read_sequence(source, implicit, True, len(raw.value), dataset.original_character_set)
    dataset.add_new(tag, "SQ", Sequence(items))


def is_sequence(dataset: Dataset, tag: BaseTag) -> bool:
    """Whether an element says that it is a sequence; decodes nothing."""
    return tag in dataset and dataset.get_item(tag).VR == "SQ"
