"""A child that says that its settings are at fault is not started for ever: it stays down, and everybody who asks is told."""

import asyncio
import sys
from pathlib import Path
from typing import Any

from schemas.settings import Settings
from services.runtime import child as child_module
from services.runtime.child import Child, ChildSpec
from services.runtime.health import EX_CONFIG, Health
from services.runtime.run_state import read_state
from services.runtime.supervisor import supervise
from tests.waiting import until

REFUSES = f"raise SystemExit({EX_CONFIG})"
WORKS = "import time; time.sleep(600)"


def spec(name: str, code: str) -> ChildSpec:
    return ChildSpec(name, [sys.executable, "-c", code], uses_bus=False)


async def ended(child: Child, clock: Any) -> None:
    """The child ends by itself, and the supervisor looks at it and waits until it would be started again."""
    await until(lambda: not child.pid)
    assert await child.look_after({})
    clock.advance(child_module.RESTART_MAX_S)


async def test_a_child_that_its_settings_keep_from_working_is_not_tried_again(clock: Any, caplog: Any) -> None:
    child = Child(spec("http", REFUSES), 0, 5, clock)
    await child.start({})
    for _ in range(child_module.REFUSALS - 1):
        await ended(child, clock)
        assert not child.given_up
        assert await child.look_after({})
    await ended(child, clock)
    assert (child.given_up, child.misconfigured) == (True, True)
    clock.advance(10 * child_module.LEFT_DOWN_S)
    assert not await child.look_after({})
    assert "http does not start with its settings" in caplog.text
    await child.stop(1)


async def test_settings_that_are_mended_in_time_are_forgiven(tmp_path: Path, clock: Any) -> None:
    mark = tmp_path / "crashes"
    child = Child(
        spec("http", f"import pathlib; raise SystemExit(1 if pathlib.Path({str(mark)!r}).exists() else {EX_CONFIG})"), 0, 5, clock
    )
    await child.start({})
    for number in range(2 * child_module.REFUSALS):
        mark.touch() if number % 2 else mark.unlink(missing_ok=True)
        await ended(child, clock)
        clock.advance(60)
        assert await child.look_after({})
        assert not child.given_up
    await child.stop(1)


async def test_the_others_go_on_and_the_state_names_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(child_module, "RESTART_FIRST_S", 0.01)
    health = Health()
    running = asyncio.create_task(
        supervise(Settings(state_dir=tmp_path), [spec("http", REFUSES), spec("dicom", WORKS)], health=health)
    )
    found = await until(lambda: (state := read_state(tmp_path)) and state.misconfigured and state)
    assert (found.misconfigured, bool(found.children["dicom"]), running.done()) == (("http",), True, False)
    health.stop.set()
    assert await running == EX_CONFIG


async def test_where_no_child_can_work_everything_ends(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(child_module, "RESTART_FIRST_S", 0.01)
    assert await asyncio.wait_for(supervise(Settings(state_dir=tmp_path), [spec("http", REFUSES)]), 60) == EX_CONFIG
    assert "nothing can work" in caplog.text
