"""A person may send so many messages within a minute, on all channels together."""

import pytest
from aiohttp.test_utils import TestClient, TestServer

from listeners import http
from listeners.chat.conversation import Said, TooMany, ask, receive
from schemas.chat_settings import ChatSettings
from schemas.http_settings import HttpSettings
from schemas.vocabulary import UserRole
from tests.chat_world import Site


def made(database, clock, folder, limit=3, **settings):
    chat = ChatSettings(messages_a_minute=limit, identities={"slack:U1": "ada"}, users={"ada": UserRole.ML_OWNER})
    return Site.of(database, clock, folder / "state", chat=chat, **settings)


@pytest.fixture
def site(sqlite_database, clock, tmp_path):
    return made(sqlite_database, clock, tmp_path)


def say(site, user="ada"):
    return ask(site.context, "status", user, UserRole.VIEWER, f"t-{user}", "console")


def slack(site, key):
    return receive(site.context, Said("slack", "U1", "slack:C1:1", {"channel": "C1"}, "status", (key,)))


def test_one_too_many_is_not_sent(site, clock):
    for _ in range(3):
        say(site)
        clock.advance(5)
    with pytest.raises(TooMany, match=r"3 messages within a minute.*in 45 seconds") as refused:
        say(site)
    assert refused.value.wait_s == 45
    assert len(site.commands()) == 3


def test_after_a_rest_messages_are_taken_again(site, clock):
    for _ in range(3):
        say(site)
    clock.advance(61)
    say(site)
    assert len(site.commands()) == 4


def test_a_clock_that_ran_ahead_silences_nobody(site, clock):
    clock.advance(365 * 86_400)
    for _ in range(3):
        say(site)
    clock.advance(-365 * 86_400)
    for _ in range(3):
        say(site)
        clock.advance(1)
    with pytest.raises(TooMany, match="in 57 seconds"):
        say(site)


def test_others_are_not_held_up(site):
    for _ in range(3):
        say(site)
    say(site, "bob")
    assert len(site.commands()) == 4


def test_channels_count_together_and_the_person_is_told(site):
    for number in range(2):
        assert slack(site, f"m{number}").command_id
    say(site)
    outcome = slack(site, "m2")
    assert outcome.refusal.startswith("You have sent 3 messages within a minute")
    assert slack(site, "m2").repeated
    assert len(site.commands()) == 3


def test_a_site_may_do_without(sqlite_database, clock, tmp_path):
    site = made(sqlite_database, clock, tmp_path, limit=0)
    for _ in range(30):
        say(site)
    assert len(site.commands()) == 30


async def test_http_says_when_to_come_again(sqlite_database, clock, tmp_path):
    site = made(sqlite_database, clock, tmp_path, limit=1, http=HttpSettings(token="t" * 32))
    body, headers = {"text": "status", "user": "ada", "wait_s": 0}, {"Authorization": f"Bearer {'t' * 32}"}
    async with TestClient(TestServer(http.create_app(site.context))) as client:
        assert (await client.post("/api/chat", json=body, headers=headers)).status == 202
        answer = await client.post("/api/chat", json=body, headers=headers)
        assert (answer.status, answer.headers["Retry-After"]) == (429, "60")
        assert "messages within a minute" in await answer.text()
