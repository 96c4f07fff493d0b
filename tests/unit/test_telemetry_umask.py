"""What a process writes is its own user's only, however it was started."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WRITER = """
async def write(stop):
    Path("written").mkdir()
    Path("written/file").write_text("x")
    health.stop.set()
"""
PROCESS = f"""
import asyncio
from pathlib import Path
from schemas.settings import Settings
from services.runtime import process
from services.runtime.clock import SystemClock
from services.runtime.database import Database
from services.runtime.health import Health
from services.runtime.identity import Pseudonyms
from services.runtime.service import Context, Service, Worker
{WRITER}
async def main():
    global health
    health, clock = Health(), SystemClock()
    context = Context(Settings(), Database("sqlite:///written.sqlite", clock), clock, Pseudonyms(b"k" * 32))
    return await process.run([Service("s", workers=(Worker("w", write),))], context, health)
raise SystemExit(asyncio.run(main()))
"""
CHILD = """
import asyncio, sys
from services.runtime.child import Child, ChildSpec
from services.runtime.clock import SystemClock
async def main():
    script = "import pathlib; pathlib.Path('written').mkdir(); pathlib.Path('written/file').write_text('x')"
    child = Child(ChildSpec("c", [sys.executable, "-c", script]), 0, 1, SystemClock())
    await child.start({})
    await child._process.wait()
asyncio.run(main())
"""


def loose(folder: Path) -> list[str]:
    paths = list(folder.rglob("*"))
    assert len(paths) > 1
    return [path.name for path in paths if stat.S_IMODE(path.stat().st_mode) & 0o077]


def run(folder: Path, *arguments: str, **environment: str) -> None:
    command = ["/bin/sh", "-c", 'umask 022; exec "$@"', "sh", sys.executable, *arguments]
    variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | environment
    subprocess.run(command, env=variables, cwd=folder, check=True, capture_output=True, timeout=120)


def test_the_command_line_keeps_its_state_to_its_user(tmp_path: Path) -> None:
    run(tmp_path, "-m", "listeners.cli", "models", "list", RECLAIM_STATE_DIR=str(tmp_path / "state"))
    assert loose(tmp_path) == []


@pytest.mark.parametrize("script", [PROCESS, CHILD], ids=["services' process", "supervised child"])
def test_a_process_that_no_command_started_does_so_too(tmp_path: Path, script: str) -> None:
    run(tmp_path, "-c", script)
    assert (tmp_path / "written" / "file").is_file()
    assert [name for name in loose(tmp_path) if name.startswith(("written", "file")) and "sqlite" not in name] == []
