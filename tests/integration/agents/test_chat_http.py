"""`/api/chat` over a real socket, with the agents answering behind it."""

import asyncio
import time

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from listeners.chat.http import routes
from schemas.settings import ChatSettings
from schemas.tables import Outbox
from schemas.topics import AGENT_COMMAND
from schemas.vocabulary import UserRole
from services.runtime.consumer import process
from services.runtime.identity import Pseudonyms
from services.runtime.messages import Record
from services.runtime.service import Context


@pytest.fixture
def chat_hospital(sqlite_database, make_hospital):
    return make_hospital(sqlite_database, chat=ChatSettings(users={"ada": UserRole.ADMIN}))


@pytest.fixture
async def client(chat_hospital):
    context = Context(chat_hospital.settings, chat_hospital.database, chat_hospital.clock, Pseudonyms(b"k" * 32))
    app = web.Application()
    app.add_routes(routes(context))
    async with TestClient(TestServer(app)) as client:
        yield client


def deliver(hospital):
    """What relay and broker do: bring every command to the agents."""
    for row in hospital.outbox(AGENT_COMMAND):
        process(hospital.database, hospital.consumer(), [as_record(row)])


def deliver_next(hospital):
    """Wait until a command has been sent, then bring it to the agents."""
    end = time.monotonic() + 10
    while not hospital.outbox(AGENT_COMMAND) and time.monotonic() < end:
        time.sleep(0.02)
    deliver(hospital)


def as_record(row: Outbox) -> Record:
    return Record(row.topic, 0, row.id or 0, row.key, row.headers, row.body)


async def test_a_question_is_answered_in_the_same_request(client, chat_hospital):
    request = asyncio.create_task(client.post("/api/chat", json={"text": "list models", "user": "ada", "wait_s": 20}))
    await asyncio.to_thread(deliver_next, chat_hospital)
    response = await request
    assert response.status == 200
    assert (await response.json())["reply"].startswith("Registered models")


async def test_the_answer_can_be_fetched_later(client, chat_hospital):
    response = await client.post("/api/chat", json={"text": "roll back brain", "user": "eve", "wait_s": 0})
    assert response.status == 202
    command = (await response.json())["command_id"]
    assert (await client.get(f"/api/chat/{command}")).status == 202
    await asyncio.to_thread(deliver, chat_hospital)
    later = await client.get(f"/api/chat/{command}")
    assert later.status == 200
    assert "Your role viewer may not order a rollback" in (await later.json())["reply"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"text": ""}',
        b'{"text": "x", "role": "admin"}',
        b'{"text": "x", "user": "a b"}',
        b'{"text": 7}',
    ],
)
async def test_a_wrong_body_is_refused_and_nothing_is_sent(client, chat_hospital, body):
    response = await client.post("/api/chat", data=body)
    assert response.status == 400
    assert chat_hospital.outbox(AGENT_COMMAND) == []


async def test_an_unknown_command_is_not_found(client):
    assert (await client.get("/api/chat/..%2Fetc")).status == 404
