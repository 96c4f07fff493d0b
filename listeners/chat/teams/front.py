"""Messages to Teams through the Bot Connector, with Microsoft's client.

The Bot Connector cannot be asked what stands in a conversation: a post whose answer was lost is posted again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from microsoft_teams.api.activities.message import MessageActivityInput
from microsoft_teams.api.clients.api_client import ApiClient
from microsoft_teams.api.models import Attachment
from microsoft_teams.common import Client, ClientOptions

from listeners.chat.cards import Card
from listeners.chat.delivery import Delivered, Later, Never
from listeners.chat.repository import Claim
from listeners.chat.teams.text import CARD_TYPE, adaptive_card, inline_picture, summary
from listeners.chat.teams.tokens import OwnToken, SignInRefused
from schemas.settings import Settings

logger = logging.getLogger(__name__)
HOPELESS: Final = frozenset({400, 403, 404, 405, 410, 413})
TOO_LARGE: Final = 413
UNNAMED: Final = "DO_NOT_USE_PLACEHOLDER_ID"
"""What the SDK calls an activity that the Bot Connector has not named."""


class TeamsFront:
    """Brings messages to Teams."""

    channel = "teams"

    def __init__(self, settings: Settings) -> None:
        self._settings, self._reports = settings.teams, settings.reports_dir
        self._token = OwnToken(settings.teams)
        self._api: ApiClient | None = None
        self._http: Client | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.http.aclose()
            self._http = self._api = None

    async def deliver(self, claim: Claim) -> Delivered:
        """Post or edit. Raises Later and Never."""
        service_url, conversation = self._service(claim), str(claim.reference.get("conversation", ""))
        if not conversation or set("/?#") & set(conversation):
            raise Never("the conversation's id is not one of Teams'")
        picture = await asyncio.to_thread(self._picture, claim.card)
        try:
            return await self._guarded(lambda: self._put(claim, service_url, conversation, picture), posts=not claim.external_id)
        except _TooLarge:
            if not picture:
                raise Never("Teams answers 413: the message is too large") from None
        return await self._guarded(lambda: self._put(claim, service_url, conversation, None), posts=not claim.external_id)

    async def _put(self, claim: Claim, service_url: str, conversation: str, picture: str | None) -> Delivered:
        message = _message(claim.card, picture)
        conversations = self._client().conversations
        if claim.external_id:
            message.id = claim.external_id
            await conversations.update_activity(conversation, claim.external_id, message, service_url=service_url)
            return Delivered(claim.external_id)
        answer = await conversations.create_activity(conversation, message, service_url=service_url)
        if not answer.id or answer.id == UNNAMED:
            raise ValueError("id")  # an edit would go nowhere
        return Delivered(str(answer.id))

    def _client(self) -> ApiClient:
        """Made at first use, because it belongs to the running event loop."""
        if self._api is None:
            self._http = Client(ClientOptions(token=self._token.get, timeout=self._settings.timeout_s))
            logging.getLogger("httpx").setLevel(logging.WARNING)  # below, it logs every address
            self._api = ApiClient(self._settings.service_url, self._http)
        return self._api

    def _service(self, claim: Claim) -> str:
        """Where to speak: only with TLS, or where the settings themselves say otherwise. Our token goes there."""
        address = str(claim.reference.get("service_url") or self._settings.service_url).rstrip("/")
        configured = urlsplit(self._settings.service_url)
        parts = urlsplit(address)
        if parts.scheme != "https" and (parts.scheme, parts.netloc) != (configured.scheme, configured.netloc):
            raise Never("the conversation's service has no TLS")
        return address

    def _picture(self, card: Card) -> str | None:
        if not card.picture:
            return None
        try:
            return inline_picture((self._reports / card.picture).read_bytes())
        except OSError as error:
            logger.warning("CHT-121 the figure %s cannot be read (%s)", card.picture, error.strerror or type(error).__name__)
            return None

    async def _guarded(self, call: Callable[[], Awaitable[Delivered]], *, posts: bool) -> Delivered:
        """Teams' answers as ours. `posts`: what breaks in the middle may have arrived."""
        try:
            return await call()
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.UNAUTHORIZED:
                self._token.forget()
            raise _judged(error.response, posts=posts) from None
        except SignInRefused as error:
            raise Later(f"Entra refuses our sign-in ({error}): check RECLAIM_TEAMS_APP_ID, _APP_SECRET and _TENANT") from None
        except (KeyError, TypeError, ValueError) as error:
            raise Later(f"Teams' answer cannot be read ({type(error).__name__})", uncertain=posts) from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Later(f"Teams cannot be reached ({type(error).__name__})") from None
        except (httpx.HTTPError, OSError) as error:
            raise Later(f"Teams did not answer ({type(error).__name__})", uncertain=posts) from None


class _TooLarge(Exception):  # noqa: N818 - named for what is the matter
    """The message is larger than Teams takes."""


def _message(card: Card, picture: str | None) -> Any:
    """A message without text: everything stands in the card, where nothing is Markdown."""
    attachments = [Attachment(content_type=CARD_TYPE, content=adaptive_card(card))]
    if picture is not None:
        attachments.append(Attachment(content_type="image/png", content_url=picture, name="figure.png"))
    return MessageActivityInput(attachments=attachments, summary=summary(card))


def _judged(answer: httpx.Response, *, posts: bool) -> Exception:
    status = answer.status_code
    if status == TOO_LARGE:
        return _TooLarge()
    if status in HOPELESS:
        return Never(f"Teams answers {status}")
    wait_s = _pause(answer.headers.get("Retry-After", "")) if status in {429, 503} else None
    if status == httpx.codes.TOO_MANY_REQUESTS:
        return Later("Teams asks for a pause (429)", wait_s=wait_s or 30.0)
    return Later(f"Teams answers {status}", wait_s=wait_s, uncertain=posts and status >= 500)


def _pause(value: str) -> float | None:
    """Seconds of a Retry-After header, which holds them or a date; None without one."""
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(1.0, (until - datetime.now(UTC)).total_seconds()) if until.tzinfo else None
