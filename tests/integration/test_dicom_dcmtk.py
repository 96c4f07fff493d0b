"""Real peers: DCMTK and our own sender against the listener."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from pydicom import dcmread

from listeners.dicom.echo import echo
from listeners.dicom.send import find_items, partition, send_folder
from listeners.dicom.synthesize import StudyFacts, write_image
from services.runtime.errors import InvalidInput, Transient
from tests.dicom_listener import ACQUIRED, EXPLICIT, PACKAGED, SC, Listener, dcmtk, encoded, make


@pytest.fixture(scope="module")
def listener(tmp_path_factory, sqlite_template):
    folder = tmp_path_factory.mktemp("listener")
    shutil.copy(sqlite_template, folder / "database.sqlite")
    with Listener(folder / "state", f"sqlite:///{folder / 'database.sqlite'}", sop_classes=(SC,)) as running:
        yield running


@pytest.mark.dcmtk
def test_dcmtk_echo(listener):
    assert subprocess.run([dcmtk("echoscu"), "127.0.0.1", str(listener.port)], check=False, timeout=20).returncode == 0


@pytest.mark.dcmtk
@pytest.mark.parametrize("modality", ["MR", "CT", "CR", "DX"])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_dcmtk_reads_and_sends_synthesised_images(listener, tmp_path, modality, depth):
    path = tmp_path / "image.dcm"
    image = np.random.default_rng(1).integers(0, 250, (31, 33)).astype(depth)
    write_image(path, image, StudyFacts(modality, "P3", f"dcmtk-{modality}-{depth.__name__}", ACQUIRED))
    dumped = subprocess.run([dcmtk("dcmdump"), path], check=False, capture_output=True, text=True, timeout=20)
    assert (dumped.returncode, dumped.stderr) == (0, "")
    subprocess.run([dcmtk("storescu"), "-R", "127.0.0.1", str(listener.port), path], check=True, timeout=20)
    dataset = dcmread(path)
    row = listener.instance(dataset.SOPInstanceUID)
    assert (listener.archive / row.path).read_bytes().endswith(encoded(dataset))
    offset = int(dataset.get("RescaleIntercept", 0))
    assert np.array_equal(dataset.pixel_array.astype(int) + offset, image.astype(int) + offset)


OF_MANY_KINDS = (
    "CT_small.dcm",
    "693_J2KI.dcm",
    "GDCMJ2K_TextGBR.dcm",
    "MR_small_RLE.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "SC_jpeg_no_color_transform.dcm",
    "image_dfl.dcm",
)
"""Explicit VR, deflated, RLE, JPEG baseline and lossless, JPEG 2000 both. Big endian dcmsend turns over by itself."""


@pytest.mark.dcmtk
def test_dcmsend_sends_what_it_finds_as_it_lies_there(listener, tmp_path):
    for name in OF_MANY_KINDS:
        shutil.copy(PACKAGED / name, tmp_path)
    command = [dcmtk("dcmsend"), "-v", "--decompress-never", "+sd", "127.0.0.1", str(listener.port), tmp_path]
    sent = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert sent.returncode == 0, sent.stderr
    told = sent.stdout + sent.stderr
    assert re.search(rf"with status SUCCESS\s*: {len(OF_MANY_KINDS)}\b", told), told
    for name in OF_MANY_KINDS:
        source = dcmread(PACKAGED / name)
        kept = dcmread(listener.archive / listener.instance(source.SOPInstanceUID).path)
        assert kept.file_meta.TransferSyntaxUID == source.file_meta.TransferSyntaxUID
        assert kept.PixelData == source.PixelData


@pytest.mark.dcmtk
@pytest.mark.parametrize("tool", ["findscu", "movescu", "getscu"])
def test_questions_are_refused_at_once_and_the_log_says_so(listener, tool, caplog):
    caplog.set_level("INFO")
    key = ["-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2.3"]
    asked = [dcmtk(tool), "-S", *key, "127.0.0.1", str(listener.port)]
    assert subprocess.run(asked, check=False, capture_output=True, timeout=20).returncode != 0
    assert "1.2.840.10008.5.1.4.1.2.2" in next(text for text in caplog.messages if text.startswith("DCM-324"))


def test_echo_knows_a_silent_port(listener, free_port):
    assert echo("127.0.0.1", listener.port, called_ae="ANY")
    assert not echo("127.0.0.1", free_port, called_ae="ANY", timeout_s=1)


def test_sender_says_what_is_wrong(listener, tmp_path, free_port):
    with pytest.raises(FileNotFoundError):
        send_folder(tmp_path / "absent", "127.0.0.1", listener.port)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InvalidInput, match="no DICOM files"):
        send_folder(tmp_path, "127.0.0.1", listener.port)
    make("sender", tmp_path)
    with pytest.raises(Transient, match="nobody"):
        send_folder(tmp_path, "127.0.0.1", free_port)
    seen = []
    summary = send_folder(tmp_path, "127.0.0.1", listener.port, on_progress=lambda done, total: seen.append((done, total)))
    assert summary.complete
    assert seen == [(1, 1)]
    assert [path.name for path, _ in summary.skipped] == ["notes.txt"]
    assert "1 of 1 files stored" in summary.text()


def test_more_contexts_than_one_association_holds(tmp_path):
    skipped = []
    items = list(find_items(PACKAGED / "MR_small.dcm", skipped)) * 300
    spread = [type(item)(item.path, (f"1.2.{number}", EXPLICIT)) for number, item in enumerate(items)]
    shares = partition(spread, 2)
    assert sum(map(len, shares)) == 300
    assert all(len({item.pair for item in share}) <= 128 for share in shares)
