"""The walk over a data set's structure: every packaged file passes, every cut is found, no bytes crash it."""

import contextlib
import io
import struct
import zlib
from pathlib import Path

import pydicom.data
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian

from listeners.dicom.file_meta import encode_file_meta
from services.assembly import pydicom_reading
from services.assembly.files import layout_of
from services.assembly.headers import UnreadableHeader, read_facts
from services.assembly.reindex import read_stored
from services.assembly.sources import BrokenStructureError, BytesSource
from services.assembly.structure import check_structure, plain_source

FOLDER = Path(pydicom.data.__file__).parent / "test_files"
WHOLE = (
    "CT_small.dcm",
    "MR_small.dcm",
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_implicit.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "MR_small_padded.dcm",
    "JPEG2000-embedded-sequence-delimiter.dcm",
    "SC_rgb_rle_2frame.dcm",
    "image_dfl.dcm",
    "liver_1frame.dcm",
    "liver_expb_1frame.dcm",
    "rtplan.dcm",
    "test-SR.dcm",
    "examples_overlay.dcm",
)
SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")


def read(name):
    path = FOLDER / name
    syntax = str(dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID)
    return path.read_bytes()[layout_of(path).dataset_offset :], syntax


def check(data, syntax):
    check_structure(*plain_source(BytesSource(data), syntax))


@pytest.mark.parametrize("name", WHOLE)
def test_whole_files_pass(name):
    check(*read(name))


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.999])
def test_a_cut_is_found(name, share):
    data, syntax = read(name)
    at = int(len(data) * share)
    if name == "image_dfl.dcm" and share > 0.99:
        at -= 9  # inside the deflated stream, before its trailer
    cut = data[:at]
    try:
        check(cut, syntax)
    except BrokenStructureError:
        return
    assert _ends_between_elements(data, cut, syntax), "a cut inside an element passed"


def _ends_between_elements(data, cut, syntax):
    """A cut exactly between two elements is a shorter, whole data set: only then may it pass."""
    try:
        check(data[len(cut) :], syntax)
    except BrokenStructureError:
        return False
    return True


@pytest.mark.parametrize("name", ["MR_truncated.dcm", "rtplan_truncated.dcm"])
def test_packaged_broken_files_are_found(name):
    with pytest.raises(BrokenStructureError):
        check(*read(name))


@given(st.binary(max_size=400), st.sampled_from(SYNTAXES))
def test_any_bytes_end_in_an_answer(data, syntax):
    with contextlib.suppress(BrokenStructureError):
        check(data, syntax)


@settings(max_examples=60)
@given(st.data())
def test_changed_bytes_of_a_real_file_end_in_an_answer(data):
    original, syntax = read(data.draw(st.sampled_from(["liver_1frame.dcm", "MR_small_RLE.dcm", "test-SR.dcm"])))
    changed = bytearray(original[:6000])
    for position in data.draw(st.lists(st.integers(0, len(changed) - 1), max_size=8)):
        changed[position] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BrokenStructureError):
        check(bytes(changed), syntax)


def test_nesting_has_a_bound():
    opening = struct.pack("<HH2s2xL", 0x0040, 0xA730, b"SQ", 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    with pytest.raises(BrokenStructureError, match="nested"):
        check_structure(opening * 5000, "1.2.840.10008.1.2.1")


def test_a_sequence_of_undefined_length_inside_un_is_implicit():
    inner = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + struct.pack("<HHL", 0x0008, 0x0060, 2) + b"MR"
    ends = struct.pack("<HHL", 0xFFFE, 0xE00D, 0) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    check_structure(struct.pack("<HH2s2xL", 0x0029, 0x1010, b"UN", 0xFFFFFFFF) + inner + ends, "1.2.840.10008.1.2.1")


def test_a_deflated_bomb_is_refused(monkeypatch):
    monkeypatch.setattr("services.assembly.sources.FREE_INFLATED_BYTES", 1 << 16)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    header = struct.pack("<HH2s2xL", 0x7FE0, 0x0010, b"OW", 1 << 20)
    bomb = deflater.compress(header + bytes(1 << 20)) + deflater.flush()
    with pytest.raises(BrokenStructureError, match="larger"):
        check(bomb, "1.2.840.10008.1.2.1.99")


@given(st.lists(st.sampled_from(["PatientID", "StudyID", "AccessionNumber", "SeriesDescription"]), unique=True), st.booleans())
def test_what_pydicom_writes_passes(keywords, undefined):
    item = Dataset()
    item.CodeValue = "1"
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    for keyword in keywords:
        setattr(dataset, keyword, "x")
    dataset.ProcedureCodeSequence = [item]
    dataset["ProcedureCodeSequence"].is_undefined_length = undefined
    item.is_undefined_length_sequence_item = undefined
    out = io.BytesIO()
    dcmwrite(out, dataset, implicit_vr=False, little_endian=True)
    check_structure(out.getvalue(), str(ExplicitVRLittleEndian))


UIDS = {0x00080016: b"1.2.84", 0x00080018: b"1.2.33", 0x0020000D: b"1.2.44"}
SERIES = (0x0020000E, b"1.2.55")


def explicit(*elements):
    return b"".join(struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, b"UI", len(value)) + value for tag, value in elements)


def implicit(*elements):
    return b"".join(struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value for tag, value in elements)


@pytest.mark.parametrize(("encode", "syntax"), [(implicit, SYNTAXES[0]), (explicit, SYNTAXES[1])])
@pytest.mark.parametrize(
    "elements",
    [
        (*UIDS.items(), SERIES, SERIES),
        (*UIDS.items(), SERIES, (0x0020000D, b"1.2.99")),
        (*UIDS.items(), (0x00280010, b"\1\0"), SERIES),
        (*UIDS.items(), (0x0020000F, b"1.2."), SERIES),
    ],
    ids=["repeated", "repeated behind another", "behind a later group", "behind a later element"],
)
def test_what_readers_disagree_about_is_refused(encode, syntax, elements):
    with pytest.raises(UnreadableHeader, match="repeated"):
        read_facts(BytesSource(encode(*elements)), syntax)


@pytest.mark.parametrize(("encode", "syntax"), [(implicit, SYNTAXES[0]), (explicit, SYNTAXES[1])])
def test_disorder_elsewhere_is_let_pass(encode, syntax):
    data = encode((0x00080070, b"X "), (0x00080008, b"X "), (0x00100020, b"P1"), (0x00280011, b"XX"), (0x00280010, b"XX"))
    assert check_structure(data, syntax, {0x00100020}, 0x0020) == {0x00100020: b"P1"}


def test_a_length_that_reads_as_a_vr_changes_nothing():
    first = struct.pack("<HHL", 0x0008, 0x0005, 0x4144) + b" " * 0x4144
    assert read_facts(BytesSource(first + implicit(*UIDS.items(), SERIES)), SYNTAXES[0]).study_uid == "1.2.44"


def test_only_the_values_of_the_index_are_decoded(monkeypatch):
    """Text beyond ASCII needs pydicom, which must never see what else a sender put beside it."""
    seen = []
    ordinary = pydicom_reading.read_dataset
    monkeypatch.setattr(
        pydicom_reading, "read_dataset", lambda stream, **how: seen.append(len(stream.getvalue())) or ordinary(stream, **how)
    )
    items = struct.pack("<HHL", 0xFFFE, 0xE000, 0) * 10_000 + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    sequence = struct.pack("<HH2s2xL", 0x0008, 0x1140, b"SQ", 0xFFFFFFFF) + items
    uids = tuple(UIDS.items())
    data = explicit((0x00080005, b"ISO_IR 100"), *uids[:2]) + sequence + explicit((0x00100020, b"P\xe9"), *uids[2:], SERIES)
    assert read_facts(BytesSource(data), SYNTAXES[1]).patient_id == "P\u00e9"
    assert max(seen) < 1000


@pytest.mark.parametrize(
    ("data", "syntax"),
    [
        (struct.pack("<HH2sH", 0x0009, 0x1001, b"LO", 0) * 4000, SYNTAXES[1]),
        (struct.pack("<HHL", 0x0009, 0x1001, 0) * 4000, SYNTAXES[0]),
        (
            struct.pack("<HH2s2xL", 0x0008, 0x1140, b"SQ", 0xFFFFFFFF)
            + struct.pack("<HHL", 0xFFFE, 0xE000, 0) * 4000
            + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0),
            SYNTAXES[1],
        ),
        (
            (struct.pack("<HH2s2xL", 0x0008, 0x1140, b"SQ", 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)) * 4000,
            SYNTAXES[1],
        ),
    ],
    ids=["elements", "implicit elements", "items", "sequences"],
)
def test_the_steps_of_a_walk_are_bounded(data, syntax, monkeypatch):
    check(data, syntax)
    monkeypatch.setattr("services.assembly.structure.MOST_STEPS", 1000)
    with pytest.raises(BrokenStructureError, match="too many"):
        check(data, syntax)


def test_a_stored_file_is_read_as_at_its_reception(tmp_path):
    path, whole = tmp_path / "one.dcm", explicit(*UIDS.items(), SERIES)
    for data, fits in ((whole, True), (whole + explicit(SERIES), False), (whole[:-1], False)):
        path.write_bytes(encode_file_meta("1.2.84", "1.2.33", SYNTAXES[1], "SENDER") + data)
        if fits:
            stored = read_stored(path)
            assert (stored.facts.series_uid, stored.transfer_syntax_uid, stored.calling_ae, stored.size) == (
                "1.2.55",
                SYNTAXES[1],
                "SENDER",
                len(data),
            )
        else:
            with pytest.raises(UnreadableHeader):
                read_stored(path)
