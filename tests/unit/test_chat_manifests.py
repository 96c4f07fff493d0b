"""The app manifests that a site starts from fit what the code asks for."""

import json
import tomllib
from pathlib import Path

import yaml

from listeners.chat.slack.routes import PATH as SLACK_PATH
from listeners.chat.teams.routes import PATH as TEAMS_PATH
from listeners.cli.chat_checks import SCOPES
from schemas.chat_settings import ChatSettings

ROOT = Path(__file__).parents[2]


def slack():
    return yaml.safe_load((ROOT / "deploy" / "slack" / "manifest.yaml").read_text(encoding="utf-8"))


def test_slack_s_manifest_grants_what_the_doctor_looks_for():
    assert set(SCOPES) <= set(slack()["oauth_config"]["scopes"]["bot"])


def test_slack_s_addresses_are_ours():
    settings = slack()["settings"]
    command = slack()["features"]["slash_commands"][0]
    for address in (settings["event_subscriptions"]["request_url"], settings["interactivity"]["request_url"], command["url"]):
        assert address.endswith(SLACK_PATH)
    assert {"app_mention", "message.im"} <= set(settings["event_subscriptions"]["bot_events"])


def test_teams_manifest_names_one_bot():
    manifest = json.loads((ROOT / "deploy" / "teams" / "manifest.json").read_text(encoding="utf-8"))
    (bot,) = manifest["bots"]
    assert bot["botId"] == manifest["id"]
    assert set(bot["scopes"]) == {"personal", "team", "groupChat"}


def test_the_documents_name_the_addresses_and_settings():
    text = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8")
    settings = ("RECLAIM_SLACK_SIGNING_SECRET", "RECLAIM_TEAMS_TENANT", "chat.identities", "policy.four_eyes")
    for word in (SLACK_PATH, TEAMS_PATH, *settings):
        assert word in text


def test_the_example_of_people_and_roles_is_one():
    text = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8")
    example = tomllib.loads(text.partition("```toml\n")[2].partition("```")[0])
    settings = ChatSettings(**example["chat"])
    assert settings.identities["slack:U01AAAAAA"] in settings.users
