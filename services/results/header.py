"""Patient and study as the archive's file has them, for a new object of the same study (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2).

Text is decoded with the source's Specific Character Set and becomes Unicode; the new object says ISO_IR 192.
"""

import re
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

from pydicom import config, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import PersonName

from services.runtime.errors import InvalidInput
from services.runtime.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

config.settings.reading_validation_mode = config.IGNORE  # pydicom's warnings quote the values, which may be identities

COPIED: Final = (
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "TimezoneOffsetFromUTC",
    "StudyDescription",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientSex",
    "OtherPatientNames",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "StudyInstanceUID",
    "StudyID",
)
TYPE_2: Final = (
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
)
"""Present even where the source lacks them."""
_OFFSET: Final = re.compile(r"([+-])(\d{2})(\d{2})")


def read_header(path: Path) -> Dataset:
    """Patient and study of an archived file, decoded. InvalidInput, which quotes no value, when it cannot be read."""
    try:
        source = dcmread(path, stop_before_pixels=True, specific_tags=["SpecificCharacterSet", *COPIED])
    except FileNotFoundError:
        raise InvalidInput("the archive no longer has the study's files, so its result cannot be addressed to a patient") from None
    except Exception as error:  # noqa: BLE001 - pydicom raises many kinds, and their texts quote values
        raise InvalidInput(f"the header of the study's file cannot be read ({type(error).__name__})") from None
    header = Dataset()
    for keyword in COPIED:
        _copy(source, header, keyword)
    return header


def _copy(source: Dataset, header: Dataset, keyword: str) -> None:
    """Copy one element; one that is damaged is left out where it may be."""
    tag = Tag(keyword)
    try:
        value = _plain(source.get(keyword))
        str(value).encode("utf-8")
        element = DataElement(tag, dictionary_VR(tag), value, validation_mode=config.IGNORE)
    except Exception as error:  # noqa: BLE001 - as above
        if keyword in TYPE_2:
            raise InvalidInput(f"{keyword} of the study's file cannot be read ({type(error).__name__})") from None
        return
    if value != "" or keyword in TYPE_2:
        header[tag] = element


def put_header(target: Dataset, header: Dataset) -> None:
    """Make `target` an object of the header's patient and study."""
    target.SpecificCharacterSet = "ISO_IR 192"
    for element in header:
        target[element.tag] = element


def put_times(target: Dataset, header: Dataset, at: datetime, *keywords: str) -> None:
    """Set date and time elements (`ContentDate` for ContentDate and ContentTime) in the study's own time zone."""
    local = at.astimezone(_zone(header))
    for keyword in keywords:
        setattr(target, keyword, f"{local:%Y%m%d}")
        setattr(target, keyword.replace("Date", "Time"), f"{local:%H%M%S}")


def file_meta(sop_class_uid: str, sop_instance_uid: str) -> FileMetaDataset:
    """File meta information of an object of ours, explicit VR little endian."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta


def _plain(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, PersonName):
        return PersonName(str(value), validation_mode=config.IGNORE)
    if isinstance(value, MultiValue):
        return [_plain(each) for each in value]
    return value


def _zone(header: Dataset) -> timezone | None:
    """The study's offset from UTC; None, which means the machine's own, where the study does not say."""
    found = _OFFSET.fullmatch(str(header.get("TimezoneOffsetFromUTC") or "").strip())
    if found is None:
        return None
    sign = -1 if found[1] == "-" else 1
    return timezone(sign * timedelta(hours=int(found[2]), minutes=int(found[3])))
