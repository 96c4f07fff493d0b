"""Sites that speak with local servers which behave like Slack and Teams."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from pydantic import SecretStr

from listeners import http
from schemas.chat_settings import ChatSettings, SlackSettings, TeamsSettings
from schemas.settings import PolicySettings
from schemas.vocabulary import UserRole
from tests.chat_world import Site
from tests.slack_server import APP_TOKEN, BOT_TOKEN, SECRET, SlackServer
from tests.teams_server import APP_ID, APP_SECRET, TENANT, TeamsServer

PEOPLE = {
    "ada": UserRole.ML_OWNER,
    "slack:UBOB": UserRole.ML_OWNER,
    "slack:UEVE": UserRole.VIEWER,
    "teams:00000000-0000-0000-0000-00000000000b": UserRole.ML_OWNER,
    "teams:00000000-0000-0000-0000-00000000000e": UserRole.VIEWER,
}
SAME = {"slack:UADA": "ada", "teams:00000000-0000-0000-0000-00000000000a": "ada"}


@pytest.fixture
async def slack() -> AsyncIterator[SlackServer]:
    server = SlackServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def teams() -> AsyncIterator[TeamsServer]:
    server = TeamsServer()
    await server.start()
    yield server
    await server.stop()


def chat(**changes: Any) -> ChatSettings:
    return ChatSettings(**{"users": PEOPLE, "identities": SAME, "first_delay_s": 5.0, **changes})


def slack_settings(server: SlackServer, **changes: Any) -> SlackSettings:
    secrets = {"bot_token": SecretStr(BOT_TOKEN), "signing_secret": SecretStr(SECRET), "timeout_s": 5.0}
    return SlackSettings(**{**secrets, "api_url": server.url, "channel": "CHOME", **changes})


def socket_settings(server: SlackServer) -> SlackSettings:
    return slack_settings(server, signing_secret=SecretStr(""), app_token=SecretStr(APP_TOKEN))


def teams_settings(server: TeamsServer, **changes: Any) -> TeamsSettings:
    known = {"app_id": APP_ID, "app_secret": SecretStr(APP_SECRET), "tenant": TENANT, "timeout_s": 5.0}
    where = {"service_url": f"{server.url}/teams", "openid_url": f"{server.url}/v1/.well-known/openidconfiguration"}
    return TeamsSettings(**{**known, **where, "issuer": "https://api.botframework.com", "login_url": server.url, **changes})


@pytest.fixture
def slack_site(sqlite_database, clock, tmp_path, slack) -> Site:
    """A site with Slack, where a person's remedy wants a second person."""
    policy = PolicySettings(four_eyes=True)
    return Site.of(sqlite_database, clock, tmp_path / "state", chat=chat(), slack=slack_settings(slack), policy=policy)


@pytest.fixture
def teams_site(sqlite_database, clock, tmp_path, teams) -> Site:
    """The same with Teams."""
    policy = PolicySettings(four_eyes=True)
    return Site.of(sqlite_database, clock, tmp_path / "state", chat=chat(), teams=teams_settings(teams), policy=policy)


@pytest.fixture
async def slack_client(slack_site) -> AsyncIterator[TestClient]:
    async with TestClient(TestServer(http.create_app(slack_site.context))) as client:
        yield client


@pytest.fixture
async def teams_client(teams_site) -> AsyncIterator[TestClient]:
    async with TestClient(TestServer(http.create_app(teams_site.context))) as client:
        yield client
