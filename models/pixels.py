"""From a DICOM file to frames in modality units: decoding, padding, colour, Modality LUT, VOI and photometric facts.

An image that cannot be decoded as its header says is an error; one that can be decoded but looks wrong brings a finding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import apply_color_lut, pixel_array
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless

from models.attributes import frame_count, functional_group, number_of, text_of, words_of
from models.errors import UnreadableImage
from models.facets import facets_of
from models.findings import Finding, merged
from models.frames import Frame, Frames
from models.headers import unreadable_as
from models.modality import Instance, check_bits, check_sign, modality_values, padding_of, without_padding
from models.voi import FloatArray, LookupTable, Voi, VoiFunction, Window

MAX_PIXELS = 120_000_000
"""Pixels of one frame above which a header is taken for damaged; the largest detectors have a tenth of it."""

_LUMINANCE = np.asarray([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as in PS3.3 C.7.6.3.1.2
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
_SHAPES = {False: "IDENTITY", True: "INVERSE"}
"""Presentation LUT Shape by whether low values are bright (PS3.3 C.8.11.3.1.2)."""
_LEAST_CONTRAST = 1 / 256
"""Of the whole range of shades: a window that shows less of an image than one step of eight bits was not meant for it."""
_JPEG = {JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless}
_END_OF_IMAGE = b"\xff\xd9"  # EOI marker, ISO/IEC 10918-1 B.1.1.3 and 14495-1
_FUNCTIONS: tuple[VoiFunction, ...] = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def read_frames(path: Path, indices: Sequence[int] | None = None, *, facets: bool = True) -> Frames:
    """Decode one instance, all frames or those of `indices` (from 0), in the file's order; `facets` asks for the scanner facts.

    Raises UnreadableImage for anything that is not DICOM, is truncated, has no pixels or no decoder; OSError where the
    operating system cannot read the file.
    """
    with unreadable_as("not a readable DICOM file"):
        dataset = pydicom.dcmread(path)
    return frames_of(dataset, indices, facets=facets)


def frames_of(dataset: Dataset, indices: Sequence[int] | None = None, *, facets: bool = True) -> Frames:
    """Decode a dataset in memory; see `read_frames`."""
    with unreadable_as("the image attributes are damaged"):
        doubts = _check_geometry(dataset)
        count = frame_count(dataset)
        chosen = range(count) if indices is None else indices
        if any(not 0 <= index < count for index in chosen):
            raise UnreadableImage(f"the file has {count} frames, fewer than asked for")
        instance = Instance(dataset, doubts)
        if text_of(dataset, "PresentationIntentType") == "FOR PROCESSING":
            instance.note("for_processing")
        if "PixelData" in dataset:
            check_bits(instance)
        frames = tuple(_frame(instance, index) for index in chosen)
        return Frames(frames, merged(instance.findings), facets_of(dataset) if facets else {})


def _check_geometry(dataset: Dataset) -> list[Finding]:
    """Refuse what no decoder should be asked to allocate, and pixel data shorter than the header says; longer is a finding."""
    rows, columns = int(number_of(dataset, "Rows") or 0), int(number_of(dataset, "Columns") or 0)
    if rows < 1 or columns < 1:
        raise UnreadableImage("the file holds no image: Rows or Columns is absent or zero")
    if rows * columns > MAX_PIXELS:
        raise UnreadableImage(f"Rows x Columns = {rows} x {columns} is beyond any detector")
    data = next((dataset.get(name) for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if name in dataset), None)
    if not data:
        raise UnreadableImage("the file holds no pixel data")
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated or "PixelData" not in dataset:
        return []
    least = _native_length(dataset, rows * columns)
    if len(data) < least:
        raise UnreadableImage(f"truncated: {len(data)} of {least} bytes of pixel data are present")
    return [Finding("pixel_data_excess", f"{len(data) - least} bytes")] if len(data) > least + 1 else []


def _native_length(dataset: Dataset, pixels: int) -> int:
    """Bytes of uncompressed pixel data by the header; a byte of padding may follow (PS3.5 8.1.1)."""
    bits = int(number_of(dataset, "BitsAllocated") or 0) * int(number_of(dataset, "SamplesPerPixel") or 1)
    least = -(-pixels * frame_count(dataset) * bits // 8)
    subsampled = text_of(dataset, "PhotometricInterpretation") in {"YBR_FULL_422", "YBR_PARTIAL_422"}
    return least * 2 // 3 if subsampled else least


def _frame(instance: Instance, index: int) -> Frame:
    stored = _decode(instance.dataset, index)
    photometric = text_of(instance.dataset, "PhotometricInterpretation")
    if photometric == "PALETTE COLOR":
        stored = _palette(instance.dataset, stored)
    if stored.ndim == 3:
        instance.note("colour_converted")
        values = stored.astype(np.float32) @ _LUMINANCE
        _extremes(instance, values)
        full = float(2 ** int(number_of(instance.dataset, "BitsStored") or 8) - 1)
        return Frame(values, Window(full / 2, full, "LINEAR_EXACT"))
    if photometric not in _MONOCHROME:
        instance.note("photometric_unexpected")
    inverted = photometric == "MONOCHROME1"
    shape = text_of(instance.dataset, "PresentationLUTShape")
    if shape in _SHAPES.values() and shape != _SHAPES[inverted]:
        instance.note("polarity_contradicted")
    padding = padding_of(instance, stored)
    check_sign(instance, stored, padding)
    values = modality_values(instance, stored, index)
    if padding is not None:
        values = without_padding(values, padding, bright=inverted)
    return Frame(values, _voi(instance, _extremes(instance, values), index), inverted, padding)


def _decode(dataset: Dataset, index: int) -> NDArray[Any]:
    """One frame's stored values, [H, W] or [H, W, 3] in RGB."""
    syntax = dataset.file_meta.TransferSyntaxUID
    with unreadable_as(f"the pixel data cannot be decoded from {syntax.name}"):
        if syntax in _JPEG:
            _check_complete(dataset, index)
        array = cast("NDArray[Any]", pixel_array(dataset, index=index))
    expected = (int(dataset.Rows), int(dataset.Columns))
    if array.shape[:2] != expected or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise UnreadableImage(f"decoded to shape {array.shape} where the header says {expected}")
    return array


def _check_complete(dataset: Dataset, index: int) -> None:
    """JPEG and JPEG-LS decoders fill what a cut codestream lacks with grey, without a word; its end marker tells."""
    frame = get_frame(dataset.PixelData, index, number_of_frames=frame_count(dataset))
    # Some writers pad with another byte than zero; entropy-coded data never holds a marker (byte stuffing).
    if _END_OF_IMAGE not in frame.rstrip(b"\x00")[-16:]:
        raise UnreadableImage("truncated: the compressed image has no end marker")


def _palette(dataset: Dataset, stored: NDArray[Any]) -> NDArray[Any]:
    coloured = cast("NDArray[Any]", apply_color_lut(stored, dataset))
    return coloured[..., :3]


def _extremes(instance: Instance, values: FloatArray) -> tuple[float, float]:
    """Least and greatest value."""
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UnreadableImage("pixel values are not finite")
    if low == high:
        instance.note("constant_image")
    return low, high


def _voi(instance: Instance, extremes: tuple[float, float], index: int) -> Voi | None:
    """The frame's VOI LUT or first window; None with a finding where it is absent, absurd or shows nothing of the image."""
    voi, named = _named_voi(instance, extremes[0], index)
    if voi is None:
        instance.note("window_absurd" if named else "window_missing")
        return None
    if not voi.valid:
        instance.note("window_absurd")
        return None
    ends = voi.apply(np.asarray(extremes, dtype=np.float32))
    if extremes[0] < extremes[1] and abs(float(ends[1] - ends[0])) < _LEAST_CONTRAST and isinstance(voi, Window):
        instance.note("window_outside_values")
        return None
    return voi


def _named_voi(instance: Instance, least: float, index: int) -> tuple[Voi | None, bool]:
    """The VOI of a frame, and whether the file names one at all. A table goes before a window."""
    dataset = instance.dataset
    tables = dataset.get("VOILUTSequence")
    source = functional_group(dataset, "FrameVOILUTSequence", index) or dataset
    views = [len(tables or ()), *(len(words_of(source, name)) for name in ("WindowCenter", "WindowWidth"))]
    if max(views) > 1:
        instance.note("several_windows", f"{max(views)}")
    if tables:
        return _table(tables[0], least), True
    center, width = number_of(source, "WindowCenter"), number_of(source, "WindowWidth")
    function = text_of(source, "VOILUTFunction").upper() or "LINEAR"
    if center is None and width is None:
        return None, False
    known = next((name for name in _FUNCTIONS if name == function), None)
    if center is None or width is None or known is None:
        return None, True
    return Window(center, width, known), True


def _table(item: Dataset, least: float) -> LookupTable | None:
    descriptor = [int(value) for value in item.get("LUTDescriptor") or ()]
    data = item.get("LUTData")
    if len(descriptor) != 3 or data is None or not 1 <= descriptor[2] <= 16:
        return None
    entries = np.frombuffer(data, dtype="<u2") if isinstance(data, bytes) else np.asarray(data, dtype=np.uint32)
    count = descriptor[0] % 65536 or 65536
    if entries.size < count:
        return None
    first = descriptor[1] - 65536 if descriptor[1] > 32767 and least < 0 else descriptor[1]
    shades = entries[:count].astype(np.float32) / np.float32(2 ** descriptor[2] - 1)
    return LookupTable(first, np.clip(shades, 0, 1))
