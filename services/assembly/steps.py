"""Life of a performed procedure step (PS3.4 F.7.2): a table of transitions without network or database."""

from enum import StrEnum
from typing import Final

from schemas.vocabulary import StepState


class StepEvent(StrEnum):
    """What a modality may ask for."""

    CREATE = "create"
    UPDATE = "update"
    COMPLETE = "complete"
    DISCONTINUE = "discontinue"


class StepRefusal(StrEnum):
    """Why a request changes nothing."""

    DUPLICATE = "duplicate"
    UNKNOWN = "unknown"
    FINAL = "final"
    FOREIGN = "foreign"


TRANSITIONS: Final[dict[tuple[StepState | None, StepEvent], StepState | StepRefusal]] = {
    (None, StepEvent.CREATE): StepState.IN_PROGRESS,
    (None, StepEvent.UPDATE): StepRefusal.UNKNOWN,
    (None, StepEvent.COMPLETE): StepRefusal.UNKNOWN,
    (None, StepEvent.DISCONTINUE): StepRefusal.UNKNOWN,
    (StepState.IN_PROGRESS, StepEvent.CREATE): StepRefusal.DUPLICATE,
    (StepState.IN_PROGRESS, StepEvent.UPDATE): StepState.IN_PROGRESS,
    (StepState.IN_PROGRESS, StepEvent.COMPLETE): StepState.COMPLETED,
    (StepState.IN_PROGRESS, StepEvent.DISCONTINUE): StepState.DISCONTINUED,
    (StepState.COMPLETED, StepEvent.CREATE): StepRefusal.DUPLICATE,
    (StepState.COMPLETED, StepEvent.UPDATE): StepRefusal.FINAL,
    (StepState.COMPLETED, StepEvent.COMPLETE): StepRefusal.FINAL,
    (StepState.COMPLETED, StepEvent.DISCONTINUE): StepRefusal.FINAL,
    (StepState.DISCONTINUED, StepEvent.CREATE): StepRefusal.DUPLICATE,
    (StepState.DISCONTINUED, StepEvent.UPDATE): StepRefusal.FINAL,
    (StepState.DISCONTINUED, StepEvent.COMPLETE): StepRefusal.FINAL,
    (StepState.DISCONTINUED, StepEvent.DISCONTINUE): StepRefusal.FINAL,
}
"""(state, None before the first N-CREATE; request) to the next state or the refusal."""

EVENT_OF: Final[dict[StepState, StepEvent]] = {
    StepState.IN_PROGRESS: StepEvent.UPDATE,
    StepState.COMPLETED: StepEvent.COMPLETE,
    StepState.DISCONTINUED: StepEvent.DISCONTINUE,
}
"""What an N-SET with this Performed Procedure Step Status asks for; without one it is an update."""


def next_state(state: StepState | None, event: StepEvent) -> StepState | StepRefusal:
    """Where the step goes, or why it stays."""
    return TRANSITIONS[state, event]
