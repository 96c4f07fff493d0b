"""The life of a job as a table: what may follow what. Pure."""

from enum import StrEnum
from typing import Final

from schemas.vocabulary import JobState


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


class ImpossibleTransition(Exception):  # noqa: N818 - named for what is wrong, not for the mechanism
    """A job was to do what its state does not allow: a bug."""


def after(state: JobState, event: JobEvent) -> JobState:
    """The next state; raises ImpossibleTransition for what the table does not list."""
    try:
        return TRANSITIONS[(state, event)]
    except KeyError:
        raise ImpossibleTransition(f"a job that is {state} cannot {event}") from None
