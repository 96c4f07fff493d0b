"""Which words of a header name a person, and whether a text that shall leave the archive shares any of them.

Both sides are compared in every writing that a site is likely to use: without case, diacritics and punctuation, umlauts
as one or two letters, dates as day, month and year in any order. What cannot be read counts as shared.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, MutableSequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

NAMES: Final = (
    "PatientName",
    "OtherPatientNames",
    "PatientBirthName",
    "PatientMotherBirthName",
    "ResponsiblePerson",
)
NUMBERS: Final = (
    "PatientID",
    "OtherPatientIDs",
    "AccessionNumber",
    "AdmissionID",
    "MedicalRecordLocator",
    "PatientTelephoneNumbers",
    "PatientAddress",
    "StudyID",
    "RequestedProcedureID",
)
UIDS: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
SEQUENCES: Final = ("OtherPatientIDsSequence", "RequestAttributesSequence")
BIRTH: Final = "PatientBirthDate"
KEYWORDS: Final = (*NAMES, *NUMBERS, *UIDS, *SEQUENCES, BIRTH)
"""Attributes that a reader has to ask for, so that `IdentityTerms.of` sees them."""

_EXPANDED: Final = {"ß": "ss", "ø": "oe", "æ": "ae", "œ": "oe", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "\u0131": "i", "å": "aa"}
_UMLAUT: Final = re.compile(r"(ae|oe|ue|aa)")
_WORD: Final = re.compile(r"[^\W\d_]+|\d+")
_MONTHS: Final = (
    ("jan",), ("feb",), ("mar", "mrz"), ("apr",), ("may", "mai"), ("jun",),
    ("jul",), ("aug",), ("sep",), ("oct", "okt"), ("nov",), ("dec", "dez"),
)  # fmt: skip
_TITLES: Final = frozenset(
    {"mr", "mrs", "ms", "miss", "dr", "prof", "jr", "sr", "md", "phd", "ii", "iii", "herr", "frau", "hr", "fr"}
)
_SUBSTRING: Final = 3
"""Letters (digits: one more) from which a term is looked for inside of words; shorter ones only as whole words."""
LONGEST: Final = 4096
"""Characters of one attribute; a longer one is rubbish or an attack, and is not taken apart."""


@dataclass(frozen=True, slots=True)
class IdentityTerms:
    """Terms of one data set, normalised: `inside` may stand anywhere in a text, `words` only as words of their own.

    `complete` is false when an attribute could not be read: then every free text counts as shared.
    """

    inside: frozenset[str]
    words: frozenset[str]
    complete: bool = True

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """The terms of a data set that was read with `KEYWORDS`; never raises for a damaged one."""
        try:
            terms = set(_terms(dataset))
        except Exception:  # noqa: BLE001 - pydicom raises many kinds; what cannot be read cannot be ruled out
            return cls(frozenset(), frozenset(), complete=False)
        inside = {term for term in terms if len(term) >= _SUBSTRING + term.isdigit() or not term.isascii()}
        return cls(frozenset(inside), frozenset(terms - inside))

    def shared_by(self, text: str) -> bool:
        """Whether the text holds any of the terms, in any writing."""
        if not self.complete:
            return True
        for writing in _writings(text):
            squashed = _squash(writing)
            if any(term in squashed for term in self.inside) or not self.words.isdisjoint((squashed, *_WORD.findall(writing))):
                return True
            digits = re.sub(r"\D", "", writing)
            if any(term in digits for term in self.inside if term.isdigit()):
                return True
        return False


def _terms(dataset: Dataset) -> Iterator[str]:
    for keyword in NAMES:
        for name in _values(dataset, keyword):
            yield from _name_terms(name)
    for keyword in (*NUMBERS, *UIDS):
        for number in _values(dataset, keyword):
            yield from _number_terms(number)
    for sequence in SEQUENCES:
        for item in dataset.get(sequence) or ():
            yield from _terms(item)
    for date in _values(dataset, BIRTH):
        yield from _date_terms(re.sub(r"\D", "", date))


def _values(dataset: Dataset, keyword: str) -> list[str]:
    value: Any = dataset.get(keyword)
    if value is None or value == "":
        return []
    values = [str(each) for each in (value if isinstance(value, MutableSequence | tuple) else [value])]
    if sum(map(len, values)) > LONGEST:
        raise ValueError(keyword)
    return values


def _name_terms(name: str) -> Iterator[str]:
    """Every part of a person name (PS3.5 §6.2.1), and neighbouring parts written as one."""
    for group in name.split("="):
        components = group.split("^")
        titles = [part for part in components[3:] if _squash(part.casefold()) not in _TITLES]
        for writing in _writings("^".join((*components[:3], *titles))):
            parts = [_squash(part) for part in re.split(r"[\^\s,;]+", writing)]
            parts = [part for part in parts if part]
            yield from (part for part in parts if len(part) > 1 or not part.isascii())
            yield from (word for word in _WORD.findall(writing) if len(word) > 1)
            for size in (2, 3):
                yield from ("".join(chosen) for chosen in permutations(parts[:4], size))


def _number_terms(number: str) -> Iterator[str]:
    """The whole identifier, its digits, and its longer parts. One or two characters alone identify nobody."""
    for writing in _writings(number):
        whole, digits = _squash(writing), re.sub(r"\D", "", writing)
        parts = [part for part in re.split(r"[\W_]+", writing) if len(part) > _SUBSTRING]
        for term in (whole, digits, digits.lstrip("0"), *parts):
            if len(term) >= _SUBSTRING:
                yield term


def _date_terms(date: str) -> Iterator[str]:
    """A date YYYYMMDD in the orders and lengths that people write; five digits or more, or with the month's name."""
    if len(date) != 8 or not 1 <= int(date[4:6]) <= 12:
        if len(date) >= _SUBSTRING:
            yield date
        return
    years, month, day = (date[:4], date[2:4]), date[4:6], date[6:]
    months, days = {month, str(int(month))}, {day, str(int(day))}
    written = {"".join(order) for y in years for m in months for d in days for order in ((y, m, d), (d, m, y), (m, d, y))}
    yield from (text for text in written if len(text) >= 5)
    for name in _MONTHS[int(month) - 1]:
        yield from (f"{d}{name}{y}" for d in days for y in years)
        yield from (f"{name}{d}{y}" for d in days for y in years)


def _writings(text: str) -> set[str]:
    """A text in lower case: letters without marks, and umlauts of one or two letters as one."""
    folded = text.casefold()
    spelled = "".join(_EXPANDED.get(letter, letter) for letter in folded)
    return {_unmarked(folded), _unmarked(spelled), _UMLAUT.sub(lambda found: found[0][0], _unmarked(spelled))}


def _unmarked(text: str) -> str:
    return "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter)).casefold()


def _squash(text: str) -> str:
    return "".join(letter for letter in text if letter.isalnum())
