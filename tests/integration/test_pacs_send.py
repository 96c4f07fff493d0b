"""`reclaim send` towards receivers that die, refuse, or accept only a part: every file is in the tally."""

import subprocess
import time
from contextlib import contextmanager

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from listeners.dicom import send
from listeners.dicom.send import NO_ANSWER, NOT_ACCEPTED, send_folder, send_to
from services.runtime.errors import InvalidInput
from services.runtime.scu import Peer
from tests.dicom_listener import dcmtk
from tests.pacs_world import make_study, port

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"


@pytest.fixture(autouse=True)
def short_delays(monkeypatch):
    monkeypatch.setattr(send, "RETRY_DELAYS_S", (0.05,))
    monkeypatch.setattr(send, "RECONNECT_DELAYS_S", (0.05, 0.05, 0.05))


@contextmanager
def receiver(on_store, sop_classes=(CT, MR)):
    """A pynetdicom SCP whose every answer the test decides."""
    ae = AE("TEST")
    for uid in sop_classes:
        ae.add_supported_context(uid)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)])
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


@pytest.mark.dcmtk
def test_a_receiver_that_dies_midway_leaves_a_whole_tally(tmp_path):
    make_study(tmp_path / "in", "dies", count=12)
    store, number = tmp_path / "store", port()
    store.mkdir()
    command = [dcmtk("storescp"), "-od", str(store), str(number)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _answers(number)
        summary = send_folder(
            tmp_path / "in", "127.0.0.1", number, on_progress=lambda done, _total: process.kill() if done == 5 else None
        )
    finally:
        process.kill()
        process.wait()
    assert 5 <= summary.stored < 12
    assert summary.outcomes == {"0000": summary.stored, NO_ANSWER: 12 - summary.stored}
    assert not summary.complete
    assert f"{summary.stored} of 12 files stored." in summary.text()


@pytest.mark.dcmtk
def test_a_receiver_that_comes_back_gets_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(send, "RECONNECT_DELAYS_S", (0.3, 0.6, 2.0))
    make_study(tmp_path / "in", "back", count=12)
    store, number, lives = tmp_path / "store", port(), []
    store.mkdir()

    def start():
        command = [dcmtk("storescp"), "-od", str(store), str(number)]
        lives.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def restart(done, _total):
        if done == 5 and len(lives) == 1:
            lives[0].kill()
            lives[0].wait()
            start()

    try:
        start()
        _answers(number)
        summary = send_folder(tmp_path / "in", "127.0.0.1", number, on_progress=restart)
    finally:
        for process in lives:
            process.kill()
            process.wait()
    assert summary.complete, summary.text()
    assert len(list(store.iterdir())) == 12


def test_one_file_that_breaks_the_association_does_not_keep_the_others_back(tmp_path):
    paths = make_study(tmp_path, "poison", count=6)
    seen = []

    def on_store(event):
        seen.append(str(event.request.AffectedSOPInstanceUID))
        if event.dataset.InstanceNumber == 2:
            event.assoc.dul.socket.close()
        return 0x0000

    with receiver(on_store) as number:
        summary = send_folder(tmp_path, "127.0.0.1", number)
    assert summary.outcomes == {"0000": len(paths) - 1, NO_ANSWER: 1}
    assert len(seen) == len(paths) + 1, "the file is tried twice, the others once"


@pytest.mark.parametrize(("status", "attempts", "stored"), [(0x0110, 2, True), (0xA700, 2, True), (0xC000, 1, False)])
def test_what_may_pass_is_tried_again_on_a_new_association(tmp_path, status, attempts, stored):
    make_study(tmp_path, "again", count=3)
    associations, tries = set(), []

    def on_store(event):
        associations.add(event.assoc)
        if event.dataset.InstanceNumber != 2:
            return 0x0000
        tries.append(event.assoc)
        response = Dataset()
        response.Status = status if len(set(tries)) < 2 else 0x0000
        response.ErrorComment = "busy\x07"
        return response

    with receiver(on_store) as number:
        summary = send_folder(tmp_path, "127.0.0.1", number)
    assert len(associations) == attempts
    assert summary.complete is stored
    assert "\x07" not in summary.text()


def test_a_status_that_stays_ends_in_the_tally(tmp_path):
    make_study(tmp_path, "stays", count=2)
    with receiver(lambda _event: 0xA700) as number:
        summary = send_folder(tmp_path, "127.0.0.1", number)
    assert summary.outcomes == {"A700": 2}


def test_types_that_the_receiver_does_not_accept_are_named(tmp_path):
    make_study(tmp_path, "ct", count=2)
    make_study(tmp_path, "mr", count=1, modality="MR")
    with receiver(lambda _event: 0x0000, (MR,)) as number:
        summary = send_folder(tmp_path, "127.0.0.1", number)
        assert summary.outcomes == {"0000": 1, NOT_ACCEPTED: 2}
        assert "CT Image Storage, Explicit VR Little Endian" in summary.text()
        (tmp_path / "mr-0.dcm").unlink()
        with pytest.raises(InvalidInput, match="none of the proposed types") as refusal:
            send_to(Peer("x", "TEST", "127.0.0.1", number), tmp_path, calling_ae="RECLAIM_SCU")
    assert str(number) in str(refusal.value)
    assert "proposed were 2 of CT Image Storage, Explicit VR Little Endian" in str(refusal.value)


def test_every_refused_type_is_named_with_its_count_and_every_reason_to_skip_a_file(tmp_path):
    make_study(tmp_path, "ct", count=3)
    make_study(tmp_path, "mr", count=1, modality="MR")
    for number, modality in enumerate(("DX", "DX", "CR")):
        make_study(tmp_path, f"film{number}", count=1, modality=modality)
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").write_text("text")
    (tmp_path / "half.dcm").write_bytes(bytes(128) + b"DICM")
    with receiver(lambda _event: 0x0000, (MR,)) as number:
        summary = send_folder(tmp_path, "127.0.0.1", number)
    told = summary.text().splitlines()
    assert told[:2] == ["1 of 7 files stored.", f"6 with {NOT_ACCEPTED}"]
    refused = {line.split(" Image Storage")[0].strip() for line in told[2:5]}
    assert refused == {"3 of CT", "2 of Digital X-Ray", "1 of Computed Radiography"}
    assert told[5].startswith("2 other files skipped, e.g. a.txt: no DICM prefix")
    assert told[6].startswith("1 other file skipped, e.g. half.dcm: ")
    assert len(told) == 7


def test_more_than_128_pairs_go_over_several_associations(tmp_path):
    """As real types are too few, the files' own pairs are spread over private classes that the receiver accepts."""
    classes = [f"1.2.826.0.1.3680043.9.7777.{number}" for number in range(130)]
    (source,) = make_study(tmp_path, "spread", count=1)
    from pydicom import dcmread

    for number, uid in enumerate(classes):
        dataset = dcmread(source)
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = uid
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = f"1.2.3.{number + 1}"
        dataset.save_as(tmp_path / f"{number}.dcm")
    source.unlink()
    associations = set()
    ae = AE("TEST")
    ae.supported_contexts = []
    from pynetdicom import _config

    _config.UNRESTRICTED_STORAGE_SERVICE = True

    def on_store(event):
        associations.add(event.assoc)
        return 0x0000

    try:
        ae.add_supported_context(CT)
        server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)])
        summary = send_folder(tmp_path, "127.0.0.1", server.server_address[1])
        server.shutdown()
    finally:
        _config.UNRESTRICTED_STORAGE_SERVICE = False
    assert summary.outcomes == {"0000": 130}
    assert len(associations) == 2


def _answers(number):
    from listeners.dicom.echo import echo

    for _ in range(100):
        if echo("127.0.0.1", number, called_ae="ANY", timeout_s=1):
            return
        time.sleep(0.05)
    raise AssertionError("storescp did not start")
