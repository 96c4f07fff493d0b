"""A result as Secondary Capture image (PS3.3 A.8.1), for viewers that show no SR."""

from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from services.results.finding import MANUFACTURER, Result
from services.results.header import file_meta, put_header, put_times
from services.results.picture import draw

SERIES_NUMBER: Final = 9902
SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"
_LONGEST_TEXT: Final = 64


def build_capture(result: Result, header: Dataset) -> Dataset:
    """The image of a result, ready to be written; `header` is the study's, from `read_header`. No identity is drawn."""
    image = Dataset()
    put_header(image, header)
    _identify(image, result)
    put_times(image, header, result.scored_at, "InstanceCreationDate", "ContentDate", "DateOfSecondaryCapture")
    _describe(image, result)
    _put_pixels(image, draw(result))
    image.file_meta = file_meta(SECONDARY_CAPTURE, image.SOPInstanceUID)
    return image


def _identify(image: Dataset, result: Result) -> None:
    """SOP Common, General Series and General Image modules."""
    image.SOPClassUID, image.SOPInstanceUID = SECONDARY_CAPTURE, result.uid("SC")
    image.SeriesInstanceUID, image.SeriesNumber = result.series_uid("SC"), SERIES_NUMBER
    image.InstanceNumber = result.revision
    image.Modality = "OT"
    image.Laterality = ""
    image.PatientOrientation = ""
    image.SeriesDescription = f"{result.model} version {result.version}: result"[:_LONGEST_TEXT]


def _describe(image: Dataset, result: Result) -> None:
    """General and SC Equipment modules, and what the image is derived from."""
    image.Manufacturer = MANUFACTURER
    image.ManufacturerModelName = result.model[:_LONGEST_TEXT]
    image.SoftwareVersions = str(result.version)
    image.ConversionType = "WSD"
    image.SecondaryCaptureDeviceManufacturer = MANUFACTURER
    image.ImageType = ["DERIVED", "SECONDARY"]
    image.BurnedInAnnotation = "NO"
    image.DerivationDescription = "Text rendering of a software result"
    image.SourceImageSequence = [_reference(each.sop_class_uid, each.sop_instance_uid) for each in result.images]


def _reference(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    return item


def _put_pixels(image: Dataset, pixels: npt.NDArray[np.uint8]) -> None:
    """Image Pixel module: RGB, 8 bits, colour by pixel."""
    image.Rows, image.Columns = pixels.shape[:2]
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    data = pixels.tobytes()
    image.add_new(0x7FE00010, "OB", data + b"\x00" * (len(data) % 2))
