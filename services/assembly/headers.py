"""The elements the index needs, read from a data set without touching its pixels."""

import re
import struct
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from functools import cached_property, lru_cache
from io import BytesIO
from typing import Any, Final, NamedTuple

from models.facets import code_of
from services.assembly.outlines import Common, Outlines
from services.assembly.sources import BrokenStructureError, Source
from services.assembly.structure import DEFLATED, check_structure, foreseen, plain_source

TAGS: Final[Mapping[str, int]] = {
    "SpecificCharacterSet": 0x00080005,
    "SOPClassUID": 0x00080016,
    "SOPInstanceUID": 0x00080018,
    "StudyDate": 0x00080020,
    "StudyTime": 0x00080030,
    "AccessionNumber": 0x00080050,
    "Modality": 0x00080060,
    "TimezoneOffsetFromUTC": 0x00080201,
    "PatientName": 0x00100010,
    "PatientID": 0x00100020,
    "IssuerOfPatientID": 0x00100021,
    "PatientBirthDate": 0x00100030,
    "BodyPartExamined": 0x00180015,
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
    "NumberOfStudyRelatedInstances": 0x00201208,
}
"""Where the index's elements stand: none behind group 0020."""
KEYWORDS: Final = tuple(TAGS)
LAST_GROUP: Final = 0x0020
_WANTED: Final = frozenset(TAGS.values())
_INSTANCE: Final = TAGS["SOPInstanceUID"]
_NO_CODE: Final = re.compile(r"[^A-Z0-9_ ]")
_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)*")
_UID_VALUE: Final = re.compile(rb"([0-9]+(?:\.[0-9]+)*)\x00?")
LONGEST_UID: Final = 64
MOST_SERIES: Final = 16
"""Of so many series whose objects one association sends in turn, what they have in common is known."""


class UnreadableHeader(Exception):  # noqa: N818 - named for what the data set is
    """The data set is damaged. `tag` is the element at fault, (group << 16) + element, 0 where none is known."""

    def __init__(self, reason: str, tag: int = 0) -> None:
        super().__init__(reason)
        self.tag = tag


class MissingElement(Exception):  # noqa: N818 - named for what the data set lacks
    """An element needed for filing is absent, empty or no valid UID. `tag` is (group << 16) + element."""

    def __init__(self, keyword: str) -> None:
        super().__init__(f"{keyword} is missing or invalid")
        self.keyword = keyword
        self.tag = TAGS[keyword]


class InstanceFacts(NamedTuple):
    """What the index knows of an instance. Holds identity: never log it."""

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    modality: str
    body_part: str
    patient_id: str
    patient_issuer: str
    accession_number: str
    acquired_at: datetime | None
    stated_instances: int = 0


def is_valid_uid(value: str) -> bool:
    """Digits and dots, 1 to 64 characters, no empty component (PS3.5 §9.1); leading zeros in components are let pass."""
    return 0 < len(value) <= LONGEST_UID and _UID.fullmatch(value) is not None


class Memory:
    """What the last objects of one sender were like: the slices of a series have nearly all in common. For one thread.

    `common` is what the sender's associations share.
    """

    def __init__(self, common: Common | None = None) -> None:
        self.outlines = Outlines(_WANTED, common)
        self._facts: dict[tuple[tuple[int, bytes], ...], InstanceFacts] = {}

    def facts_of(self, values: dict[int, bytes]) -> InstanceFacts:
        """The facts that these values mean; raises MissingElement."""
        instance = values.pop(_INSTANCE, b"")
        plain = _UID_VALUE.fullmatch(instance) if len(instance) <= LONGEST_UID else None
        others = tuple(values.items())
        known = None if plain is None else self._facts.get(others)
        if known is not None and plain is not None:
            return InstanceFacts._make((known[0], plain[1].decode(), *known[2:]))
        facts = facts_of(_Header({**values, _INSTANCE: instance}))
        if len(self._facts) == MOST_SERIES:
            self._facts.clear()
        self._facts[others] = facts
        return facts


def read_facts(source: Source, transfer_syntax_uid: str, memory: Memory | None = None) -> InstanceFacts:
    """Walk an encoded data set to its last byte and read the index's elements; raises UnreadableHeader or MissingElement.

    Every reader of the archive's own files uses this one function: two parsers would disagree about odd files. `memory`
    makes it quicker and changes nothing else.
    """
    try:
        plain, syntax = plain_source(source, transfer_syntax_uid)
        outlines = memory.outlines if memory is not None and transfer_syntax_uid != DEFLATED else None
        values = check_structure(plain, syntax, _WANTED, LAST_GROUP, outlines)
        return facts_of(_Header(values)) if memory is None else memory.facts_of(values)
    except (MissingElement, OSError, MemoryError):
        raise
    except BrokenStructureError as error:
        raise UnreadableHeader(str(error), error.tag) from None
    except Exception as error:  # noqa: BLE001 - pydicom raises many kinds; none may quote a value
        raise UnreadableHeader(type(error).__name__) from None


def foresee_facts(head: bytes, transfer_syntax_uid: str, memory: Memory) -> tuple[InstanceFacts, int] | None:
    """What `read_facts` would return of a data set that begins with `head`, if it has the size that is returned as well.

    So an object is known while it still comes. None where that takes a walk, or an error.
    """
    try:
        found = foreseen(head, transfer_syntax_uid, memory.outlines)
        return None if found is None else (memory.facts_of(found[0]), found[1])
    except Exception:  # noqa: BLE001 - `read_facts` says it again when the object is whole
        return None


class _Header:
    """As much of a data set's interface as facts need: values that are ASCII from their bytes, the rest by pydicom.

    pydicom, at sixty times the cost, sees nothing but these values, whatever else the data set holds.
    """

    def __init__(self, values: Mapping[int, bytes]) -> None:
        self._values = values

    def get(self, keyword: str) -> Any:
        """The value as text, or as pydicom decodes it; None when it is none of the index's."""
        tag = TAGS.get(keyword)
        if tag is None:
            return None
        value = self._values.get(tag, b"")
        return value.partition(b"\\")[0].decode("ascii") if value.isascii() else self._decoded.get(keyword)

    @cached_property
    def _decoded(self) -> Any:
        """In implicit VR: all of them are text, which no byte order changes, and no value is so long as to look like a VR."""
        from services.assembly.pydicom_reading import read_dataset  # noqa: PLC0415 - 35 MB that ASCII headers do not need

        encoded = (struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value for tag, value in sorted(self._values.items()))
        return read_dataset(BytesIO(b"".join(encoded)), is_implicit_VR=True, is_little_endian=True)


def facts_of(header: Any) -> InstanceFacts:
    """Take the index's elements from a parsed data set; raises MissingElement."""
    return InstanceFacts(
        sop_class_uid=_uid(header, "SOPClassUID"),
        sop_instance_uid=_uid(header, "SOPInstanceUID"),
        study_uid=_uid(header, "StudyInstanceUID"),
        series_uid=_uid(header, "SeriesInstanceUID"),
        modality=_code(header, "Modality"),
        body_part=_code(header, "BodyPartExamined"),
        patient_id=_text(header, "PatientID"),
        patient_issuer=_text(header, "IssuerOfPatientID"),
        accession_number=_text(header, "AccessionNumber"),
        acquired_at=_moment(_text(header, "StudyDate"), _text(header, "StudyTime"), _text(header, "TimezoneOffsetFromUTC")),
        stated_instances=_count(_text(header, "NumberOfStudyRelatedInstances")),
    )


def _text(header: Any, keyword: str) -> str:
    value: Any = header.get(keyword)
    if value is None:
        return ""
    plain = type(value) is str or not (isinstance(value, list | tuple) or type(value).__name__ == "MultiValue")
    text = str(value if plain else value[0]).strip(" \x00\t\r\n")
    return text.replace("\x00", "").strip() if "\x00" in text else text


def _uid(header: Any, keyword: str) -> str:
    value = _text(header, keyword)
    if not is_valid_uid(value):
        raise MissingElement(keyword)
    return value


def _code(header: Any, keyword: str) -> str:
    """A code string (PS3.5 §6.2, CS) with everything else taken out, empty where it names the patient: it goes onto the bus."""
    text = _NO_CODE.sub("", _text(header, keyword).upper())[:16].strip()
    return code_of(header, keyword, text) if text else ""


def _count(text: str) -> int:
    """An integer string (PS3.5 §6.2, IS) that counts instances; 0 for none and for what cannot be a count."""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0


@lru_cache(1024)
def _moment(date: str, time: str, offset: str) -> datetime | None:
    """StudyDate and StudyTime as UTC; TimezoneOffsetFromUTC (0008,0201) where sent, else the values count as UTC."""
    digits = re.sub(r"[^0-9]", "", date)
    clock = (re.sub(r"[:\s]", "", time).split(".")[0] + "000000")[:6]
    try:
        local = datetime.strptime(f"{digits[:8]}{clock}", "%Y%m%d%H%M%S").replace(tzinfo=_zone(offset))
        return local.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _zone(offset: str) -> timezone:
    match = re.fullmatch(r"([+-])(\d{2})(\d{2})", offset)
    if match is None:
        return UTC
    minutes = int(match[2]) * 60 + int(match[3])
    return timezone(timedelta(minutes=minutes if match[1] == "+" else -minutes))
