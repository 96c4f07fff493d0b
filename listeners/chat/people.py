"""Who speaks. A channel vouches for an identity of its own; the settings say which person that is, and with which role."""

from dataclasses import dataclass

from schemas.settings import Settings
from schemas.vocabulary import UserRole

NOT_LISTED = "You are not listed for this service. Ask its administrator to add you."


@dataclass(frozen=True)
class Person:
    """A person with the name under which they are audited, the same on every channel where the settings say so."""

    user: str
    role: UserRole


def person_of(settings: Settings, channel: str, identity: str) -> Person | None:
    """The person behind an identity that the channel has proved (Slack user id, Entra object id); None for one who is refused."""
    chat, key = settings.chat, f"{channel}:{identity}"
    login = chat.identities.get(key, key)
    role = chat.users.get(login) or chat.users.get(key)
    if role is None and chat.refuse_unknown:
        return None
    return Person(login[:64], role or chat.default_role)


def role_of(settings: Settings, user: str) -> UserRole:
    """The role of a user who comes over HTTP: as the settings say, the default where no token vouches for names."""
    if not settings.http.token.get_secret_value():
        return settings.chat.default_role
    return settings.chat.users.get(user, settings.chat.default_role)
