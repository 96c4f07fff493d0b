"""What other commands may know about a running supervisor."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.runtime.run_state import AlreadyRunning, RunState, lock, read_state, write_state


def state_of(pid: int) -> RunState:
    return RunState(
        pid=pid,
        bootstrap="127.0.0.1:9092",
        embedded=True,
        incarnation="one",
        broker_pid=1,
        started_at=datetime(2026, 3, 1, tzinfo=UTC),
        ports={},
        children={},
    )


def test_a_running_supervisor_is_seen(tmp_path: Path) -> None:
    with lock(tmp_path):
        write_state(tmp_path, state_of(os.getpid()))
        assert read_state(tmp_path) == state_of(os.getpid())
    assert read_state(tmp_path) is None


def test_the_state_of_a_killed_one_is_not_taken_for_its_successors(tmp_path: Path) -> None:
    with lock(tmp_path):
        write_state(tmp_path, state_of(os.getpid() + 1))
        assert read_state(tmp_path) is None


def test_taking_the_lock_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    with lock(tmp_path):
        write_state(tmp_path, state_of(os.getpid()))
    with lock(tmp_path):
        assert read_state(tmp_path) is None


def test_a_second_one_is_refused(tmp_path: Path) -> None:
    with lock(tmp_path), pytest.raises(AlreadyRunning, match=str(os.getpid())), lock(tmp_path):
        pass
