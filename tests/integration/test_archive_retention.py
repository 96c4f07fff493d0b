"""Retention on real files and both databases: what goes, what stays and why, what a crash or a sender changes."""

import os
import shutil
from dataclasses import replace

import pytest
from sqlmodel import select

from listeners.dicom.reception import StoreRequest
from schemas.announcements import SetAside
from schemas.results import ResultJob
from schemas.settings import RetentionSettings
from schemas.tables import Audit, Case, DeadLetter, Inbox, Instance, Job, Outbox, Study
from schemas.topics import STUDY_RECEIVED
from schemas.unscored import UnscoredStudy
from schemas.vocabulary import JobState, StudyState
from services.assembly import retention
from services.assembly.conflicts import keep_aside
from services.assembly.index import ArchiveIndex
from services.assembly.reindex import reindex
from services.remediation.repository import labelled_cases
from services.runtime.archive import study_files
from services.runtime.database import Database
from services.runtime.errors import InvalidInput, Transient
from services.runtime.result_uids import result_uid
from tests.retained_archive import DAYS, Archive

MINUTES_3 = 180


@pytest.fixture
def archive(context):
    archive = Archive(context)
    yield archive
    archive.files.close()


@pytest.fixture
def sqlite_archive(sqlite_context):
    archive = Archive(sqlite_context)
    yield archive
    archive.files.close()


def test_images_go_by_age_and_everything_else_stays(archive):
    for number in (1, 2):
        archive.receive(1, number)
    archive.settle(1)
    archive.clock.advance(29 * 86_400)
    archive.receive(2)
    archive.settle(2)
    archive.tick()
    assert archive.present(1) == [True, True]
    archive.clock.advance(2 * 86_400)
    archive.tick()
    assert (archive.present(1), archive.present(2)) == ([False, False], [True])
    assert len(archive.on_disk()) == 3  # taken out, not deleted yet
    archive.clock.advance(MINUTES_3)
    archive.tick()
    assert len(archive.on_disk()) == 1
    assert not list((archive.root / "purged").iterdir())
    assert len(archive.rows(Study)) == 2
    gone = {row.path for row in archive.rows(Instance) if row.purged_at is not None}
    assert len(gone) == 2
    assert gone.isdisjoint(archive.on_disk())
    (entry,) = [row for row in archive.rows(Audit) if row.action == "study.purged"]
    assert (entry.subject, entry.detail["instances"]) == (archive.key(1), 2)
    before = archive.on_disk()
    archive.clock.advance(MINUTES_3)
    archive.tick()
    assert archive.on_disk() == before
    assert len([row for row in archive.rows(Audit) if row.action == "study.purged"]) == 1


def test_without_a_number_of_days_nothing_goes(sqlite_archive):
    sqlite_archive.receive(1)
    sqlite_archive.settle(1)
    sqlite_archive.clock.advance(4000 * 86_400)
    sqlite_archive.tick(RetentionSettings())
    assert sqlite_archive.present(1) == [True]


def _open(archive, tx, row):
    row.state = StudyState.OPEN


def _unscored(archive, tx, row):
    tx.session.delete(tx.session.get(Inbox, ("inference", f"{row.study_key}:1")))


def _dead_letter(archive, tx, row):
    fields = {"topic": STUDY_RECEIVED.name, "partition": 0, "offset": 0, "key": row.study_key, "body": b"", "error": "e"}
    tx.session.add(DeadLetter(consumer="inference", event_id="x", reason="r", created_at=archive.clock.now(), **fields))


def _result(archive, tx, row):
    at = archive.clock.now()
    fields = {"topic": "t", "partition": 0, "offset": 0, "body": b"", "created_at": at, "updated_at": at, "due_at": at}
    tx.session.add(ResultJob(job_id="j", study_key=row.study_key, model="m", version=1, revision=1, destination="p", **fields))


def _repair(archive, tx, row):
    at = archive.clock.now()
    case = {"task": "t", "patient_key": row.patient_key, "predicted": "a", "probabilities": {}, "acquired_at": at, "scored_at": at}
    tx.session.add(Case(study_key=row.study_key, model="m", version=1, role="tune", **case))
    tx.session.add(Job(job_id="j", order_id="o", model="m", remedy="full", created_at=at, updated_at=at))


def _stopped_model(archive, tx, row):
    tx.session.add(UnscoredStudy(study_key=row.study_key, revision=1, model="m", noticed_at=archive.clock.now()))


def _committed(archive, tx, row):
    row.committed_at = archive.clock.now()


@pytest.mark.parametrize(
    ("keep", "reason"),
    [
        (_open, "open"),
        (_unscored, "unscored"),
        (_dead_letter, "unscored"),
        (_stopped_model, "waits for a model"),
        (_result, "result under way"),
        (_repair, "repair under way"),
        (_committed, "storage committed"),
    ],
)
def test_what_is_still_needed_stays_and_says_why(archive, keep, reason):
    for study in (1, 2):
        archive.receive(study)
    archive.settle(1, 2)
    archive.clock.advance(31 * 86_400)
    with archive.context.database.transaction() as tx:
        row = tx.session.get(Study, "1.2.3.1")
        keep(archive, tx, row)
        tx.session.add(row)
    before = retention.limit_of(DAYS, archive.clock.now())
    seen = retention.forecast(archive.context.database, before, committed=False)
    assert (seen.due.studies, seen.due.instances, seen.kept) == (1, 1, {reason: 1})
    archive.tick()
    assert (archive.present(1), archive.present(2)) == ([True], [False])


def test_what_kept_a_study_ends(sqlite_archive):
    archive = sqlite_archive
    archive.receive(1)
    archive.settle(1)
    archive.clock.advance(31 * 86_400)
    with archive.context.database.transaction() as tx:
        _repair(archive, tx, tx.session.get(Study, "1.2.3.1"))
        _committed(archive, tx, tx.session.get(Study, "1.2.3.1"))
    archive.tick()
    with archive.context.database.transaction() as tx:
        tx.session.get(Job, "j").state = JobState.SUCCEEDED
    archive.tick()
    assert archive.present(1) == [True]
    archive.tick(RetentionSettings(pixel_days=30, committed=True))
    assert archive.present(1) == [False]


def _purged(archive, studies=(1,), images=1):
    for study in studies:
        for number in range(1, images + 1):
            archive.receive(study, number)
    archive.settle(*studies)
    archive.clock.advance(31 * 86_400)
    archive.tick()
    archive.clock.advance(MINUTES_3)
    archive.tick()
    assert archive.on_disk() == []


def test_a_deleted_image_that_is_sent_again_is_stored_again_but_not_scored_again(archive):
    _purged(archive)
    events = len(archive.rows(Outbox))
    assert archive.receive(1) in ("DCM-000", "DCM-001")
    assert archive.present(1) == [True]
    (row,) = archive.rows(Instance)
    assert row.purged_at is None
    archive.clock.advance(29 * 86_400)
    archive.tick()
    assert archive.present(1) == [True]
    assert len(archive.rows(Outbox)) == events
    archive.clock.advance(2 * 86_400)
    archive.tick()
    assert archive.present(1) == [False]


def test_a_sender_who_saw_the_old_file_keeps_it(archive):
    """The image comes again, byte for byte, at the moment between retention's two steps, and just before the first."""
    archive.receive(1)
    archive.receive(2)
    archive.settle(1, 2)
    archive.clock.advance(31 * 86_400)
    archive.tick()
    assert archive.present(1) == [False]
    # The sender compared with the file before it moved, and its row arrives after.
    with archive.context.database.transaction() as tx:
        row = tx.session.exec(select(Instance).where(Instance.study_uid == "1.2.3.1")).one()
        row.purged_at = None
        tx.session.add(row)
    archive.receive(2)
    archive.clock.advance(MINUTES_3)
    archive.tick()
    assert (archive.present(1), archive.present(2)) == ([True], [True])
    assert len(archive.on_disk()) == 2


def test_a_crash_between_move_and_commit_loses_nothing(archive):
    archive.receive(1)
    archive.settle(1)
    archive.clock.advance(31 * 86_400)
    with pytest.raises(KeyboardInterrupt), archive.context.database.transaction() as tx:
        assert retention.take_out(tx, archive.root, archive.clock.now(), committed=False).instances == 1
        raise KeyboardInterrupt
    assert archive.present(1) == [False]
    archive.tick(RetentionSettings())
    assert archive.present(1) == [True]
    archive.tick()
    archive.clock.advance(MINUTES_3)
    archive.tick()
    assert archive.on_disk() == []


def test_a_late_image_of_a_deleted_study_is_kept_and_not_announced(archive):
    _purged(archive, images=2)
    events = len(archive.rows(Outbox))
    archive.receive(1, 3)
    archive.settle()
    (study,) = archive.rows(Study)
    assert (study.state, study.revision) == (StudyState.COMPLETE, 1)
    assert len(archive.rows(Outbox)) == events
    assert [row.action for row in archive.rows(Audit)].count("study.not_announced") == 1
    with archive.context.database.read() as session, pytest.raises(InvalidInput, match="retention"):
        study_files(session, archive.root, archive.key(1))
    archive.clock.advance(31 * 86_400)
    archive.tick()
    assert not any(archive.present(1))


def test_a_repair_uses_no_case_whose_images_are_gone(archive):
    archive.receive(1)
    archive.receive(2)
    archive.settle(1, 2)
    with archive.context.database.transaction() as tx:
        at = archive.clock.now()
        case = {"model": "m", "version": 1, "role": "tune", "task": "t", "predicted": "a", "truth": "a", "probabilities": {}}
        for study in tx.session.exec(select(Study)):
            keys = {"study_key": study.study_key, "patient_key": study.patient_key}
            tx.session.add(Case(acquired_at=at, scored_at=at, **keys, **case))
        tx.session.get(Study, "1.2.3.2").committed_at = at
    archive.clock.advance(31 * 86_400)
    archive.tick()
    with archive.context.database.read() as session:
        assert [case.study_key for case in labelled_cases(session, "m", 1, "tune")] == [archive.key(2)]


def test_our_own_results_that_came_back_stay(sqlite_archive):
    sqlite_archive.receive(1)
    sqlite_archive.receive(1, sop=result_uid("x"))
    sqlite_archive.settle(1)
    sqlite_archive.clock.advance(31 * 86_400)
    for _ in range(2):
        sqlite_archive.tick()
        sqlite_archive.clock.advance(MINUTES_3)
    assert sorted(sqlite_archive.present(1)) == [False, True]


@pytest.mark.parametrize("acknowledged", [False, True])
def test_conflicting_bytes_go_with_the_study_unless_their_sender_relies_on_them(sqlite_archive, acknowledged):
    archive = sqlite_archive
    archive.receive(1)
    other = archive.image(1)
    changed = StoreRequest(**{**vars(other), "dataset": other.dataset[:-2] + b"zz"})
    assert archive.reception.receive(changed).status == 0xC000
    archive.date(1)
    kept = next((archive.root / "conflicts").rglob("*.dcm"))
    if acknowledged:
        (temporary := archive.root / "again.dcm").write_bytes(kept.read_bytes())
        index = ArchiveIndex(archive.context.database, archive.context.pseudonyms)
        keep_aside(archive.files, index, temporary, archive.paths(1)[0].relative_to(archive.root).as_posix())
        assert len([row for row in archive.rows(Audit) if row.action == "instance.conflict"]) == 1
    os.utime(kept, (1_000_000_000, 1_000_000_000))
    archive.settle(1)
    archive.clock.advance(31 * 86_400)
    archive.tick()
    assert kept.exists() is acknowledged
    assert len(archive.rows(SetAside)) == acknowledged


def test_many_studies_take_several_ticks_and_none_is_left(sqlite_archive, monkeypatch):
    monkeypatch.setattr(retention, "STUDIES_AT_ONCE", 3)
    for study in range(1, 9):
        sqlite_archive.receive(study)
    sqlite_archive.settle(*range(1, 9))
    sqlite_archive.clock.advance(31 * 86_400)
    for ticks in (3, 3, 2):
        before = sum(any(sqlite_archive.present(study)) for study in range(1, 9))
        sqlite_archive.tick()
        assert before - sum(any(sqlite_archive.present(study)) for study in range(1, 9)) == ticks


def test_a_disk_that_fails_is_tried_again(sqlite_archive, monkeypatch):
    sqlite_archive.receive(1)
    sqlite_archive.settle(1)
    sqlite_archive.clock.advance(31 * 86_400)
    with monkeypatch.context() as patched:
        patched.setattr(retention, "_synchronise", lambda _: (_ for _ in ()).throw(OSError(5, "I/O error")))
        with pytest.raises(Transient, match="RET-201"):
            sqlite_archive.tick()
    for _ in range(3):
        sqlite_archive.tick()
        sqlite_archive.clock.advance(MINUTES_3)
    assert sqlite_archive.on_disk() == []


def test_reindexing_neither_loses_nor_revives_what_was_deleted(archive):
    _purged(archive, studies=(1, 2))
    archive.receive(2)
    summary = reindex(archive.context)
    assert (summary.lost, summary.indexed) == (0, 0)
    assert (archive.present(1), archive.present(2)) == ([False], [True])


def test_an_empty_database_gets_the_whole_index_back(archive, sqlite_template, tmp_path):
    for study, images in ((1, 3), (2, 1), (3, 2)):
        for number in range(1, images + 1):
            archive.receive(study, number)
    archive.settle(1, 2, 3)
    shutil.copy(sqlite_template, tmp_path / "empty.sqlite")
    empty = Database(f"sqlite:///{tmp_path / 'empty.sqlite'}", archive.clock)
    summary = reindex(replace(archive.context, database=empty))
    assert (summary.files, summary.indexed, summary.lost, summary.unreadable, summary.misplaced) == (6, 6, 0, [], [])
    with empty.read() as session:
        rebuilt = {table: session.exec(select(table)).all() for table in (Instance, Study)}
    empty.close()
    # The file's time stands for the clock's; a digest is there only where the file was read as a whole.
    instance = set(Instance.model_fields) - {"received_at", "sha256"}
    # A study is announced again under its first revision, whose event every consumer has had.
    study = {"study_uid", "study_key", "patient_key", "accession_key", "instances", "calling_ae", "acquired_at", "purged_at"}
    for table, same in ((Instance, instance), (Study, study)):
        had, has = ([row.model_dump_json(include=same) for row in rows] for rows in (archive.rows(table), rebuilt[table]))
        assert sorted(has) == sorted(had)
