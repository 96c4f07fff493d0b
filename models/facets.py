"""Scanner and acquisition facts of a data set, by shape: what a machine says about itself, never what people type about a person.

A facet is a word of a closed vocabulary, a number inside its attribute's range, or a short equipment text. Texts that look
like a person's name, an identifier, a date or a UID, or that share a term with the data set's identity, are left out. Of the
person only the sex and a wide band of age are kept (docs/decisions/0014-sex-and-age-band.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, MutableSequence
from datetime import date
from typing import TYPE_CHECKING, Any, Final

from models.identity_terms import IdentityTerms

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MAX_LENGTH: Final = 64
_UNSAFE: Final = re.compile(r"[^\w .,:/+()\\-]")
_CODE: Final = re.compile(r"[A-Z0-9_ ]{1,16}")
_NO_EQUIPMENT: Final = re.compile(r"[\^=@]|\d{7,}|\d+(?:\.\d+){5,}|\b(?:1\.2|1\.3|2\.16)\.\d+\.\d{3,}")
"""A person name's separators, a mail address, a number as long as an ID or a date, a UID."""


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


_TERMS: Final[Mapping[str, frozenset[str]]] = {
    "Modality": _listed("MR CT CR DX MG US NM PT XA RF OT SC IO PX ES OP SR SEG KO PR RTSTRUCT RTIMAGE RTDOSE RTPLAN"),
    "ViewPosition": _listed("AP PA LL RL RLD LLD RLO LLO LAT LATERAL LLAT OBL TAN RAO LAO RPO LPO SWIMMERS"),
    "ScanningSequence": _listed("SE IR GR EP RM"),
    "SequenceVariant": _listed("SK MTC SS TRSS SP MP OSP TOF NONE"),
    "PhotometricInterpretation": _listed(
        "MONOCHROME1 MONOCHROME2 RGB HSV YBR_FULL YBR_FULL_422 YBR_PARTIAL_420 YBR_PARTIAL_422 YBR_ICT YBR_RCT"
    )
    | {"PALETTE COLOR"},
    "BodyPartExamined": _listed(
        "ABDOMEN ABDOMENPELVIS ANKLE ARM BLADDER BRAIN BREAST CALF CERVIX CHEST CHESTABDOMEN CHESTABDPELVIS CLAVICLE COCCYX COLON"
        " CSPINE CTSPINE ELBOW EXTREMITY EYE FACE FEMUR FINGER FOOT FOREARM HAND HEAD HEADNECK HEART HIP HUMERUS JAW KIDNEY KNEE"
        " LEG LIVER LSPINE LSSPINE LUNG NECK ORBIT PANCREAS PELVIS PROSTATE RIB SACRUM SCAPULA SHOULDER SKULL SPINE SPLEEN"
        " STERNUM TEMPORAL THIGH THORAX THUMB TIBIA TLSPINE TOE TSPINE UTERUS WHOLEBODY WRIST ZYGOMA"
    ),
}
"""Defined terms (PS3.3 C.7.3.1.1.1, C.8.3.1, C.8.11.5, C.7.6.3.1.2; PS3.16 Annex L): no identity, whatever the person is called."""

_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "MagneticFieldStrength": (0, 25),
    "RepetitionTime": (0, 60_000),
    "EchoTime": (0, 10_000),
    "KVP": (0, 500),
    "SliceThickness": (0, 500),
    "Rows": (1, 65_535),
    "Columns": (1, 65_535),
}
"""Attributes whose value is a number (ms, kV, mm, T, pixels); anything beyond is no acquisition."""
_STRUCTURAL: Final = ("Rows", "Columns")
NUMERIC: Final = frozenset(_RANGES)
"""Facets that are numbers, and are compared as such."""
_UNITS: Final[Mapping[str, str]] = {
    "MagneticFieldStrength": "T",
    "RepetitionTime": "ms",
    "EchoTime": "ms",
    "KVP": "kV",
    "SliceThickness": "mm",
}

_VENDOR_WORDS: Final = _listed(
    "agfa canon carestream esaote fuji fujifilm ge gehc general electric hitachi hologic konica minolta mindray neusoft philips"
    " samsung shimadzu siemens toshiba united imaging varian bruker hyperfine health healthcare healthineers medical systems"
    " system technologies company corporation corp inc gmbh ag co ltd kk"
)
_TEXTS: Final = ("Manufacturer", "ManufacturerModelName", "StationName", "SoftwareVersions", "ConvolutionKernel")

FACETS: Final = (
    "Modality",
    "BodyPartExamined",
    "ViewPosition",
    "Manufacturer",
    "ManufacturerModelName",
    "StationName",
    "SoftwareVersions",
    "MagneticFieldStrength",
    "ScanningSequence",
    "SequenceVariant",
    "RepetitionTime",
    "EchoTime",
    "KVP",
    "ConvolutionKernel",
    "SliceThickness",
    "Rows",
    "Columns",
    "PhotometricInterpretation",
    "PatientSex",
    "AgeBand",
)
"""Attributes that describe scanner and acquisition, and AgeBand, made from one. Free text of a study is none (ProtocolName)."""

_SEXES: Final = _listed("M F O")
"""Enumerated values of PatientSex (0010,0040)."""
_BANDS: Final = ((18, "0-17"), (40, "18-39"), (60, "40-59"), (80, "60-79"), (131, "80+"))
"""Years below which a band ends. The last one pools all ages that alone would point at few people (90 and more among them)."""
_AGE: Final = re.compile(r"(\d{3})([DWMY])")
_YEARS: Final = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}


def facets_of(dataset: Dataset) -> dict[str, str]:
    """The facets of a data set that was read with `FACETS` and `identity_terms.KEYWORDS`; left out is what may carry identity."""
    terms = IdentityTerms.of(dataset)
    found = {name: _PERSONAL[name](dataset) if name in _PERSONAL else _facet(dataset, name, terms) for name in FACETS}
    return {name: value for name, value in found.items() if value}


def unit_of(name: str) -> str:
    """The unit of a facet with a space before it, empty where it has none."""
    return f" {_UNITS[name]}" if name in _UNITS else ""


def code_of(dataset: Dataset, name: str, text: str) -> str:
    """A code string of the attribute `name` as it may leave the archive; empty when it may carry identity.

    The identity is only looked at for what is no defined term, which is rare.
    """
    return text if text in _TERMS[name] else _coded(name, text, IdentityTerms.of(dataset))


def _facet(dataset: Dataset, name: str, terms: IdentityTerms) -> str:
    try:
        value: Any = dataset.get(name)
        values = value if isinstance(value, MutableSequence | tuple) else [value]
        text = "\\".join(str(each) for each in values if each is not None).strip()
    except Exception:  # noqa: BLE001 - pydicom raises many kinds; a fact that cannot be read is none
        return ""
    kind: Callable[[str, str, IdentityTerms], str] = _number if name in _RANGES else _text if name in _TEXTS else _coded
    return kind(name, text, terms)


def _coded(name: str, text: str, terms: IdentityTerms) -> str:
    """A code string (PS3.5 §6.2, CS), or several; a defined term is kept whatever the patient is called."""
    codes = [code.strip() for code in text.split("\\")]
    if all(code in _TERMS[name] for code in codes):
        return "\\".join(codes)[:MAX_LENGTH]
    if not all(_CODE.fullmatch(code) and not _NO_EQUIPMENT.search(code) for code in codes) or terms.shared_by(text):
        return ""
    return "\\".join(codes)[:MAX_LENGTH]


def _number(name: str, text: str, terms: IdentityTerms) -> str:
    """Four significant digits: enough for an acquisition, too few for an identifier."""
    try:
        number = float(text.partition("\\")[0])
    except ValueError:
        return ""
    low, high = _RANGES[name]
    if not low <= number <= high:
        return ""
    if name in _STRUCTURAL:
        return str(int(number))
    short = f"{float(f'{number:.4g}'):.6f}".rstrip("0").rstrip(".")
    return "" if terms.shared_by(text) or terms.shared_by(short) else short


def _text(name: str, text: str, terms: IdentityTerms) -> str:
    if _NO_EQUIPMENT.search(text):
        return ""
    words = re.findall(r"[^\W\d_]+", text.casefold())
    vendor = name == "Manufacturer" and bool(words) and _VENDOR_WORDS.issuperset(words) and not re.search(r"\d", text)
    if not vendor and terms.shared_by(text):
        return ""
    return _UNSAFE.sub("", text)[:MAX_LENGTH].strip()


def _sex(dataset: Dataset) -> str:
    text = _read(dataset, "PatientSex").upper()
    return text if text in _SEXES else ""


def _age_band(dataset: Dataset) -> str:
    """From PatientAge (0010,1010), else from birth date and study date; empty where neither can be read."""
    stated = _AGE.fullmatch(_read(dataset, "PatientAge"))
    years = int(stated[1]) * _YEARS[stated[2]] if stated else _years_between(dataset)
    return "" if years is None or years < 0 else next((band for end, band in _BANDS if years < end), "")


def _years_between(dataset: Dataset) -> float | None:
    born, seen = (_read(dataset, keyword) for keyword in ("PatientBirthDate", "StudyDate"))
    try:
        return (date.fromisoformat(seen) - date.fromisoformat(born)).days / 365.25
    except ValueError:
        return None


def _read(dataset: Dataset, keyword: str) -> str:
    try:
        return str(dataset.get(keyword) or "").strip()
    except Exception:  # noqa: BLE001 - pydicom raises many kinds; a fact that cannot be read is none
        return ""


_PERSONAL: Final[Mapping[str, Callable[[Dataset], str]]] = {"PatientSex": _sex, "AgeBand": _age_band}
