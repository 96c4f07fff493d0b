"""`GET /ready` says whether what is sent here can be taken: database, disk, and the listener of `reclaim up`."""

import json
import os
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from aiohttp.test_utils import TestClient, TestServer

from listeners import http
from services.runtime import run_state
from services.runtime.clock import SystemClock
from services.runtime.database import Database
from tests.dicom_world import listening


@asynccontextmanager
async def asked(context):
    async with TestClient(TestServer(http.create_app(context))) as client:
        response = await client.get("/ready")
        yield response.status, await response.json()


def with_dicom(context, **dicom):
    changed = context.settings.dicom.model_copy(update={"min_free_bytes": 0, **dicom})
    return replace(context, settings=context.settings.model_copy(update={"dicom": changed}))


@pytest.fixture
def run_by_up(sqlite_context):
    """The state folder as `reclaim up` holds it."""
    state = run_state.RunState(
        pid=os.getpid(),
        bootstrap="",
        embedded=False,
        incarnation="",
        broker_pid=0,
        started_at=SystemClock().now(),
        ports={},
        children={},
    )
    folder = sqlite_context.settings.state_dir
    with run_state.lock(folder):
        run_state.write_state(folder, state)
        yield with_dicom(sqlite_context)


async def test_all_is_well(sqlite_context):
    async with asked(with_dicom(sqlite_context)) as (status, told):
        assert (status, told) == (200, {"status": "ready", "problems": []})


async def test_a_disk_without_space_is_not_ready(sqlite_context):
    async with asked(with_dicom(sqlite_context, min_free_bytes=1 << 60)) as (status, told):
        assert (status, told["status"]) == (503, "not ready")
        assert "RECLAIM_DICOM_MIN_FREE_BYTES" in told["problems"][0]


async def test_a_database_that_is_away_is_not_ready(sqlite_context):
    gone = Database("postgresql+psycopg://nobody@127.0.0.1:1/none", SystemClock())
    async with asked(replace(with_dicom(sqlite_context), database=gone)) as (status, told):
        assert status == 503
        assert told["problems"] == ["the database does not answer"]


async def test_the_listener_of_up_has_to_answer(run_by_up):
    with listening(run_by_up):
        async with asked(run_by_up) as (status, told):
            assert (status, told["problems"]) == (200, [])
    async with asked(run_by_up) as (status, told):
        assert status == 503
        assert "has not opened its port" in told["problems"][0]
    folder = run_by_up.settings.state_dir
    state = run_state.read_state(folder)
    run_state.write_state(folder, state.model_copy(update={"misconfigured": ("inference", "dicom")}))
    async with asked(run_by_up) as (status, told):
        assert (status, len(told["problems"])) == (503, 1)
        assert "does not start with its settings" in told["problems"][0]
    run_state.write_state(folder, state)
    (folder / "run" / "dicom.json").write_text(json.dumps({"port": 1}))
    async with asked(run_by_up) as (status, told):
        assert status == 503
        assert "C-ECHO" in told["problems"][0]
        elsewhere = with_dicom(run_by_up, allowed_networks=("10.0.0.0/8",))
    async with asked(elsewhere) as (status, _):
        assert status == 200, "a listener that lets this machine not in is not asked"


async def test_who_asks_often_does_not_use_up_the_listeners_associations(run_by_up, monkeypatch):
    looks = []
    monkeypatch.setattr("listeners.readiness.problems_of", lambda _: looks.append(1) or [])
    async with TestClient(TestServer(http.create_app(run_by_up))) as client:
        for _ in range(20):
            assert (await client.get("/ready")).status == 200
    assert len(looks) == 1
