"""Remembers where the elements of a sender's last objects stood: the slices of a series differ in a few lengths only.

An outline is the beginning of a data set in explicit VR little endian as runs of elements, each known by its header (tag, VR,
length), with one element of changing length behind each run. Headers with the same bytes at the same places mean the same
structure, so one comparison takes the place of a walk over a run. What an outline does not cover, and every data set that
fits none, is walked as ever (`structure`): outlines save time and decide nothing.
"""

import struct
from collections.abc import Callable, Iterator, Sequence, Set
from operator import itemgetter
from typing import Final, NamedTuple, TypeAlias

MOST_OUTLINES: Final = 4
MOST_MISSES: Final = 32
"""So many more misses than hits, and it is not worth while to remember anything of this sender."""
LONGEST_VALUE: Final = 1024
"""Longer values are not taken along: none of the attributes of interest may be so long (PS3.5 §6.2)."""
SHORT_VRS: Final = "AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US"
LONG_VRS: Final = "OB OD OF OL OV OW SQ SV UC UN UR UT UV"
"""VRs whose elements have a length of two bytes, and of four (PS3.5 §7.1.2)."""
_HEADERS: Final = {vr.encode(): 8 for vr in SHORT_VRS.split()} | {vr.encode(): 12 for vr in LONG_VRS.split()}
_UNDEFINED: Final = 0xFFFFFFFF
_FIRST_GROUP, _PIXEL_GROUP = 0x0008, 0x7FE0
_PIXELS: Final = (b"\xe0\x7f\x10\x00OW\x00\x00", b"\xe0\x7f\x10\x00OB\x00\x00")
_KEY: Final = 6
_LONG: Final = 12
_TAG: Final = struct.Struct("<HH")
_LENGTH: Final = {8: struct.Struct("<6xH"), 12: struct.Struct("<8xL")}

Walk: TypeAlias = Callable[[int, int, bytes], int]
"""Walks the value of an element of undefined length: its position, its tag and its VR; returns where it ends, or raises."""


class Element(NamedTuple):
    """One element of the top level. `key` is tag and VR as encoded, `header` and `extent` the bytes before and of its value."""

    key: bytes
    tag: int
    header: int
    extent: int
    is_undefined: bool


class Recalled(NamedTuple):
    """What is known of a data set without a walk: its values and elements up to `position`."""

    position: int
    values: dict[int, bytes]
    highest: int


class _Run(NamedTuple):
    """`size` bytes of which the headers, under `mask`, are `expected`; then `changing`. `values_of` cuts the run's values out."""

    size: int
    mask: int
    expected: int
    values_of: Callable[[bytes], tuple[bytes, ...]]
    changing: Element | None


class Common:
    """What several associations of one sender have learned last; for all threads, since outlines do not change."""

    def __init__(self) -> None:
        self.outlines: tuple[_Outline, ...] = ()

    def add(self, outline: "_Outline", instead_of: "_Outline | None") -> None:
        """Of two threads that add at the same time, one may do so in vain."""
        self.outlines = (outline, *(each for each in self.outlines if each is not instead_of))[:MOST_OUTLINES]


class Outlines:
    """The last few outlines of one sender; for one thread. `wanted`: tags whose values are taken along.

    What fits none of them may fit one of the `common` ones, which is then taken over: short associations need not learn.
    """

    def __init__(self, wanted: Set[int], common: Common | None = None) -> None:
        self._wanted = wanted
        self._common = common or Common()
        self._outlines: list[_Outline] = []
        self._misses = 0

    def recall(self, head: bytes, walk: Walk | None = None) -> Recalled | None:
        """What an outline says of a data set that begins with `head`; None where none fits. Raises what `walk` raises.

        Without `walk`, outlines with elements of undefined length fit nothing.
        """
        for outline in self._outlines:
            recalled = outline.compare(head, walk, self._wanted)
            if recalled is not None:
                self._misses -= self._misses > 0
                return recalled
        return self._recall_common(head, walk) if self._misses <= MOST_MISSES else None

    def _recall_common(self, head: bytes, walk: Walk | None) -> Recalled | None:
        for outline in self._common.outlines:
            recalled = None if outline in self._outlines else outline.compare(head, walk, self._wanted)
            if recalled is not None:
                self._keep(outline)
                return recalled
        return None

    def learn(self, head: bytes, walk: Walk) -> None:
        """Remember a data set that none of the outlines fitted, and that was walked without fault."""
        self._misses += 1
        if self._misses > MOST_MISSES:
            self._outlines.clear()
            return
        elements = list(_elements(head, walk))
        if not elements:  # such an outline would fit everything
            return
        known = next((outline for outline in self._outlines if outline.has_kinds_of(elements)), None)
        fresh = _Outline(elements, self._wanted, head, known)
        self._common.add(fresh, instead_of=known)
        if known is None:
            self._keep(fresh)
        else:
            self._outlines[self._outlines.index(known)] = fresh

    def _keep(self, outline: "_Outline") -> None:
        self._outlines.insert(0, outline)
        del self._outlines[MOST_OUTLINES:]


class _Outline:
    """Of these elements as they stand in `head`. Those of `narrower`, of the same kinds, may have other lengths than there."""

    def __init__(self, elements: Sequence[Element], wanted: Set[int], head: bytes, narrower: "_Outline | None") -> None:
        self.elements = elements
        self._wanted = wanted
        self.changing = {number for number, element in enumerate(elements) if element.is_undefined}
        if narrower is not None:
            pairs = enumerate(zip(narrower.elements, elements, strict=True))
            self.changing |= narrower.changing | {number for number, (one, other) in pairs if one.extent != other.extent}
        self._highest = max((element.tag for element in elements), default=0)
        self._tags: tuple[int, ...] = ()
        self._runs = self._cut(head)

    def has_kinds_of(self, elements: Sequence[Element]) -> bool:
        """Whether these are the same elements but for their lengths."""
        return [(each.key, each.is_undefined) for each in elements] == [(each.key, each.is_undefined) for each in self.elements]

    def _cut(self, head: bytes) -> tuple[_Run, ...]:
        runs, start, position = [], 0, 0
        mask, values, tags = bytearray(), list[slice](), list[int]()
        for number, element in enumerate(self.elements):
            if number in self.changing:
                runs.append(_run(head[start:position], mask, values, element))
                tags += [element.tag] if element.tag in self._wanted else []
                start = position = position + element.header + element.extent
                mask, values = bytearray(), []
                continue
            if element.tag in self._wanted and element.extent <= LONGEST_VALUE:
                place = position + element.header - start
                values.append(slice(place, place + element.extent))
                tags.append(element.tag)
            mask += b"\xff" * element.header + bytes(element.extent)
            position += element.header + element.extent
        self._tags = tuple(tags)
        return (*runs, _run(head[start:position], mask, values, None))

    def compare(self, head: bytes, walk: Walk | None, wanted: Set[int]) -> Recalled | None:
        """Whether a data set begins as this outline says; None also where somebody would have to walk, and cannot."""
        position, found, length = 0, list[bytes](), len(head)
        for size, mask, expected, values_of, changing in self._runs:
            end = position + size
            run = head[position:end]
            if int.from_bytes(run, "little") & mask != expected or end > length:
                return None
            found += values_of(run)
            if changing is None:
                return Recalled(end, dict(zip(self._tags, found, strict=True)), self._highest)
            position = _behind(changing, head, end, walk)
            if not end < position <= length:
                return None
            if changing.tag in wanted:
                value = head[end + changing.header : position]
                if len(value) > LONGEST_VALUE:
                    return None
                found.append(value)
        return None


def _behind(changing: Element, head: bytes, position: int, walk: Walk | None) -> int:
    """Where the element ends that should stand there; -1 where another one does, or somebody would have to walk and cannot."""
    value = position + changing.header
    if head[position : position + _KEY] != changing.key or value > len(head):
        return -1
    length = int(_LENGTH[changing.header].unpack_from(head, position)[0])
    if (length == _UNDEFINED) != changing.is_undefined:
        return -1
    if not changing.is_undefined:
        return value + length
    return -1 if walk is None else walk(value, changing.tag, changing.key[4:])


def _run(data: bytes, mask: bytearray, values: Sequence[slice], changing: Element | None) -> _Run:
    number = int.from_bytes(mask, "little")
    return _Run(len(data), number, int.from_bytes(data, "little") & number, _cutter(values), changing)


def _cutter(places: Sequence[slice]) -> Callable[[bytes], tuple[bytes, ...]]:
    """What cuts these places out of a run."""
    if len(places) > 1:
        return itemgetter(*places)
    return lambda run: tuple(run[place] for place in places)


def pixels_end(head: bytes, position: int) -> int:
    """Where native pixel data end that begin there; `position` itself when the head ends there, -1 for anything else."""
    if position == len(head):
        return position
    if head[position : position + _KEY + 2] not in _PIXELS or position + _LONG > len(head):
        return -1
    length = _LENGTH[_LONG].unpack_from(head, position)[0]
    return -1 if length == _UNDEFINED else position + _LONG + int(length)


def _elements(head: bytes, walk: Walk) -> Iterator[Element]:
    """Elements at the beginning of a data set that lie within `head`, up to the pixels."""
    position = 0
    while position + _LONG <= len(head):
        group, element = _TAG.unpack_from(head, position)
        key = head[position : position + _KEY]
        header = _HEADERS.get(key[4:])
        if header is None or not _FIRST_GROUP <= group < _PIXEL_GROUP:
            return
        tag, length = group << 16 | element, _LENGTH[header].unpack_from(head, position)[0]
        is_undefined = length == _UNDEFINED
        start = position + header
        position = walk(start, tag, key[4:]) if is_undefined else start + length
        if position > len(head):
            return
        yield Element(key, tag, header, position - start, is_undefined)
