"""The life of a result on its way to the PACS as a table: what may follow what. Pure."""

from enum import StrEnum
from typing import Final

from schemas.vocabulary import ResultState
from services.runtime.transitions import follow


class ResultEvent(StrEnum):
    """What can happen to a result."""

    CLAIM = "claim"
    RECLAIM = "reclaim"
    RELEASE = "release"
    POSTPONE = "postpone"
    SUCCEED = "succeed"
    GIVE_UP = "give_up"
    REPLAY = "replay"


TRANSITIONS: Final[dict[tuple[ResultState, ResultEvent], ResultState]] = {
    (ResultState.QUEUED, ResultEvent.CLAIM): ResultState.SENDING,
    (ResultState.QUEUED, ResultEvent.GIVE_UP): ResultState.GIVEN_UP,
    (ResultState.SENDING, ResultEvent.RECLAIM): ResultState.SENDING,
    (ResultState.SENDING, ResultEvent.RELEASE): ResultState.QUEUED,
    (ResultState.SENDING, ResultEvent.POSTPONE): ResultState.QUEUED,
    (ResultState.SENDING, ResultEvent.SUCCEED): ResultState.SENT,
    (ResultState.SENDING, ResultEvent.GIVE_UP): ResultState.GIVEN_UP,
    (ResultState.GIVEN_UP, ResultEvent.REPLAY): ResultState.QUEUED,
}


def after(state: ResultState, event: ResultEvent) -> ResultState:
    """The next state; raises ImpossibleTransition for what the table does not list."""
    return follow(TRANSITIONS, state, event)
