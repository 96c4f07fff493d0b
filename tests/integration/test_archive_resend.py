"""Retention and senders that send again: what was acknowledged a moment ago stays, whatever becomes of its row."""

import os

import pytest
from sqlmodel import select

from schemas.tables import Instance, Outbox, Study
from services.assembly import retention
from services.assembly.reindex import enter_missing
from tests.retained_archive import DAYS, Archive

DAY = 86_400.0
MINUTES_3 = 180


@pytest.fixture
def old(context):
    """An archive with one study whose images are due."""
    archive = Archive(context)
    archive.receive(1)
    archive.receive(1, 2)
    archive.settle(1)
    archive.clock.advance(31 * DAY)
    yield archive
    archive.files.close()


def come_again_without_row(archive):
    """As `ArchiveFiles.publish` leaves the file when the process dies before the row is written."""
    os.utime(archive.paths(1)[0], (archive.clock.now().timestamp(),) * 2)


def ticks(archive, settings=DAYS):
    for _ in range(3):
        archive.tick(settings)
        archive.clock.advance(MINUTES_3)


def test_retention_counts_from_the_last_repetition(old):
    events = len(old.rows(Outbox))
    assert old.receive(1) == "DCM-001"
    ticks(old)
    assert old.present(1) == [True, True]
    assert len(old.rows(Outbox)) == events
    old.clock.advance(29 * DAY)
    ticks(old)
    assert old.present(1) == [True, True]
    old.clock.advance(DAY)
    ticks(old)
    assert old.on_disk() == []


def test_a_repetition_whose_row_died_with_its_process_counts_too(old):
    come_again_without_row(old)
    ticks(old)
    assert old.present(1) == [True, True]
    old.clock.advance(31 * DAY)
    ticks(old)
    assert old.on_disk() == []


def test_a_repetition_between_look_and_move_is_put_back(old, monkeypatch):
    move, struck = retention._move, []

    def late(source, target):
        if not struck:
            struck.append(source)
            os.utime(source, (old.clock.now().timestamp(),) * 2)
        move(source, target)

    monkeypatch.setattr(retention, "_move", late)
    ticks(old)
    assert [path.exists() for path in struck] == [True]
    assert len(old.on_disk()) == 1
    present = [row.path for row in old.rows(Instance) if row.purged_at is None]
    assert present == [struck[0].relative_to(old.root).as_posix()]
    assert enter_missing(old.context, old.files, lambda: False).indexed == 0
    old.clock.advance(31 * DAY)
    ticks(old)
    assert old.on_disk() == []


def test_a_repetition_in_an_open_study_does_not_put_its_quiet_period_off(context):
    archive = Archive(context)
    archive.receive(1)
    archive.clock.advance(2 * 3600)
    archive.receive(1)
    with context.database.read() as session:
        study = session.exec(select(Study)).one()
    assert (archive.clock.now() - study.last_instance_at).total_seconds() == 2 * 3600
    archive.files.close()


def test_studies_that_came_again_do_not_hide_others(context, monkeypatch):
    monkeypatch.setattr(retention, "STUDIES_AT_ONCE", 1)
    archive = Archive(context)
    for study in (1, 2):
        archive.receive(study)
    archive.settle(1, 2)
    archive.clock.advance(31 * DAY)
    come_again_without_row(archive)
    archive.tick()
    assert (archive.present(1), archive.present(2)) == ([True], [False])
    archive.files.close()
