"""C-FIND SCU (PS3.4 Annex C): studies and series of a PACS, Study Root Query/Retrieve Information Model.

What a PACS returns is checked against the question, because some ignore keys that they do not support.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

from pydicom.dataset import Dataset
from pynetdicom.presentation import build_context

from services.assembly.headers import is_valid_uid
from services.runtime.errors import InvalidInput
from services.runtime.scu import Peer, PeerLost, PeerRefuses, Timeouts, association, printable, status_words

STUDY_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"
TIMEOUTS: Final = Timeouts(connect_s=10.0, answer_s=60.0)
MOST_MATCHES: Final = 500
_PENDING: Final = (0xFF00, 0xFF01)
_CANCELLED: Final = 0xFE00
_NOT_MATCHED_LITERALLY: Final = set("*?\\")

ADVICE: Final[dict[int, str]] = {
    0xA700: "the PACS is out of resources: narrow the question, or ask later",
    0xA900: "the PACS does not understand the question: this is a defect, report it",
    0x0122: "the PACS does not offer this to us: ask its administrator",
    0x0124: "the PACS does not allow us to ask: its administrator has to permit our AE title",
}


@dataclass(frozen=True)
class StudyQuery:
    """What to look for; empty fields match everything, but not all of them may be empty."""

    study_uid: str = ""
    accession_number: str = ""
    patient_id: str = ""
    modality: str = ""
    since: date | None = None
    until: date | None = None

    def __post_init__(self) -> None:
        if not any((self.study_uid, self.accession_number, self.patient_id, self.since, self.until)):
            raise InvalidInput("say which studies: by study UID, accession number, patient ID or date")
        for value in (self.study_uid, self.accession_number, self.patient_id, self.modality):
            if _NOT_MATCHED_LITERALLY & set(value):
                raise InvalidInput("*, ? and \\ are wildcards in DICOM and not taken: name one study, accession or patient")
        if self.study_uid and not is_valid_uid(self.study_uid):
            raise InvalidInput("the study UID is not a valid UID: digits and dots, 64 characters at most")


@dataclass(frozen=True)
class StudyMatch:
    """A study of the PACS. `repr` leaves the identities out."""

    study_uid: str
    study_date: date | None
    modalities: tuple[str, ...]
    sop_classes: tuple[str, ...]
    series: int | None
    instances: int | None
    description: str = field(repr=False)
    accession_number: str = field(repr=False)
    patient_id: str = field(repr=False)
    patient_issuer: str = field(repr=False)
    patient_name: str = field(repr=False)


@dataclass(frozen=True)
class SeriesMatch:
    """A series of a study of the PACS."""

    series_uid: str
    number: str
    modality: str
    instances: int | None
    description: str = field(repr=False)


def find_studies(
    peer: Peer, query: StudyQuery, *, calling_ae: str, most: int = MOST_MATCHES, timeouts: Timeouts = TIMEOUTS
) -> list[StudyMatch]:
    """Matching studies, newest first, `most` at most (then the query is cancelled at the PACS).

    Raises PeerAway, PeerBusy, PeerLost, and PeerRefuses with the status when the PACS answers with a failure.
    """
    found = (_study(each) for each in _find(peer, _study_keys(query), calling_ae, most, timeouts))
    matches = {each.study_uid: each for each in found if is_valid_uid(each.study_uid) and _fits(each, query)}
    return sorted(matches.values(), key=lambda each: (each.study_date or date.min, each.study_uid), reverse=True)


def find_series(
    peer: Peer, study_uid: str, *, calling_ae: str, most: int = MOST_MATCHES, timeouts: Timeouts = TIMEOUTS
) -> list[SeriesMatch]:
    """Series of one study in order of their number; raises as `find_studies`."""
    StudyQuery(study_uid=study_uid)
    keys = Dataset()
    keys.QueryRetrieveLevel = "SERIES"
    keys.StudyInstanceUID = study_uid
    for keyword in ("SeriesInstanceUID", "SeriesNumber", "Modality", "SeriesDescription", "NumberOfSeriesRelatedInstances"):
        setattr(keys, keyword, None if keyword.startswith("Number") or keyword == "SeriesNumber" else "")
    found = [_series(each) for each in _find(peer, keys, calling_ae, most, timeouts)]
    return sorted(
        (each for each in found if is_valid_uid(each.series_uid)), key=lambda each: (_count(each.number) or 0, each.series_uid)
    )


def _find(peer: Peer, keys: Dataset, calling_ae: str, most: int, timeouts: Timeouts) -> Iterator[Dataset]:
    contexts = [build_context(STUDY_ROOT_FIND)]
    with association(peer, contexts, calling_ae=calling_ae, timeouts=timeouts) as opened:
        taken = 0
        for status, identifier in _responses(opened, keys, peer):
            if "Status" not in status:
                raise PeerLost(f"{peer.address} did not answer C-FIND to its end; what came is not used")
            if status.Status in _PENDING and identifier is not None and taken < most:
                yield identifier
                taken += 1
                if taken == most:
                    opened.send_c_cancel(1, query_model=STUDY_ROOT_FIND)
            elif status.Status not in (*_PENDING, _CANCELLED, 0x0000):
                raise PeerRefuses(f"{peer.address} answered C-FIND with {status_words(status)}: {advice(status.Status)}")


def _responses(opened: Any, keys: Dataset, peer: Peer) -> Iterator[tuple[Dataset, Dataset | None]]:
    try:
        yield from opened.send_c_find(keys, STUDY_ROOT_FIND)
    except (RuntimeError, ValueError):
        raise PeerLost(f"{peer.address} ended the association during C-FIND") from None


def advice(status: int) -> str:
    """What to do about a failure of a query."""
    return ADVICE.get(status) or ADVICE.get(status & 0xFF00, "ask the administrator of the PACS, with this status and the time")


def _study_keys(query: StudyQuery) -> Dataset:
    keys = Dataset()
    keys.SpecificCharacterSet = "ISO_IR 192"
    keys.QueryRetrieveLevel = "STUDY"
    keys.StudyInstanceUID = query.study_uid
    keys.AccessionNumber = query.accession_number
    keys.PatientID = query.patient_id
    keys.ModalitiesInStudy = query.modality
    keys.StudyDate = _range(query.since, query.until)
    for keyword in ("StudyTime", "StudyDescription", "IssuerOfPatientID", "PatientName", "SOPClassesInStudy"):
        setattr(keys, keyword, "")
    keys.NumberOfStudyRelatedSeries = keys.NumberOfStudyRelatedInstances = None
    return keys


def _range(since: date | None, until: date | None) -> str:
    """Range matching (PS3.4 C.2.2.2.5)."""
    if since is None and until is None:
        return ""
    return "-".join(f"{day:%Y%m%d}" if day else "" for day in (since, until))


def _fits(match: StudyMatch, query: StudyQuery) -> bool:
    day = match.study_date
    return all(
        (
            not query.study_uid or match.study_uid == query.study_uid,
            not query.patient_id or match.patient_id == query.patient_id,
            not query.accession_number or match.accession_number == query.accession_number,
            not query.modality or not match.modalities or query.modality in match.modalities,
            query.since is None or day is None or day >= query.since,
            query.until is None or day is None or day <= query.until,
        )
    )


def _study(found: Dataset) -> StudyMatch:
    return StudyMatch(
        study_uid=_text(found, "StudyInstanceUID"),
        study_date=_date(_text(found, "StudyDate")),
        modalities=_values(found, "ModalitiesInStudy"),
        sop_classes=_values(found, "SOPClassesInStudy"),
        series=_count(_text(found, "NumberOfStudyRelatedSeries")),
        instances=_count(_text(found, "NumberOfStudyRelatedInstances")),
        description=_text(found, "StudyDescription"),
        accession_number=_text(found, "AccessionNumber"),
        patient_id=_text(found, "PatientID"),
        patient_issuer=_text(found, "IssuerOfPatientID"),
        patient_name=_text(found, "PatientName"),
    )


def _series(found: Dataset) -> SeriesMatch:
    return SeriesMatch(
        series_uid=_text(found, "SeriesInstanceUID"),
        number=_text(found, "SeriesNumber"),
        modality=_text(found, "Modality"),
        instances=_count(_text(found, "NumberOfSeriesRelatedInstances")),
        description=_text(found, "SeriesDescription"),
    )


def _text(found: Dataset, keyword: str) -> str:
    value = found.get(keyword)
    return "" if value is None else printable(str(value), 128)


def _values(found: Dataset, keyword: str) -> tuple[str, ...]:
    value = found.get(keyword)
    many: Sequence[Any] = [] if value is None else [value] if isinstance(value, str) else list(value)
    return tuple(printable(str(each)) for each in many if str(each).strip())


def _count(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text[:8])
    except ValueError:
        return None
