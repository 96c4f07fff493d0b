"""Doorbells: a ring reaches every listener of the machine, and nobody who is gone stops it."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.runtime.bells import Bells
from services.runtime.database import Database
from services.runtime.health import pause
from services.runtime.service import StopSignal


def files(folder):
    return list(folder.iterdir())


async def heard(awake):
    await asyncio.wait_for(awake.wait(), 2)
    awake.clear()


async def test_a_ring_wakes_all_listeners_of_that_bell_only(tmp_path):
    bells, one, two, other = Bells(tmp_path), asyncio.Event(), asyncio.Event(), asyncio.Event()
    with bells.listen("relay", one), bells.listen("relay", two), bells.listen("assembly", other):
        bells.ring("relay")
        await heard(one)
        await heard(two)
        assert not other.is_set()


async def test_a_ring_comes_from_another_process(tmp_path):
    awake = asyncio.Event()
    code = "import sys, pathlib; from services.runtime.bells import Bells; Bells(pathlib.Path(sys.argv[1])).ring('relay')"
    with Bells(tmp_path).listen("relay", awake):
        await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code, str(tmp_path)], check=True)
        await heard(awake)


async def test_a_full_fifo_blocks_nobody(tmp_path):
    bells, awake = Bells(tmp_path), asyncio.Event()
    with bells.listen("relay", awake):
        (fifo,) = files(tmp_path / "relay")
        descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(descriptor, b"!" * 4096)
        os.close(descriptor)
        bells.ring("relay")
        await heard(awake)
        await asyncio.sleep(0.05)
        awake.clear()
        bells.ring("relay")
        await heard(awake)


def test_ringing_where_nobody_listens_is_no_error(tmp_path):
    Bells(tmp_path / "nowhere").ring("relay")


def test_what_a_killed_listener_left_is_removed(tmp_path):
    code = (
        "import asyncio, os, sys, pathlib; from services.runtime.bells import Bells\n"
        "async def main():\n"
        "    with Bells(pathlib.Path(sys.argv[1])).listen('relay', asyncio.Event()): os._exit(0)\n"
        "asyncio.run(main())"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert len(files(tmp_path / "relay")) == 1
    Bells(tmp_path).ring("relay")
    assert not files(tmp_path / "relay")


async def test_a_listener_leaves_nothing(tmp_path):
    before = len(files(Path("/proc/self/fd")))
    with Bells(tmp_path).listen("relay", asyncio.Event()):
        pass
    assert not files(tmp_path / "relay")
    assert len(files(Path("/proc/self/fd"))) == before


async def test_where_no_fifo_can_be_made_the_body_runs_all_the_same(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with Bells(blocked).listen("relay", asyncio.Event()):
        Bells(blocked).ring("relay")


async def test_a_pause_ends_at_a_ring(tmp_path):
    awake, started = asyncio.Event(), time.monotonic()
    with Bells(tmp_path).listen("assembly", awake):
        asyncio.get_running_loop().call_later(0.05, Bells(tmp_path).ring, "assembly")
        await pause(StopSignal(), 10, awake)
    assert time.monotonic() - started < 5


class Counted(Bells):
    def __init__(self):
        self.rung = []

    def ring(self, name):
        self.rung.append(name)


def test_a_transaction_rings_after_its_commit_and_not_without_one():
    bells = Counted()
    database = Database("sqlite://", bells=bells)
    with database.transaction() as tx:
        tx.ring("assembly")
        tx.ring("assembly")
        assert bells.rung == []
    assert bells.rung == ["assembly"]
    with pytest.raises(ZeroDivisionError), database.transaction() as tx:
        tx.ring("assembly")
        _ = 1 / 0
    assert bells.rung == ["assembly"]
    database.close()
