"""A taken HTTP port is a fault that may pass: it must not end the process that also joins and evaluates."""

import socket

import pytest
from aiohttp.test_utils import TestClient, TestServer

from listeners import http
from schemas.settings import HttpSettings
from services.runtime.errors import Transient
from services.runtime.service import StopSignal


async def test_a_taken_port_is_retried_and_served_once_it_is_free(sqlite_context):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = HttpSettings(port=other.getsockname()[1])
        settings = sqlite_context.settings.model_copy(update={"http": taken})
        context = type(sqlite_context)(settings, sqlite_context.database, sqlite_context.clock, sqlite_context.pseudonyms)
        worker = http.build(context).workers[0]
        with pytest.raises(Transient, match="RECLAIM_HTTP_PORT"):
            await worker.run(StopSignal())
    stop = StopSignal()
    stop.set()
    await worker.run(stop)


async def test_the_first_page_names_what_the_port_serves(sqlite_context):
    async with TestClient(TestServer(http.create_app(sqlite_context))) as client:
        response = await client.get("/")
        told = await response.json()
    assert response.status == 200
    assert {"/health", "/api/chat", "/api/labels", "/dicomweb/studies"} <= set(told["paths"])
