"""The same news over plain HTTP: whoever asks there looks for it."""

import pytest
from aiohttp.test_utils import TestClient, TestServer

from listeners import http
from schemas.chat_settings import ChatSettings
from schemas.vocabulary import UserRole
from services.remediation import jobs
from tests.chat_world import Site
from tests.integration.chat.test_chat_threads import told


@pytest.fixture
def site(sqlite_database, clock, tmp_path):
    return Site.of(sqlite_database, clock, tmp_path / "state", chat=ChatSettings(default_role=UserRole.ML_OWNER))


@pytest.fixture
async def client(site):
    async with TestClient(TestServer(http.create_app(site.context))) as client:
        yield client


async def ask(client, text, **more):
    return await client.post("/api/chat", json={"text": text, "user": "ada", "wait_s": 0, **more})


async def look(client, **query):
    return (await (await client.get("/api/chat/threads/main", params={"user": "ada", **query})).json())["messages"]


async def test_replies_and_progress_are_found_in_the_thread(site, client):
    await ask(client, "fine-tune brain_mri")
    site.pump()
    claim = site.start_job(site.orders()[0].order_id)
    told(site, claim, "learning from 3 studies")
    with site.database.transaction() as tx:
        jobs.succeed(tx, claim, {}, "Done.")
    site.pump()
    reply, progress = await look(client)
    assert (reply["kind"], progress["kind"]) == ("reply", "progress")
    assert "is accepted" in reply["text"]
    assert progress["text"].endswith("Done.")
    assert await look(client, after=str(progress["number"])) == []


async def test_a_thread_is_its_person_s(site, client):
    await ask(client, "status")
    site.pump()
    assert len(await look(client)) == 1
    assert await look(client, user="bob") == []


@pytest.mark.parametrize("query", [{"user": "a:b"}, {"user": ""}, {"after": "x"}, {"after": "-1"}, {"after": "9" * 30}])
async def test_odd_questions_are_refused(client, query):
    assert (await client.get("/api/chat/threads/main", params={"user": "ada", **query})).status == 400
