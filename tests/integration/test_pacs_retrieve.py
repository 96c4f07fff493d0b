"""Fetching studies: Orthanc as the PACS, DCMTK as the second opinion, and PACS that misbehave."""

import subprocess
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pynetdicom import evt

from listeners.dicom.presentation import USUAL_CLASSES
from listeners.dicom.query import StudyMatch
from listeners.dicom.retrieve import MOST_CONTEXTS, get_study, move_study, storage_contexts
from listeners.dicom.synthesize import study_instance_uid
from services.runtime.scu import Peer, PeerAcceptsNothing
from tests.dicom_listener import dcmtk
from tests.pacs_site import CT, MR, QUICK, reclaim, running_site, same_data, scp
from tests.pacs_world import make_study


@pytest.fixture(scope="module")
def site(tmp_path_factory, sqlite_template):
    with running_site(tmp_path_factory.mktemp("site"), sqlite_template) as made:
        yield made


def test_contexts_never_exceed_what_an_association_holds():
    for count in (1, 2, 10, 63, 64, 100, 127):
        contexts = storage_contexts([f"1.2.{number}" for number in range(count)])
        assert count <= len(contexts) <= MOST_CONTEXTS
        assert len({each.abstract_syntax for each in contexts}) == count


def test_what_a_pacs_usually_keeps_is_proposed_whatever_the_study_holds():
    proposed = {(each.abstract_syntax, str(syntax)) for each in storage_contexts(USUAL_CLASSES) for syntax in each.transfer_syntax}
    lossless, jpeg2000, baseline = (f"1.2.840.10008.1.2.4.{number}" for number in (70, 90, 50))
    assert {(CT, "1.2.840.10008.1.2.1"), (CT, lossless), (CT, jpeg2000), (CT, baseline), (MR, jpeg2000)} <= proposed


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
def test_dcmtk_may_move_a_study_to_us(site):
    uid = study_instance_uid("prior0")
    command = [dcmtk("movescu"), "-S", "-aec", "PACS", "-aem", "RECLAIM", "127.0.0.1", str(site.pacs.port)]
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
