"""What a person types may name a patient: it is taken out before the words become a command.

Patient IDs and accession numbers that the archive knows are found by their pseudonyms, whatever they look like; the rest by
how people write identities. A bare name without a title cannot be told from any other word.
"""

import re
from datetime import date
from typing import Final

from sqlalchemy import or_
from sqlmodel import Session, col, select

from agents.redaction import without_uids
from schemas.tables import Study, TrainingPatient
from services.runtime import registry
from services.runtime.identity import Pseudonyms

MASK: Final = "[patient]"
OLD_YEARS: Final = 10
"""A day longer ago is a birth date: no model, order or report here is that old."""
_TOKEN: Final = re.compile(r"[^\s,;:!?()\[\]<>\"'`]{3,64}")
_OURS: Final = re.compile(r"(?:ord|run)-[0-9a-f]+|[0-9a-f]{32}(?:[0-9a-f]{32})?", re.IGNORECASE)
"""Names of orders and runs, study keys and hashes, which are long numbers by chance."""
_ROUND: Final = re.compile(r"\d{1,4}000+")
_DAY: Final = re.compile(
    r"\b(?:(?P<y>\d{4})[-./]?(?P<m>\d{2})[-./]?(?P<d>\d{2})|(?P<d2>\d{1,2})[-./](?P<m2>\d{1,2})[-./](?P<y2>\d{4}))\b"
)
_PERSON_NAME: Final = re.compile(r"[^\s^,;]+\^[^\s,;]*")
"""PN of PS3.5 §6.2 as it is copied from a viewer."""
_TITLE: Final = r"herrn?|frau|madame|mme|monsieur|patient(?:in|e)?(?:\s+(?:named|namens|name\s+is|appelée?))?"
_WORD: Final = r"[A-ZÀ-ÖØ-Þ][\w'\u2019-]+"
# "MR" and "MS" are an imaging method and an illness, "Mr" and "Ms" are not.
_TITLED: Final = re.compile(rf"(\b(?:Mrs?|Ms|Miss|(?i:{_TITLE}))\.?:?\s+)({_WORD}(?:,?\s+{_WORD}){{0,2}})")


def without_identities(session: Session, names: Pseudonyms, text: str, today: date) -> str:
    """The text with UIDs, known patient IDs and accession numbers, long numbers, names after a title and birth dates replaced."""
    plain = _DAY.sub(lambda found: MASK if _is_long_ago(found, today) else found[0], without_uids(text))
    plain = _PERSON_NAME.sub(MASK, plain)
    plain = _TITLED.sub(rf"\1{MASK}", plain)
    known = _known(session, names, {token.rstrip(".") for token in _TOKEN.findall(plain)})
    return _TOKEN.sub(lambda found: _masked(found[0], known), plain)


def _known(session: Session, names: Pseudonyms, tokens: set[str]) -> set[str]:
    """The tokens that are a patient ID or an accession number in the archive or the development data.

    Names of models, tasks and classes are ours, also where somebody has sent a phantom under such an ID.
    """
    ours = {word.casefold() for row in registry.models(session) for word in (row.name, row.task, *row.classes)}
    tokens = {token for token in tokens if token.casefold() not in ours}
    patients = {names.patient(token): token for token in tokens}
    accessions = {names.accession(token): token for token in tokens}
    of_studies = select(Study.patient_key, Study.accession_key).where(
        or_(col(Study.patient_key).in_(patients), col(Study.accession_key).in_(accessions))
    )
    of_training = select(TrainingPatient.patient_key).where(col(TrainingPatient.patient_key).in_(patients))
    found = {*(key for row in session.exec(of_studies) for key in row), *session.exec(of_training)}
    return {token for key, token in (*patients.items(), *accessions.items()) if key in found}


def _masked(token: str, known: set[str]) -> str:
    word = token.rstrip(".")
    if word in known or _is_number(word):
        return f"{MASK}{token[len(word) :]}"
    return token


def _is_number(word: str) -> bool:
    """Whether it holds six digits in a row and is no day, no round number and no name that this service gave."""
    day = _DAY.fullmatch(word)
    usual = _OURS.fullmatch(word) or _ROUND.fullmatch(word) or (day and _year(day))
    return bool(re.search(r"\d{6}", word)) and not usual


def _is_long_ago(found: "re.Match[str]", today: date) -> bool:
    return 0 < _year(found) <= today.year - OLD_YEARS


def _year(found: "re.Match[str]") -> int:
    """The year of what looks like a day, 0 where it is none."""
    year, month, day = (int(found[name] or found[f"{name}2"]) for name in "ymd")
    return year if 1880 <= year < 2100 and 1 <= month <= 12 and 1 <= day <= 31 else 0
