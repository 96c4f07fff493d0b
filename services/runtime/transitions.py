"""Lives as tables of transitions: (state, event) to the next state. Pure."""

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

State = TypeVar("State", bound=StrEnum)
Event = TypeVar("Event", bound=StrEnum)


class ImpossibleTransition(Exception):  # noqa: N818 - named for what is wrong, not for the mechanism
    """Something was to do what its state does not allow: a bug."""


def follow(table: Mapping[tuple[State, Event], State], state: State, event: Event) -> State:
    """The next state; raises ImpossibleTransition for what the table does not list."""
    try:
        return table[state, event]
    except KeyError:
        raise ImpossibleTransition(f"what is {state} cannot {event}") from None
