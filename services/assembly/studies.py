"""Life of a study in the index, as a table of transitions without bus, clock or database.

A study is open while instances arrive and complete once it has been quiet. A late instance opens it again; the next
completion announces it with a higher revision.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from schemas.vocabulary import StudyState


class StudyEvent(StrEnum):
    """What can happen to a study."""

    INSTANCE = "instance"
    QUIET = "quiet"


class Effect(StrEnum):
    """What a transition asks of the caller."""

    COUNT = "count"
    ANNOUNCE = "announce"


Step = tuple[StudyState, tuple[Effect, ...]]

TRANSITIONS: Final[dict[tuple[StudyState, StudyEvent], Step]] = {
    (StudyState.OPEN, StudyEvent.INSTANCE): (StudyState.OPEN, (Effect.COUNT,)),
    (StudyState.OPEN, StudyEvent.QUIET): (StudyState.COMPLETE, (Effect.ANNOUNCE,)),
    (StudyState.COMPLETE, StudyEvent.INSTANCE): (StudyState.OPEN, (Effect.COUNT,)),
    (StudyState.COMPLETE, StudyEvent.QUIET): (StudyState.COMPLETE, ()),
}
"""(state, event) to (next state, effects)."""


@dataclass(frozen=True)
class Progress:
    """What the state machine knows of a study. `revision` counts announcements; 0 before the first."""

    state: StudyState
    revision: int
    instances: int
    last_instance_at: datetime


def on_instance(study: Progress, at: datetime) -> Progress:
    """A new instance was stored at `at`; clocks that go back never shorten the quiet period."""
    state, effects = TRANSITIONS[study.state, StudyEvent.INSTANCE]
    counted = study.instances + (Effect.COUNT in effects)
    return replace(study, state=state, instances=counted, last_instance_at=max(study.last_instance_at, at))


def on_quiet(study: Progress) -> tuple[Progress, bool]:
    """The quiet period is over. Returns the study, and whether this completion is to be announced."""
    state, effects = TRANSITIONS[study.state, StudyEvent.QUIET]
    announce = Effect.ANNOUNCE in effects and study.instances > 0
    return replace(study, state=state, revision=study.revision + announce), announce


def is_quiet(study: Progress, now: datetime, quiet_period_s: float) -> bool:
    """Whether no instance arrived for the whole quiet period."""
    return now - study.last_instance_at >= timedelta(seconds=quiet_period_s)
