"""Life of a case as a table of transitions: (state, event) to (state, effects). Pure; no clock, no bus, no database."""

from enum import StrEnum
from typing import Final

from schemas.vocabulary import CaseState


class CaseEvent(StrEnum):
    """What can happen to a case."""

    RESCORED = "rescored"
    """A later revision of the study was scored by the same version."""
    LABELLED = "labelled"
    """The truth is known for the first time."""
    CORRECTED = "corrected"
    """The truth is another one than before."""
    WITHDRAWN = "withdrawn"
    """All who said what the truth is have taken it back."""
    CLOSED = "closed"
    """The case was chosen for a batch that closes now."""


class Effect(StrEnum):
    """What a transition entails."""

    REPLACE_SCORE = "replace_score"
    SET_TRUTH = "set_truth"
    CLEAR_TRUTH = "clear_truth"
    REOPEN = "reopen"
    """The case's batch has to be evaluated again."""


Transition = tuple[CaseState, frozenset[Effect]]


def _to(state: CaseState, *effects: Effect) -> Transition:
    return state, frozenset(effects)


TRANSITIONS: Final[dict[tuple[CaseState, CaseEvent], Transition]] = {
    (CaseState.WAITING, CaseEvent.RESCORED): _to(CaseState.WAITING, Effect.REPLACE_SCORE),
    (CaseState.WAITING, CaseEvent.LABELLED): _to(CaseState.JOINED, Effect.SET_TRUTH),
    (CaseState.JOINED, CaseEvent.RESCORED): _to(CaseState.JOINED, Effect.REPLACE_SCORE),
    (CaseState.JOINED, CaseEvent.CORRECTED): _to(CaseState.JOINED, Effect.SET_TRUTH),
    (CaseState.JOINED, CaseEvent.WITHDRAWN): _to(CaseState.WAITING, Effect.CLEAR_TRUTH),
    (CaseState.JOINED, CaseEvent.CLOSED): _to(CaseState.BATCHED),
    # An evaluated batch keeps the score that was evaluated: a late instance must not rewrite history.
    (CaseState.BATCHED, CaseEvent.RESCORED): _to(CaseState.BATCHED),
    (CaseState.BATCHED, CaseEvent.CORRECTED): _to(CaseState.BATCHED, Effect.SET_TRUTH, Effect.REOPEN),
    # It keeps its place, so that no case is ever in two batches, and the batch's number of cases stays what it was.
    (CaseState.BATCHED, CaseEvent.WITHDRAWN): _to(CaseState.WITHDRAWN, Effect.CLEAR_TRUTH, Effect.REOPEN),
    (CaseState.WITHDRAWN, CaseEvent.RESCORED): _to(CaseState.WITHDRAWN),
    (CaseState.WITHDRAWN, CaseEvent.LABELLED): _to(CaseState.BATCHED, Effect.SET_TRUTH, Effect.REOPEN),
}
"""Every pair that can occur; a pair that is not here is a programming error and raises KeyError."""


def step(state: CaseState, event: CaseEvent) -> Transition:
    """The state after `event` and what has to be done; KeyError for an event that cannot happen in this state."""
    return TRANSITIONS[state, event]


def truth_event(known: str | None, decided: str | None) -> CaseEvent | None:
    """Which event the decided truth is for a case whose truth so far is `known`; None when nothing changes.

    Nothing is decided (None) where every source has withdrawn what it said.
    """
    if known == decided:
        return None
    if decided is None:
        return CaseEvent.WITHDRAWN
    return CaseEvent.LABELLED if known is None else CaseEvent.CORRECTED


RESCORABLE: Final = frozenset(state for state in CaseState if Effect.REPLACE_SCORE in TRANSITIONS[state, CaseEvent.RESCORED][1])
"""States in which a later revision replaces the score."""
