"""What STOW-RS has listed as stored is on disk and in the index after SIGKILL; memory does not grow with the object."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import aiohttp
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid
from sqlmodel import select

from schemas.http_settings import HttpSettings
from schemas.settings import DatabaseSettings, Settings
from schemas.tables import Instance
from services.assembly.files import layout_of
from services.runtime.clock import SystemClock
from services.runtime.database import Database

SERVE = """
import asyncio, sys
from listeners import http
from schemas.settings import Settings
from services.runtime.clock import SystemClock
from services.runtime.database import Database
from services.runtime.identity import Pseudonyms
from services.runtime.service import Context, StopSignal
settings = Settings.model_validate_json(sys.argv[1])
clock = SystemClock()
context = Context(settings, Database(settings.database_url, clock), clock, Pseudonyms(b"k" * 32))
asyncio.run(http.build(context).workers[0].run(StopSignal()))
"""
HEADERS = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b0'}


class Server:
    """The HTTP service in a process of its own, to be killed."""

    def __init__(self, folder: Path, url: str) -> None:
        self.settings = Settings(state_dir=folder, http=HttpSettings(port=0), database=DatabaseSettings(url=url))
        text = self.settings.model_copy(update={"database": DatabaseSettings()}).model_dump_json()
        settings = json.loads(text) | {"database": {"url": url}}
        self.note = folder / "run" / "http.json"
        self.note.unlink(missing_ok=True)
        self.process = subprocess.Popen([sys.executable, "-c", SERVE, json.dumps(settings)])

    async def url(self) -> str:
        async with asyncio.timeout(60):
            while not self.note.exists():
                assert self.process.poll() is None
                await asyncio.sleep(0.05)
        return str(json.loads(self.note.read_text())["url"])

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)

    def peak_memory(self) -> int:
        """Bytes; VmHWM of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


@pytest.fixture
def serve(tmp_path, sqlite_url):
    servers = []

    def start() -> Server:
        servers.append(Server(tmp_path / "state", sqlite_url))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.kill()


def image(pixels: int = 0) -> tuple[str, bytes]:
    file = pydicom.dcmread(str(get_testdata_file("MR_small.dcm", download=False)))
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    if pixels:
        file.PixelData = os.urandom(pixels)
    stream = BytesIO()
    file.save_as(stream)
    return str(file.SOPInstanceUID), stream.getvalue()


def body_of(*files: bytes) -> bytes:
    return b"".join(b"--b0\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n" for file in files) + b"--b0--\r\n"


async def send(url: str, acknowledged: set[str], images: int) -> None:
    """Post requests of some images until the server dies, and note what it says is stored."""
    async with aiohttp.ClientSession(url) as client:
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):
            while True:
                body = body_of(*(image()[1] for _ in range(images)))
                async with client.post("/dicomweb/studies", data=body, headers=HEADERS) as answer:
                    said = json.loads(await answer.read())
                    acknowledged |= {item["00081155"]["Value"][0] for item in said["00081199"]["Value"]}


@pytest.mark.parametrize("after", [5, 60])
async def test_what_is_listed_as_stored_outlives_the_process(serve, after):
    server, acknowledged = serve(), set()
    url = await server.url()
    senders = [asyncio.create_task(send(url, acknowledged, images)) for images in (1, 1, 3)]
    async with asyncio.timeout(60):
        while len(acknowledged) < after:  # noqa: ASYNC110 - the moment is what this test is about
            await asyncio.sleep(0.001)
    server.kill()
    await asyncio.gather(*senders)
    database = Database(server.settings.database_url, SystemClock())
    with database.read() as session:
        rows = {row.sop_instance_uid: row for row in session.exec(select(Instance))}
    database.close()
    assert acknowledged <= rows.keys()
    for uid in acknowledged:
        path = server.settings.archive_dir / rows[uid].path
        assert path.stat().st_size - layout_of(path).dataset_offset == rows[uid].size
        assert str(pydicom.dcmread(path).SOPInstanceUID) == uid


async def test_memory_does_not_grow_with_the_object(serve):
    server = serve()
    url = await server.url()
    async with aiohttp.ClientSession(url) as client:
        for megabytes in (1, 120):
            before = server.peak_memory()
            body = body_of(image(megabytes * 1_000_000)[1])
            async with client.post("/dicomweb/studies", data=body, headers=HEADERS) as answer:
                assert answer.status == 200, await answer.text()
    assert server.peak_memory() - before < 40_000_000
