"""The study's state machine: complete table, and its invariants under any order of events."""

from datetime import UTC, datetime, timedelta
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from schemas.vocabulary import StudyState
from services.assembly.studies import TRANSITIONS, Progress, StudyEvent, not_after, on_complete, on_instances

START = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
NEW = Progress(StudyState.OPEN, 0, 0, START)


def test_every_state_knows_every_event():
    assert set(TRANSITIONS) == set(product(StudyState, StudyEvent))


def test_a_late_instance_brings_the_next_revision():
    first, announced = on_complete(on_instances(NEW, [START]))
    assert (first.state, first.revision, announced) == (StudyState.COMPLETE, 1, True)
    reopened = on_instances(first, [START + timedelta(minutes=1)])
    assert (reopened.state, reopened.revision, reopened.opened_at) == (StudyState.OPEN, 1, START + timedelta(minutes=1))
    assert on_complete(reopened)[0].revision == 2


def test_a_complete_study_is_not_announced_again():
    complete, _ = on_complete(on_instances(NEW, [START]))
    assert on_complete(complete) == (complete, False)


def test_a_study_without_instances_is_never_announced():
    assert on_complete(NEW)[1] is False


def test_times_that_are_still_to_come_are_taken_back():
    ahead = on_instances(NEW, [START + timedelta(days=3650)])
    back = not_after(ahead, START + timedelta(seconds=9))
    assert (back.last_instance_at, back.opened_at) == (START + timedelta(seconds=9), START + timedelta(seconds=9))
    assert not_after(back, START + timedelta(seconds=10)) == back
    assert not_after(NEW, START) == NEW


EVENTS = st.lists(st.one_of(st.none(), st.integers(-100, 100)), max_size=40)


@given(EVENTS)
def test_revisions_count_announcements_and_nothing_is_lost(events):
    """None is a completion, a number an instance at that second; clocks may go back."""
    study, announced, instances, unannounced = NEW, 0, 0, False
    for event in events:
        before = study.last_instance_at
        if event is None:
            study, said = on_complete(study)
            announced += said
            assert said == unannounced
            unannounced = False
        else:
            study = on_instances(study, [START + timedelta(seconds=event)])
            instances += 1
            unannounced = True
        assert study.last_instance_at >= before
        assert study.revision == announced
        assert study.instances == instances
        assert study.state is StudyState.OPEN or not unannounced
