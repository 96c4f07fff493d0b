"""Slack over HTTP, from a signed request to the message in the thread, against a server that behaves like Slack."""

import asyncio
import json
import time
from urllib.parse import urlencode

import pytest

from tests.slack_server import TEAM, Fault, button, direct, event, signed, texts

PATH = "/chat/slack/events"
FORM = "application/x-www-form-urlencoded"


async def post(client, payload, *, headers=None, age_s=0.0, **options):
    body = json.dumps(payload)
    signature = signed(body, at=time.time() - age_s, **options)
    return await client.post(PATH, data=body, headers=signature | (headers or {}))


async def press(client, payload):
    body = urlencode({"payload": json.dumps(payload)})
    return await client.post(PATH, data=body, headers=signed(body, kind=FORM))


async def command(client, text, user="UADA", channel="C1", trigger="t1"):
    fields = {"command": "/reclaim", "text": text, "user_id": user, "channel_id": channel, "team_id": TEAM, "trigger_id": trigger}
    body = urlencode(fields)
    return await client.post(PATH, data=body, headers=signed(body, kind=FORM))


async def ordered(site, client, slack):
    """A remedy that Ada has ordered in a thread and that waits for a second person; returns its message."""
    assert (await post(client, event("<@UBOT00001> fine-tune brain_mri", ts="1700000001.000100"))).status == 200
    await site.answer()
    (order,) = site.orders()
    assert order.state == "awaiting_approval"
    asked = [each for each in slack.messages["C1"] if any(block["type"] == "actions" for block in each["blocks"])]
    return order, asked[0]


async def test_a_mention_is_answered_in_its_thread(slack_site, slack_client, slack):
    sent = event("<@UBOT00001> status of all models", ts="1700000001.000100")
    assert (await post(slack_client, sent)).status == 200
    await slack_site.answer()
    (message,) = slack.messages["C1"]
    assert message["thread_ts"] == "1700000001.000100"
    assert "brain_mri" in texts(message)
    (asked,) = slack_site.commands()
    assert (asked["text"], asked["user"], asked["user_role"], asked["channel"]) == (
        "status of all models",
        "ada",
        "ml_owner",
        "slack",
    )


@pytest.mark.parametrize(
    "options",
    [
        {"secret": "another secret"},
        {"age_s": 302},
        {"age_s": -310},
        {"headers": {"X-Slack-Signature": ""}},
        {"headers": {"X-Slack-Request-Timestamp": ""}},
        {"headers": {"X-Slack-Request-Timestamp": "tomorrow"}},
        {"headers": {"X-Slack-Request-Timestamp": "1" * 5_000}},
        {"headers": {"X-Slack-Signature": "v0=\xe9"}},
    ],
    ids=["another secret", "old", "of the future", "unsigned", "no time", "no number", "a huge number", "no ASCII"],
)
async def test_what_is_not_signed_by_slack_and_new_is_refused(slack_site, slack_client, options):
    assert (await post(slack_client, event("status"), **options)).status == 401
    assert slack_site.commands() == []


async def test_a_changed_body_is_refused(slack_site, slack_client):
    headers = signed(json.dumps(event("status")))
    assert (await slack_client.post(PATH, data=json.dumps(event("roll back brain_mri")), headers=headers)).status == 401
    assert slack_site.commands() == []


async def test_bytes_that_are_no_text_are_refused(slack_client):
    assert (await slack_client.post(PATH, data=b"\xff\xfe", headers=signed("x"))).status == 400


async def test_slack_finds_its_address(slack_client):
    answer = await post(slack_client, {"type": "url_verification", "challenge": "c0ffee"})
    assert (answer.status, "c0ffee" in await answer.text()) == (200, True)


async def test_what_is_sent_again_is_one_command(slack_site, slack_client):
    sent = event("status")
    for number in range(3):
        headers = {"X-Slack-Retry-Num": str(number), "X-Slack-Retry-Reason": "http_timeout"} if number else {}
        assert (await post(slack_client, sent, headers=headers)).status == 200
    assert len(slack_site.commands()) == 1


async def test_the_same_message_as_mention_and_as_message_is_one_command(slack_site, slack_client, slack):
    await post(slack_client, event("<@UBOT00001> status", ts="1700000001.000100"))
    again = {"ts": "1700000002.000100", "thread_ts": "1700000001.000100"}
    await post(slack_client, event("<@UBOT00001> trend", **again))
    await post(slack_client, event("<@UBOT00001> trend", type="message", channel_type="channel", **again))
    assert [each["text"] for each in slack_site.commands()] == ["status", "trend"]


async def test_it_listens_in_its_threads_only(slack_site, slack_client):
    await post(slack_client, event("<@UBOT00001> status", ts="1700000001.000100"))
    heard = {"type": "message", "channel_type": "channel", "thread_ts": "1700000001.000100"}
    await post(slack_client, event("and the trend?", ts="1700000002.000100", **heard))
    await post(slack_client, event("lunch?", ts="1700000003.000100", type="message", channel_type="channel"))
    await post(slack_client, event("lunch?", ts="1700000004.000100", **(heard | {"thread_ts": "1600000000.000100"})))
    assert [each["text"] for each in slack_site.commands()] == ["status", "and the trend?"]


@pytest.mark.parametrize("more", [{"bot_id": "BOTHER"}, {"user": "UBOT00001"}, {"subtype": "message_changed"}])
async def test_bots_and_edits_are_not_listened_to(slack_site, slack_client, more):
    assert (await post(slack_client, direct("status", **more))).status == 200
    assert slack_site.commands() == []


async def test_a_direct_message_is_answered_directly(slack_site, slack_client, slack):
    await post(slack_client, direct("which models are there?"))
    await slack_site.answer()
    (message,) = slack.messages["D1"]
    assert "thread_ts" not in message
    assert "brain_mri" in texts(message)


async def test_a_slash_command_opens_a_thread_with_the_question(slack_site, slack_client, slack):
    answer = await command(slack_client, "status of all models")
    assert (await answer.json())["response_type"] == "ephemeral"
    await slack_site.answer()
    question, reply = slack.messages["C1"]
    assert "status of all models" in texts(question)
    assert reply["thread_ts"] == question["ts"]


async def test_a_slash_command_where_the_app_is_no_member_is_answered_directly(slack_site, slack_client, slack):
    await command(slack_client, "status", channel="CSTRANGE")
    await slack_site.answer()
    question, reply = slack.messages["DUADA"]
    assert reply["thread_ts"] == question["ts"]


async def test_an_empty_slash_command_says_what_to_type(slack_site, slack_client):
    answer = await (await command(slack_client, "  ")).json()
    assert "status of all models" in answer["text"]
    assert slack_site.commands() == []


async def test_a_second_person_approves_with_a_button(slack_site, slack_client, slack):
    order, asked = await ordered(slack_site, slack_client, slack)
    await press(slack_client, button(asked, order.order_id, approve=True, user="UBOB", channel="C1", respond=respond(slack)))
    await slack_site.answer()
    (row,) = slack_site.orders()
    assert (row.state, row.explanation) == ("accepted", "Approved by user:slack:UBOB.")
    (audit,) = slack_site.audit("order.approved")
    assert (audit.actor, audit.subject, audit.detail["channel"]) == ("user:slack:UBOB", order.order_id, "slack")
    (card,) = [each for each in slack.messages["C1"] if each["ts"] == asked["ts"]]
    assert not any(block["type"] == "actions" for block in card["blocks"])
    assert "slack:UBOB" in texts(card)
    assert slack.responses == []


@pytest.mark.parametrize(
    ("user", "actor", "words"),
    [
        ("UEVE", "user:slack:UEVE", "role viewer may not"),
        ("UNOBODY", "user:slack:UNOBODY", "role viewer may not"),
        ("UADA", "user:ada", "second person"),
    ],
)
async def test_who_may_not_approve_is_refused_alone_and_audited(slack_site, slack_client, slack, user, actor, words):
    order, asked = await ordered(slack_site, slack_client, slack)
    said = len(slack.all_messages())
    await press(slack_client, button(asked, order.order_id, approve=True, user=user, channel="C1", respond=respond(slack)))
    await slack_site.answer()
    assert slack_site.orders()[0].state == "awaiting_approval"
    (told,) = slack.responses
    assert told["response_type"] == "ephemeral"
    assert words in told["text"]
    (audit,) = slack_site.audit("order.decision_refused")
    assert (audit.actor, audit.subject, audit.detail["channel"]) == (actor, order.order_id, "slack")
    assert len(slack.all_messages()) == said


async def test_words_are_held_to_the_same_rules_as_buttons(slack_site, slack_client, slack):
    order, _ = await ordered(slack_site, slack_client, slack)
    for user in ("UADA", "UEVE"):
        await post(slack_client, event(f"approve {order.order_id}", user=user, ts=f"170000000{len(user)}.{ord(user[1]):06d}"))
    await slack_site.answer()
    assert slack_site.orders()[0].state == "awaiting_approval"
    assert [each.actor for each in slack_site.audit("order.decision_refused")] == ["user:ada", "user:slack:UEVE"]


async def test_a_button_pressed_twice_decides_once(slack_site, slack_client, slack):
    order, asked = await ordered(slack_site, slack_client, slack)
    for approve, at in ((False, "1.1"), (False, "1.1"), (True, "2.2")):
        await press(
            slack_client, button(asked, order.order_id, approve=approve, user="UBOB", channel="C1", respond=respond(slack), at=at)
        )
        slack_site.pump()
    assert slack_site.orders()[0].state == "refused"
    assert len(slack_site.audit("order.rejected")) == 1
    assert "does not wait any more" in slack.responses[0]["text"]


async def test_the_site_s_channel_sees_what_waits_too(slack_site, slack_client, slack):
    order, asked = await ordered(slack_site, slack_client, slack)
    (home,) = slack.messages["CHOME"]
    await press(slack_client, button(home, order.order_id, approve=True, user="UBOB", channel="CHOME", respond=respond(slack)))
    await slack_site.answer()
    assert slack_site.orders()[0].state == "accepted"
    for card in (slack.messages["CHOME"][0], next(each for each in slack.messages["C1"] if each["ts"] == asked["ts"])):
        assert not any(block["type"] == "actions" for block in card["blocks"])


@pytest.mark.parametrize("value", ["ord-000000000000", "ord-1; drop", "", "<!channel>"])
async def test_a_button_of_no_order_does_nothing(slack_site, slack_client, slack, value):
    payload = button({"ts": "1.1"}, value, approve=True, user="UBOB", channel="C1", respond=respond(slack))
    assert (await press(slack_client, payload)).status == 200
    assert slack_site.commands() == []
    assert len(slack.responses) == 1


async def test_markup_in_texts_stays_text(slack_site, slack_client, slack):
    await post(slack_client, event('<@UBOT00001> what about "&lt;!channel&gt; &lt;https://evil.example|click&gt; @everyone"?'))
    await slack_site.answer()
    (message,) = slack.messages["C1"]
    assert "<" not in message["text"]
    assert message["parse"] == "none"
    assert all(block.get("text", {"type": "plain_text"})["type"] == "plain_text" for block in message["blocks"])


async def test_a_pause_that_slack_asks_for_is_kept(slack_site, slack_client, slack):
    slack.fail("chat.postMessage", Fault(429, {"ok": False, "error": "ratelimited"}, {"Retry-After": "30"}))
    await post(slack_client, event("<@UBOT00001> status"))
    await post(slack_client, event("<@UBOT00001> which models are there?", ts="1700000009.000100"))
    await slack_site.answer()
    assert slack.calls.count("chat.postMessage") == 1
    slack_site.later(29)
    assert await slack_site.deliver() == 0
    slack_site.later(2)
    await slack_site.deliver()
    assert len(slack.messages["C1"]) == 2


async def test_a_post_whose_answer_was_lost_is_not_posted_again(slack_site, slack_client, slack):
    slack.fail("chat.postMessage", Fault(breaks=True, done=True))
    await post(slack_client, event("<@UBOT00001> status"))
    await slack_site.answer()
    slack_site.later(60)
    await slack_site.deliver()
    assert len(slack.messages["C1"]) == 1
    assert slack_site.messages()[0].state == "sent"
    assert slack_site.messages()[0].external_id == slack.messages["C1"][0]["ts"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(breaks=True),
        Fault(503, "<html>busy</html>"),
        Fault(200, {"ok": False, "error": "internal_error"}),
        Fault(200, {"ok": True}),
        Fault(200, "[]"),
    ],
    ids=["broke before", "503", "internal_error", "half an answer", "another answer"],
)
async def test_a_post_that_failed_is_tried_again(slack_site, slack_client, slack, fault):
    slack.fail("chat.postMessage", fault)
    await post(slack_client, event("<@UBOT00001> status"))
    await slack_site.answer()
    assert slack.messages["C1"] == []
    slack_site.later(60)
    await slack_site.deliver()
    assert len(slack.messages["C1"]) == 1


async def test_a_reply_arrives_once_after_restarts_on_the_way(slack_site, slack_client, slack):
    await post(slack_client, event("<@UBOT00001> status"))
    slack_site.restart()
    slack_site.pump()
    slack_site.restart()
    claim = next(iter(await claims(slack_site)))
    assert claim.uncertain is False
    slack_site.restart()
    slack_site.later(slack_site.settings.chat.lease_s + 1)
    await slack_site.deliver()
    slack_site.restart()
    slack_site.pump()
    assert await slack_site.deliver() == 0
    assert len(slack.messages["C1"]) == 1


async def test_a_process_that_died_after_posting_does_not_post_again(slack_site, slack_client, slack):
    await post(slack_client, event("<@UBOT00001> status"))
    slack_site.pump()
    (claim,) = await claims(slack_site)
    await slack_front(slack_site).deliver(claim)
    slack_site.restart()
    slack_site.later(slack_site.settings.chat.lease_s + 1)
    await slack_site.deliver()
    assert len(slack.messages["C1"]) == 1
    assert slack_site.messages()[0].state == "sent"


async def test_a_message_that_slack_will_never_take_is_given_up_and_holds_up_none(slack_site, slack_client, slack):
    slack.fail("chat.postMessage", Fault(200, {"ok": False, "error": "is_archived"}))
    await post(slack_client, event("<@UBOT00001> status", ts="1700000001.000100"))
    await post(slack_client, event("<@UBOT00001> which models are there?", ts="1700000002.000100", thread_ts="1700000001.000100"))
    await slack_site.answer()
    assert [each.state for each in slack_site.messages()] == ["given_up", "sent"]
    assert len(slack_site.audit("chat.given_up")) == 1


async def test_messages_of_a_thread_keep_their_order(slack_site, slack_client, slack):
    slack.fail("chat.postMessage", Fault(500, {}))
    for number, words in enumerate(("status", "which models are there?", "which orders are waiting?")):
        await post(slack_client, event(f"<@UBOT00001> {words}", ts=f"170000000{number}.000100", thread_ts="1700000000.000100"))
    await slack_site.answer()
    assert slack.messages["C1"] == []
    slack_site.later(60)
    await slack_site.deliver()
    numbers = [each.external_id for each in slack_site.messages()]
    assert numbers == sorted(numbers)
    assert len(slack.messages["C1"]) == 3


async def test_without_the_database_slack_is_asked_to_come_again(slack_site, slack_client, monkeypatch):
    from services.runtime.errors import Transient

    def away(*_args, **_options):
        raise Transient("the database is away")

    monkeypatch.setattr("listeners.chat.slack.app.receive", away)
    sent = event("status")
    assert (await post(slack_client, sent)).status == 500
    monkeypatch.undo()
    assert (await post(slack_client, sent)).status == 200
    assert len(slack_site.commands()) == 1


async def test_slack_s_own_silence_does_not_keep_messages_out(slack_site, slack_client, slack):
    slack.fail("auth.test", Fault(500, "no"), Fault(500, "no"))
    assert (await post(slack_client, event("<@UBOT00001> status"))).status == 200
    assert [each["text"] for each in slack_site.commands()] == ["status"]


async def claims(site):
    from listeners.chat import repository

    def take():
        with site.database.transaction() as tx:
            return repository.claim_next(tx, "a process that dies", "slack", site.settings.chat)

    claim = await asyncio.to_thread(take)
    return [claim] if claim else []


def slack_front(site):
    from listeners.chat.slack.front import SlackFront

    return SlackFront(site.settings)


def respond(slack):
    return slack.at("/respond")


async def test_a_refusal_that_cannot_be_told_is_a_refusal_all_the_same(slack_site, slack_client, slack, free_port):
    order, asked = await ordered(slack_site, slack_client, slack)
    nowhere = f"http://127.0.0.1:{free_port}/respond"
    answer = await press(slack_client, button(asked, order.order_id, approve=True, user="UEVE", channel="C1", respond=nowhere))
    assert answer.status == 200
    slack_site.pump()
    assert slack_site.orders()[0].state == "awaiting_approval"
    assert len(slack_site.audit("order.decision_refused")) == 1


async def test_where_it_may_neither_post_nor_write_directly_it_is_given_up(slack_site, slack_client, slack):
    slack.fail("conversations.open", Fault(200, {"ok": False, "error": "missing_scope"}))
    await command(slack_client, "status", channel="CSTRANGE")
    await slack_site.answer()
    assert slack_site.messages()[0].state == "given_up"
    assert "not_in_channel" in slack_site.messages()[0].error
