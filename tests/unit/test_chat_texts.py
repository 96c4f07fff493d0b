"""What people type and what is told them: no markup gets in as an order, none gets out as markup."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listeners.chat import extras
from listeners.chat.cards import Card, progress_card, seen
from listeners.chat.people import Person, person_of
from listeners.chat.slack import text as slack
from listeners.chat.teams import text as teams
from schemas.chat_settings import ChatSettings
from schemas.events import MaintenanceRun
from schemas.settings import Settings
from schemas.vocabulary import Remedy, UserRole
from services.runtime.errors import InvalidInput

NASTY = "<!channel> <@U1> <https://evil.example|click> @everyone [x](https://evil.example) <at>all</at> **b** &lt;"


@given(st.text(max_size=200) | st.just(NASTY))
def test_slack_sees_no_markup_in_any_text(text):
    card = Card(title=text, text=text, facts=(("class", text),))
    message = slack.message_of(card)
    assert "<" not in message["text"]
    assert ">" not in message["text"]
    assert (message["parse"], message["link_names"], message["unfurl_links"]) == ("none", False, False)
    assert set(_types(message["blocks"])) <= {"plain_text"}


def _types(value):
    if isinstance(value, dict):
        if "text" in value and isinstance(value["text"], str):
            yield value["type"]
        for inner in value.values():
            yield from _types(inner)
    if isinstance(value, list):
        for inner in value:
            yield from _types(inner)


@given(st.text(max_size=200) | st.just(NASTY))
def test_teams_reads_no_markdown_in_any_text(text):
    drawn = teams.adaptive_card(Card(title=text, text=text, facts=(("class", text),)))
    assert {block["type"] for block in drawn["body"]} == {"RichTextBlock"}
    assert {run["type"] for block in drawn["body"] for run in block["inlines"]} == {"TextRun"}
    assert not set("[]()*<>") & set(teams.summary(Card(text=text)))


@given(st.text(max_size=20_000))
def test_a_slack_message_keeps_slack_s_limits(text):
    message = slack.message_of(Card(title=text, text=text, facts=tuple((text[:50], text) for _ in range(12))))
    assert len(message["text"]) <= 40_000
    for block in message["blocks"]:
        if block["type"] == "header":
            assert len(block["text"]["text"]) <= 150
        elif "fields" in block:
            assert len(block["fields"]) <= 10
            assert all(len(each["text"]) <= 2_000 for each in block["fields"])
        else:
            assert 0 < len(block["text"]["text"]) <= 3_000
    assert len(message["blocks"]) <= 50


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("<@UBOT> status of brain_mri", "status of brain_mri"),
        ("hey <@UBOT>, status", "hey , status"),
        ("<@UBOT> ask <@U2|bob> &amp; <@U3>", "ask bob & somebody"),
        ("<https://x.example|the page> <#C1|general> <!here>", "the page general"),
        ("accuracy &lt; 0.9 &gt; 0.8 &amp;lt;", "accuracy < 0.9 > 0.8 &lt;"),
    ],
)
def test_slack_s_markup_becomes_what_was_meant(sent, meant):
    assert slack.typed(sent, "UBOT") == meant


def test_the_bot_s_name_is_taken_off_before_it_is_known_too():
    assert slack.typed("<@UBOT> status") == "status"


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("<at>reclaim</at> status", "status"),
        ('<at id="0">reclaim</at>&nbsp;status', "status"),
        ("<p>status <b>of</b> brain</p>", "status  of  brain"),
        ("accuracy &lt; 0.9", "accuracy < 0.9"),
    ],
)
def test_teams_s_markup_becomes_what_was_meant(sent, meant):
    assert teams.typed(sent) == meant


@given(st.text(max_size=500))
def test_any_text_of_a_person_can_be_read(text):
    assert isinstance(slack.typed(text, "UBOT"), str)
    assert isinstance(teams.typed(text), str)


def test_nothing_unseen_is_told():
    assert seen("a\u202eb\u200bc\x00d\u2066e\r\nf") == "abcde\nf"
    assert len(seen("x" * 20_000)) <= 8_000


def test_a_link_of_ours_stays_one():
    drawn = slack.message_of(Card(text="x", link="https://r.example/a?b=1&c=2|<!channel>"))
    (element,) = drawn["blocks"][-1]["elements"]
    assert element["text"] == "<https://r.example/a?b=1&amp;c=2!channel|Open the report>"


def run(message, state="running", epoch=None):
    return MaintenanceRun(
        run_id="j", order_id="ord-1", model="m", remedy=Remedy.PARTIAL, state=state, epoch=epoch, epochs=9, message=message
    )


def test_stages_pile_up_and_epochs_do_not():
    card = None
    for step in (run("reading"), run("epoch 1 of 9", epoch=1), run("epoch 2 of 9", epoch=2), run("judging"), run("reading")):
        card = progress_card(step, card)
    assert card.text.splitlines() == ["reading", "judging"]
    assert progress_card(run("epoch 3 of 9", epoch=3), card).text.splitlines()[-1] == "epoch 3 of 9"
    assert "failed" in progress_card(run("no memory", "failed"), card).title


def test_a_card_survives_its_way_through_the_database():
    card = progress_card(run("reading"), None)
    assert Card.model_validate(json.loads(card.model_dump_json())) == card


def settings(**chat):
    return Settings(chat=ChatSettings(**chat))


def test_one_person_has_one_name_on_all_channels():
    known = settings(users={"ada": UserRole.ADMIN}, identities={"slack:U1": "ada", "teams:x": "ada"})
    assert person_of(known, "slack", "U1") == person_of(known, "teams", "x") == Person("ada", UserRole.ADMIN)


def test_a_role_may_hang_on_the_channel_s_own_identity():
    known = settings(users={"slack:U1": UserRole.ML_OWNER})
    assert person_of(known, "slack", "U1") == Person("slack:U1", UserRole.ML_OWNER)
    assert person_of(known, "teams", "U1") == Person("teams:U1", UserRole.VIEWER)


def test_nobody_becomes_somebody_by_the_name_alone():
    known = settings(users={"ada": UserRole.ADMIN})
    assert person_of(known, "slack", "ada").role == UserRole.VIEWER


def test_unknown_people_are_viewers_or_refused():
    assert person_of(settings(), "slack", "U9") == Person("slack:U9", UserRole.VIEWER)
    assert person_of(settings(refuse_unknown=True), "slack", "U9") is None
    assert person_of(settings(default_role=UserRole.RADIOLOGIST), "slack", "U9").role == UserRole.RADIOLOGIST


def test_an_object_id_is_the_same_in_either_case():
    known = settings(users={"ada": UserRole.ADMIN}, identities={"teams:ABCDEF01-0000-0000-0000-000000000000": "ada"})
    assert person_of(known, "teams", "abcdef01-0000-0000-0000-000000000000") == Person("ada", UserRole.ADMIN)
    assert person_of(settings(users={"slack:U1": UserRole.ADMIN}), "slack", "u1").role == UserRole.VIEWER


@pytest.mark.parametrize("extra", ["slack", "teams"])
def test_a_missing_library_is_named_with_what_to_install(extra, monkeypatch):
    monkeypatch.setitem(extras.PACKAGES, extra, "no_such_package_anywhere")
    with pytest.raises(InvalidInput, match=rf"reclaim\[{extra}\]"):
        extras.need(extra)
