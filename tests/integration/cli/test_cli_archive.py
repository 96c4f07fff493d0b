"""The archive's commands over real files: what is there, an index rebuilt from nothing, images deleted by age."""

import os
import shutil
import threading
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file
from sqlmodel import select

from listeners.dicom.file_meta import encode_file_meta
from schemas.tables import Audit, Instance, Study
from schemas.vocabulary import StudyState
from services.assembly import retention
from services.runtime.archive import instance_path
from services.runtime.login import login
from services.runtime.service import Context


def store(site: Context, study: int, images: int) -> None:
    """Put files into the archive as the listener does, without rows."""
    for number in range(images):
        file = pydicom.dcmread(str(get_testdata_file("MR_small.dcm", download=False)))
        file.StudyInstanceUID, file.SeriesInstanceUID = f"1.2.3.{study}", f"1.2.3.{study}.1"
        file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{study}.1.{number}"
        keys = site.pseudonyms.study(file.StudyInstanceUID), site.pseudonyms.series(file.SeriesInstanceUID)
        path = site.settings.archive_dir / instance_path(*keys, file.SOPInstanceUID)
        path.parent.mkdir(parents=True, exist_ok=True)
        file.save_as(path)
        data = path.read_bytes()[144 + pydicom.dcmread(path).file_meta.FileMetaInformationGroupLength :]
        syntax = str(file.file_meta.TransferSyntaxUID)
        path.write_bytes(encode_file_meta(str(file.SOPClassUID), file.SOPInstanceUID, syntax, "MR1") + data)


def rows(site: Context) -> set[str]:
    with site.database.read() as session:
        return {row.model_dump_json(exclude={"received_at"}) for row in session.exec(select(Instance))}


def test_the_index_comes_back_into_an_empty_database(reclaim, site, state: Path, sqlite_template: Path):
    store(site, 1, 3)
    store(site, 2, 1)
    said = reclaim("archive", "reindex")
    assert (said.code, "4 files in the archive, 4 entered" in said.text) == (0, True)
    before = rows(site)
    assert len(before) == 4
    assert "4 files in the archive, 0 entered" in reclaim("archive", "reindex").text
    site.database.close()
    for file in state.glob("reclaim.sqlite*"):
        file.unlink()
    shutil.copy(sqlite_template, state / "reclaim.sqlite")
    assert "4 entered" in reclaim("archive", "reindex").text
    assert rows(site) == before


def test_reindexing_says_what_is_wrong(reclaim, site):
    assert "there is no archive" in reclaim("archive", "reindex").text
    store(site, 1, 2)
    first, second = sorted(site.settings.archive_dir.rglob("*.dcm"))
    reclaim("archive", "reindex")
    first.unlink()
    second.with_name("0" * 32 + ".dcm").write_bytes(b"rubbish")
    said = reclaim("archive", "reindex")
    assert said.code == 1
    assert "1 files cannot be read" in said.text
    assert "1 indexed instances have no file" in said.text


def test_another_pseudonym_key_is_found_before_it_does_harm(reclaim, site, monkeypatch):
    store(site, 1, 1)
    reclaim("archive", "reindex")
    assert "fits the archive" in reclaim("archive", "status").text
    monkeypatch.setenv("RECLAIM_PSEUDONYM_KEY", "another key of thirty-two bytes")
    assert "does not fit" in reclaim("archive", "status").text
    said = reclaim("archive", "reindex")
    assert (said.code, "another pseudonym key" in said.text) == (2, True)
    assert len(rows(site)) == 1
    assert "is not the one that the archive was filed with" in reclaim("doctor").text


def test_a_lost_key_is_not_replaced_beside_an_archive(reclaim, site, state):
    assert "there is one" in reclaim("doctor").text
    store(site, 1, 1)
    reclaim("archive", "reindex")
    assert "fits the archive" in reclaim("doctor").text
    (state / "pseudonym.key").unlink()
    for command in (("archive", "status"), ("archive", "reindex"), ("labels", "import", "x.csv")):
        said = reclaim(*command)
        assert said.code == 2
    assert "restore it" in reclaim("archive", "status").text
    assert "pseudonym key" in reclaim("doctor").text
    assert not (state / "pseudonym.key").exists()


@pytest.fixture
def old_site(reclaim, site) -> Context:
    """Two scored studies of 100 days ago, one of them committed to a sender."""
    store(site, 1, 3)
    store(site, 2, 1)
    reclaim("archive", "reindex")
    make_old(site)
    with site.database.transaction() as tx:
        tx.session.get(Study, "1.2.3.2").committed_at = tx.clock.now()
    return site


def make_old(site: Context) -> None:
    """Everything came 100 days ago and was scored then."""
    then = (site.clock.now() - timedelta(days=100)).timestamp()
    for path in site.settings.archive_dir.rglob("*.dcm"):
        os.utime(path, (then, then))
    with site.database.transaction() as tx:
        for study in tx.session.exec(select(Study)):
            study.state, study.revision = StudyState.COMPLETE, 1
            study.last_instance_at = tx.clock.now() - timedelta(days=100)
            tx.claim("inference", [f"{study.study_key}:1"])


def test_a_status_for_an_administrator(reclaim, old_site):
    text = reclaim("archive", "status").text
    for words in ("2, 0 of them open", "4 (4 MR)", "everything is kept", "C-STORE is refused below 500.0 MB"):
        assert words in text


def test_images_are_deleted_by_age_after_a_look_and_a_question(reclaim, old_site, monkeypatch):
    refused = reclaim("archive", "purge")
    assert (refused.code, "RECLAIM_RETENTION_PIXEL_DAYS" in refused.text) == (2, True)
    said = reclaim("archive", "purge", "--dry-run", "--older-than", "90")
    assert "3 images of 1 study" in said.text
    assert "1 older study stays: storage committed" in said.text
    assert len(list(old_site.settings.archive_dir.rglob("*.dcm"))) == 4
    monkeypatch.setenv("RECLAIM_RETENTION_PIXEL_DAYS", "90")
    assert reclaim("archive", "purge").code == 2
    said = reclaim("archive", "purge", "--yes")
    assert (said.code, "1 study taken out" in said.text) == (0, True)
    assert "3; 3 files are taken out" in reclaim("archive", "status").text
    with old_site.database.read() as session:
        (entry,) = session.exec(select(Audit).where(Audit.action == "study.purged"))
    assert entry.actor == f"user:{login()}"
    assert "0 images of 0 studies" in reclaim("archive", "purge", "--dry-run").text


def test_a_running_service_comes_to_write_while_much_is_deleted(reclaim, site, monkeypatch):
    """Without a pause between the steps another process may wait for the database longer than its leases hold."""
    for number in range(6):
        store(site, number, 1)
    reclaim("archive", "reindex")
    make_old(site)
    monkeypatch.setattr(retention, "STUDIES_AT_ONCE", 1)
    steps, between, take_out = [], [], retention.take_out

    def watched(*given, **named):
        steps.append(len(between))
        return take_out(*given, **named)

    def write():
        while not over.is_set():
            with site.database.transaction() as tx:
                tx.audit("test", "test.wrote", "lease")
            between.append(1)

    monkeypatch.setattr(retention, "take_out", watched)
    over = threading.Event()
    thread = threading.Thread(target=write)
    thread.start()
    said = reclaim("archive", "purge", "--yes", "--older-than", "90")
    over.set()
    thread.join()
    assert "6 studies taken out" in said.text
    came = sum(later > earlier for earlier, later in pairwise(steps))
    assert came >= 4, f"the other one came to write between {came} of 6 steps"
