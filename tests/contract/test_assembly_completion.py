"""Completion against the index, on both engines: what reception, steps, commitment requests and time make of a study."""

import threading
import time
from datetime import timedelta
from pathlib import PurePosixPath

import pytest
from sqlmodel import func, select

from schemas.announcements import Commitment, NamedInstance, PerformedStep, StepStudy
from schemas.events import StudyReceived
from schemas.tables import Outbox, Study
from schemas.vocabulary import CommitmentState, StepState
from services.assembly.announcement_repository import claim_reports, forget, postpone, references_of, settle, stored_of
from services.assembly.commitments import Reference, Request
from services.assembly.completion import complete_studies
from services.assembly.repository import ASSEMBLY_BELL, NewInstance, NewStudy, record_instances
from services.assembly.rules import COMMITMENT_SETTLE_S, Rules
from services.assembly.signals import Entered, create_step, request_commitment, set_step
from services.assembly.steps import StepRefusal
from services.runtime.identity import Pseudonyms

CT, SR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.88.22"
RULES = Rules(30.0, {"US": 120.0}, 3600.0)
NAMES = Pseudonyms(b"k" * 32)
STUDY = "1.2.3"


def uid(number):
    return f"{STUDY}.1.{number}"


def references(*numbers):
    return [Reference(CT, uid(number)) for number in numbers]


class World:
    """The index seen from its callers, with a clock that the test moves."""

    def __init__(self, database, clock):
        self.database, self.clock = database, clock

    def store(self, number, *, study=STUDY, modality="CT", stated=0):
        """One instance; returns the bells that its transaction rang."""
        now = self.clock.now()
        row = NewStudy(
            study_uid=study,
            study_key=NAMES.study(study),
            patient_key="0" * 32,
            acquired_at=now,
            first_instance_at=now,
            last_instance_at=now,
            stated_instances=stated,
        )
        instance = NewInstance(
            sop_instance_uid=uid(number),
            study_uid=study,
            series_uid=f"{study}.1.{modality}",
            sop_class_uid=CT,
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            modality=modality,
            body_part="",
            path=f"aa/{number}.dcm",
            size=10,
            sha256="0" * 64,
            received_at=now,
        )
        with self.database.transaction() as tx:
            record_instances(tx, row, [instance])
            return tx.rings

    def look(self, rules=RULES):
        with self.database.transaction() as tx:
            return complete_studies(tx, NAMES, rules)

    def step(self, *numbers, status=None, step_uid="9.1", studies=(STUDY,), create=False, peer="CT1"):
        with self.database.transaction() as tx:
            if create:
                outcome = create_step(tx, step_uid, studies, peer, None)
            else:
                outcome = set_step(tx, step_uid, peer, status, references(*numbers) if numbers else None)
            return outcome, tx.rings

    def ask(self, *numbers, transaction="8.1", peer="CT1"):
        with self.database.transaction() as tx:
            return request_commitment(tx, Request(transaction, peer, "RECLAIM", tuple(references(*numbers)))), tx.rings

    def events(self):
        with self.database.read() as session:
            rows = session.exec(select(Outbox).order_by(Outbox.id)).all()
        return [StudyReceived.model_validate_json(row.body) for row in rows]

    @property
    def said(self):
        return [(event.revision, event.completed_by) for event in self.events()]

    def count(self, table):
        with self.database.read() as session:
            return session.exec(select(func.count()).select_from(table)).one()


@pytest.fixture
def world(database, clock):
    return World(database, clock)


def test_a_quiet_study_is_announced_once(world, clock):
    world.store(1)
    assert world.look() == 0
    clock.advance(29.9)
    assert world.look() == 0
    clock.advance(0.1)
    assert world.look() == 1
    clock.advance(1000)
    assert world.look() == 0
    assert world.said == [(1, "quiet_period")]


def test_an_instance_before_its_time_puts_the_quiet_period_off(world, clock):
    world.store(1)
    world.look()
    clock.advance(20)
    world.store(2)
    clock.advance(20)
    assert world.look() == 0
    clock.advance(10)
    assert world.look() == 1
    assert world.events()[0].series[0].instances == 2


def test_the_longest_quiet_period_of_a_studys_modalities_counts(world, clock):
    world.store(1)
    world.store(2, modality="US")
    clock.advance(119)
    assert world.look() == 0
    clock.advance(1)
    assert world.look() == 1


def test_a_study_that_never_rests_is_announced_after_the_hard_limit(world, clock):
    for number in range(180):
        world.store(number)
        assert world.look() == 0
        clock.advance(20)
    world.store(180)
    assert world.look() == 1
    assert world.said == [(1, "longest_open")]


def test_a_completed_step_completes_with_the_last_instance_it_names(world):
    world.step(create=True)
    world.store(1)
    assert world.look() == 0
    assert ASSEMBLY_BELL in world.step(1, 2, 3, status=StepState.COMPLETED)[1]
    assert world.look() == 0
    assert ASSEMBLY_BELL not in world.store(2)
    assert ASSEMBLY_BELL in world.store(3)
    assert world.look() == 1
    assert world.said == [(1, "mpps")]


def test_a_step_that_completes_after_its_instances_completes_the_study(world):
    world.step(create=True)
    for number in (1, 2, 3):
        world.store(number)
    assert world.look() == 0
    world.step(1, 2, 3, status=StepState.COMPLETED)
    assert world.look() == 1


def test_a_step_that_completed_before_its_first_instance_rings_for_it(world):
    world.step(create=True)
    world.step(1, status=StepState.COMPLETED)
    assert ASSEMBLY_BELL in world.store(1)
    assert world.look() == 1
    assert world.said == [(1, "mpps")]


def test_a_study_waits_for_all_its_steps_and_not_for_the_quiet_period(world, clock):
    world.step(create=True)
    world.step(create=True, step_uid="9.2")
    world.store(1)
    world.step(1, status=StepState.COMPLETED)
    clock.advance(1000)
    assert world.look() == 0
    world.store(2)
    world.step(2, status=StepState.COMPLETED, step_uid="9.2")
    assert world.look() == 1
    assert world.said == [(1, "mpps")]


def test_a_step_that_never_ends_holds_a_study_back_only_until_the_hard_limit(world, clock):
    world.step(create=True)
    world.store(1)
    clock.advance(3599)
    assert world.look() == 0
    clock.advance(1)
    assert world.look() == 1
    world.store(2)
    clock.advance(30)
    assert world.look() == 1
    assert world.said == [(1, "longest_open"), (2, "quiet_period")]


def test_a_discontinued_step_leaves_it_to_the_quiet_period(world, clock):
    world.step(create=True)
    world.store(1)
    world.step(1, status=StepState.DISCONTINUED)
    assert world.look() == 0
    clock.advance(30)
    assert world.look() == 1
    assert world.said == [(1, "quiet_period")]


def test_a_step_of_two_studies_completes_both(world):
    world.step(create=True, studies=(STUDY, "1.2.4"))
    world.store(1)
    world.store(2, study="1.2.4")
    world.step(1, 2, status=StepState.COMPLETED)
    assert world.look() == 2
    assert {event.completed_by for event in world.events()} == {"mpps"}


@pytest.mark.parametrize(("studies", "completed"), [((STUDY,), set()), ((STUDY, "1.2.4"), {"1.2.4"})])
def test_a_named_instance_completes_only_the_study_it_belongs_to(world, studies, completed):
    world.store(1)
    world.store(2, study="1.2.4")
    world.step(create=True, studies=studies)
    world.step(2, status=StepState.COMPLETED)
    world.look()
    assert {event.study_key for event in world.events()} == {NAMES.study(study) for study in completed}


def test_a_step_belongs_to_the_title_that_created_it(world):
    world.step(create=True)
    for status in (None, StepState.DISCONTINUED):
        assert world.step(1, status=status, peer="EVIL")[0] is StepRefusal.FOREIGN
    assert world.count(NamedInstance) == 0
    assert world.step(1, status=StepState.COMPLETED)[0] is StepState.COMPLETED
    assert world.step(1, peer="EVIL")[0] is StepRefusal.FOREIGN


def test_named_instances_that_never_come_leave_it_to_the_quiet_period_and_complete_a_revision_later(world, clock):
    world.step(create=True)
    world.store(1)
    world.step(1, 2, 3, status=StepState.COMPLETED)
    clock.advance(30)
    assert world.look() == 1
    clock.advance(1)
    world.store(2)
    assert world.look() == 0
    world.store(3)
    assert world.look() == 1
    assert world.said == [(1, "quiet_period"), (2, "mpps")]


def test_late_instances_that_nobody_names_bring_one_revision_and_not_one_each(world, clock):
    world.step(create=True)
    world.store(1)
    world.step(1, status=StepState.COMPLETED)
    world.look()
    clock.advance(5)
    for number in (7, 8, 9):
        world.store(number)
        assert world.look() == 0
        clock.advance(1)
    clock.advance(30)
    assert world.look() == 1
    assert world.said == [(1, "mpps"), (2, "quiet_period")]
    assert world.events()[1].series[0].instances == 4


def test_a_second_step_brings_the_next_revision_at_once(world, clock):
    world.step(create=True)
    world.store(1)
    world.step(1, status=StepState.COMPLETED)
    world.look()
    clock.advance(60)
    world.step(create=True, step_uid="9.2")
    world.store(2)
    clock.advance(600)
    assert world.look() == 0
    world.step(2, status=StepState.COMPLETED, step_uid="9.2")
    assert world.look() == 1
    assert world.said == [(1, "mpps"), (2, "mpps")]


def test_what_a_step_may_do_is_kept_in_the_database(world):
    assert world.step(status=StepState.COMPLETED)[0] is StepRefusal.UNKNOWN
    assert world.step(create=True)[0] is StepState.IN_PROGRESS
    assert world.step(create=True)[0] is StepRefusal.DUPLICATE
    assert world.step(1)[0] is StepState.IN_PROGRESS
    assert world.step(2, status=StepState.DISCONTINUED)[0] is StepState.DISCONTINUED
    assert world.step(3, status=StepState.COMPLETED)[0] is StepRefusal.FINAL
    with world.database.read() as session:
        assert session.exec(select(NamedInstance.sop_instance_uid)).all() == [uid(2)]


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


def test_the_stated_number_of_instances_completes(world):
    world.store(1, stated=3)
    assert world.look() == 0
    assert ASSEMBLY_BELL not in world.store(2, stated=3)
    assert ASSEMBLY_BELL in world.store(3)
    assert world.look() == 1
    assert world.said == [(1, "instance_count")]


def test_a_number_stated_too_low_costs_one_revision(world, clock):
    world.store(1, stated=1)
    assert world.look() == 1
    for number in (2, 3):
        world.store(number, stated=1)
        assert world.look() == 0
    clock.advance(30)
    assert world.look() == 1
    assert world.said == [(1, "instance_count"), (2, "quiet_period")]


def test_more_studies_than_one_look_takes_are_looked_at_again_at_once(world, clock, monkeypatch):
    monkeypatch.setattr("services.assembly.completion.STUDIES_PER_TICK", 2)
    for number in range(3):
        world.store(number, study=f"1.2.{number}")
    clock.advance(30)
    with world.database.transaction() as tx:
        assert complete_studies(tx, NAMES, RULES) == 2
        assert ASSEMBLY_BELL in tx.rings
    assert world.look() == 1


def test_studies_with_a_long_quiet_period_do_not_stand_in_the_way_of_others(world, clock, monkeypatch):
    monkeypatch.setattr("services.assembly.completion.STUDIES_PER_TICK", 2)
    for number in range(4):
        world.store(number, study=f"1.2.{number}", modality="US")
    for _ in range(2):
        world.look()
    clock.advance(1)
    world.store(9, study="1.2.9")
    world.look()
    clock.advance(30)
    assert world.look() == 1


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


@pytest.mark.parametrize("attempt", range(8))
def test_the_last_instance_and_the_end_of_the_step_at_the_same_time_complete_the_study_at_once(world, attempt):
    """Whoever commits last rings, so that nobody waits for the next regular look; time stands still here."""
    world.step(create=True)
    world.store(1)
    world.look()
    rung, start, done = threading.Event(), threading.Barrier(3), threading.Event()

    def do(work):
        start.wait()
        if ASSEMBLY_BELL in work():
            rung.set()

    def tick():
        start.wait()
        while not done.is_set():
            if rung.wait(0.01):
                rung.clear()
                world.look()

    ticker = threading.Thread(target=tick)
    others = [
        threading.Thread(target=do, args=(lambda: world.store(2),)),
        threading.Thread(target=do, args=(lambda: world.step(1, 2, status=StepState.COMPLETED)[1],)),
    ]
    for thread in (ticker, *others):
        thread.start()
    for thread in others:
        thread.join()
    for _ in range(200):
        if world.said:
            break
        time.sleep(0.02)
    done.set()
    ticker.join()
    assert world.said == [(1, "mpps")]
