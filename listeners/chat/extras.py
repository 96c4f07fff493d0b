"""Libraries that only some sites install."""

from importlib.util import find_spec
from typing import Final

from services.runtime.errors import InvalidInput

PACKAGES: Final = {"slack": "slack_bolt", "teams": "microsoft_teams"}
"""Extra of `reclaim` to the package that it brings."""


def lacks(extra: str) -> bool:
    """Whether the extra is not installed."""
    return find_spec(PACKAGES[extra]) is None


def need(extra: str) -> None:
    """InvalidInput that says what to install, where the extra is missing."""
    if lacks(extra):
        raise InvalidInput(f"{extra} is set up, but its library is not installed: pip install 'reclaim[{extra}]'")
