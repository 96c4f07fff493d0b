"""The doctor says what is wrong with the chat, and what to do."""

import asyncio

import pytest
from pydantic import SecretStr

from listeners.cli import chat_checks
from schemas.chat_settings import ChatSettings
from schemas.settings import Settings
from schemas.vocabulary import UserRole
from tests.integration.chat.conftest import chat, slack_settings, socket_settings, teams_settings


async def look(settings):
    return await asyncio.to_thread(lambda: list(chat_checks.chat(settings)))


def said(findings):
    return " | ".join(f"{each.subject}: {each.found} -> {each.advice}" for each in findings)


async def test_without_channels_it_says_so():
    (finding,) = await look(Settings())
    assert not finding.bad
    assert "neither Slack nor Teams" in finding.found


@pytest.mark.parametrize("way", [slack_settings, socket_settings])
async def test_a_sound_slack_is_well(slack, way):
    findings = await look(Settings(slack=way(slack), chat=chat()))
    assert not [each for each in findings if each.bad or each.advice], said(findings)


async def test_a_refused_slack_token_is_found(slack):
    findings = await look(Settings(slack=slack_settings(slack, bot_token=SecretStr("xoxb-old")), chat=chat()))
    assert "refuses the bot token (invalid_auth)" in said(findings)


async def test_a_token_of_the_wrong_kind_is_found(slack):
    findings = await look(Settings(slack=slack_settings(slack, bot_token=SecretStr("xoxp-1")), chat=chat()))
    assert "no bot token" in said(findings)


async def test_a_refused_socket_is_found(slack):
    findings = await look(Settings(slack=slack_settings(slack, app_token=SecretStr("xapp-old")), chat=chat()))
    assert "refuses Socket Mode" in said(findings)


async def test_slack_out_of_reach_is_found(slack, free_port):
    findings = await look(Settings(slack=slack_settings(slack, api_url=f"http://127.0.0.1:{free_port}/api/"), chat=chat()))
    assert "cannot be reached" in said(findings)
    assert any(each.bad for each in findings)


async def test_another_workspace_is_found(slack):
    findings = await look(Settings(slack=slack_settings(slack, team="T99"), chat=chat()))
    assert "another workspace" in said(findings)


async def test_a_sound_teams_is_well(teams):
    findings = await look(Settings(teams=teams_settings(teams), chat=chat()))
    assert not [each for each in findings if each.bad or each.advice], said(findings)


async def test_a_wrong_teams_secret_is_found(teams):
    findings = await look(Settings(teams=teams_settings(teams, app_secret=SecretStr("old")), chat=chat()))
    assert "Entra refuses our sign-in (401)" in said(findings)


async def test_missing_keys_are_found(teams):
    teams.keys_away = True
    assert "no message can be believed" in said(await look(Settings(teams=teams_settings(teams), chat=chat())))


async def test_what_is_half_set_up_is_named(teams):
    findings = await look(Settings(teams=teams_settings(teams, tenant=""), chat=chat()))
    assert "RECLAIM_TEAMS_TENANT" in said(findings)


async def test_clocks_apart_are_found(slack, monkeypatch):
    monkeypatch.setattr(chat_checks, "CLOCKS_APART_S", -1.0)
    assert "set the clock" in said(await look(Settings(slack=slack_settings(slack), chat=chat())))


async def test_a_chat_without_an_approver_is_remarked_on(slack):
    people = ChatSettings(users={"ada": UserRole.VIEWER}, identities={"slack:U1": "eve"})
    words = said(await look(Settings(slack=slack_settings(slack), chat=people)))
    assert "nobody on Slack or Teams may approve" in words
    assert "eve, who has no role" in words


async def test_missing_scopes_are_named_with_their_use(slack):
    slack.scopes = "chat:write,app_mentions:read,commands,im:history,im:write,channels:history"
    assert "lacks scopes: files:write (figures of reports)" in said(await look(Settings(slack=slack_settings(slack), chat=chat())))
