"""Life of a study in the index, as a table of transitions without bus, clock or database.

A study is open while instances arrive, until `services.assembly.rules` finds it complete. A late instance opens it again;
the next completion announces it with a higher revision.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from schemas.vocabulary import StudyState


class StudyEvent(StrEnum):
    """What can happen to a study."""

    INSTANCE = "instance"
    COMPLETE = "complete"


class Effect(StrEnum):
    """What a transition asks of the caller."""

    COUNT = "count"
    ANNOUNCE = "announce"


Step = tuple[StudyState, tuple[Effect, ...]]

TRANSITIONS: Final[dict[tuple[StudyState, StudyEvent], Step]] = {
    (StudyState.OPEN, StudyEvent.INSTANCE): (StudyState.OPEN, (Effect.COUNT,)),
    (StudyState.OPEN, StudyEvent.COMPLETE): (StudyState.COMPLETE, (Effect.ANNOUNCE,)),
    (StudyState.COMPLETE, StudyEvent.INSTANCE): (StudyState.OPEN, (Effect.COUNT,)),
    (StudyState.COMPLETE, StudyEvent.COMPLETE): (StudyState.COMPLETE, ()),
}
"""(state, event) to (next state, effects)."""


@dataclass(frozen=True)
class Progress:
    """What the state machine knows of a study. `revision` counts announcements; 0 before the first.

    `opened_at` is the first instance since the last announcement, None before the first instance.
    """

    state: StudyState
    revision: int
    instances: int
    last_instance_at: datetime
    opened_at: datetime | None = None


def on_instances(study: Progress, times: Sequence[datetime]) -> Progress:
    """New instances, at least one, were stored at these times, one after the other; clocks that go back shorten no quiet period."""
    state, effects = TRANSITIONS[study.state, StudyEvent.INSTANCE]
    opened = study.opened_at if study.opened_at and study.state is StudyState.OPEN else times[0]
    counted = study.instances + (len(times) if Effect.COUNT in effects else 0)
    return Progress(state, study.revision, counted, max(study.last_instance_at, *times), opened)


def not_after(study: Progress, now: datetime) -> Progress:
    """The study with no time that is still to come: a clock that was ahead when an instance came does not hold it back."""
    opened = study.opened_at and min(study.opened_at, now)
    return replace(study, last_instance_at=min(study.last_instance_at, now), opened_at=opened)


def on_complete(study: Progress) -> tuple[Progress, bool]:
    """The study is complete. Returns it, and whether this completion is to be announced."""
    state, effects = TRANSITIONS[study.state, StudyEvent.COMPLETE]
    announce = Effect.ANNOUNCE in effects and study.instances > 0
    return replace(study, state=state, revision=study.revision + announce), announce
