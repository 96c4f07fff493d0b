"""The conversation core that every front end shares: a command goes out through the outbox, the reply is looked up by its id."""

import asyncio
import hashlib
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from math import ceil
from typing import Any, Final

from pydantic import ValidationError
from sqlmodel import select

from agents.proposals import reply_event_id
from agents.roles import may_decide, needs_another
from listeners.chat import repository
from listeners.chat.cards import Card, seen
from listeners.chat.identities import without_identities
from listeners.chat.people import NOT_LISTED, Person, person_of
from schemas.events import AgentCommand, AgentReply, OrderDecision
from schemas.tables import Order, Outbox
from schemas.topics import AGENT_COMMAND
from schemas.vocabulary import OrderKind, OrderState, UserRole
from services.runtime import telemetry
from services.runtime.errors import InvalidInput
from services.runtime.lease import MOST_APART_S
from services.runtime.service import Context
from services.runtime.transaction import Transaction

MINUTE: Final = timedelta(seconds=60)
CLOCKS_APART: Final = timedelta(seconds=MOST_APART_S)
POLL_S: Final = 0.1
LONGEST: Final = 4_000
"""Characters of a message."""
HINT: Final = 'Ask for example "status of all models"; "help" says what is possible.'


@dataclass(frozen=True)
class Said:
    """A message that a person wrote in a channel which has proved who they are.

    `keys` name the message to the channel (event id, message id): a repetition has one of them and is passed over.
    `reference` is what the channel needs to answer in `thread` later.
    """

    channel: str
    identity: str
    thread: str
    reference: dict[str, Any]
    text: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Pressed:
    """A button that a person pressed below an order that waits; the rest as in `Said`."""

    channel: str
    identity: str
    thread: str
    reference: dict[str, Any]
    order_id: str
    approve: bool
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of it: a command was sent, it had been dealt with before, or the person alone is told why not."""

    command_id: str = ""
    repeated: bool = False
    refusal: str = ""


class TooMany(InvalidInput):
    """A person has sent more messages within a minute than the site takes. `wait_s`: until the next one is taken."""

    def __init__(self, limit: int, wait_s: int) -> None:
        super().__init__(f"you have sent {limit} messages within a minute, more are not taken; send it again in {wait_s} seconds")
        self.wait_s = wait_s


def ask(context: Context, text: str, user: str, role: UserRole, thread: str, channel: str) -> str:
    """Send a person's words to the agents; returns the command's id.

    InvalidInput when empty or over 4,000 characters, TooMany when the person has sent too many within a minute.
    """
    with context.database.transaction() as tx:
        cleaned = _cleaned(tx, context, text)
        command = _command(str(uuid.uuid4()), cleaned, Person(user, role), thread, channel)
        _require_rest(tx, command, context.settings.chat.messages_a_minute)
        repository.remember(tx, command.thread, channel, {})
        _send(tx, command)
    return command.command_id


def receive(context: Context, said: Said, *, repeat_question: bool = False) -> Outcome:
    """Take a message of Slack or Teams: once, durably, with the role of the person. Transient when the database is away.

    With `repeat_question` it is put into the thread first, for a channel that shows nobody what was typed (slash commands).
    """
    return _counted(said.channel, _receive(context, said, repeat_question=repeat_question))


def _receive(context: Context, said: Said, *, repeat_question: bool) -> Outcome:
    person = person_of(context.settings, said.channel, said.identity)
    with context.database.transaction() as tx:
        if not _first_time(tx, said.channel, said.keys):
            return Outcome(repeated=True)
        if person is None:
            tx.audit(f"user:{said.channel}:{said.identity}"[:128], "chat.refused", said.thread, channel=said.channel)
            return Outcome(refusal=NOT_LISTED)
        try:
            cleaned = _cleaned(tx, context, said.text)
            command = _command(_command_id(said.channel, said.keys), cleaned, person, said.thread, said.channel)
            _require_rest(tx, command, context.settings.chat.messages_a_minute)
        except TooMany as error:
            return Outcome(refusal=f"{error.reason[:1].upper()}{error.reason[1:]}.")
        except InvalidInput as error:
            return Outcome(refusal=f"{error.reason[:1].upper()}{error.reason[1:]}. {HINT}")
        repository.remember(tx, command.thread, said.channel, said.reference)
        if repeat_question:
            _repeat(tx, command)
        _send(tx, command)
    return Outcome(command.command_id)


def _repeat(tx: Transaction, command: AgentCommand) -> None:
    thread = repository.thread(tx.session, command.thread)
    if thread is not None:
        repository.put(tx, thread, f"question|{command.command_id}", "question", Card(title="Question", text=seen(command.text)))


def decide(context: Context, pressed: Pressed) -> Outcome:
    """Take a pressed button: once, and only of a person who may decide on this order; a refusal is audited and told at once."""
    return _counted(pressed.channel, _take_press(context, pressed))


def _take_press(context: Context, pressed: Pressed) -> Outcome:
    person = person_of(context.settings, pressed.channel, pressed.identity)
    with context.database.transaction() as tx:
        if not _first_time(tx, pressed.channel, pressed.keys):
            return Outcome(repeated=True)
        refusal = _refusal(tx, person, pressed, four_eyes=context.settings.policy.four_eyes)
        if person is None or refusal:
            actor = f"user:{person.user if person else f'{pressed.channel}:{pressed.identity}'}"[:128]
            detail = {"channel": pressed.channel, "approve": pressed.approve, "reason": refusal}
            tx.audit(actor, "order.decision_refused", pressed.order_id[:128], role=str(person.role) if person else "", **detail)
            return Outcome(refusal=refusal)
        text = f"{'approve' if pressed.approve else 'reject'} {pressed.order_id}"
        command = _command(_command_id(pressed.channel, pressed.keys), text, person, pressed.thread, pressed.channel)
        decision = OrderDecision(order_id=pressed.order_id, approve=pressed.approve)
        repository.remember(tx, command.thread, pressed.channel, pressed.reference)
        _send(tx, command.model_copy(update={"decision": decision}))
    return Outcome(command.command_id)


def _refusal(tx: Transaction, person: Person | None, pressed: Pressed, *, four_eyes: bool) -> str:
    """Why this person may not decide on this order, empty when they may; the guardrails judge again when it is carried out."""
    if person is None:
        return NOT_LISTED
    order = tx.session.get(Order, pressed.order_id)
    if order is None:
        return "There is no such order."
    if order.state != OrderState.AWAITING_APPROVAL:
        return f"Order {order.order_id} does not wait any more: it is {order.state.replace('_', ' ')}."
    if not may_decide(person.role, OrderKind(order.kind)):
        return f"Your role {person.role} may not decide on order {order.order_id}."
    if pressed.approve and needs_another(OrderKind(order.kind), order.actor, f"user:{person.user}", four_eyes=four_eyes):
        return f"You ordered {order.order_id} yourself; this site wants a second person to approve it."
    return ""


def _counted(channel: str, outcome: Outcome) -> Outcome:
    word = "repeated" if outcome.repeated else "refused" if outcome.refusal else "taken"
    telemetry.count("reclaim.chat.received", channel=channel, outcome=word)
    return outcome


def _first_time(tx: Transaction, channel: str, keys: tuple[str, ...]) -> bool:
    """Whether none of the names of this message is known; all are from now on."""
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in keys]
    return len(tx.claim(f"chat.{channel}", digests)) == len(set(digests))


def _command_id(channel: str, keys: tuple[str, ...]) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{channel}|{'|'.join(keys)}"))


def _cleaned(tx: Transaction, context: Context, text: str) -> str:
    if not text.strip():
        raise InvalidInput("the message is empty")
    if len(text) > LONGEST:
        raise InvalidInput("the message is longer than 4,000 characters")
    return without_identities(tx.session, context.pseudonyms, text, tx.clock.now().date()).strip()


def _command(command_id: str, text: str, person: Person, thread: str, channel: str) -> AgentCommand:
    try:
        return AgentCommand(
            command_id=command_id,
            thread=thread[:128],
            user=person.user[:64],
            user_role=person.role,
            channel=channel,
            text=text,
        )
    except ValidationError as error:
        raise InvalidInput("the message is longer than 4,000 characters") from error


def _require_rest(tx: Transaction, command: AgentCommand, limit: int) -> None:
    """Raise TooMany where this message is one too many of the person's within a minute.

    What is dated later than machines' clocks are apart was said while a clock ran ahead: it would silence the person for years.
    """
    now = tx.clock.now()
    times = repository.said_between(tx.session, f"user:{command.user}", now - MINUTE, now + CLOCKS_APART) if limit else []
    if limit and len(times) >= limit:
        raise TooMany(limit, ceil((times[limit - 1] + MINUTE - now).total_seconds()) or 1)


def _send(tx: Transaction, command: AgentCommand) -> None:
    tx.emit(AGENT_COMMAND, command, event_id=command.command_id)
    tx.audit(f"user:{command.user}", repository.SAID, command.command_id, role=str(command.user_role), channel=command.channel)


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


def _ticks(timeout_s: float) -> Iterator[None]:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        yield
