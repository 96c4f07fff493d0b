"""The services as the process runs them, over a real broker: a command, an end at every station, one reply."""

import asyncio
import json
from contextlib import asynccontextmanager

import aiohttp
import pytest
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from sqlmodel import select

from agents.app import build as build_agents
from listeners.chat.app import build as build_chat
from listeners.http import build as build_http
from schemas.chat import ChatMessage
from schemas.http_settings import HttpSettings
from schemas.tables import ModelVersion, Outbox, RegisteredModel
from services.runtime.health import Health
from services.runtime.process import run
from services.runtime.relay import build as build_relay
from tests.bus_world import bus, make_context, until
from tests.integration.chat.conftest import chat, slack_settings
from tests.slack_server import event, signed, texts

pytestmark = pytest.mark.timeout(180)
PATIENCE_S = 60.0


@asynccontextmanager
async def running(context, *builders):
    health = Health()
    task = asyncio.create_task(run([build(context) for build in builders], context, health))
    try:
        yield
    finally:
        health.stop.set()
        assert await asyncio.wait_for(task, PATIENCE_S) == 0


def rows(context, table):
    with context.database.read() as session:
        return list(session.exec(select(table)))


async def test_a_reply_comes_once_although_every_process_ends_on_the_way(sqlite_url, tmp_path, slack, free_port):
    with bus() as kafka:
        http = HttpSettings(port=free_port)
        context = make_context(sqlite_url, kafka, tmp_path / "state", chat=chat(), slack=slack_settings(slack), http=http)
        now = context.clock.now()
        with context.database.transaction() as tx:
            tx.session.add(RegisteredModel(name="brain_mri", task="t", classes=["a"], champion=1, created_at=now))
            tx.session.flush()
            tx.session.add(ModelVersion(model="brain_mri", version=1, state="champion", bundle="x", sha256="0", created_at=now))
        try:
            await _go(context, slack, free_port)
        finally:
            LlamaIndexInstrumentor().uninstrument()
            context.database.close()


async def _go(context, slack, port):
    note = context.settings.state_dir / "run" / "http.json"
    async with running(context, build_http):
        await until(note.exists, PATIENCE_S, "the endpoint listens")
        body = json.dumps(event("<@UBOT00001> status of all models", ts="1700000001.000100"))
        async with aiohttp.ClientSession() as session:
            answer = await session.post(f"http://127.0.0.1:{port}/chat/slack/events", data=body, headers=signed(body))
            assert answer.status == 200
    async with running(context, build_relay, build_agents):
        await until(lambda: any(row.topic == "agent.reply.v1" for row in rows(context, Outbox)), PATIENCE_S, "the agents answer")
    assert slack.messages["C1"] == []
    async with running(context, build_relay, build_chat):
        await until(lambda: slack.messages["C1"], PATIENCE_S, "the reply stands in Slack")
        await until(lambda: rows(context, ChatMessage)[0].state == "sent", PATIENCE_S, "it is known to")
    async with running(context, build_relay, build_agents, build_chat):
        await asyncio.sleep(1.0)
    (message,) = slack.messages["C1"]
    assert message["thread_ts"] == "1700000001.000100"
    assert "brain_mri" in texts(message)
