"""`/api/chat` over a real socket, with the agents answering behind it."""

import asyncio
import time

import pytest
from aiohttp.test_utils import TestClient, TestServer
from pydantic import SecretStr

from listeners import http
from listeners.chat.people import Person, speaker
from schemas.chat_settings import ChatSettings
from schemas.http_settings import HttpSettings
from schemas.tables import Outbox
from schemas.topics import AGENT_COMMAND
from schemas.vocabulary import UserRole
from services.runtime.consumer import process
from services.runtime.identity import Pseudonyms
from services.runtime.messages import Record
from services.runtime.service import Context

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def chat_hospital(sqlite_database, make_hospital):
    return make_hospital(sqlite_database, chat=ChatSettings(users={"ada": UserRole.ADMIN}))


@pytest.fixture
async def client(chat_hospital):
    context = Context(chat_hospital.settings, chat_hospital.database, chat_hospital.clock, Pseudonyms(b"k" * 32))
    async with TestClient(TestServer(http.create_app(context))) as client:
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
    response = await client.post("/api/chat", data=body, headers=JSON)
    assert response.status == 400
    assert (await response.json()).keys() == {"error"}
    assert chat_hospital.outbox(AGENT_COMMAND) == []


async def test_an_unknown_command_is_not_found(client):
    assert (await client.get("/api/chat/..%2Fetc")).status == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        (JSON | {"Origin": "https://evil.example"}, 403),
        (JSON | {"Origin": "null"}, 403),
        (JSON | {"Host": "evil.example"}, 403),
        (JSON | {"Host": "evil.example", "Origin": "http://evil.example"}, 403),
        (JSON | {"Host": "[broken"}, 403),
        (JSON | {"Host": "localhost:8080", "Origin": "http://localhost:8080"}, 202),
        (JSON | {"Host": "[::1]:8080"}, 202),
    ],
)
async def test_a_foreign_page_cannot_speak_for_a_local_user(client, chat_hospital, headers, status):
    response = await client.post("/api/chat", data=b'{"text": "list models", "wait_s": 0}', headers=headers)
    assert response.status == status
    assert len(chat_hospital.outbox(AGENT_COMMAND)) == (status == 202)


def test_without_a_token_nobody_is_who_he_says(chat_hospital):
    assert speaker(chat_hospital.settings, "ada") == speaker(chat_hospital.settings, "bob") == Person("anonymous", UserRole.VIEWER)
    trusted = chat_hospital.settings.model_copy(update={"http": HttpSettings(token=SecretStr("secret"))})
    assert speaker(trusted, "ada") == Person("ada", UserRole.ADMIN)
