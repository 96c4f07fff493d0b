"""The HTTP endpoint over a real socket: counts, refusals, limits, the token, and its address with port 0."""

import asyncio
import json

import aiohttp
import pytest
from pydantic import SecretStr
from sqlmodel import select

from listeners import http
from schemas.http_settings import HttpSettings
from schemas.tables import Outbox
from services.runtime.errors import InvalidInput
from services.runtime.service import Context, StopSignal

UID = "1.2.826.0.1.3680043.8.498.1"
GOOD = {"study": UID, "task": "tumour", "label": "glioma", "labelled_at": "2026-02-01T08:00:00Z"}
BEARER = {"Authorization": "Bearer secret"}


def with_http(context, **fields):
    settings = context.settings.model_copy(update={"http": HttpSettings(port=0, **fields)})
    return Context(settings, context.database, context.clock, context.pseudonyms)


@pytest.fixture
async def served(sqlite_context):
    context = with_http(sqlite_context, token=SecretStr("secret"), max_body_bytes=2_000)
    (worker,) = http.build(context).workers
    stop, note = StopSignal(), context.settings.state_dir / "run" / "http.json"
    task = asyncio.create_task(worker.run(stop))
    while not note.exists() and not task.done():  # noqa: ASYNC110 - the file is all a client has
        await asyncio.sleep(0.01)
    async with aiohttp.ClientSession(json.loads(note.read_text())["url"]) as client:
        yield context, client
    stop.set()
    await task
    assert not note.exists()


def outbox(context):
    with context.database.read() as session:
        return [json.loads(row.body) for row in session.exec(select(Outbox).order_by(Outbox.id))]


async def post(client, body=None, headers=BEARER, **options):
    options = options or {"json": body}
    async with client.post("/api/labels", headers=headers, **options) as answer:
        return answer.status, await answer.json()


async def test_one_label_or_a_list_is_taken_in(served):
    context, client = served
    status, answer = await post(client, GOOD)
    assert (status, answer["accepted"], answer["known"], answer["rejected"]) == (202, 1, 0, [])
    assert answer["warnings"] == [
        "no model knows task 'tumour': its labels are kept and count for nothing (no model is registered yet)"
    ]
    status, answer = await post(client, [GOOD, {**GOOD, "label": "none", "labelled_at": "2026-02-02"}, {"study": UID}, 7])
    assert (status, answer["accepted"], answer["known"]) == (202, 1, 1)
    assert [item["index"] for item in answer["rejected"]] == [2, 3]
    assert [item["value"] for item in outbox(context)] == ["glioma", "none"]
    assert outbox(context)[0]["study_key"] == context.pseudonyms.study(UID)
    assert outbox(context)[0]["source"] == "http"


async def test_a_label_is_withdrawn_by_a_status_or_a_flag(served):
    context, client = served
    later = {"study": UID, "task": "tumour", "labelled_at": "2026-02-02T08:00:00Z"}
    status, answer = await post(client, [{**later, "withdrawn": True}, {**later, "task": "other", "status": "entered-in-error"}])
    assert (status, answer["accepted"]) == (202, 2)
    assert sorted((item["task"], item["value"], item["withdrawn"]) for item in outbox(context)) == [
        ("other", None, True),
        ("tumour", None, True),
    ]
    status, answer = await post(
        client, [{**GOOD, "withdrawn": False}, {**GOOD, "status": "preliminary"}, later, {**GOOD, "status": 7}]
    )
    assert (status, answer["accepted"]) == (202, 1)
    assert [item["reason"] for item in answer["rejected"]] == [
        "status is neither final (F, C, U) nor withdrawn (D, W, X): only a final result is a truth",
        "label missing",
        "status is not a printable string",
    ]


async def test_a_label_has_no_room_for_a_person_and_all_its_faults_are_told(served):
    context, client = served
    bad = {"study": "x", "task": "Anna Miller", "source": "Dr. Who, room 3", "label": "Miller^Anna", "labelled_at": "yesterday"}
    status, answer = await post(client, [bad, {**GOOD, "label": "x" * 65}, {"study": 7, "task": 8, "label": "a\nb"}])
    assert status == 422
    first, second, third = (item["reason"] for item in answer["rejected"])
    for words in ("task must be letters", "source must be letters", "the label must be a class name", "DICOM UID", "ISO 8601"):
        assert words in first
    assert "64 characters" in second
    assert all(f"{name} is not a printable string" in third for name in ("study", "task", "label"))
    assert not any(word in json.dumps(answer) for word in ("Miller", "Anna", "Who"))
    assert outbox(context) == []


async def test_a_click_without_a_time_counts_as_said_now(served):
    context, client = served
    click = {name: value for name, value in GOOD.items() if name != "labelled_at"}
    for value in ("glioma", "none", "glioma"):
        context.clock.advance(1)
        assert (await post(client, {**click, "label": value}))[1]["accepted"] == 1
    assert [item["value"] for item in outbox(context)] == ["glioma", "none", "glioma"]


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"data": b"{", "headers": {"Content-Type": "application/json"}}, 400, "not JSON"),
        ({"data": b"\xff\xfe", "headers": {"Content-Type": "application/json"}}, 400, "not JSON"),
        ({"data": b"[" * 1500, "headers": {"Content-Type": "application/json"}}, 400, "not JSON"),
        ({"data": b"a=b"}, 415, "application/json"),
        ({"json": []}, 422, "between one"),
        ({"json": [{**GOOD, "study": "abc"}]}, 422, "no label"),
        ({"json": [{**GOOD, "label": 7}]}, 422, "no label"),
        ({"json": [{**GOOD, "label": "a\u0000b"}]}, 422, "no label"),
        ({"json": [GOOD] * 100}, 413, "exceeded"),
    ],
)
async def test_rubbish_is_refused_with_a_reason(served, options, status, words):
    context, client = served
    headers = {**BEARER, **options.pop("headers", {})}
    answered, answer = await post(client, headers=headers, **options)
    assert answered == status
    assert words in answer["error"]
    assert outbox(context) == []


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}])
async def test_without_the_token_nothing_goes(served, headers):
    context, client = served
    status, answer = await post(client, GOOD, headers=headers)
    assert (status, "token" in answer["error"]) == (401, True)
    assert outbox(context) == []


async def test_health_needs_no_token(served):
    async with served[1].get("/health") as answer:
        assert (answer.status, await answer.json()) == (200, {"status": "ok"})


async def test_unknown_paths_and_methods_are_json_too(served):
    async with served[1].get("/nowhere") as answer:
        assert (answer.status, "error" in await answer.json()) == (404, True)
    async with served[1].get("/api/labels", headers=BEARER) as answer:
        assert answer.status == 405


def test_beyond_this_machine_a_token_is_required(sqlite_context):
    with pytest.raises(InvalidInput, match="RECLAIM_HTTP_TOKEN"):
        http.build(with_http(sqlite_context, host="0.0.0.0"))
    http.build(with_http(sqlite_context, host="0.0.0.0", token=SecretStr("secret")))
    http.build(with_http(sqlite_context, host="::1"))
