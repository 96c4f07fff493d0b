"""Looking for studies and fetching them: Orthanc as the PACS, DCMTK as the second opinion, and PACS that misbehave."""

import re
import subprocess
import threading
import time
from datetime import date

import pytest
from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.presentation import build_context

from listeners.dicom.peers import verify
from listeners.dicom.presentation import VERIFICATION
from listeners.dicom.query import StudyQuery, find_series, find_studies
from listeners.dicom.synthesize import study_instance_uid
from schemas.settings import PeerSettings
from services.runtime import scu
from services.runtime.errors import InvalidInput
from services.runtime.scu import Peer, PeerAway, PeerLost, PeerRefuses
from tests.dicom_listener import dcmtk
from tests.pacs_site import QUICK, reclaim, running_site, scp
from tests.pacs_world import port


@pytest.fixture(scope="module")
def site(tmp_path_factory, sqlite_template):
    with running_site(tmp_path_factory.mktemp("site"), sqlite_template) as made:
        yield made


def test_known_peers_are_found_by_name_and_title():
    known = {
        "pacs": PeerSettings(ae_title="PACS", host="a"),
        "night": PeerSettings(ae_title="TWIN", host="b"),
        "day": PeerSettings(ae_title="TWIN", host="c"),
    }
    assert scu.peer(known, "pacs") == scu.peer(known, "PACS") == Peer("pacs", "PACS", "a", 104)
    with pytest.raises(InvalidInput, match=r"'pasc'; known \(dicom.peers\): day, night, pacs"):
        scu.peer(known, "pasc")
    with pytest.raises(InvalidInput, match="several peers: say day or night"):
        scu.peer(known, "TWIN")
    with pytest.raises(InvalidInput, match=r"\[dicom.peers.pacs\]"):
        scu.peer({}, "pacs")


def test_echo_says_what_is_wrong(site, tmp_path):
    assert 0 < verify(site.peer, "RECLAIM") < 5
    with pytest.raises(PeerAway, match="nobody who speaks DICOM"):
        verify(Peer("x", "X", "127.0.0.1", port()), "RECLAIM")
    with scp({}, require_called_aet=True) as number, pytest.raises(PeerRefuses, match="enter our AE title"):
        verify(Peer("x", "WRONG", "127.0.0.1", number), "RECLAIM")


def test_a_peer_that_accepts_and_falls_silent_ends_after_the_time_out():
    with scp({evt.EVT_C_ECHO: lambda _event: time.sleep(3) or 0x0000}) as number:
        began = time.monotonic()
        with pytest.raises(PeerLost, match="in time"):
            verify(Peer("x", "TEST", "127.0.0.1", number), "RECLAIM", QUICK)
        assert time.monotonic() - began < 2.5


class LateReactor(threading.Event):
    """Holds the library's thread back between its being let go and its look at the queue, as a busy machine does."""

    def wait(self, timeout=None):
        reached = super().wait(timeout)
        time.sleep(0.005)
        return reached


def test_no_answer_is_lost_to_the_library_s_own_thread():
    with scp({}) as number:
        peer = Peer("x", "TEST", "127.0.0.1", number)
        with scu.association(peer, [build_context(VERIFICATION)], calling_ae="RECLAIM", timeouts=QUICK) as opened:
            late = LateReactor()
            late.set()
            opened._reactor_checkpoint = late
            for _ in range(100):
                assert opened.send_c_echo().get("Status") == 0x0000


def test_studies_and_series_are_found(site):
    found = find_studies(site.peer, StudyQuery(patient_id="PAT-1"), calling_ae="RECLAIM")
    assert [each.study_uid for each in found] == [study_instance_uid(seed) for seed in ("now", "prior2", "prior1", "prior0")]
    newest = found[0]
    assert (newest.study_date, newest.modalities, newest.instances, newest.series) == (date(2026, 3, 2), ("CT",), 3, 1)
    assert newest.patient_name == "Meier^Anna"
    assert "Meier" not in repr(found)
    assert "PAT-1" not in repr(found)
    assert "ACC-1" not in repr(found)
    assert find_studies(site.peer, StudyQuery(accession_number="ACC-1"), calling_ae="RECLAIM") == [newest]
    before = find_studies(site.peer, StudyQuery(patient_id="PAT-1", until=date(2022, 12, 31)), calling_ae="RECLAIM")
    assert len(before) == 3
    only = find_studies(site.peer, StudyQuery(patient_id="PAT-1", modality="MR"), calling_ae="RECLAIM")
    assert [each.modalities for each in only] == [("MR",)]
    (series,) = find_series(site.peer, newest.study_uid, calling_ae="RECLAIM")
    assert (series.modality, series.instances) == ("CT", 3)


@pytest.mark.dcmtk
def test_dcmtk_finds_the_same(site):
    command = [dcmtk("findscu"), "-v", "-S", "-aec", "PACS", "127.0.0.1", str(site.pacs.port), "-k", "QueryRetrieveLevel=STUDY"]
    keys = ["-k", "PatientID=PAT-1", "-k", "StudyInstanceUID"]
    told = subprocess.run([*command, *keys], capture_output=True, text=True, check=True, timeout=60)
    theirs = set(re.findall(r"\(0020,000d\) UI \[([0-9.]+)", told.stdout + told.stderr, re.IGNORECASE))
    ours = find_studies(site.peer, StudyQuery(patient_id="PAT-1"), calling_ae="RECLAIM")
    assert theirs == {each.study_uid for each in ours}


@pytest.mark.parametrize("wrong", [{}, {"modality": "CT"}, {"patient_id": "A*"}, {"study_uid": "1.2\\1.3"}, {"study_uid": "1.2.x"}])
def test_a_question_too_wide_is_not_asked(wrong):
    with pytest.raises(InvalidInput):
        StudyQuery(**wrong)


def test_answers_that_do_not_fit_the_question_are_dropped():
    def on_find(event):
        for number, patient in enumerate(["PAT-1", "PAT-9", ""]):
            match = Dataset()
            match.StudyInstanceUID, match.PatientID, match.StudyDate = f"1.2.{number}", patient, "rubbish!"
            yield 0xFF00, match
        match = Dataset()
        match.StudyInstanceUID, match.PatientID = "../../x", "PAT-1"
        yield 0xFF00, match

    with scp({evt.EVT_C_FIND: on_find}) as number:
        found = find_studies(Peer("x", "TEST", "127.0.0.1", number), StudyQuery(patient_id="PAT-1"), calling_ae="RECLAIM")
    assert [(each.study_uid, each.study_date) for each in found] == [("1.2.0", None)]


def test_a_query_ends_at_its_limit():
    cancelled = threading.Event()

    def on_find(event):
        for number in range(1, 2000):
            if event.is_cancelled:
                cancelled.set()
                yield 0xFE00, None
                return
            match = Dataset()
            match.StudyInstanceUID, match.PatientID = f"1.2.{number}", "P"
            time.sleep(0.005)
            yield 0xFF00, match

    with scp({evt.EVT_C_FIND: on_find}) as number:
        found = find_studies(Peer("x", "TEST", "127.0.0.1", number), StudyQuery(patient_id="P"), calling_ae="RECLAIM", most=3)
    assert len(found) == 3
    assert cancelled.is_set()


@pytest.mark.parametrize(("status", "words"), [(0xA700, "narrow the question"), (0xC001, "administrator"), (0xA900, "defect")])
def test_a_failed_query_says_what_to_do(status, words):
    with scp({evt.EVT_C_FIND: lambda _event: iter([(status, None)])}) as number, pytest.raises(PeerRefuses, match=words) as refusal:
        find_studies(Peer("x", "TEST", "127.0.0.1", number), StudyQuery(patient_id="P"), calling_ae="RECLAIM")
    assert f"{status:04X}" in str(refusal.value)


def test_a_query_cut_short_is_no_answer():
    def on_find(event):
        match = Dataset()
        match.StudyInstanceUID, match.PatientID = "1.2.3", "P"
        yield 0xFF00, match
        event.assoc.abort()

    with scp({evt.EVT_C_FIND: on_find}) as number, pytest.raises(PeerLost):
        find_studies(Peer("x", "TEST", "127.0.0.1", number), StudyQuery(patient_id="P"), calling_ae="RECLAIM", timeouts=QUICK)


def test_find_prints_no_identity_unless_asked(site, monkeypatch):
    code, told = reclaim(site, "find", "pacs", "--patient", "-", monkeypatch=monkeypatch, stdin="PAT-1\n")
    assert code == 0
    assert study_instance_uid("now") in told
    assert not any(secret in told for secret in ("Meier", "PAT-1", "ACC-1"))
    _, told = reclaim(site, "find", "PACS", "--accession", "ACC-1", "--identities", "--series", monkeypatch=monkeypatch)
    assert all(shown in told for shown in ("Meier^Anna", "PAT-1", "ACC-1", "series UID"))


def test_list_and_echo(site, monkeypatch):
    assert "127.0.0.1" in reclaim(site, "list", monkeypatch=monkeypatch)[1]
    code, told = reclaim(site, "echo", monkeypatch=monkeypatch)
    assert (code, "answers in" in told) == (0, True)
