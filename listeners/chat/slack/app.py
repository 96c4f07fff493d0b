"""What comes in from Slack, over HTTP or Socket Mode: mentions, direct messages, the slash command, buttons.

A handler returns once the message lies in the database: what fails before that Slack sends again, what is sent again is known
by its event id. Bolt checks signatures and their age (five minutes).
"""

import asyncio
import hashlib
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp
from slack_bolt.async_app import AsyncApp
from slack_bolt.authorization import AuthorizeResult
from slack_sdk.errors import SlackClientError
from slack_sdk.web.async_client import AsyncWebClient

from listeners.chat import repository
from listeners.chat.conversation import Outcome, Pressed, Said, decide, receive
from listeners.chat.slack.front import web_client
from listeners.chat.slack.text import APPROVE, REJECT, escaped, typed
from services.runtime.service import Context

logger = logging.getLogger(__name__)
ORDER: Final = re.compile(r"ord-[0-9a-f]{12}")
ANSWER_WITHIN_S: Final = 2.0
"""Slack waits three seconds for our answer."""
UNTOLD: Final = (SlackClientError, aiohttp.ClientError, OSError, TimeoutError)
"""What may go wrong when Slack is asked or told something in passing."""
ASKED: Final = "Asked. The answer comes as a message here, or to you directly where the app is no member."
ELSEWHERE: Final = "This service answers people of its own workspace only."


def bolt_app(context: Context) -> AsyncApp:
    """The Bolt app with all handlers; it holds no connection until it is asked something."""
    slack = context.settings.slack
    quiet = logging.getLogger(f"{__name__}.bolt")
    quiet.setLevel(logging.ERROR)  # below, it logs whole requests
    myself = _Myself(web_client(context.settings), slack.bot_token.get_secret_value())

    async def authorize(enterprise_id: str | None, team_id: str | None) -> AuthorizeResult:
        return await myself.authorize(enterprise_id, team_id)  # Bolt hands parameters over by name, a method's `self` too

    app = AsyncApp(
        name="reclaim",
        logger=quiet,
        client=web_client(context.settings, token=False),
        signing_secret=slack.signing_secret.get_secret_value() or None,
        authorize=authorize,
        process_before_response=True,
        request_verification_enabled=bool(slack.signing_secret.get_secret_value()),
    )
    handlers = _Handlers(context, myself)
    app.event("app_mention")(handlers.mention)
    app.event("message")(handlers.message)
    app.command(re.compile(r"^/[\w-]+$"))(handlers.command)
    app.action(APPROVE)(handlers.approve)
    app.action(REJECT)(handlers.reject)
    return app


class _Myself:
    """Who we are in Slack, asked once; until it is known, messages are taken all the same."""

    def __init__(self, client: AsyncWebClient, token: str) -> None:
        self._client, self._token = client, token
        self.user = self.bot = ""

    async def authorize(self, enterprise_id: str | None, team_id: str | None) -> AuthorizeResult:
        """Bolt's question with which token to speak."""
        if not self.user:
            await self._ask()
        return AuthorizeResult(
            enterprise_id=enterprise_id,
            team_id=team_id,
            bot_token=self._token,
            bot_user_id=self.user or None,
            bot_id=self.bot or None,
        )

    async def _ask(self) -> None:
        try:
            answer = await asyncio.wait_for(self._client.auth_test(), ANSWER_WITHIN_S)
            self.user, self.bot = str(answer.get("user_id") or ""), str(answer.get("bot_id") or "")
        except UNTOLD as error:
            logger.warning("CHT-110 Slack does not say who we are (%s)", type(error).__name__)


class _Handlers:
    """Bolt's listeners; their parameters are named as Bolt hands them over."""

    def __init__(self, context: Context, myself: _Myself) -> None:
        self._context, self._myself = context, myself

    async def mention(self, event: dict[str, Any], body: dict[str, Any], client: AsyncWebClient) -> None:
        """The bot was named in a channel; the answer goes into that message's thread."""
        if not _by_a_bot(event):
            await self._said(event, body, client, thread_ts=str(event.get("thread_ts") or event["ts"]))

    async def message(self, event: dict[str, Any], body: dict[str, Any], client: AsyncWebClient) -> None:
        """A direct message, or one in a thread that we are in already; anything else said in a channel is not for us."""
        if _by_a_bot(event) or event.get("subtype") not in (None, "file_share", "thread_broadcast"):
            return
        thread_ts = str(event.get("thread_ts") or "")
        if event.get("channel_type") == "im" or (thread_ts and await self._known(_thread(_team(body), event, thread_ts))):
            await self._said(event, body, client, thread_ts)

    async def command(
        self, command: dict[str, Any], body: dict[str, Any], ack: Callable[..., Awaitable[Any]], client: AsyncWebClient
    ) -> None:
        """A slash command. Nobody else sees what was typed, so it is repeated where the answer goes."""
        del client
        key = f"{command.get('team_id')}|{command.get('trigger_id')}"
        if self._foreign(body, {}):
            await ack(text=ELSEWHERE)
            return
        channel, user = str(command["channel_id"]), str(command["user_id"])
        thread = f"slack:{command.get('team_id')}:{channel}:{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        said = Said("slack", user, thread, {"channel": channel, "user": user}, typed(str(command.get("text") or "")), (key,))
        outcome = await asyncio.to_thread(receive, self._context, said, repeat_question=True)
        await ack(text=escaped(outcome.refusal) or ASKED, response_type="ephemeral")

    async def approve(
        self, body: dict[str, Any], ack: Callable[..., Awaitable[Any]], respond: Callable[..., Awaitable[Any]]
    ) -> None:
        """The button `approve`."""
        await self._pressed(body, ack, respond, approve=True)

    async def reject(
        self, body: dict[str, Any], ack: Callable[..., Awaitable[Any]], respond: Callable[..., Awaitable[Any]]
    ) -> None:
        """The button `reject`."""
        await self._pressed(body, ack, respond, approve=False)

    async def _said(self, event: dict[str, Any], body: dict[str, Any], client: AsyncWebClient, thread_ts: str) -> None:
        channel, user = str(event["channel"]), str(event.get("user") or "")
        if not user:
            return
        if self._foreign(body, event):
            await _whisper(client, channel, user, thread_ts, ELSEWHERE)
            return
        reference = {"channel": channel} | ({"thread_ts": thread_ts} if thread_ts else {})
        text = typed(str(event.get("text") or ""), self._myself.user)
        keys = (f"event|{body.get('event_id')}", f"message|{_team(body)}|{channel}|{event['ts']}")
        said = Said("slack", user, _thread(_team(body), event, thread_ts), reference, text, keys)
        outcome = await asyncio.to_thread(receive, self._context, said)
        if outcome.refusal:
            await _whisper(client, channel, user, thread_ts, outcome.refusal)

    async def _pressed(
        self, body: dict[str, Any], ack: Callable[..., Awaitable[Any]], respond: Callable[..., Awaitable[Any]], *, approve: bool
    ) -> None:
        refusal = await self._decided(body, approve=approve)
        await ack()
        if refusal:
            try:
                await asyncio.wait_for(
                    respond(text=escaped(refusal), response_type="ephemeral", replace_original=False), ANSWER_WITHIN_S
                )
            except UNTOLD as error:
                logger.warning("CHT-111 a refusal could not be told (%s)", type(error).__name__)

    async def _decided(self, body: dict[str, Any], *, approve: bool) -> str:
        action, user, channel = body["actions"][0], str(body["user"]["id"]), str((body.get("channel") or {}).get("id", ""))
        order_id = str(action.get("value", ""))
        if self._foreign(body, body["user"]):
            return ELSEWHERE
        if not ORDER.fullmatch(order_id) or not channel:
            return "This button belongs to no order."
        message = body.get("message") or {}
        thread_ts = str(message.get("thread_ts") or ("" if channel.startswith("D") else message.get("ts") or ""))
        reference = {"channel": channel} | ({"thread_ts": thread_ts} if thread_ts else {})
        thread = _thread(_team(body), {"channel": channel}, thread_ts)
        key = f"button|{_team(body)}|{user}|{order_id}|{approve}|{action.get('action_ts')}"
        pressed = Pressed("slack", user, thread, reference, order_id, approve, (key,))
        outcome: Outcome = await asyncio.to_thread(decide, self._context, pressed)
        return outcome.refusal

    async def _known(self, thread: str) -> bool:
        def look() -> bool:
            with self._context.database.read() as session:
                return repository.thread(session, thread) is not None

        return await asyncio.to_thread(look)

    def _foreign(self, body: dict[str, Any], person: dict[str, Any]) -> bool:
        """Whether somebody of another workspace speaks (a channel that is shared with it)."""
        own = self._context.settings.slack.team
        theirs = person.get("user_team") or person.get("source_team") or person.get("team") or person.get("team_id")
        team = body.get("team_id") or (body.get("team") or {}).get("id")
        enterprise = body.get("enterprise_id") or (body.get("enterprise") or {}).get("id")
        return bool(own) and own not in {theirs or team, enterprise if not theirs or theirs == team else None}


def _team(body: dict[str, Any]) -> str:
    return str(body.get("team_id") or (body.get("team") or {}).get("id") or "")


def _thread(team: str, event: dict[str, Any], thread_ts: str) -> str:
    return f"slack:{team}:{event['channel']}:{thread_ts or 'dm'}"


def _by_a_bot(event: dict[str, Any]) -> bool:
    """Bots do not talk to each other here."""
    return bool(event.get("bot_id") or event.get("bot_profile"))


async def _whisper(client: AsyncWebClient, channel: str, user: str, thread_ts: str, text: str) -> None:
    """Tell one person only. It is a courtesy: where it fails, the refusal stands all the same."""
    try:
        call = client.chat_postEphemeral(channel=channel, user=user, thread_ts=thread_ts or None, text=escaped(text))
        await asyncio.wait_for(call, ANSWER_WITHIN_S)
    except UNTOLD as error:
        logger.warning("CHT-111 a refusal could not be told (%s)", type(error).__name__)
