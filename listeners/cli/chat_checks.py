"""What `reclaim doctor` looks at in the chat: whole settings, the vendors' answers, clocks that agree, what waits."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlencode

from listeners.chat import repository
from listeners.chat.app import missing
from listeners.chat.extras import lacks
from listeners.cli.findings import Finding
from schemas.settings import Settings
from services.runtime.database import Database

TIMEOUT_S: Final = 5
CLOCKS_APART_S: Final = 120.0
"""Slack and we refuse what is more than five minutes old; warn well before."""
SCOPES: Final = {
    "chat:write": "answers",
    "app_mentions:read": "mentions",
    "commands": "the slash command",
    "files:write": "figures of reports",
    "im:history": "direct messages, and looking for a post whose answer was lost",
    "im:write": "answers where the app is no member",
    "channels:history": "looking for a post whose answer was lost",
}
"""What the Slack app needs, and for what."""


def chat(settings: Settings) -> Iterator[Finding]:
    """Every channel that is set up."""
    slack, teams = bool(settings.slack.bot_token.get_secret_value()), bool(settings.teams.app_id)
    half = missing(settings)
    for fault in half:
        yield Finding("chat", fault, "docs/chat.md says where each setting comes from", bad=True)
    if not slack and not teams and not half:
        yield Finding("chat", "console and HTTP; neither Slack nor Teams is set up")
    if slack:
        yield from _slack(settings)
    if teams:
        yield from _teams(settings)
    yield from _people(settings, any_channel=slack or teams)


def messages(settings: Settings) -> Iterator[Finding]:
    """Messages that wait for their channel, or that it never took."""
    with Database.from_settings(settings).read() as session:
        queued, given_up = repository.waiting(session)
    if given_up:
        yield Finding(
            "chat messages", f"{given_up} given up", "see CHT-102 in the log: the app may have been removed from a channel"
        )
    elif queued:
        yield Finding("chat messages", f"{queued} waiting for Slack or Teams")


def _slack(settings: Settings) -> Iterator[Finding]:
    slack = settings.slack
    if lacks("slack"):
        yield Finding("Slack", "slack-bolt is not installed", "pip install 'reclaim[slack]'", bad=True)
        return
    if slack.bot_token.get_secret_value() and not slack.bot_token.get_secret_value().startswith("xoxb-"):
        yield Finding("Slack", "RECLAIM_SLACK_BOT_TOKEN is no bot token", "take the one that begins with xoxb-", bad=True)
    try:
        answer, headers = _post(f"{slack.api_url}auth.test", slack.bot_token.get_secret_value())
    except OSError as error:
        advice = f"open the firewall to {slack.api_url}, or set HTTPS_PROXY; messages wait meanwhile"
        yield Finding("Slack", f"cannot be reached ({_why(error)})", advice, bad=True)
        return
    yield from _clock("Slack", headers)
    if not answer.get("ok"):
        advice = "install the app anew and copy its bot token to RECLAIM_SLACK_BOT_TOKEN"
        yield Finding("Slack", f"refuses the bot token ({answer.get('error')})", advice, bad=True)
        return
    yield Finding("Slack", f"knows us, by {'Socket Mode' if slack.app_token.get_secret_value() else 'HTTP'}")
    yield from _scopes(headers)
    if slack.team and slack.team not in {answer.get("team_id"), answer.get("enterprise_id")}:
        yield Finding("Slack", "the token is of another workspace than RECLAIM_SLACK_TEAM", "correct one of them", bad=True)
    if slack.app_token.get_secret_value():
        yield from _socket(settings)


def _scopes(headers: Mapping[str, str]) -> Iterator[Finding]:
    granted = {each.strip() for each in headers.get("X-OAuth-Scopes", "").split(",")}
    lacking = [f"{scope} ({use})" for scope, use in SCOPES.items() if scope not in granted]
    if granted != {""} and lacking:
        advice = "add them under OAuth & Permissions, then install the app anew"
        yield Finding("Slack", f"the app lacks scopes: {', '.join(lacking)}", advice)


def _socket(settings: Settings) -> Iterator[Finding]:
    slack = settings.slack
    answer, _ = _post(f"{slack.api_url}apps.connections.open", slack.app_token.get_secret_value())
    if not answer.get("ok"):
        advice = "make an app-level token with connections:write and switch Socket Mode on"
        yield Finding("Slack", f"refuses Socket Mode ({answer.get('error')})", advice, bad=True)


def _teams(settings: Settings) -> Iterator[Finding]:
    teams = settings.teams
    if lacks("teams"):
        yield Finding("Teams", "microsoft-teams-apps is not installed", "pip install 'reclaim[teams]'", bad=True)
        return
    keys = f"{teams.openid_url.removesuffix('/openidconfiguration')}/keys"
    try:
        with urllib.request.urlopen(keys, timeout=TIMEOUT_S) as answer:  # noqa: S310 - the operator's own address
            yield from _clock("Teams", dict(answer.headers))
    except (OSError, ValueError) as error:
        advice = f"open the firewall to {keys}: without these keys no message can be believed"
        yield Finding("Teams", f"the Bot Connector's keys cannot be had ({_why(error)})", advice, bad=True)
    yield from _sign_in(settings)


def _sign_in(settings: Settings) -> Iterator[Finding]:
    teams = settings.teams
    form = {"grant_type": "client_credentials", "client_id": teams.app_id, "client_secret": teams.app_secret.get_secret_value()}
    address = f"{teams.login_url.rstrip('/')}/{teams.tenant}/oauth2/v2.0/token"
    body = urlencode({**form, "scope": f"{teams.issuer}/.default"}).encode()
    try:
        with urllib.request.urlopen(address, body, timeout=TIMEOUT_S):  # noqa: S310 - the operator's own address
            yield Finding("Teams", "Entra gives us a token")
    except urllib.error.HTTPError as error:
        advice = "check RECLAIM_TEAMS_APP_ID, _APP_SECRET (it expires) and _TENANT"
        yield Finding("Teams", f"Entra refuses our sign-in ({error.code})", advice, bad=True)
    except (OSError, ValueError) as error:
        yield Finding("Teams", f"Entra cannot be reached ({_why(error)})", f"open the firewall to {teams.login_url}", bad=True)


def _people(settings: Settings, *, any_channel: bool) -> Iterator[Finding]:
    chat = settings.chat
    if any_channel and not any(role in {"ml_owner", "admin"} for role in chat.users.values()):
        advice = """name them in RECLAIM_CHAT_USERS, e.g. '{"slack:U0123": "ml_owner"}'"""
        yield Finding("chat", "nobody on Slack or Teams may approve orders", advice)
    nameless = [login for login in chat.identities.values() if login not in chat.users]
    if nameless:
        yield Finding("chat", f"identities name {', '.join(sorted(nameless))}, who has no role", "add them to RECLAIM_CHAT_USERS")


def _clock(who: str, headers: Mapping[str, str]) -> Iterator[Finding]:
    """Signatures and tokens are good for minutes: our clock against theirs."""
    try:
        theirs = parsedate_to_datetime(headers.get("Date", ""))
    except ValueError:
        return
    apart = abs((datetime.now(UTC) - theirs).total_seconds())
    if apart > CLOCKS_APART_S:
        found = f"its clock and this machine's are {apart:.0f} s apart"
        yield Finding(who, found, "set the clock (NTP): requests older than five minutes are refused", bad=True)


def _post(address: str, token: str) -> tuple[dict[str, Any], Mapping[str, str]]:
    request = urllib.request.Request(address, b"", {"Authorization": f"Bearer {token}"})  # noqa: S310 - the operator's own address
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310 - as above
        try:
            body = json.loads(answer.read())
        except ValueError:
            body = {"ok": False, "error": "no answer of Slack's"}
        return body if isinstance(body, dict) else {}, dict(answer.headers)


def _why(error: Exception) -> str:
    return str(getattr(error, "reason", "") or getattr(error, "strerror", "") or type(error).__name__)[:120]
