"""The life of a job as a table: what may follow what. Pure."""

from enum import StrEnum
from typing import Final

from schemas.vocabulary import JobState
from services.runtime.transitions import follow


class JobEvent(StrEnum):
    """What can happen to a job."""

    CLAIM = "claim"
    RECLAIM = "reclaim"
    RELEASE = "release"
    SUCCEED = "succeed"
    FAIL = "fail"


TRANSITIONS: Final[dict[tuple[JobState, JobEvent], JobState]] = {
    (JobState.QUEUED, JobEvent.CLAIM): JobState.RUNNING,
    (JobState.QUEUED, JobEvent.FAIL): JobState.FAILED,
    (JobState.RUNNING, JobEvent.RECLAIM): JobState.RUNNING,
    (JobState.RUNNING, JobEvent.RELEASE): JobState.QUEUED,
    (JobState.RUNNING, JobEvent.SUCCEED): JobState.SUCCEEDED,
    (JobState.RUNNING, JobEvent.FAIL): JobState.FAILED,
}


def after(state: JobState, event: JobEvent) -> JobState:
    """The next state; raises ImpossibleTransition for what the table does not list."""
    return follow(TRANSITIONS, state, event)
