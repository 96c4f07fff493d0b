"""Messages to Slack over its Web API. What may have arrived is looked for by its metadata before it is posted again."""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import aiohttp
from slack_sdk.errors import SlackApiError, SlackRequestError
from slack_sdk.web.async_client import AsyncWebClient

from listeners.chat.delivery import Delivered, Later, Never
from listeners.chat.repository import Claim
from listeners.chat.slack.text import message_of
from schemas.settings import Settings

logger = logging.getLogger(__name__)
T = TypeVar("T")
EVENT_TYPE: Final = "reclaim_message"
CLOCKS_APART_S: Final = 300.0
MOST_SEARCHED: Final = 200
NOT_THERE: Final = frozenset({"channel_not_found", "not_in_channel", "is_archived", "channel_is_archived"})
HOPELESS: Final = NOT_THERE | frozenset(
    {"msg_too_long", "invalid_blocks", "invalid_blocks_format", "restricted_action", "message_not_found", "cant_update_message"}
    | {"edit_window_closed", "user_not_found", "cannot_dm_bot", "user_disabled", "no_text", "thread_not_found"}
)
"""Answers after which the same message would get the same answer."""


def web_client(settings: Settings, *, token: bool = True) -> AsyncWebClient:
    """Slack's client. It tries nothing again by itself: a post whose answer was lost is looked for first."""
    quiet = logging.getLogger(f"{__name__}.sdk")
    quiet.setLevel(logging.ERROR)  # below, it logs whole messages
    return AsyncWebClient(
        token=settings.slack.bot_token.get_secret_value() if token else None,
        base_url=settings.slack.api_url,
        timeout=int(settings.slack.timeout_s) or 1,
        retry_handlers=[],
        logger=quiet,
        trust_env_in_session=True,
    )


class SlackFront:
    """Brings messages to Slack."""

    channel = "slack"

    def __init__(self, settings: Settings) -> None:
        self._client = web_client(settings)
        self._reports = settings.reports_dir

    async def close(self) -> None:
        """Nothing is held between two calls."""

    async def deliver(self, claim: Claim) -> Delivered:
        """Post or edit. Raises Later and Never."""
        if claim.external_id:
            return await self._edit(claim)
        if claim.uncertain:
            found = await self._guarded(lambda: self._find(claim))
            if found:
                logger.info("CHT-106 %s had arrived already", claim.message_id)
                return found
        if claim.kind == "picture":
            return await self._guarded(lambda: self._allowed_upload(claim), posts=True)
        return await self._guarded(lambda: self._post(claim), posts=True)

    async def _post(self, claim: Claim) -> Delivered:
        reference = claim.reference
        try:
            return await self._post_to(claim, str(reference["channel"]))
        except SlackApiError as error:
            if _code(error) not in NOT_THERE or "user" not in reference or reference.get("thread_ts"):
                raise
            refused = error
        try:
            opened = await self._client.conversations_open(users=str(reference["user"]))
        except SlackApiError as error:
            raise (refused if _code(error) == "missing_scope" else error) from None
        return await self._post_to(claim, _text(opened.get("channel"), "id"))

    async def _post_to(self, claim: Claim, channel: str) -> Delivered:
        thread = claim.reference.get("thread_ts")
        metadata = {"event_type": EVENT_TYPE, "event_payload": {"message_id": claim.message_id}}
        answer = await self._client.chat_postMessage(channel=channel, thread_ts=thread, metadata=metadata, **message_of(claim.card))
        return _delivered(claim, channel, _text(answer, "ts"))

    async def _edit(self, claim: Claim) -> Delivered:
        channel = str(claim.reference["channel"])

        async def update() -> Delivered:
            await self._client.chat_update(channel=channel, ts=claim.external_id, **_editable(message_of(claim.card)))
            return Delivered(claim.external_id)

        return await self._guarded(update)

    async def _allowed_upload(self, claim: Claim) -> Delivered:
        """A figure is an extra: without the right to upload it is left out, and the card stands without it."""
        try:
            return await self._upload(claim)
        except SlackApiError as error:
            if _code(error) == "missing_scope":
                raise Never("the app lacks the scope files:write") from None
            raise

    async def _upload(self, claim: Claim) -> Delivered:
        """A figure into the thread; its file name is how it is found again."""
        try:
            content = await asyncio.to_thread((self._reports / claim.card.picture).read_bytes)
        except OSError as error:
            raise Never(f"the figure {claim.card.picture} cannot be read ({error.strerror})") from None
        answer = await self._client.files_upload_v2(
            channel=str(claim.reference["channel"]),
            thread_ts=claim.reference.get("thread_ts"),
            filename=f"{claim.message_id}.png",
            title=claim.card.title or "Figure",
            alt_txt=claim.card.title or "Figure of a report",
            content=content,
        )
        return Delivered(_text(answer.get("file"), "id"))

    async def _find(self, claim: Claim) -> Delivered | None:
        """What an earlier attempt left in the channel, None when nothing did. Without the right to read it is not looked for."""
        channel, thread = str(claim.reference["channel"]), claim.reference.get("thread_ts")
        since = f"{claim.created_at.timestamp() - CLOCKS_APART_S:.6f}"
        scope: dict[str, Any] = {"channel": channel, "oldest": since, "limit": MOST_SEARCHED}
        scope |= {"include_all_metadata": True, "inclusive": True}
        try:
            if thread:
                answer = await self._client.conversations_replies(ts=str(thread), **scope)
            else:
                answer = await self._client.conversations_history(**scope)
        except SlackApiError as error:
            if _code(error) not in NOT_THERE | {"missing_scope", "thread_not_found"}:
                raise
            logger.warning("CHT-107 Slack does not let us look for %s (%s)", claim.message_id, _code(error))
            return None
        return next((found for each in answer["messages"] if (found := _same(claim, channel, each))), None)

    async def _guarded(self, call: Callable[[], Awaitable[T]], *, posts: bool = False) -> T:
        """Slack's answers as ours. `posts`: what breaks in the middle may have arrived."""
        try:
            return await call()
        except SlackApiError as error:
            raise _judged(error, posts=posts) from None
        except SlackRequestError:
            raise Later("Slack did not take the file", uncertain=False) from None
        except (KeyError, TypeError, ValueError) as error:
            raise Later(f"Slack's answer cannot be read ({type(error).__name__})", uncertain=posts) from None
        except (aiohttp.ClientConnectorError, ssl.SSLError) as error:
            raise Later(f"Slack cannot be reached ({type(error).__name__})") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Later(f"Slack did not answer ({type(error).__name__})", uncertain=posts) from None


def _text(answer: Any, name: str) -> str:
    """A field that Slack promises; ValueError without it, because a made-up id would be edited later."""
    value = answer.get(name) if answer else None
    if not isinstance(value, str) or not value:
        raise ValueError(name)
    return value


def _same(claim: Claim, channel: str, message: Mapping[str, Any]) -> Delivered | None:
    payload = (message.get("metadata") or {}).get("event_payload") or {}
    if payload.get("message_id") == claim.message_id:
        return _delivered(claim, channel, str(message["ts"]))
    files = [each for each in message.get("files") or () if each.get("name") == f"{claim.message_id}.png"]
    return Delivered(str(files[0]["id"])) if files else None


def _delivered(claim: Claim, channel: str, ts: str) -> Delivered:
    """A question that was repeated opens the thread of its answers."""
    opens = claim.kind == "question" and not claim.reference.get("thread_ts")
    return Delivered(ts, {"channel": channel, "thread_ts": ts} if opens else {})


def _editable(message: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name in {"text", "blocks", "parse", "link_names"}}


def _judged(error: SlackApiError, *, posts: bool) -> Later | Never:
    code, status = _code(error), int(getattr(error.response, "status_code", 0) or getattr(error.response, "status", 0) or 0)
    if code in HOPELESS:
        return Never(f"Slack answers {code}")
    if status == 429 or code in {"ratelimited", "rate_limited"}:
        return Later("Slack asks for a pause (429)", wait_s=_pause(error))
    return Later(f"Slack answers {code or status}", uncertain=posts and (status >= 500 or not code))


def _pause(error: SlackApiError) -> float:
    headers: Mapping[str, str] = getattr(error.response, "headers", None) or {}
    value = next((value for name, value in headers.items() if name.lower() == "retry-after"), "")
    return float(value) if value.isdigit() else 30.0


def _code(error: SlackApiError) -> str:
    """Slack's error code; empty where the answer was none of Slack's."""
    data = getattr(error.response, "data", None)
    return str(data.get("error", "")) if isinstance(data, dict) else ""
