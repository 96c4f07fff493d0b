"""Storage commitment against the index, on both engines: what is asked, reported, remembered and forgotten."""

from datetime import timedelta
from pathlib import PurePosixPath

import pytest
from sqlmodel import select

from schemas.announcements import Commitment, NamedInstance, PerformedStep, StepStudy
from schemas.tables import Study
from schemas.vocabulary import CommitmentState, StepState
from services.assembly.announcement_repository import claim_reports, forget, postpone, references_of, settle, stored_of
from services.assembly.repository import ASSEMBLY_BELL
from services.assembly.rules import COMMITMENT_SETTLE_S
from services.assembly.signals import Entered
from tests.assembly_world import CT, World, references, uid


@pytest.fixture
def world(database, clock):
    return World(database, clock)


def test_a_commitment_request_for_everything_completes_after_a_moment(world, clock):
    for number in (1, 2):
        world.store(number)
    assert world.ask(1)[0] is Entered.NEW
    clock.advance(10)
    assert world.look() == 0
    _, rings = world.ask(2, transaction="8.2")
    assert ASSEMBLY_BELL in rings
    clock.advance(COMMITMENT_SETTLE_S)
    assert world.look() == 1
    assert world.said == [(1, "storage_commitment")]


def test_a_commitment_asked_after_completion_is_noted_at_its_study_and_changes_nothing_else(world, clock):
    world.store(1)
    clock.advance(30)
    world.look()
    world.ask(1)
    with world.database.read() as session:
        (study,) = session.exec(select(Study)).all()
    assert (study.committed_at, study.state) == (clock.now(), "complete")
    clock.advance(60)
    assert world.look() == 0


def test_commitment_image_by_image_does_not_announce_image_by_image(world, clock):
    for number in range(5):
        world.store(number)
        world.ask(number, transaction=f"8.{number}")
        assert world.look() == 0
        clock.advance(COMMITMENT_SETTLE_S - 1)
    clock.advance(1)
    assert world.look() == 1


def test_a_request_again_is_the_same_request_and_other_content_is_not(world, clock):
    world.store(1)
    assert world.ask(1, 2)[0] is Entered.NEW
    assert world.ask(2, 1)[0] is Entered.REPEATED
    assert world.ask(1, 2, 3)[0] is Entered.OTHER_CONTENT
    assert world.ask(1, 2, peer="CT2")[0] is Entered.OTHER_CONTENT
    with world.database.transaction() as tx:
        (owed,) = claim_reports(tx, timedelta(seconds=60), 10)
        assert references_of(tx.session, owed.transaction_uid) == references(1, 2)
        settle(tx, owed.transaction_uid, CommitmentState.REPORTED, 1)
    assert world.ask(1, 2)[0] is Entered.REPEATED
    with world.database.transaction() as tx:
        assert [item.attempts for item in claim_reports(tx, timedelta(seconds=60), 10)] == [0]


def test_a_claimed_report_comes_back_when_its_claimer_dies(world, clock):
    world.ask(1)
    with world.database.transaction() as tx:
        assert len(claim_reports(tx, timedelta(seconds=60), 10)) == 1
    with world.database.transaction() as tx:
        assert claim_reports(tx, timedelta(seconds=60), 10) == []
    clock.advance(60)
    with world.database.transaction() as tx:
        (owed,) = claim_reports(tx, timedelta(seconds=60), 10)
        postpone(tx, owed.transaction_uid, clock.now() + timedelta(seconds=5), 1)
    clock.advance(5)
    with world.database.transaction() as tx:
        assert [item.attempts for item in claim_reports(tx, timedelta(seconds=60), 10)] == [1]


def test_what_the_index_knows_is_found_for_thousands_of_references(world):
    world.store(1)
    with world.database.read() as session:
        found = stored_of(session, [uid(number) for number in range(2000)])
    assert [(known.sop_class_uid, known.path) for known in found.values()] == [(CT, PurePosixPath("aa/1.dcm"))]


def test_old_announcements_go_and_owed_reports_stay(world, clock):
    world.step(create=True)
    world.step(1, status=StepState.COMPLETED)
    world.ask(1)
    world.ask(2, transaction="8.2")
    with world.database.transaction() as tx:
        settle(tx, "8.1", CommitmentState.REPORTED, 1)
    clock.advance(100)
    with world.database.transaction() as tx:
        assert forget(tx, clock.now() - timedelta(seconds=101)) == 0
        assert forget(tx, clock.now()) == 2
    assert [world.count(table) for table in (PerformedStep, StepStudy, Commitment, NamedInstance)] == [0, 0, 1, 1]
