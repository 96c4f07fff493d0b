"""Clients of the HTTP port that never finish what they began: they are let go in time, and the others are served meanwhile."""

import asyncio
import contextlib
import time

import pytest
from pydantic import SecretStr

from listeners import http
from schemas.http_settings import HttpSettings
from services.runtime.service import Context, StopSignal

LIMIT_S = 0.6
HEALTH = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
CUT_HEADER = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
CUT_BODY = (
    b"POST /api/labels HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer secret\r\n"
    b'Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"study": '
)


@pytest.fixture
def web():
    return HttpSettings(port=0, token=SecretStr("secret"), request_timeout_s=LIMIT_S)


@pytest.fixture
async def port(sqlite_context, caplog, web):
    settings = sqlite_context.settings.model_copy(update={"http": web})
    context = Context(settings, sqlite_context.database, sqlite_context.clock, sqlite_context.pseudonyms)
    (worker,) = http.build(context).workers
    stop, caplog.handler.level = StopSignal(), 0
    caplog.set_level("INFO")
    task = asyncio.create_task(worker.run(stop))
    while "listening on" not in caplog.text:
        await asyncio.sleep(0.01)
        assert not task.done(), task
    yield int(caplog.text.rpartition("127.0.0.1:")[2].split()[0])
    stop.set()
    await task
    assert "failed" not in caplog.text


@contextlib.asynccontextmanager
async def connected(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def answer(reader):
    """Status line and body of one answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    return head.split(b"\r\n")[0], await reader.readexactly(length)


@pytest.mark.parametrize("begun", [b"", CUT_HEADER])
async def test_a_header_that_never_ends_is_cut_off_and_others_are_served(port, begun):
    async with contextlib.AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(connected(port)) for _ in range(40)]
        for _, writer in slow:
            writer.write(begun)
        reader, writer = await stack.enter_async_context(connected(port))
        writer.write(HEALTH)
        assert (await answer(reader))[0] == b"HTTP/1.1 200 OK"
        async with asyncio.timeout(10):
            assert [await each.read() for each, _ in slow] == [b""] * 40


async def test_a_header_that_drips_is_cut_off_as_well(port):
    async with connected(port) as (reader, writer):
        writer.write(CUT_HEADER)
        ended, began = asyncio.create_task(reader.read()), time.monotonic()
        while not ended.done():
            assert time.monotonic() < began + 10
            with contextlib.suppress(ConnectionError):
                writer.write(b"x")
                await writer.drain()
            await asyncio.sleep(0.05)


async def test_a_body_that_never_ends_is_answered_408(port):
    async with connected(port) as (reader, writer):
        writer.write(CUT_BODY)
        async with asyncio.timeout(20):
            status, body = await answer(reader)
    assert status.startswith(b"HTTP/1.1 408"), status
    assert b"error" in body


async def test_a_body_that_breaks_off_is_no_defect_of_ours(port, caplog):
    async with connected(port) as (_, writer):
        writer.write(CUT_BODY)
        await writer.drain()
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.1)
    assert "ERROR" not in {record.levelname for record in caplog.records}


async def test_a_connection_in_use_is_kept(port):
    async with connected(port) as (reader, writer):
        for _ in range(6):
            writer.write(HEALTH)
            assert (await answer(reader))[0] == b"HTTP/1.1 200 OK"
            await asyncio.sleep(LIMIT_S / 3)


class TestMany:
    """More connections than the port is there for, none of which has been silent for too long yet."""

    @pytest.fixture
    def web(self):
        return HttpSettings(port=0, token=SecretStr("secret"), max_idle_connections=5)

    @pytest.mark.parametrize("begun", [b"", CUT_HEADER, CUT_BODY.replace(b"secret", b"guessed"), CUT_BODY])
    async def test_the_oldest_without_request_give_way_and_others_are_served(self, port, begun):
        async with contextlib.AsyncExitStack() as stack:
            slow = [await stack.enter_async_context(connected(port)) for _ in range(40)]
            for _, writer in slow:
                writer.write(begun)
            ended = [asyncio.create_task(reader.read()) for reader, _ in slow]
            async with asyncio.timeout(10):
                await asyncio.gather(*ended[:30])
            reader, writer = await stack.enter_async_context(connected(port))
            writer.write(HEALTH)
            assert (await answer(reader))[0] == b"HTTP/1.1 200 OK"
            for each in ended[30:]:
                each.cancel()

    async def test_who_is_being_served_stays(self, port):
        body = b"--x\r\nContent-Type: application/dicom\r\n\r\nno DICOM\r\n--x--\r\n"
        head = b"POST /dicomweb/studies HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer secret\r\n"
        kind = b'Content-Type: multipart/related; type="application/dicom"; boundary=x\r\n'
        async with contextlib.AsyncExitStack() as stack:
            reader, writer = await stack.enter_async_context(connected(port))
            writer.write(head + kind + b"Content-Length: %d\r\n\r\n" % len(body) + body[:10])
            await asyncio.sleep(0.2)
            slow = [await stack.enter_async_context(connected(port)) for _ in range(20)]
            async with asyncio.timeout(10):
                await asyncio.gather(*(each.read() for each, _ in slow[:10]))
            writer.write(body[10:])
            assert (await answer(reader))[0].startswith(b"HTTP/1.1 409")
