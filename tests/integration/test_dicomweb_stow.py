"""STOW-RS over a real socket: the answers of PS3.18 §10.5.3, the guarantees of C-STORE, and no end of rubbish."""

import asyncio
import json
import logging
import struct
import zlib
from io import BytesIO

import aiohttp
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid
from sqlmodel import select

from listeners import http
from listeners.dicomweb import http as stow
from schemas.http_settings import HttpSettings
from schemas.settings import DicomSettings
from schemas.tables import Instance, Study
from services.assembly.files import layout_of
from services.runtime.errors import Transient
from services.runtime.service import Context, StopSignal

BEARER = {"Authorization": "Bearer secret"}
LIMIT = 200_000
MR_CLASS = "1.2.840.10008.5.1.4.1.1.4"


def mr(study="1.2.3.1", **changes):
    """An MR image as a DICOM file's bytes."""
    file = pydicom.dcmread(str(get_testdata_file("MR_small.dcm", download=False)))
    file.StudyInstanceUID, file.SOPInstanceUID = study, generate_uid()
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID
    file.PatientName, file.PatientID = "CANARY^NAME", "CANARY-ID"
    for keyword, value in changes.items():
        setattr(file.file_meta if keyword == "MediaStorageSOPClassUID" else file, keyword, value)
    stream = BytesIO()
    file.save_as(stream, enforce_file_format=False)
    return stream.getvalue()


def body_of(*parts, boundary="b0", kind="application/dicom", end=True):
    head = f"--{boundary}\r\nContent-Type: {kind}\r\n\r\n".encode()
    return b"".join(head + part + b"\r\n" for part in parts) + (f"--{boundary}--\r\n".encode() if end else b"")


def content_type(boundary="b0"):
    return {"Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}'}


class Site:
    """The HTTP service in this test's event loop, and a client."""

    def __init__(self, context, client):
        self.context, self.client = context, client

    async def post(self, body, study="", headers=None, **options):
        path = f"/dicomweb/studies/{study}" if study else "/dicomweb/studies"
        async with self.client.post(path, data=body, headers={**BEARER, **content_type(), **(headers or {})}, **options) as answer:
            text = await answer.text()
            return answer.status, json.loads(text), answer.headers

    def rows(self, table=Instance):
        with self.context.database.read() as session:
            return session.exec(select(table)).all()

    def leftovers(self):
        """Files of the archive that no row of the index knows, and unfinished ones."""
        root = self.context.settings.archive_dir
        known = {row.path for row in self.rows()}
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"} - known


def configured(context, **fields):
    web = HttpSettings(port=0, token=SecretStr("secret"), **fields)
    dicom = DicomSettings(min_free_bytes=0, network_timeout_s=2, max_object_bytes=LIMIT)
    changed = context.settings.model_copy(update={"http": web, "dicom": dicom})
    return Context(changed, context.database, context.clock, context.pseudonyms)


@pytest.fixture
async def site(sqlite_context):
    context = configured(sqlite_context, stow_requests=3)
    (worker,) = http.build(context).workers
    stop, note = StopSignal(), context.settings.state_dir / "run" / "http.json"
    task = asyncio.create_task(worker.run(stop))
    while not note.exists() and not task.done():  # noqa: ASYNC110 - the file is all a client has
        await asyncio.sleep(0.01)
    async with aiohttp.ClientSession(json.loads(note.read_text())["url"]) as client:
        yield Site(context, client)
    stop.set()
    await task
    assert not list(context.settings.archive_dir.glob("incoming/*"))


def values(answer, tag):
    return list(answer.get(tag, {}).get("Value", []))


def reasons(answer, sequence="00081198"):
    return [item["00081197"]["Value"][0] for item in values(answer, sequence)]


async def test_a_body_that_drips_is_ended(site):
    async def dripping():
        yield body_of(b"", end=False)
        while True:
            await asyncio.sleep(0.3)
            yield b"x" * 20

    began = asyncio.get_running_loop().time()
    status, answer, _ = await site.post(dripping())
    assert (status, "nothing came" in answer["error"]) == (408, True)
    assert asyncio.get_running_loop().time() - began < 6


async def test_instances_are_stored_bit_for_bit_and_listed(site):
    files = [mr(), mr(), mr("1.2.3.2")]
    status, answer, headers = await site.post(body_of(*files))
    assert (status, headers["Content-Type"]) == (200, "application/dicom+json")
    sent = [str(pydicom.dcmread(BytesIO(file)).SOPInstanceUID) for file in files]
    assert [item["00081155"]["Value"][0] for item in values(answer, "00081199")] == sent
    assert {item["00081150"]["Value"][0] for item in values(answer, "00081199")} == {MR_CLASS}
    assert "00081198" not in answer
    archive = site.context.settings.archive_dir
    for row in site.rows():
        path = archive / row.path
        original = files[sent.index(row.sop_instance_uid)]
        offset = 144 + struct.unpack_from("<L", original, 140)[0]
        assert path.read_bytes()[layout_of(path).dataset_offset :] == original[offset:]
    assert {(study.study_uid, study.instances, study.calling_ae) for study in site.rows(Study)} == {
        ("1.2.3.1", 2, "STOW-RS"),
        ("1.2.3.2", 1, "STOW-RS"),
    }
    assert site.leftovers() == set()


async def test_the_same_again_changes_nothing_and_other_bytes_are_put_aside(site):
    file = mr()
    uid = str(pydicom.dcmread(BytesIO(file)).SOPInstanceUID)
    assert (await site.post(body_of(file, file)))[0] == 200
    other = pydicom.dcmread(BytesIO(file))
    other.PixelData = bytes(len(other.PixelData))
    stream = BytesIO()
    other.save_as(stream)
    status, answer, _ = await site.post(body_of(stream.getvalue()))
    assert (status, reasons(answer)) == (409, [0xC000])
    assert [row.sop_instance_uid for row in site.rows()] == [uid]
    assert len(site.leftovers()) == 1
    assert site.leftovers().pop().startswith("conflicts/")


async def test_some_good_and_some_bad_is_accepted_with_reasons(site, caplog):
    broken = mr()[:-50]
    foreign = mr(MediaStorageSOPClassUID="1.2.3.4")
    parts = (
        mr(),
        broken,
        foreign,
        b"no DICOM at all",
        mr().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0", 1),
        mr(StudyInstanceUID=""),
    )
    status, answer, _ = await site.post(body_of(*parts))
    assert status == 202
    assert len(values(answer, "00081199")) == 1
    assert reasons(answer) == [0xC000, 0x0122, 0xC122, 0xA900]
    assert reasons(answer, "0008119A") == [0xC000]
    assert len(site.rows()) == 1
    assert site.leftovers() == set()
    assert "WEB-105 instance of SOP class 1.2.3.4 refused" in caplog.text


async def test_a_study_in_the_address_holds_for_every_instance(site):
    status, answer, _ = await site.post(body_of(mr("1.2.3.9"), mr("1.2.3.8")), study="1.2.3.9")
    assert (status, reasons(answer)) == (202, [0xA901])
    status, answer, _ = await site.post(body_of(mr("1.2.3.8")), study="1.2.3.9")
    assert (status, reasons(answer)) == (409, [0xA901])
    status, answer, _ = await site.post(body_of(mr("1.2.3.9")[:-50]), study="1.2.3.9")
    assert (status, reasons(answer)) == (409, [0xC000])
    assert (await site.post(body_of(mr()), study="..%2f..%2fetc"))[0] == 400
    assert [study.study_uid for study in site.rows(Study)] == ["1.2.3.9"]


async def test_a_deflated_object_is_stored_as_sent_and_its_study_checked(site):
    plain = pydicom.dcmread(BytesIO(mr("1.2.3.9")))
    plain.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    stream = BytesIO()
    plain.save_as(stream, enforce_file_format=True)
    assert (await site.post(body_of(stream.getvalue()), study="1.2.3.9"))[0] == 200
    assert (await site.post(body_of(stream.getvalue()), study="1.2.3.8"))[0] == 409


@pytest.mark.parametrize("extra", [0, 200_000])
async def test_an_instance_that_is_too_large_is_refused_and_the_next_one_taken(site, extra):
    large = mr(PixelData=bytes(LIMIT + extra))
    status, answer, _ = await site.post(body_of(large))
    assert (status, reasons(answer)) == (413, [0xA700])
    status, answer, _ = await site.post(body_of(large, mr(), b"y" * (LIMIT + 70_000)))
    assert (status, reasons(answer), reasons(answer, "0008119A")) == (202, [0xA700], [0xA700])
    assert len(site.rows()) == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json"}, 415),
        ({"Content-Type": "application/dicom"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=b0"}, 415),
        ({"Content-Type": 'multipart/related; type="application/dicom+json"; boundary=b0'}, 415),
        ({"Content-Type": "multipart/related; type=application/dicom"}, 400),
        ({"Content-Type": f"multipart/related; boundary={'b' * 71}"}, 400),
        ({"Accept": "application/dicom+xml"}, 406),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": ""}, 401),
        ({"Origin": "https://elsewhere.example"}, 403),
    ],
)
async def test_a_request_of_the_wrong_kind_is_refused(site, headers, status):
    assert (await site.post(body_of(mr()), headers=headers))[0] == status
    assert site.rows() == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b0--\r\n",
        b"no boundary anywhere",
        body_of(b"x", boundary="other"),
        b"--b0\r\nContent-Length: -1\r\n\r\nx\r\n--b0--\r\n",
        b"--b0\r\nContent-Length: 999999\r\n\r\nx\r\n--b0--\r\n",
        b"--b0\r\nContent-Length: 1\r\n\r\nxyz\r\n--b0--\r\n",
        b"--b0\r\n" + b"A: b\r\n" * 1000 + b"\r\nx\r\n--b0--\r\n",
        b"--b0\r\n" + b"A" * 100_000 + b"\r\n\r\nx\r\n--b0--\r\n",
        b"--b0\r\nContent-Type: multipart/related; boundary=c0\r\n\r\n--c0\r\n\r\nx\r\n--c0--\r\n--b0--\r\n",
        b"--b0\r\nno colon here\r\n\r\nx\r\n--b0--\r\n",
    ],
)
async def test_what_is_no_multipart_is_a_bad_request(site, body):
    status, _, _ = await site.post(body)
    assert status == 400
    assert site.rows() == []
    assert site.leftovers() == set()


async def test_a_body_without_its_end_keeps_what_was_whole(site):
    status, answer, _ = await site.post(body_of(mr(), mr(), end=False)[:-100])
    assert (status, len(values(answer, "00081199")), reasons(answer, "0008119A")) == (202, 1, [0xC000])
    status, answer, _ = await site.post(body_of(mr(), end=False)[:-100])
    assert status == 400
    assert (await site.post(body_of(mr())))[0] == 200
    assert site.leftovers() == set()


@pytest.mark.parametrize(
    "headers", [{"Content-Transfer-Encoding": "base64"}, {"Content-Encoding": "gzip"}, {"Content-Type": "text/plain"}]
)
async def test_a_part_that_is_packed_or_no_dicom_is_refused_alone(site, headers):
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    body = f"--b0\r\n{lines}\r\n".encode() + mr() + b"\r\n" + body_of(mr())
    status, answer, _ = await site.post(body)
    assert (status, reasons(answer)) == (202, [0xC000])


async def test_a_compressed_body_is_read_and_a_bomb_stays_small(site):
    async with site.client.post(
        "/dicomweb/studies", data=zlib.compress(body_of(mr())), headers={**BEARER, **content_type(), "Content-Encoding": "deflate"}
    ) as answer:
        assert answer.status == 200
    bomb = zlib.compress(body_of(bytes(20_000_000)))
    async with site.client.post(
        "/dicomweb/studies", data=bomb, headers={**BEARER, **content_type(), "Content-Encoding": "deflate"}
    ) as answer:
        assert answer.status == 413


async def test_a_sender_that_falls_silent_is_let_go_and_others_are_served(site):
    async def silent():
        yield body_of(mr(), end=False)
        await asyncio.sleep(30)

    slow = [asyncio.create_task(site.post(silent())) for _ in range(2)]
    await asyncio.sleep(0.3)
    assert (await site.post(body_of(mr())))[0] == 200
    for status, answer, _ in await asyncio.gather(*slow):
        assert (status, "nothing came" in answer["error"]) == (408, True)
    assert site.leftovers() == set()


async def test_more_requests_than_allowed_are_asked_to_come_again(site):
    async def silent():
        yield body_of(mr(), end=False)
        await asyncio.sleep(30)

    slow = [asyncio.create_task(site.post(silent())) for _ in range(3)]
    await asyncio.sleep(0.3)
    status, _, headers = await site.post(body_of(mr()))
    assert (status, headers["Retry-After"]) == (503, "5")
    await asyncio.gather(*slow)
    assert (await site.post(body_of(mr())))[0] == 200


async def test_a_connection_that_breaks_keeps_what_was_stored_and_nothing_else(site):
    host, port = site.client._base_url.host, site.client._base_url.port
    _, writer = await asyncio.open_connection(host, port)
    body = body_of(*(mr() for _ in range(60)))
    head = f"POST /dicomweb/studies HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer secret\r\n"
    head += f"Content-Type: {content_type()['Content-Type']}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body[:-3000])
    await writer.drain()
    async with asyncio.timeout(20):
        while not site.rows():  # noqa: ASYNC110 - the first instance is on its way
            await asyncio.sleep(0.01)
    writer.transport.abort()
    await asyncio.sleep(0.5)
    assert 1 <= len(site.rows()) < 60
    assert site.leftovers() == set()


async def test_a_full_disk_and_a_database_that_is_away_ask_to_come_again(site, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(stow.ArchiveFiles, "free_bytes", lambda _: -1)
        status, answer, headers = await site.post(body_of(mr()))
        assert (status, "DCM-101" in answer["error"], headers["Retry-After"]) == (507, True, "5")
    with monkeypatch.context() as patched:
        patched.setattr(stow.ArchiveIndex, "known_as", lambda *_: (_ for _ in ()).throw(Transient("away")))
        status, answer, headers = await site.post(body_of(mr()))
        assert (status, reasons(answer), headers["Retry-After"]) == (503, [0xA700], "5")
    assert site.rows() == []
    assert site.leftovers() == set()


async def test_nothing_that_is_logged_or_answered_names_the_patient(site, caplog):
    caplog.set_level(logging.DEBUG)
    answers = [await site.post(body_of(mr(), mr()[:-50], mr(MediaStorageSOPClassUID="CANARY^NAME"), b"CANARY^NAME"))]
    answers.append(await site.post(body_of(mr()), study="1.2.3.99"))
    answers.append(await site.post(b"--b0\r\nCANARY^NAME\r\n\r\nCANARY-ID"))
    text = caplog.text + json.dumps([answer for _, answer, _ in answers])
    assert "CANARY" not in text
    assert "WEB-001" in caplog.text
    assert "1.2.3" not in caplog.text


async def test_an_archive_that_cannot_be_opened_is_no_end(sqlite_context, tmp_path):
    context = configured(sqlite_context)
    context.settings.archive_dir.rmdir()
    context.settings.archive_dir.write_text("in the way")
    (worker,) = http.build(context).workers
    stop, note = StopSignal(), context.settings.state_dir / "run" / "http.json"
    task = asyncio.create_task(worker.run(stop))
    while not note.exists():  # noqa: ASYNC110 - the file is all a client has
        await asyncio.sleep(0.01)
    async with aiohttp.ClientSession(json.loads(note.read_text())["url"]) as client:
        site = Site(context, client)
        assert (await site.post(body_of(mr())))[0] == 503
        context.settings.archive_dir.unlink()
        assert (await site.post(body_of(mr())))[0] == 200
    stop.set()
    await task


WHOLE = body_of(mr(), mr())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.tuples(st.integers(0, len(WHOLE)), st.binary(max_size=40), st.integers(0, 200)), max_size=4),
    lead=st.sampled_from([b"", b"preamble\r\n", b"\r\n", b"--b0", b"\x00"]),
)
async def test_rubbish_of_every_kind_is_answered_and_leaves_nothing(site, cuts, lead):
    body = bytearray(lead + WHOLE)
    for place, insert, remove in cuts:
        body[place : place + remove] = insert
    status, _, _ = await site.post(bytes(body))
    assert status in (200, 202, 400, 409)
    assert {path for path in site.leftovers() if not path.startswith("conflicts/")} == set()
