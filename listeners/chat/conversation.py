"""The conversation core that every front end shares: a command goes out through the outbox, the reply is looked up by its id."""

import asyncio
import time
import uuid
from collections.abc import Iterator
from typing import Final

from pydantic import ValidationError
from sqlmodel import select

from agents.proposals import reply_event_id
from agents.redaction import without_uids
from schemas.events import AgentCommand, AgentReply
from schemas.settings import Settings
from schemas.tables import Outbox
from schemas.topics import AGENT_COMMAND
from schemas.vocabulary import UserRole
from services.runtime.errors import InvalidInput
from services.runtime.service import Context

POLL_S: Final = 0.1


def ask(context: Context, text: str, user: str, role: UserRole, thread: str, channel: str) -> str:
    """Send a person's words to the agents; returns the command's id. InvalidInput when empty or over 4,000 characters."""
    cleaned = without_uids(text).strip()
    if not cleaned:
        raise InvalidInput("the message is empty")
    command_id = str(uuid.uuid4())
    try:
        command = AgentCommand(
            command_id=command_id, thread=thread[:128], user=user[:64], user_role=role, channel=channel, text=cleaned
        )
    except ValidationError as error:
        raise InvalidInput("the message is longer than 4,000 characters") from error
    with context.database.transaction() as tx:
        tx.emit(AGENT_COMMAND, command, event_id=command_id)
        tx.audit(f"user:{command.user}", "chat.command", command_id, role=str(role), channel=channel)
    return command_id


def reply_to(context: Context, command_id: str) -> AgentReply | None:
    """The reply to a command, None while there is none."""
    with context.database.read() as session:
        row = session.exec(select(Outbox).where(Outbox.event_id == reply_event_id(command_id))).first()
    return AgentReply.model_validate_json(row.body) if row else None


def is_sent(context: Context, command_id: str) -> bool:
    """Whether the relay has handed the command to the bus; False for long means that the service is not running."""
    with context.database.read() as session:
        row = session.exec(select(Outbox).where(Outbox.event_id == command_id)).first()
    return row is not None and row.sent_at is not None


def await_reply(context: Context, command_id: str, timeout_s: float) -> AgentReply | None:
    """Wait for the reply, at most `timeout_s`; None when none came. The command stays and is answered later."""
    for _ in _ticks(timeout_s):
        reply = reply_to(context, command_id)
        if reply is not None:
            return reply
        time.sleep(POLL_S)
    return reply_to(context, command_id)


async def await_reply_async(context: Context, command_id: str, timeout_s: float) -> AgentReply | None:
    """As `await_reply`, without holding up the event loop."""
    for _ in _ticks(timeout_s):
        reply = await asyncio.to_thread(reply_to, context, command_id)
        if reply is not None:
            return reply
        await asyncio.sleep(POLL_S)
    return await asyncio.to_thread(reply_to, context, command_id)


def role_of(settings: Settings, user: str) -> UserRole:
    """The role of a user who comes over the network: as the settings say, the default where no token vouches for names."""
    if not settings.http.token.get_secret_value():
        return settings.chat.default_role
    return settings.chat.users.get(user, settings.chat.default_role)


def _ticks(timeout_s: float) -> Iterator[None]:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        yield
