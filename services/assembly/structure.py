"""Walks a data set's element structure to its last byte without decoding values (PS3.5 §7), and takes a few values along.

Finds what a receiver that stores bytes as sent would otherwise acknowledge: cut, noisy or empty data sets. Sequences of
defined length are skipped as a whole and values are never read, so the cost is a fraction of a microsecond per element of
the top level, whatever the size.
"""

import struct
from collections.abc import Set
from typing import Final, Literal

from services.assembly.outlines import LONG_VRS, LONGEST_VALUE, SHORT_VRS, Outlines, Recalled, pixels_end
from services.assembly.sources import BrokenStructureError, BytesSource, InflatedSource, Source

__all__ = ["BrokenStructureError", "check_structure", "plain_source"]

IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
DEEPEST_NESTING: Final = 64
MOST_STEPS: Final = 2_000_000
BYTES_PER_STEP: Final = 64
"""A walk may take so many steps (elements, items, fragments), and one more for each so many bytes: it bounds the time."""


def _numbers(vrs: str) -> dict[str, frozenset[int]]:
    """VRs as the numbers that a header's third field reads as, by byte order."""
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    return {order: frozenset(int.from_bytes(vr.encode(), order) for vr in vrs.split()) for order in orders}


_SHORT: Final = _numbers(SHORT_VRS)
_LONG: Final = _numbers(LONG_VRS)
_PIXEL_VRS: Final = _numbers("OB OW")
_SQ: Final = _numbers("SQ")
_UN: Final = _numbers("UN")
_UNDEFINED: Final = 0xFFFFFFFF
_PIXEL_DATA: Final = 0x7FE00010
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_ITEM_GROUP: Final = 0xFFFE
_FIRST_GROUP: Final = 0x0008
_BEHIND_ALL: Final = 1 << 32
_LONGEST_HEADER: Final = 12
_PADDING: Final = bytes(_LONGEST_HEADER)
_WINDOW: Final = 8192
_HEAD: Final = 1 << 14
"""An outline covers no more of a data set."""
_LITTLE: Final = (struct.Struct("<HHHH"), struct.Struct("<HHL"), struct.Struct("<L"))
_BIG: Final = (struct.Struct(">HHHH"), struct.Struct(">HHL"), struct.Struct(">L"))


def plain_source(source: Source, transfer_syntax_uid: str) -> tuple[Source, str]:
    """The data set without deflation, and the transfer syntax that it then has."""
    return (InflatedSource(source), EXPLICIT_LITTLE) if transfer_syntax_uid == DEFLATED else (source, transfer_syntax_uid)


def check_structure(
    source: Source | bytes,
    transfer_syntax_uid: str,
    wanted: Set[int] = frozenset(),
    last_group: int = 0,
    outlines: Outlines | None = None,
) -> dict[int, bytes]:
    """Walk a (not deflated) data set; raises BrokenStructureError unless elements fill it exactly.

    Returns the values of the `wanted` tags (group << 16 | element) of the top level, none above `last_group`. Each may stand
    there once and only in ascending order (PS3.5 §7.1): readers disagree about which of two values counts, and stop early.
    `outlines`, of the same tags, save steps of the walk, and learn from it.
    """
    source = BytesSource(source) if isinstance(source, bytes) else source
    if outlines is not None and transfer_syntax_uid not in (IMPLICIT_LITTLE, EXPLICIT_BIG):
        head = source.read(0, _HEAD)
        recalled = outlines.recall(head)
        if recalled is not None and 0 < source.size == pixels_end(head, recalled.position):
            return recalled.values
        walker = _Walker(source, transfer_syntax_uid, wanted, last_group)
        end = walker.explicit_along(outlines, head, recalled)
    else:
        walker = _Walker(source, transfer_syntax_uid, wanted, last_group)
        walk = walker.implicit if transfer_syntax_uid == IMPLICIT_LITTLE else walker.explicit
        end = walk(0, depth=0)
    if not end:
        raise BrokenStructureError("the data set is empty")
    return walker.values


def foreseen(head: bytes, transfer_syntax_uid: str, outlines: Outlines) -> tuple[dict[int, bytes], int] | None:
    """What `check_structure` would return of a data set that begins with `head`, if it has the size that is returned as well.

    None where outlines do not tell: then it has to be walked when it is whole.
    """
    if transfer_syntax_uid in (IMPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED):
        return None
    recalled = outlines.recall(head[:_HEAD])
    if recalled is None:
        return None
    size = pixels_end(head[:_HEAD], recalled.position)
    return (recalled.values, size) if size > 0 else None


class _Walker:
    """Positions are byte offsets into the data set; each method returns where the thing it walked ends.

    Headers at the end are read with zeros behind them: a position that then lies behind the end is what tells a cut.
    """

    def __init__(self, source: Source, syntax: str, wanted: Set[int], last_group: int) -> None:
        self.values: dict[int, bytes] = {}
        self._source = source
        self._wanted = wanted
        self._last_group = last_group
        order: Literal["big", "little"] = "big" if syntax == EXPLICIT_BIG else "little"
        self._structs = _BIG if syntax == EXPLICIT_BIG else _LITTLE
        self._short, self._long = _SHORT[order], _LONG[order]
        self._window, self._base, self._limit = b"", 0, -1
        self._steps = 0

    def explicit_along(self, outlines: Outlines, head: bytes, known: Recalled | None) -> int:
        """A data set in explicit VR little endian, of whose beginning outlines may know more than is `known`."""
        recalled = known or outlines.recall(head, self._undefined_at)
        self._limit = -1
        if recalled is None:
            self._steps = 0
            end = self.explicit(0, depth=0)
            outlines.learn(head, self._undefined_at)
            return end
        self.values = recalled.values
        behind = recalled.highest >> 16 > self._last_group
        return self.explicit(recalled.position, depth=0, highest=_BEHIND_ALL if behind else recalled.highest)

    def explicit(self, position: int, depth: int, highest: int = 0) -> int:
        """Elements in explicit VR up to the end, or (inside an item of undefined length) up to its delimiter."""
        header, long_length, short, long = self._structs[0].unpack_from, self._structs[2].unpack_from, self._short, self._long
        last_group = _FIRST_GROUP if depth else max(self._last_group, _FIRST_GROUP)
        window, base, limit, steps = self._window, self._base, self._limit, 0
        while True:
            if position > limit:
                self._steps += steps
                if not self._load(position):
                    return self._end(position, depth)
                window, base, limit, steps = self._window, self._base, self._limit, 0
            steps += 1
            group, element, vr, length = header(window, position - base)
            if vr in short:
                start = position + 8
            elif vr in long:
                start = position + 12
                length = long_length(window, position - base + 8)[0]
            elif depth and group == _ITEM_GROUP and element == _ITEM_END & 0xFFFF:
                self._steps += steps
                return position + 8
            else:
                raise BrokenStructureError("an element without a known VR", group << 16 | element)
            if length == _UNDEFINED:
                self._steps += steps
                position = self._undefined(start, group << 16 | element, vr, depth)
                window, base, limit, steps = self._window, self._base, self._limit, 0
            else:
                position = start + length
            if last_group < group < _ITEM_GROUP:
                highest = _BEHIND_ALL
            else:
                highest = self._noted(group << 16 | element, start, length, depth, highest)

    def _noted(self, tag: int, position: int, length: int, depth: int, highest: int) -> int:
        """Look at an element of the groups of interest, or of one that cannot be; returns the highest tag so far."""
        if tag in self._wanted and not depth:
            self._take(tag, position, length, highest)
        elif not _FIRST_GROUP << 16 <= tag < _ITEM_GROUP << 16:
            raise BrokenStructureError("an element that cannot stand in a data set", tag)
        return tag if tag > highest else highest  # noqa: FURB136 - a call costs more

    def _undefined_at(self, position: int, tag: int, vr: bytes) -> int:
        """Where the value of an element of the top level ends, wherever the window was."""
        self._limit = -1
        return self._undefined(position, tag, int.from_bytes(vr, "little"), depth=0)

    def implicit(self, position: int, depth: int) -> int:
        """The same in implicit VR."""
        header, highest = self._structs[1].unpack_from, 0
        while True:
            self._steps += 1
            if position > self._limit and not self._load(position):
                return self._end(position, depth)
            group, element, length = header(self._window, position - self._base)
            tag = group << 16 | element
            position += 8
            if group == _ITEM_GROUP and tag == _ITEM_END and depth:
                return position
            if group < _FIRST_GROUP or group == _ITEM_GROUP:
                raise BrokenStructureError("an element that cannot stand in a data set", tag)
            if not depth:
                if tag in self._wanted:
                    self._take(tag, position, length, highest)
                if tag > highest:  # noqa: PLR1730 - a call costs more
                    highest = tag
            position = self._items(position, tag, depth + 1, implicit=True) if length == _UNDEFINED else position + length

    def _take(self, tag: int, position: int, length: int, highest: int) -> None:
        if tag <= highest:
            raise BrokenStructureError("an element of the index is repeated, or stands behind one with a higher tag", tag)
        if length == _UNDEFINED:
            raise BrokenStructureError("undefined length where none may be", tag)
        if length <= LONGEST_VALUE:
            start = position - self._base
            within = start + length <= len(self._window) - _LONGEST_HEADER
            self.values[tag] = self._window[start : start + length] if within else self._source.read(position, length)

    def _load(self, position: int) -> bool:
        """Move the window to `position`; false when nothing is there.

        No window holds more than some thousand steps, so it is enough to count here whether they are too many.
        """
        if self._steps > MOST_STEPS + self._source.size // BYTES_PER_STEP:
            raise BrokenStructureError("the data set has too many elements")
        data = self._source.read(position, _WINDOW)
        self._window, self._base = data + _PADDING, position
        at_the_end = len(data) < _WINDOW
        self._limit = position + len(data) - (1 if at_the_end else _LONGEST_HEADER)
        return bool(data)

    def _end(self, position: int, depth: int) -> int:
        if position != self._source.size:
            raise BrokenStructureError("the data set ends inside an element")
        if depth:
            raise BrokenStructureError("the data set ends inside a sequence")
        return position

    def _undefined(self, position: int, tag: int, vr: int, depth: int) -> int:
        order = "little" if self._structs is _LITTLE else "big"
        if tag == _PIXEL_DATA and vr in _PIXEL_VRS[order]:
            return self._fragments(position)
        if vr in _UN[order]:  # PS3.5 §6.2.2: a UN of undefined length is a sequence in implicit VR little endian
            structs, self._structs = self._structs, _LITTLE
            position = self._items(position, tag, depth + 1, implicit=True)
            self._structs = structs
            return position
        if vr not in _SQ[order]:
            raise BrokenStructureError("undefined length where none may be", tag)
        return self._items(position, tag, depth + 1, implicit=False)

    def _items(self, position: int, tag: int, depth: int, *, implicit: bool) -> int:
        """Items of a sequence of undefined length, and its delimiter."""
        if depth > DEEPEST_NESTING:
            raise BrokenStructureError("sequences are nested too deeply", tag)
        while True:
            self._steps += 1
            marker, length, position = self._marker(position)
            if marker == _SEQUENCE_END:
                return position
            if marker != _ITEM:
                raise BrokenStructureError("a sequence holds something that is no item", tag)
            if length != _UNDEFINED:
                position += length
            else:
                position = self.implicit(position, depth) if implicit else self.explicit(position, depth)

    def _fragments(self, position: int) -> int:
        """Fragments of encapsulated pixel data, and the delimiter (PS3.5 §A.4)."""
        while True:
            self._steps += 1
            marker, length, position = self._marker(position)
            if marker == _SEQUENCE_END:
                return position
            if marker != _ITEM or length == _UNDEFINED:
                raise BrokenStructureError("encapsulated pixel data holds something that is no fragment", _PIXEL_DATA)
            position += length

    def _marker(self, position: int) -> tuple[int, int, int]:
        if position > self._limit and not self._load(position):
            raise BrokenStructureError("the data set ends inside a sequence")
        group, element, length = self._structs[1].unpack_from(self._window, position - self._base)
        return group << 16 | element, length, position + 8
