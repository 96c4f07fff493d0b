"""What a process writes is its own user's only."""

import stat
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_command_line_keeps_its_state_to_its_user(tmp_path: Path) -> None:
    state = tmp_path / "state"
    environment = {"RECLAIM_STATE_DIR": str(state), "PATH": "/usr/bin:/bin"}
    command = f"umask 022; exec {sys.executable} -m listeners.cli models list"
    subprocess.run(["/bin/sh", "-c", command], env=environment, cwd=ROOT, check=True, capture_output=True, timeout=60)
    paths = [state, *state.rglob("*")]
    assert len(paths) > 1
    assert [path.name for path in paths if stat.S_IMODE(path.stat().st_mode) & 0o077] == []
