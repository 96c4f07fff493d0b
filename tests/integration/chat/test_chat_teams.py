"""Teams, from an activity with the Bot Connector's token to the card in the conversation, against a local stand-in for both."""

import base64
import json
import os
import subprocess
import sys

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from listeners import http
from tests.teams_server import ADA, BOB, CHANNEL, EVE, card, pressed, texts

PATH = "/chat/teams/messages"


async def post(client, teams, activity, *, headers=None, **claims):
    return await client.post(PATH, json=activity, headers=teams.headers(activity, **claims) if headers is None else headers)


async def ordered(site, client, teams):
    """A remedy that Ada has ordered and that waits for a second person; returns the order and its card's activity."""
    assert (await post(client, teams, teams.activity("<at>reclaim</at> fine-tune brain_mri"))).status == 200
    await site.answer()
    (order,) = site.orders()
    assert order.state == "awaiting_approval"
    return order, next(each for each in teams.activities[CHANNEL] if "actions" in card(each))


async def test_a_message_is_answered_in_its_thread(teams_site, teams_client, teams):
    assert (await post(teams_client, teams, teams.activity("<at>reclaim</at>&nbsp;status of all models"))).status == 200
    await teams_site.answer()
    (message,) = teams.activities[CHANNEL]
    assert "brain_mri" in texts(message)
    assert message.get("text") is None
    (asked,) = teams_site.commands()
    assert (asked["text"], asked["user"], asked["user_role"], asked["channel"]) == (
        "status of all models",
        "ada",
        "ml_owner",
        "teams",
    )


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://sts.windows.net/evil/"},
        {"aud": "00000000-0000-0000-0000-000000000000"},
        {"exp": 1_600_000_000},
        {"exp": None},
        {"nbf": 4_000_000_000},
        {"serviceurl": "https://evil.example/"},
        {"serviceurl": None},
        {"signer": "somebody else"},
        {"kid": "unknown"},
    ],
    ids=lambda claims: "-".join(f"{name}={value}"[:24] for name, value in claims.items()),
)
async def test_a_token_that_is_not_the_bot_connector_s_is_refused(teams_site, teams_client, teams, claims):
    assert (await post(teams_client, teams, teams.activity("status"), **claims)).status == 401
    assert teams_site.commands() == []


def _unsigned(teams):
    head = base64.urlsafe_b64encode(b'{"alg":"none","kid":"k1"}').rstrip(b"=").decode()
    return f"Bearer {head}.{teams.headers()['Authorization'].split('.')[1]}."


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer x.y.z", "Bearer \xe9", "Basic YTpi", "unsigned"])
async def test_no_token_is_refused(teams_site, teams_client, teams, value):
    headers = {"Authorization": _unsigned(teams) if value == "unsigned" else value}
    assert (await post(teams_client, teams, teams.activity("status"), headers=headers)).status == 401
    assert teams_site.commands() == []


async def test_an_activity_without_service_url_is_refused(teams_site, teams_client, teams):
    activity = teams.activity("status", serviceUrl="")
    assert (await post(teams_client, teams, activity, serviceurl=None)).status == 401


async def test_strangers_do_not_have_keys_fetched(teams_client, teams):
    for _ in range(5):
        await post(teams_client, teams, teams.activity("status"), iss="https://evil.example")
        await post(teams_client, teams, teams.activity("status"), headers={"Authorization": "Bearer x"})
    assert teams.keys_asked == 0
    for _ in range(5):
        await post(teams_client, teams, teams.activity("status"), kid="unknown")
    assert teams.keys_asked == 1


async def test_while_the_keys_are_away_the_sender_is_asked_to_come_again(teams_client, teams):
    teams.keys_away = True
    assert (await post(teams_client, teams, teams.activity("status"))).status == 503


@pytest.mark.parametrize(
    "more",
    [
        {"channelData": {"tenant": {"id": "another"}}},
        {"conversation": {"id": CHANNEL, "tenantId": "another"}},
        {"conversation": {"id": CHANNEL}, "channelData": {}},
        {"channelId": "directline"},
    ],
    ids=["tenant of the data", "tenant of the conversation", "no tenant", "another channel"],
)
async def test_other_tenants_and_channels_are_refused(teams_site, teams_client, teams, more):
    assert (await post(teams_client, teams, teams.activity("status", **more))).status == 403
    assert teams_site.commands() == []


@pytest.mark.parametrize("body", [b"", b"[]", b'{"type":"message"}', b"\xff"])
async def test_what_is_no_activity_is_refused(teams_client, teams, body):
    headers = teams.headers() | {"Content-Type": "application/json"}
    assert (await teams_client.post(PATH, data=body, headers=headers)).status == 400


async def test_what_is_delivered_again_is_one_command(teams_site, teams_client, teams):
    activity = teams.activity("status")
    for _ in range(3):
        assert (await post(teams_client, teams, activity)).status == 200
    assert len(teams_site.commands()) == 1


async def test_people_without_an_account_are_refused(teams_site, teams_client, teams):
    await post(teams_client, teams, teams.activity("status", **{"from": {"id": "29:guest", "name": "Guest"}}))
    await teams_site.answer()
    assert teams_site.commands() == []
    assert "account of this organisation" in texts(teams.activities[CHANNEL][0])


async def test_a_second_person_approves_with_a_button(teams_site, teams_client, teams):
    order, asked = await ordered(teams_site, teams_client, teams)
    answer = await post(teams_client, teams, teams.activity(sender=BOB, **pressed(order.order_id, approve=True)))
    assert (await answer.json())["statusCode"] == 200
    await teams_site.answer()
    (row,) = teams_site.orders()
    assert (row.state, row.explanation) == ("accepted", f"Approved by user:teams:{BOB}.")
    (audit,) = teams_site.audit("order.approved")
    assert (audit.actor, audit.detail["channel"]) == (f"user:teams:{BOB}", "teams")
    (changed,) = [each for each in teams.activities[CHANNEL] if each["id"] == asked["id"]]
    assert "actions" not in card(changed)


async def test_action_submit_decides_too(teams_site, teams_client, teams):
    order, _ = await ordered(teams_site, teams_client, teams)
    data = pressed(order.order_id, approve=False)["value"]["action"]["data"]
    fields = {"text": None, "entities": None, "value": data}
    assert (await post(teams_client, teams, teams.activity(sender=BOB) | fields)).status == 200
    await teams_site.answer()
    assert teams_site.orders()[0].state == "refused"


@pytest.mark.parametrize(("sender", "words"), [(EVE, "role viewer may not"), (ADA, "second person")])
async def test_who_may_not_approve_is_told_alone_and_audited(teams_site, teams_client, teams, sender, words):
    order, _ = await ordered(teams_site, teams_client, teams)
    said = len(teams.activities[CHANNEL])
    answer = await post(teams_client, teams, teams.activity(sender=sender, **pressed(order.order_id, approve=True)))
    assert words in (await answer.json())["value"]
    await teams_site.answer()
    assert teams_site.orders()[0].state == "awaiting_approval"
    assert len(teams.activities[CHANNEL]) == said
    (audit,) = teams_site.audit("order.decision_refused")
    assert (audit.subject, audit.detail["channel"]) == (order.order_id, "teams")


@pytest.mark.parametrize(
    "change", [{"verb": "reclaim.reject"}, {"data": {}}, {"data": {"reclaim": "decision", "approve": "yes"}}, None]
)
async def test_a_button_that_is_not_ours_does_nothing(teams_site, teams_client, teams, change):
    order, _ = await ordered(teams_site, teams_client, teams)
    fields = pressed(order.order_id, approve=True)
    fields["value"] = {"action": fields["value"]["action"] | change} if change else "approve"
    assert (await post(teams_client, teams, teams.activity(sender=BOB, **fields))).status == 200
    teams_site.pump()
    assert teams_site.orders()[0].state == "awaiting_approval"


async def test_texts_stand_where_nothing_is_markdown(teams_site, teams_client, teams):
    await post(
        teams_client, teams, teams.activity("what about [click](https://evil.example) &lt;at&gt;everyone&lt;/at&gt; **now**?")
    )
    await teams_site.answer()
    (message,) = teams.activities[CHANNEL]
    assert {block["type"] for block in card(message)["body"]} == {"RichTextBlock"}
    assert "text" not in message
    assert "entities" not in message
    assert not set("[]()*") & set(message["summary"])


@pytest.mark.parametrize("wait", ["30", "a date"])
async def test_a_pause_that_teams_asks_for_is_kept(teams_site, teams_client, teams, wait):
    from datetime import UTC, datetime, timedelta
    from email.utils import format_datetime

    until = format_datetime(datetime.now(UTC) + timedelta(seconds=32), usegmt=True)
    teams.faults.append(web.Response(status=429, headers={"Retry-After": until if wait == "a date" else wait}))
    await post(teams_client, teams, teams.activity("status"))
    await teams_site.answer()
    teams_site.later(25)
    assert await teams_site.deliver() == 0
    teams_site.later(10)
    await teams_site.deliver()
    assert len(teams.activities[CHANNEL]) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 401, 201])
async def test_a_post_that_failed_is_tried_again(teams_site, teams_client, teams, status):
    teams.faults.append(web.Response(status=status))
    await post(teams_client, teams, teams.activity("status"))
    await teams_site.answer()
    assert teams.activities[CHANNEL] == []
    teams_site.later(60)
    await teams_site.deliver()
    assert len(teams.activities[CHANNEL]) == 1


async def test_a_conversation_that_threw_us_out_is_given_up(teams_site, teams_client, teams):
    teams.faults.append(web.Response(status=403))
    await post(teams_client, teams, teams.activity("status"))
    await teams_site.answer()
    assert [each.state for each in teams_site.messages()] == ["given_up"]


async def test_a_reply_arrives_once_after_a_restart(teams_site, teams_client, teams):
    await post(teams_client, teams, teams.activity("status"))
    teams_site.restart()
    teams_site.pump()
    teams_site.restart()
    await teams_site.deliver()
    teams_site.restart()
    teams_site.pump()
    assert await teams_site.deliver() == 0
    assert len(teams.activities[CHANNEL]) == 1


async def test_one_token_serves_many_messages(teams_site, teams_client, teams):
    for _ in range(3):
        await post(teams_client, teams, teams.activity("status"))
    await teams_site.answer()
    assert (len(teams.activities[CHANNEL]), teams.tokens) == (3, 1)


async def test_our_token_does_not_go_to_an_address_without_tls(teams_site, teams_client, teams):
    activity = teams.activity("status", serviceUrl="http://other.example/teams")
    assert (await post(teams_client, teams, activity)).status == 200
    await teams_site.answer()
    (message,) = teams_site.messages()
    assert (message.state, "no TLS" in message.error) == ("given_up", True)


def test_the_sdk_does_not_read_the_working_folder_s_env_file(tmp_path):
    (tmp_path / ".env").write_text("RECLAIM_INTRUDER=1\n")
    code = (
        "import os; from schemas.chat_settings import TeamsSettings; from listeners.chat.teams.tokens import BotConnector; "
        "BotConnector(TeamsSettings(app_id='x')); print(os.environ.get('RECLAIM_INTRUDER'))"
    )
    root = str(http.__file__).rsplit("/listeners/", 1)[0]
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "None", done.stderr


async def test_without_settings_there_is_no_endpoint(slack_site, teams):
    async with TestClient(TestServer(http.create_app(slack_site.context))) as client:
        assert (await client.post(PATH, data=json.dumps(teams.activity("x")), headers=teams.headers())).status == 404
