"""Performed procedure steps: the complete table, and its invariants under any order of requests."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from schemas.vocabulary import StepState
from services.assembly.steps import EVENT_OF, TRANSITIONS, StepEvent, StepRefusal, next_state

FINAL = {StepState.COMPLETED, StepState.DISCONTINUED}


def test_every_state_knows_every_request():
    assert set(TRANSITIONS) == set(product((None, *StepState), StepEvent))


def test_every_status_is_a_request():
    assert set(EVENT_OF) == set(StepState)


def test_the_usual_course():
    state = next_state(None, StepEvent.CREATE)
    assert state is StepState.IN_PROGRESS
    assert next_state(state, StepEvent.UPDATE) is StepState.IN_PROGRESS
    assert next_state(state, StepEvent.COMPLETE) is StepState.COMPLETED
    assert next_state(state, StepEvent.DISCONTINUE) is StepState.DISCONTINUED


@given(st.lists(st.sampled_from(list(StepEvent)), max_size=30))
def test_an_ended_step_never_changes_and_a_step_is_made_once(requests):
    state, made, ended = None, 0, None
    for request in requests:
        outcome = next_state(state, request)
        if isinstance(outcome, StepState):
            made += state is None
            state = outcome
        else:
            assert outcome is not StepRefusal.DUPLICATE or made == 1
            assert (outcome is StepRefusal.FINAL) == (state in FINAL and request is not StepEvent.CREATE)
            assert (outcome is StepRefusal.UNKNOWN) == (state is None)
        assert ended is None or state is ended
        ended = state if state in FINAL else None
    assert made <= 1
    assert (made == 1) == (StepEvent.CREATE in requests)
