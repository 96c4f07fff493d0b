"""Who speaks. A channel vouches for an identity of its own; the settings say which person that is, and with which role."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from schemas.settings import Settings
from schemas.vocabulary import UserRole

V = TypeVar("V")

NAMELESS = "anonymous"
NOT_LISTED = "You are not listed for this service. Ask its administrator to add you."


@dataclass(frozen=True)
class Person:
    """A person with the name under which they are audited, the same on every channel where the settings say so."""

    user: str
    role: UserRole


def person_of(settings: Settings, channel: str, identity: str) -> Person | None:
    """The person behind an identity that the channel has proved (Slack user id, Entra object id); None for one who is refused."""
    chat, key = settings.chat, f"{channel}:{identity}"
    login = _of(chat.identities, key) or key
    role = chat.users.get(login) or _of(chat.users, key)
    if role is None and chat.refuse_unknown:
        return None
    return Person(login[:64], role or chat.default_role)


def _of(mapping: Mapping[str, V], key: str) -> V | None:
    """What stands under a channel's identity. An Entra object id is the same in either case."""
    if key in mapping or not key.startswith("teams:"):
        return mapping.get(key)
    return next((value for name, value in mapping.items() if name.lower() == key.lower()), None)


def speaker(settings: Settings, user: str) -> Person:
    """The person behind a name that came over HTTP. Where no token vouches for names, all are one: four eyes are two people's."""
    if not settings.http.token.get_secret_value():
        return Person(NAMELESS, settings.chat.default_role)
    return Person(user, settings.chat.users.get(user, settings.chat.default_role))
