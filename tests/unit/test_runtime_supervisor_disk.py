"""A supervisor whose state folder cannot be written goes on, and says where it runs once it can be written again."""

import asyncio
import subprocess
import sys
from pathlib import Path

from schemas.settings import Settings
from services.runtime import child as child_module
from services.runtime.child import Child, ChildSpec
from services.runtime.health import Health
from services.runtime.run_state import RunState, read_state
from services.runtime.supervisor import supervise
from tests.waiting import until

ONCE = """
import pathlib, sys, time
mark = pathlib.Path(sys.argv[1])
done = mark.exists()
mark.touch()
time.sleep(600 if done else 1)
"""
TALKATIVE = """
import pathlib, sys
for number in range(4_000):
    print(number, 1_000 * "x")
pathlib.Path(sys.argv[1]).touch()
"""
TERMINAL = """
import asyncio, sys
from services.runtime.child import Child, ChildSpec
from services.runtime.clock import SystemClock

async def main():
    child = Child(ChildSpec("child", [sys.executable, "-c", sys.argv[1], sys.argv[2]]), 0, 5, SystemClock())
    await child.start({})
    for _ in range(200):
        await asyncio.sleep(0.1)
        if not child.pid:
            break
    await child.stop(1)

asyncio.run(main())
"""


async def test_a_child_that_ends_while_nothing_can_be_written_is_started_again(tmp_path: Path, caplog) -> None:
    state, health = tmp_path / "state", Health()
    child = ChildSpec("child", [sys.executable, "-c", ONCE, str(tmp_path / "mark")], uses_bus=False)
    note, pids = state / "run" / "supervisor.json", list[int]()

    def hide_note(found: RunState) -> None:
        pids.append(found.children["child"])
        note.unlink()
        note.mkdir()  # what stands here cannot be replaced by a file, whoever we are

    running = asyncio.create_task(supervise(Settings(state_dir=state), [child], hide_note, health))
    await until(lambda: "started again" in caplog.text and (tmp_path / "mark").exists())
    await until(lambda: running.done() or "cannot be written" in caplog.text)
    assert not running.done(), running
    note.rmdir()
    again = await until(lambda: (found := read_state(state)) and found.children["child"] and found)
    assert again.children["child"] not in (0, *pids)
    assert caplog.text.count("cannot be written") == 1
    health.stop.set()
    assert await running == 0


def test_a_terminal_that_takes_nothing_more_stops_no_child(tmp_path: Path) -> None:
    """The log's disk is full, or its terminal was closed: a child whose lines nobody takes would wait for ever."""
    mark = tmp_path / "mark"
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-c", TERMINAL, TALKATIVE, str(mark)]
        subprocess.run(command, stdout=full, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2], timeout=60, check=False)
    assert mark.exists()


async def test_a_child_that_was_left_down_is_tried_again_later(tmp_path: Path, clock) -> None:
    mark = tmp_path / "mended"
    fails_until_mended = f"import pathlib, time; pathlib.Path({str(mark)!r}).exists() or exit(3); time.sleep(600)"
    child = Child(ChildSpec("child", [sys.executable, "-c", fails_until_mended]), 0, 5, clock)
    await child.start({})
    for _ in range(40):
        await until(lambda: not child.pid)
        await child.look_after({})
        if child.given_up:
            break
        clock.advance(child_module.RESTART_MAX_S / 4)
    assert child.given_up
    mark.touch()
    clock.advance(child_module.RESTART_MAX_S)
    assert not await child.look_after({})
    clock.advance(child_module.LEFT_DOWN_S)
    assert await child.look_after({})
    assert child.pid
    assert not child.given_up
    await child.stop(5)
