"""Walks a data set's element structure to its last byte without decoding values (PS3.5 §7).

Finds what a receiver that stores bytes as sent would otherwise acknowledge: cut, noisy or empty data sets. Sequences of
defined length are skipped as a whole, so the cost is a few microseconds per element of the top level.
"""

import struct
import zlib
from typing import Final

IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
MOST_INFLATED_BYTES: Final = 1 << 28
DEEPEST_NESTING: Final = 64
LONGEST_TRAILER: Final = 9
"""After a deflated data set: a padding byte (PS3.5 §A.5), and the eight bytes of a gzip trailer that some writers leave."""

_SHORT: Final = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split(),
)
_LONG: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_UNDEFINED: Final = 0xFFFFFFFF
_PIXEL_DATA: Final = 0x7FE00010
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_FIRST_GROUP: Final = 0x0008


class BrokenStructureError(ValueError):
    """The data set does not end where its elements end. `tag` is the element at fault."""

    def __init__(self, reason: str, tag: int = 0) -> None:
        super().__init__(reason)
        self.tag = tag


def plain_dataset(data: bytes, transfer_syntax_uid: str) -> tuple[bytes, str]:
    """The data set without deflation, and the transfer syntax that it then has; raises BrokenStructureError."""
    if transfer_syntax_uid != DEFLATED:
        return data, transfer_syntax_uid
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(data, MOST_INFLATED_BYTES)
    except zlib.error:
        raise BrokenStructureError("the deflated data set is damaged") from None
    if not inflater.eof:
        raise BrokenStructureError("the deflated data set is cut short, or larger than 1 GiB")
    if len(inflater.unused_data) > LONGEST_TRAILER:
        raise BrokenStructureError("bytes follow the deflated data set")
    return inflated, EXPLICIT_LITTLE


def check_structure(data: bytes, transfer_syntax_uid: str) -> None:
    """Raise BrokenStructureError unless elements fill the (not deflated) data set exactly."""
    if not data:
        raise BrokenStructureError("the data set is empty")
    walker = _Walker(data, "<" if transfer_syntax_uid != EXPLICIT_BIG else ">")
    walker.elements(0, implicit=transfer_syntax_uid == IMPLICIT_LITTLE, depth=0)


class _Walker:
    """Positions are byte offsets into the data set; each method returns where the thing it walked ends."""

    def __init__(self, data: bytes, order: str) -> None:
        self._data = data
        self._end = len(data)
        self._tag_and_length = struct.Struct(f"{order}HHL").unpack_from
        self._explicit = struct.Struct(f"{order}HH2sH").unpack_from
        self._long = struct.Struct(f"{order}L").unpack_from

    def elements(self, position: int, *, implicit: bool, depth: int) -> int:
        """Elements up to the end of the data set, or (inside an item of undefined length) up to its delimiter."""
        while position < self._end:
            tag, vr, length, position = self._header(position, implicit=implicit)
            if tag == _ITEM_END and depth:
                return position
            if tag >> 16 < _FIRST_GROUP or tag >> 16 == _ITEM >> 16:
                raise BrokenStructureError("an element that cannot stand in a data set", tag)
            if length == _UNDEFINED:
                position = self._undefined(position, tag, vr, implicit=implicit, depth=depth)
            else:
                position = self._skip(position, length, tag)
        if depth:
            raise BrokenStructureError("the data set ends inside a sequence")
        return position

    def _header(self, position: int, *, implicit: bool) -> tuple[int, bytes, int, int]:
        """Tag, VR (empty when implicit), value length, and where the value starts."""
        if position + 8 > self._end:
            raise BrokenStructureError("the data set ends inside an element's header")
        if implicit:
            group, element, length = self._tag_and_length(self._data, position)
            return group << 16 | element, b"", length, position + 8
        group, element, vr, length = self._explicit(self._data, position)
        tag = group << 16 | element
        if vr in _SHORT:
            return tag, vr, length, position + 8
        if group == _ITEM >> 16:
            return tag, b"", self._long(self._data, position + 4)[0], position + 8
        if vr not in _LONG:
            raise BrokenStructureError("an element without a known VR", tag)
        if position + 12 > self._end:
            raise BrokenStructureError("the data set ends inside an element's header", tag)
        return tag, vr, self._long(self._data, position + 8)[0], position + 12

    def _skip(self, position: int, length: int, tag: int) -> int:
        if position + length > self._end:
            raise BrokenStructureError("the data set ends inside an element", tag)
        return position + length

    def _undefined(self, position: int, tag: int, vr: bytes, *, implicit: bool, depth: int) -> int:
        if depth >= DEEPEST_NESTING:
            raise BrokenStructureError("sequences are nested too deeply", tag)
        if tag == _PIXEL_DATA and vr in (b"OB", b"OW"):
            return self._fragments(position)
        if vr == b"UN":  # PS3.5 §6.2.2: a UN of undefined length is a sequence in implicit VR little endian
            return _Walker(self._data, "<").items(position, tag, implicit=True, depth=depth + 1)
        if not implicit and vr != b"SQ":
            raise BrokenStructureError("undefined length where none may be", tag)
        return self.items(position, tag, implicit=implicit, depth=depth + 1)

    def items(self, position: int, tag: int, *, implicit: bool, depth: int) -> int:
        """Items of a sequence of undefined length, and its delimiter."""
        while True:
            marker, length, position = self._marker(position)
            if marker == _SEQUENCE_END:
                return position
            if marker != _ITEM:
                raise BrokenStructureError("a sequence holds something that is no item", tag)
            if length == _UNDEFINED:
                position = self.elements(position, implicit=implicit, depth=depth)
            else:
                position = self._skip(position, length, tag)

    def _fragments(self, position: int) -> int:
        """Fragments of encapsulated pixel data, and the delimiter (PS3.5 §A.4)."""
        while True:
            marker, length, position = self._marker(position)
            if marker == _SEQUENCE_END:
                return position
            if marker != _ITEM or length == _UNDEFINED:
                raise BrokenStructureError("encapsulated pixel data holds something that is no fragment", _PIXEL_DATA)
            position = self._skip(position, length, _PIXEL_DATA)

    def _marker(self, position: int) -> tuple[int, int, int]:
        if position + 8 > self._end:
            raise BrokenStructureError("the data set ends inside a sequence")
        group, element, length = self._tag_and_length(self._data, position)
        return group << 16 | element, length, position + 8
