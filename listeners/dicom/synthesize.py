"""Makes valid DICOM images from arrays, for demonstrations and for data sets that come as PNG or npz.

UIDs and values depend on the seed alone, so the same image is the same object every time. The patient is a pseudonym by
construction: PatientID is what the caller gives, PatientName stays empty.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from listeners.dicom.file_meta import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from schemas.vocabulary import Modality

SOP_CLASSES: Final[dict[Modality, str]] = {
    Modality.MR: "1.2.840.10008.5.1.4.1.1.4",
    Modality.CT: "1.2.840.10008.5.1.4.1.1.2",
    Modality.CR: "1.2.840.10008.5.1.4.1.1.1",
    Modality.DX: "1.2.840.10008.5.1.4.1.1.1.1",
}
CT_INTERCEPT: Final = -1024
Image = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class StudyFacts:
    """What the headers say. `instance` counts images of the same series from 1; spacing in mm."""

    modality: str
    patient_id: str
    seed: str
    acquired_at: datetime
    body_part: str = ""
    manufacturer: str = ""
    model_name: str = ""
    station: str = ""
    study_description: str = ""
    series_description: str = ""
    accession_number: str = ""
    instance: int = 1
    series: int = 1
    pixel_spacing: tuple[float, float] = (1.0, 1.0)
    slice_thickness: float = 5.0


def study_instance_uid(seed: str) -> str:
    """StudyInstanceUID of the study that `seed` names."""
    return str(generate_uid(entropy_srcs=["study", seed]))


def write_image(path: Path, image: Image, facts: StudyFacts) -> str:
    """Write one image, uint8 or uint16 [H, W], as MR, CT, CR or DX (PS3.3 A.2 to A.26); returns its SOPInstanceUID.

    Raises ValueError for another shape, type or modality.
    """
    _check(image)
    dataset = _new_file(path, Modality(facts.modality), facts)
    _patient_and_study(dataset, facts)
    _equipment_and_series(dataset, facts)
    _pixels(dataset, image)
    _SPECIFIC[Modality(facts.modality)](dataset, image, facts)
    dataset.save_as(path, enforce_file_format=True)
    return str(dataset.SOPInstanceUID)


def _check(image: Image) -> None:
    if image.ndim != 2 or image.dtype not in (np.uint8, np.uint16) or not 0 < max(image.shape) <= 65535:
        raise ValueError(f"an image is uint8 or uint16 [H, W], not {image.dtype} {list(image.shape)}")


def _new_file(path: Path, modality: Modality, facts: StudyFacts) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(SOP_CLASSES[modality])
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["instance", facts.seed, str(facts.series), str(facts.instance)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\x00" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    return dataset


def _patient_and_study(dataset: Dataset, facts: StudyFacts) -> None:
    """Patient, General Study and Frame of Reference modules (PS3.3 C.7.1 to C.7.4)."""
    moment = facts.acquired_at.astimezone(UTC)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.TimezoneOffsetFromUTC = "+0000"
    for keyword in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"):
        setattr(dataset, keyword, moment.strftime("%Y%m%d"))
    for keyword in ("StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime"):
        setattr(dataset, keyword, moment.strftime("%H%M%S"))
    dataset.AccessionNumber = facts.accession_number
    dataset.ReferringPhysicianName = ""
    dataset.PatientName = ""
    dataset.PatientID = facts.patient_id
    dataset.PatientBirthDate = ""
    dataset.PatientSex = ""
    dataset.StudyID = ""
    dataset.StudyDescription = facts.study_description
    dataset.StudyInstanceUID = study_instance_uid(facts.seed)
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series", facts.seed, str(facts.series)])


def _equipment_and_series(dataset: Dataset, facts: StudyFacts) -> None:
    """General Series and General Equipment modules (PS3.3 C.7.3.1, C.7.5.1)."""
    dataset.Modality = facts.modality
    dataset.SeriesNumber = facts.series
    dataset.InstanceNumber = facts.instance
    dataset.SeriesDescription = facts.series_description
    dataset.BodyPartExamined = facts.body_part
    dataset.Manufacturer = facts.manufacturer
    dataset.ManufacturerModelName = facts.model_name
    dataset.StationName = facts.station[:16]
    dataset.DeviceSerialNumber = "0"
    dataset.SoftwareVersions = "0"


def _pixels(dataset: Dataset, image: Image) -> None:
    """Image Pixel module (PS3.3 C.7.6.3) with a window over the whole range of values."""
    bits = image.dtype.itemsize * 8
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = image.shape
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = 0
    data = image.astype(image.dtype.newbyteorder("<")).tobytes()
    dataset.add_new(0x7FE00010, "OB" if bits == 8 else "OW", data + b"\x00" * (len(data) % 2))
    low, high = (0, 255) if bits == 8 else (int(image.min()), int(image.max()))
    dataset.WindowCenter, dataset.WindowWidth = (low + high + 1) / 2, max(high - low + 1, 2)


def _slice_geometry(dataset: Dataset, facts: StudyFacts) -> None:
    """Frame of Reference and Image Plane modules (PS3.3 C.7.4.1, C.7.6.2): axial slices along z."""
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame of reference", facts.seed])
    dataset.PositionReferenceIndicator = ""
    dataset.PixelSpacing = list(facts.pixel_spacing)
    dataset.SliceThickness = facts.slice_thickness
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [0, 0, (facts.instance - 1) * facts.slice_thickness]
    dataset.PatientPosition = "HFS"


def _mr(dataset: Dataset, _image: Image, facts: StudyFacts) -> None:
    """MR Image module (PS3.3 C.8.3.1)."""
    _slice_geometry(dataset, facts)
    dataset.ImageType = ["DERIVED", "PRIMARY", "OTHER"]
    dataset.ScanningSequence = "RM"
    dataset.SequenceVariant = "NONE"
    dataset.ScanOptions = ""
    dataset.MRAcquisitionType = "2D"
    dataset.RepetitionTime = dataset.EchoTime = dataset.EchoTrainLength = None


def _ct(dataset: Dataset, image: Image, facts: StudyFacts) -> None:
    """CT Image module (PS3.3 C.8.2.1): 16 bits, so 8-bit values become Hounsfield-like ones from -1024."""
    _slice_geometry(dataset, facts)
    dataset.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, CT_INTERCEPT, "HU"
    dataset.KVP = dataset.AcquisitionNumber = None
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.add_new(0x7FE00010, "OW", image.astype("<u2").tobytes())
    dataset.WindowCenter = dataset.WindowCenter + CT_INTERCEPT


def _cr(dataset: Dataset, _image: Image, facts: StudyFacts) -> None:
    """CR Series and CR Image modules (PS3.3 C.8.1)."""
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.ViewPosition = ""
    dataset.PatientOrientation = ["L", "F"]
    dataset.ImagerPixelSpacing = list(facts.pixel_spacing)


def _dx(dataset: Dataset, _image: Image, facts: StudyFacts) -> None:
    """DX Series, DX Anatomy Imaged, DX Image and DX Detector modules (PS3.3 C.8.11)."""
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.ImageLaterality = "U"
    dataset.AnatomicRegionSequence = [
        _code("43799004", "SCT", "Chest") if facts.body_part == "CHEST" else _code("38266002", "SCT", "Body")
    ]
    dataset.PatientOrientation = ["L", "F"]
    dataset.PixelIntensityRelationship = "LIN"
    dataset.PixelIntensityRelationshipSign = 1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.LossyImageCompression = "00"
    dataset.BurnedInAnnotation = "NO"
    dataset.DetectorType = ""
    dataset.ImagerPixelSpacing = list(facts.pixel_spacing)
    dataset.AcquisitionContextSequence = []
    dataset.ViewCodeSequence = []


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


_SPECIFIC: Final = {Modality.MR: _mr, Modality.CT: _ct, Modality.CR: _cr, Modality.DX: _dx}
