"""A taken HTTP port is a fault that may pass: it must not end the process that also joins and evaluates."""

import asyncio
import socket

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from listeners import http
from listeners.dicom import app as dicom
from schemas.http_settings import HttpSettings
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


async def test_a_disk_that_takes_no_note_of_the_port_ends_nothing(sqlite_context, caplog):
    settings = sqlite_context.settings.model_copy(update={"http": HttpSettings(port=0)})
    context = type(sqlite_context)(settings, sqlite_context.database, sqlite_context.clock, sqlite_context.pseudonyms)
    for name in ("http", "dicom"):
        (settings.state_dir / "run" / f"{name}.json" / "in the way").mkdir(parents=True)
    caplog.set_level("INFO")
    stop = StopSignal()
    running = asyncio.create_task(http.build(context).workers[0].run(stop))
    while "listening on" not in caplog.text:
        await asyncio.sleep(0.01)
        assert not running.done(), running
    stop.set()
    await running
    dicom._announce(settings.state_dir, 104)
    assert caplog.text.count("cannot be written") == 2


async def test_what_fails_is_logged_without_the_study_in_its_address(caplog):
    async def fail(_: web.Request) -> web.Response:
        raise RuntimeError

    app = web.Application(middlewares=[http._errors_as_json])
    app.add_routes([web.post("/dicomweb/studies/{study}", fail)])
    async with TestClient(TestServer(app)) as client:
        response = await client.post("/dicomweb/studies/1.2.840.99")
        assert response.status == 500
    (told,) = [record.getMessage() for record in caplog.records if record.name == "listeners.http"]
    assert told == "/dicomweb/studies/{study} failed"
