"""What other commands may know about a running supervisor: `STATE/run/supervisor.json`, and the lock that keeps it single."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError


class AlreadyRunning(Exception):  # noqa: N818 - says what is the matter
    """Another supervisor uses this state folder."""


class RunState(BaseModel):
    """A running supervisor. `children` maps names to process ids, 0 for one that is down.

    `misconfigured` are those of them that stay down because their settings are at fault.
    """

    model_config = ConfigDict(frozen=True)

    pid: int
    bootstrap: str
    embedded: bool
    incarnation: str
    broker_pid: int
    started_at: AwareDatetime
    ports: dict[str, int]
    children: dict[str, int]
    misconfigured: tuple[str, ...] = ()


@contextlib.contextmanager
def lock(state_dir: Path) -> Iterator[None]:
    """Hold the state folder. The kernel releases it however the process ends, so a stale lock cannot exist."""
    with _lock_file(state_dir).open("a+") as file:
        if not _taken(file, fcntl.LOCK_EX):
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise AlreadyRunning(f"reclaim runs already in {state_dir} (process {owner}): stop it, or set RECLAIM_STATE_DIR")
        remove_state(state_dir)  # of one that was killed
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


def running(state_dir: Path) -> bool:
    """Whether a supervisor holds the state folder."""
    with _lock_file(state_dir).open("a+") as file:
        return not _taken(file, fcntl.LOCK_SH)


def _owner(state_dir: Path) -> str:
    """The process that took the lock last."""
    return _lock_file(state_dir).read_text().strip()


def _taken(file: IO[str], kind: int) -> bool:
    for _ in range(3):  # somebody who only asks holds it for an instant
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False


def write_state(state_dir: Path, state: RunState) -> None:
    """Replace the file in one step, so that a reader never sees half of it."""
    path = _path(state_dir)
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    fresh.write_text(state.model_dump_json(indent=2))
    fresh.replace(path)


def remove_state(state_dir: Path) -> None:
    """Say that nothing runs."""
    _path(state_dir).unlink(missing_ok=True)


def read_state(state_dir: Path) -> RunState | None:
    """The supervisor that runs in this state folder; None when there is none, also when one was killed."""
    try:
        state = RunState.model_validate_json(_path(state_dir).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    # A successor of a killed one holds the lock for a moment before it writes its own state.
    return state if running(state_dir) and _owner(state_dir) == str(state.pid) else None


def _folder(state_dir: Path) -> Path:
    folder = state_dir / "run"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _lock_file(state_dir: Path) -> Path:
    return _folder(state_dir) / "supervisor.lock"


def _path(state_dir: Path) -> Path:
    return _folder(state_dir) / "supervisor.json"
