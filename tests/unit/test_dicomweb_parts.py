"""Parts and outcomes of STOW-RS without network: no bytes are too odd for the file meta reader, every outcome has its status."""

import contextlib
import struct
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from listeners.dicom import answers
from listeners.dicomweb import outcome
from listeners.dicomweb.outcome import Outcome, Result
from listeners.dicomweb.part10 import FileMeta, NotPart10, pieces_of, read_meta, study_of
from services.assembly.headers import MissingElement, UnreadableHeader

WHOLE = Path(str(get_testdata_file("MR_small.dcm", download=False))).read_bytes()
META = FileMeta("1.2.3", "1.2.3.4", "1.2.840.10008.1.2.1", 0)


def test_a_file_is_taken_apart_without_a_byte_lost():
    file = BytesIO(WHOLE)
    meta = read_meta(file)
    expected = pydicom.dcmread(BytesIO(WHOLE))
    assert meta.sop_class_uid == expected.file_meta.MediaStorageSOPClassUID
    assert meta.sop_instance_uid == expected.file_meta.MediaStorageSOPInstanceUID
    assert meta.transfer_syntax_uid == expected.file_meta.TransferSyntaxUID
    assert WHOLE[: meta.offset] + b"".join(pieces_of(file, meta)) == WHOLE
    assert study_of(file, meta) == expected.StudyInstanceUID


def test_the_study_is_read_as_it_will_be_filed():
    """A UID that comes again behind the pixels is no way to have an object filed under another study than it is posted to."""
    again = struct.pack("<HH2sH", 0x0020, 0x000D, b"UI", 6) + b"9.9.99"
    with pytest.raises(UnreadableHeader, match="repeated"):
        study_of(BytesIO(WHOLE + again), read_meta(BytesIO(WHOLE)))


@given(
    st.one_of(
        st.binary(max_size=400),
        st.builds(lambda tail: WHOLE[:132] + tail, st.binary(max_size=300)),
        st.builds(
            lambda at, bits, end: WHOLE[:at] + bits + WHOLE[at + len(bits) : end],
            st.integers(128, 400),
            st.binary(min_size=1, max_size=12),
            st.integers(0, len(WHOLE)),
        ),
    )
)
def test_no_bytes_are_too_odd(data):
    file = BytesIO(data)
    try:
        meta = read_meta(file)
    except NotPart10:
        return
    assert all(isinstance(uid, str) for uid in (meta.sop_class_uid, meta.sop_instance_uid, meta.transfer_syntax_uid))
    with contextlib.suppress(UnreadableHeader, MissingElement):
        assert isinstance(study_of(file, meta), str)


@pytest.mark.parametrize(
    ("given_answers", "status"),
    [
        ([], 400),
        ([answers.STORED], 200),
        ([answers.STORED, answers.RESENT], 200),
        ([answers.STORED, answers.CONFLICT], 202),
        ([answers.STORED, outcome.BROKEN_BODY], 202),
        ([outcome.BROKEN_BODY], 400),
        ([answers.CONFLICT, outcome.BROKEN_BODY], 400),
        ([answers.CONFLICT], 409),
        ([answers.DISK_FULL], 507),
        ([answers.DISK_FULL, answers.INDEX_AWAY], 503),
        ([answers.STORAGE_AWAY], 503),
        ([answers.INDEX_AWAY, answers.CONFLICT], 409),
        ([outcome.TOO_LARGE, answers.TOO_LARGE], 413),
        ([outcome.STUDY_MISMATCH, outcome.CLASS_NOT_SUPPORTED], 409),
    ],
)
def test_the_status_follows_from_all_answers(given_answers, status):
    assert Outcome([Result(answer, META) for answer in given_answers]).status() == status


def test_only_valid_uids_are_repeated():
    bad = FileMeta("CANARY^NAME", "x" * 100, "1.2", 0)
    said = Outcome([Result(answers.CONFLICT, bad), Result(answers.STORED, META), Result(outcome.NO_DICOM)]).as_json()
    assert "CANARY" not in str(said)
    assert said["00081199"]["Value"][0]["00081155"]["Value"] == ["1.2.3.4"]
    assert said["0008119A"]["Value"][0]["00081197"]["Value"] == [0xC000]
