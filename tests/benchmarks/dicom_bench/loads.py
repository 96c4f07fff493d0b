"""What is sent: CT slices, small MR images and large DX images built on pydicom's real files, every object different."""

import hashlib
import struct
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
import pydicom
from dicom_bench.scu import Item
from pydicom.data import get_testdata_file

_ROOT: Final = "1.2.826.0.1.3680043.10.1466"
_META_START: Final = 132
_SPAN: Final = 100_000
DX_CLASS: Final = "1.2.840.10008.5.1.4.1.1.1.1"


@dataclass(frozen=True)
class Kind:
    """A sort of object: `side` x `side` 16-bit pixels on the header of one of pydicom's files."""

    name: str
    template: str
    modality: str
    side: int


KINDS: Final = {
    "CT": Kind("CT", "CT_small.dcm", "CT", 512),
    "MR": Kind("MR", "MR_small.dcm", "MR", 64),
    "DX": Kind("DX", "CT_small.dcm", "DX", 2000),
}


@dataclass(frozen=True)
class Sample:
    """One file to send, and what its data set hashes to. `size` is of the data set."""

    path: Path
    sop_class: str
    sop_instance: str
    syntax: str
    digest: str
    size: int

    def item(self) -> Item:
        """The object for our own SCU."""
        content = self.path.read_bytes()
        return Item(self.sop_class, self.sop_instance, self.syntax, content[dataset_offset(content) :])


class Template:
    """Encoded data set of a kind into which UIDs and pixels are put: thousands of objects without encoding each."""

    def __init__(self, kind: Kind, *, side: int | None = None) -> None:
        self.kind = kind
        dataset = _dataset(kind, side or kind.side)
        self.study, self.series, self.instance = (self._uid(name, 0, 0) for name in ("study", "series", "instance"))
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = self.study, self.series, self.instance
        dataset.file_meta.MediaStorageSOPInstanceUID = self.instance
        self.sop_class, self.syntax = str(dataset.SOPClassUID), str(dataset.file_meta.TransferSyntaxUID)
        encoded = BytesIO()
        dataset.save_as(encoded)
        self.file = encoded.getvalue()
        self.pixels = len(dataset.PixelData)
        self._noise = np.random.default_rng(len(kind.name)).integers(0, 4000, self.pixels, dtype=np.uint16).tobytes()

    def file_of(self, study: int, number: int) -> bytes:
        """A Part 10 file; (study, number) decide its UIDs and its pixels. Both below 100,000."""
        names = ((self.study, "study"), (self.series, "series"), (self.instance, "instance"))
        header = self.file[: -self.pixels]
        for old, name in names:
            header = header.replace(old.encode(), self._uid(name, study, number).encode())
        start = (study * 7919 + number * 104_729) % (self.pixels // 2) * 2
        return header + struct.pack("<LL", study, number) + self._noise[start : start + self.pixels - 8]

    def item(self, study: int, number: int) -> Item:
        """The object without file meta information."""
        content = self.file_of(study, number)
        return Item(self.sop_class, self._uid("instance", study, number), self.syntax, content[dataset_offset(content) :])

    def uid_of_study(self, study: int) -> str:
        """StudyInstanceUID of the objects of that study."""
        return self._uid("study", study, 0)

    def _uid(self, level: str, study: int, number: int) -> str:
        """Always the same length, so that replacing one changes no element's length."""
        of = {"study": 1, "series": 2, "instance": 3}[level]
        last = number if level == "instance" else 0
        return f"{_ROOT}.{ord(self.kind.name[0])}.{of}.{_SPAN + study}.{_SPAN + last}"


def _dataset(kind: Kind, side: int) -> pydicom.FileDataset:
    dataset = pydicom.dcmread(get_testdata_file(kind.template))
    dataset.Rows = dataset.Columns = side
    dataset.Modality = kind.modality
    if kind.name == "DX":
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = DX_CLASS
        dataset.PixelRepresentation = 0
    dataset.pop("DataSetTrailingPadding", None)
    dataset.PixelData = bytes(2 * side * side)
    for element in [element for element in dataset if element.tag > 0x7FE00010]:
        del dataset[element.tag]
    return dataset


def write_load(kind: str, count: int, folder: Path, studies: int = 5) -> list[Sample]:
    """Write `count` files of a kind, spread over studies."""
    folder.mkdir(parents=True, exist_ok=True)
    template = Template(KINDS[kind])
    samples = []
    for number in range(count):
        path = folder / f"{number:05d}.dcm"
        path.write_bytes(template.file_of(number % studies, number))
        samples.append(sample_of(path))
    return samples


def sample_of(path: Path) -> Sample:
    """Describe a Part 10 file; raises ValueError where it is none."""
    content = path.read_bytes()
    offset = dataset_offset(content)
    meta = dict(_meta(content[_META_START:offset]))
    names = (meta.get(element, b"").rstrip(b"\0 ").decode("ascii", "replace") for element in (0x02, 0x03, 0x10))
    return Sample(path, *names, hashlib.sha256(content[offset:]).hexdigest(), len(content) - offset)


def dataset_offset(content: bytes) -> int:
    """Where the data set starts behind the file meta information; ValueError where there is none."""
    if len(content) < _META_START + 12 or content[128:132] != b"DICM" or content[132:136] != b"\x02\0\0\0":
        raise ValueError("no DICOM file meta information")
    return _META_START + 12 + int(struct.unpack_from("<L", content, 140)[0])


def _meta(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + 8 <= len(data):
        _, element, vr, length = struct.unpack_from("<HH2sH", data, position)
        position += 8
        if vr in (b"OB", b"UN"):
            (length,) = struct.unpack_from("<L", data, position)
            position += 4
        yield element, data[position : position + length]
        position += length


def real_files(source: Path, folder: Path) -> list[Sample]:
    """Part 10 files of a folder and of zip archives in it, each SOP instance once; what is not readable stays out."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Sample] = {}
    for number, content in enumerate(_contents(source)):
        path = folder / f"{number:05d}.dcm"
        try:
            path.write_bytes(content)
            sample = sample_of(path)
            readable = pydicom.dcmread(path, stop_before_pixels=True)
        except Exception:  # noqa: BLE001 - a folder of real files holds anything
            continue
        if str(readable.get("SOPInstanceUID")) == sample.sop_instance and readable.get("StudyInstanceUID"):
            found.setdefault(sample.sop_instance, sample)
    return list(found.values())


def _contents(source: Path) -> Iterator[bytes]:
    for path in sorted(source.rglob("*")):
        if path.suffix == ".zip" and "malformed" not in path.name:
            with zipfile.ZipFile(path) as archive:
                yield from (archive.read(name) for name in sorted(archive.namelist()) if not name.endswith("/"))
        elif path.suffix.lower() in (".dcm", "") and path.is_file():
            yield path.read_bytes()


def total_bytes(samples: Iterable[Sample]) -> int:
    """Bytes of all data sets."""
    return sum(sample.size for sample in samples)
