"""Completion against the index, on both engines: what reception, steps, commitment requests and time make of a study."""

import threading
import time

import pytest
from sqlmodel import select

from schemas.announcements import NamedInstance
from schemas.vocabulary import StepState
from services.assembly.completion import complete_studies
from services.assembly.repository import ASSEMBLY_BELL
from services.assembly.steps import StepRefusal
from tests.assembly_world import NAMES, RULES, STUDY, World, uid


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
