"""Tokens both ways: whether the Bot Connector really speaks, and our own to speak to it.

Incoming: Microsoft's SDK validates (RS256 signature against the issuer's keys, issuer, audience, lifetime, serviceUrl claim);
source: "Authenticate requests from the Bot Connector service to your bot". Outgoing: OAuth 2.0 client credentials.
"""

import asyncio
import os
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import httpx
import jwt

from schemas.chat_settings import TeamsSettings

if TYPE_CHECKING:
    from microsoft_teams.apps.auth import TokenValidator

MAX_WAITING: Final = 20
EARLY_S: Final = 300.0


class Unproven(Exception):  # noqa: N818 - named for what is the matter
    """The request does not prove that it comes from the Bot Connector."""


class KeysAway(Exception):  # noqa: N818 - named for what is the matter
    """The issuer's keys cannot be had, or too many requests wait for them: nothing can be said about the token now."""


class BotConnector:
    """Says whether a request is the Bot Connector's. Two threads: fetching keys blocks, and must hold up nobody else."""

    def __init__(self, settings: TeamsSettings) -> None:
        self._issuer = settings.issuer
        self._validator = _validator(settings)
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="teams-keys")
        self._waiting = 0

    async def prove(self, authorization: str, service_url: str) -> Mapping[str, Any]:
        """The token's claims; raises Unproven or KeysAway. The reason is for the log and quotes nothing."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token or not token.isascii():
            raise Unproven("there is no bearer token")
        if not service_url:
            raise Unproven("the activity names no serviceUrl")
        self._glance(token)
        if self._waiting >= MAX_WAITING:
            raise KeysAway("too many requests wait for the issuer's keys")
        self._waiting += 1
        try:
            check = self._check
            claims = await asyncio.get_running_loop().run_in_executor(self._pool, lambda: check(token, service_url))
        finally:
            self._waiting -= 1
        if "exp" not in claims:
            raise Unproven("the token never expires")
        return claims

    def _glance(self, token: str) -> None:
        """Turn away what is plainly not for us before its key is asked for."""
        try:
            claims = jwt.decode(token, options={"verify_signature": False})
        except jwt.InvalidTokenError as error:
            raise Unproven(type(error).__name__) from None
        if claims.get("iss") != self._issuer:
            raise Unproven("the token is of another issuer")

    def _check(self, token: str, service_url: str) -> Mapping[str, Any]:
        try:
            return asyncio.run(self._validator.validate_token(token, service_url))
        except jwt.PyJWKClientConnectionError as error:
            raise KeysAway(type(error).__name__) from None
        except jwt.PyJWTError as error:
            raise Unproven(type(error).__name__) from None


def _validator(settings: TeamsSettings) -> "TokenValidator":
    """The SDK's validator for our bot. Imported here, because the import would read a .env of the working folder."""
    os.environ.setdefault("PYTHON_DOTENV_DISABLED", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # previews that we do not use
        from microsoft_teams.api.auth.cloud_environment import PUBLIC, with_overrides  # noqa: PLC0415
        from microsoft_teams.apps.auth import TokenValidator  # noqa: PLC0415
    cloud = with_overrides(PUBLIC, openid_metadata_url=settings.openid_url, token_issuer=settings.issuer)
    return TokenValidator.for_service(settings.app_id, cloud=cloud)


class SignInRefused(Exception):  # noqa: N818 - named for what happened
    """Entra does not give us a token; the text is its error code."""


class OwnToken:
    """Our token for the Bot Connector, kept until five minutes before its end."""

    def __init__(self, settings: TeamsSettings, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._monotonic = settings, monotonic
        self._token, self._until = "", 0.0

    def forget(self) -> None:
        """It was refused: get another one the next time."""
        self._token, self._until = "", 0.0

    async def get(self) -> str:
        """A valid token. Raises SignInRefused, or httpx's errors when Entra cannot be reached."""
        if self._monotonic() < self._until:
            return self._token
        settings = self._settings
        form = {
            "grant_type": "client_credentials",
            "client_id": settings.app_id,
            "client_secret": settings.app_secret.get_secret_value(),
            "scope": f"{settings.issuer}/.default",
        }
        address = f"{settings.login_url.rstrip('/')}/{settings.tenant}/oauth2/v2.0/token"
        async with httpx.AsyncClient(timeout=settings.timeout_s) as client:
            answer = await client.post(address, data=form)
        if answer.status_code != httpx.codes.OK:
            raise SignInRefused(f"{answer.status_code} {_code(answer)}".strip())
        body = answer.json()
        self._token, life = str(body["access_token"]), float(body.get("expires_in", 3600))
        self._until = self._monotonic() + max(30.0, life - EARLY_S)
        return self._token


def _code(answer: httpx.Response) -> str:
    try:
        return str(answer.json().get("error", ""))[:60]
    except ValueError:
        return ""
