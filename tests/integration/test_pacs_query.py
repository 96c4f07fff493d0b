"""Looking for studies and fetching them: Orthanc as the PACS, DCMTK as the second opinion, and PACS that misbehave."""

import asyncio
import json
import re
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.presentation import build_context
from sqlmodel import select
from typer.testing import CliRunner

from listeners.cli.context import console
from listeners.cli.main import app
from listeners.dicom.app import build
from listeners.dicom.peers import verify
from listeners.dicom.presentation import VERIFICATION
from listeners.dicom.query import STUDY_ROOT_FIND, StudyMatch, StudyQuery, find_series, find_studies
from listeners.dicom.retrieve import MOST_CONTEXTS, STUDY_ROOT_GET, STUDY_ROOT_MOVE, get_study, move_study, storage_contexts
from listeners.dicom.synthesize import study_instance_uid
from schemas.settings import DatabaseSettings, DicomSettings, PeerSettings, Settings
from schemas.tables import Instance
from services.assembly.files import layout_of
from services.runtime import scu
from services.runtime.clock import SystemClock
from services.runtime.database import Database
from services.runtime.errors import InvalidInput
from services.runtime.identity import Pseudonyms
from services.runtime.scu import Peer, PeerAcceptsNothing, PeerAway, PeerLost, PeerRefuses, Timeouts
from services.runtime.service import Context, StopSignal
from tests.pacs_world import Orthanc, make_study, port

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
QUICK = Timeouts(connect_s=2.0, answer_s=1.0)
needs_dcmtk = pytest.mark.skipif(shutil.which("movescu") is None, reason="NOT TESTED with DCMTK: no movescu on PATH")


class Site:
    """Our listener and archive beside a PACS that knows us."""

    def __init__(self, folder, sqlite_template):
        (folder / "state").mkdir(parents=True)
        database = folder / "state" / "reclaim.sqlite"
        shutil.copy(sqlite_template, database)
        self.url, self.port = f"sqlite:///{database}", port()
        self.pacs = Orthanc(folder / "pacs", {"RECLAIM": self.port})
        self.peer = Peer("pacs", "PACS", "127.0.0.1", self.pacs.port)
        dicom = DicomSettings(
            host="127.0.0.1",
            port=self.port,
            min_free_bytes=0,
            peers={"pacs": PeerSettings(ae_title="PACS", host="127.0.0.1", port=self.pacs.port)},
        )
        self.settings = Settings(state_dir=folder / "state", database=DatabaseSettings(url=self.url), dicom=dicom)
        self.database = Database(self.url, SystemClock())
        self.context = Context(self.settings, self.database, SystemClock(), Pseudonyms(b"k" * 32))

    @contextmanager
    def listening(self):
        ready = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)))
        thread.start()
        try:
            assert ready.wait(10)
            for _ in range(100):
                if (self.settings.state_dir / "run" / "dicom.json").exists():
                    break
                time.sleep(0.05)
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            thread.join(20)

    async def _serve(self, ready):
        self._loop, self._stop = asyncio.get_running_loop(), StopSignal()
        ready.set()
        workers = build(self.context).workers
        await asyncio.gather(*(worker.run(self._stop) for worker in workers if worker.name == "dicom"))

    def archived(self, study_uid):
        with self.database.read() as session:
            rows = session.exec(select(Instance).where(Instance.study_uid == study_uid)).all()
        return {row.sop_instance_uid: self.settings.archive_dir / row.path for row in rows}

    def environment(self):
        peers = {"pacs": {"ae_title": "PACS", "host": "127.0.0.1", "port": self.pacs.port}}
        return {
            "RECLAIM_STATE_DIR": str(self.settings.state_dir),
            "RECLAIM_PSEUDONYM_KEY": "k" * 32,
            "RECLAIM_DICOM_PORT": str(self.port),
            "RECLAIM_DICOM_MIN_FREE_BYTES": "0",
            "RECLAIM_DICOM_PEERS": json.dumps(peers),
            "COLUMNS": "250",
        }


@pytest.fixture(scope="module")
def site(tmp_path_factory, sqlite_template):
    folder = tmp_path_factory.mktemp("site")
    made = Site(folder, sqlite_template)
    with made.pacs:
        made.pacs.upload(*make_study(folder / "in", "now", count=3, accession_number="ACC-1"))
        for number, modality in enumerate(["CT", "MR", "CT"]):
            facts = {"acquired_at": made.context.clock.now().replace(2020 + number), "modality": modality}
            made.pacs.upload(*make_study(folder / "in", f"prior{number}", **facts))
        made.pacs.upload(*make_study(folder / "in", "other", patient_id="PAT-2", count=1))
        yield made
    made.database.close()


def reclaim(site, *arguments, monkeypatch, stdin=None):
    for name, value in site.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(console, "_width", 200)  # whatever terminal, or none, the tests run in
    result = CliRunner().invoke(app, ["pacs", *arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def same_data(archived, pacs):
    for uid, path in archived.items():
        kept = path.read_bytes()[layout_of(path).dataset_offset :]
        sent = pacs.file(uid)
        assert sent.endswith(kept), uid
    return True


# Peers


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


# Queries


@contextmanager
def scp(handlers, **options):
    ae = AE("TEST")
    for name, value in options.items():
        setattr(ae, name, value)
    for uid in (STUDY_ROOT_FIND, STUDY_ROOT_MOVE, "1.2.840.10008.1.1"):
        ae.add_supported_context(uid)
    if evt.EVT_C_GET in handlers:
        ae.add_supported_context(STUDY_ROOT_GET)
        ae.add_supported_context(CT, scu_role=True, scp_role=True)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=list(handlers.items()))
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


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
@needs_dcmtk
def test_dcmtk_finds_the_same(site):
    command = ["findscu", "-v", "-S", "-aec", "PACS", "127.0.0.1", str(site.pacs.port), "-k", "QueryRetrieveLevel=STUDY"]
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


# Retrieval


def test_contexts_never_exceed_what_an_association_holds():
    for count in (1, 2, 10, 63, 64, 100, 127):
        contexts = storage_contexts([f"1.2.{number}" for number in range(count)])
        assert count <= len(contexts) <= MOST_CONTEXTS
        assert len({each.abstract_syntax for each in contexts}) == count


def test_a_study_is_fetched_by_c_get(site, monkeypatch):
    uid = study_instance_uid("now")
    code, told = reclaim(site, "fetch", "pacs", "--study", uid, "--method", "get", monkeypatch=monkeypatch)
    assert code == 0, told
    assert "3 of 3 instances (C-GET)" in told
    archived = site.archived(uid)
    assert len(archived) == 3
    assert same_data(archived, site.pacs)
    code, told = reclaim(site, "fetch", "pacs", "--study", uid, monkeypatch=monkeypatch)
    assert (code, "1 of them here already" in told) == (0, True)


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "693_J2KI.dcm", "JPEG-lossy.dcm", "SC_rgb_jpeg_dcmtk.dcm"])
def test_compressed_studies_arrive_as_the_pacs_has_them(site, monkeypatch, name):
    path = get_testdata_file(name)
    source = dcmread(path)
    site.pacs.upload(Path(path))
    code, told = reclaim(site, "fetch", "pacs", "--study", str(source.StudyInstanceUID), "--method", "get", monkeypatch=monkeypatch)
    assert code == 0, told
    ((_, archived),) = [item for item in site.archived(source.StudyInstanceUID).items() if item[0] == source.SOPInstanceUID]
    assert dcmread(archived).file_meta.TransferSyntaxUID == source.file_meta.TransferSyntaxUID
    assert dcmread(archived).PixelData == source.PixelData


def test_a_study_is_fetched_by_c_move(site, monkeypatch):
    uid = study_instance_uid("other")
    with pytest.raises(Exception, match="start `reclaim up`"):
        reclaim(site, "fetch", "pacs", "--study", uid, "--method", "move", monkeypatch=monkeypatch)
    with site.listening():
        code, told = reclaim(site, "fetch", "pacs", "--study", uid, "--method", "move", monkeypatch=monkeypatch)
    assert code == 0, told
    assert "1 of 1 instances (C-MOVE)" in told
    assert same_data(site.archived(uid), site.pacs)


def test_priors_of_an_archived_study_are_fetched(site, monkeypatch):
    reclaim(site, "fetch", "pacs", "--study", study_instance_uid("now"), monkeypatch=monkeypatch)
    key = site.context.pseudonyms.study(study_instance_uid("now"))
    code, told = reclaim(site, "fetch", "pacs", "--priors-of", key, "--modality", "ct", "--dry-run", monkeypatch=monkeypatch)
    assert (code, told.count(study_instance_uid("prior0")), told.count(study_instance_uid("prior1"))) == (0, 1, 0)
    code, told = reclaim(site, "fetch", "pacs", "--priors-of", key, "--limit", "2", monkeypatch=monkeypatch)
    assert code == 0, told
    assert [bool(site.archived(study_instance_uid(f"prior{number}"))) for number in range(3)] == [False, True, True]
    assert not any(secret in told for secret in ("Meier", "PAT-1", "ACC-1"))


@pytest.mark.dcmtk
@needs_dcmtk
def test_dcmtk_may_move_a_study_to_us(site):
    uid = study_instance_uid("prior0")
    command = ["movescu", "-S", "-aec", "PACS", "-aem", "RECLAIM", "127.0.0.1", str(site.pacs.port)]
    with site.listening():
        subprocess.run(
            [*command, "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={uid}"],
            check=True,
            timeout=60,
            capture_output=True,
        )
    assert same_data(site.archived(uid), site.pacs)
    assert len(site.archived(uid)) == 2


def match_of(instances=2):
    return StudyMatch("1.2.3", None, ("CT",), (CT,), 1, instances, "", "", "", "", "")


def test_failures_of_a_move_say_what_to_do():
    def unknown_destination(event):
        yield None, None

    with scp({evt.EVT_C_MOVE: unknown_destination}) as number:
        outcome = move_study(Peer("x", "TEST", "127.0.0.1", number), match_of(), calling_ae="RECLAIM", destination="RECLAIM")
    assert not outcome.complete
    assert "A801" in outcome.text()
    assert "enter our AE title, host and port there" in outcome.text()


def test_a_pacs_without_c_get_is_told_apart(site):
    with scp({}) as number, pytest.raises(PeerAcceptsNothing):
        get_study(Peer("x", "TEST", "127.0.0.1", number), match_of(), None, calling_ae="RECLAIM", sop_classes=[CT])


def test_what_we_refuse_is_not_complete(tmp_path, site, monkeypatch):
    """The PACS sends one whole object and one whose UIDs disagree with the command."""
    from listeners.cli.pacs import open_reception

    good, bad = (dcmread(path) for path in make_study(tmp_path, "refused", count=2))

    def on_get(event):
        yield 2
        yield 0xFF00, good
        broken = bad
        del broken.StudyInstanceUID
        yield 0xFF00, broken

    with scp({evt.EVT_C_GET: on_get}) as number, open_reception(site.context) as reception:
        peer = Peer("x", "TEST", "127.0.0.1", number)
        outcome = get_study(peer, match_of(), reception, calling_ae="RECLAIM", sop_classes=[CT, MR])
    assert (outcome.completed, outcome.failed, outcome.complete) == (1, 1, False)
    assert "refused by us: A900" in outcome.text()
    assert list(site.archived(good.StudyInstanceUID)) == [good.SOPInstanceUID]


def test_a_pacs_that_dies_during_c_get_keeps_what_came(tmp_path, site):
    from listeners.cli.pacs import open_reception

    (path,) = make_study(tmp_path, "dying", count=1)

    def on_get(event):
        yield 2
        yield 0xFF00, dcmread(path)
        event.assoc.abort()

    with scp({evt.EVT_C_GET: on_get}) as number, open_reception(site.context) as reception:
        peer = Peer("x", "TEST", "127.0.0.1", number)
        outcome = get_study(peer, match_of(), reception, calling_ae="RECLAIM", sop_classes=[CT], timeouts=QUICK)
    assert not outcome.complete
    assert "ended the association" in outcome.text()
    assert len(site.archived(study_instance_uid("dying"))) == 1


# The command line


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
