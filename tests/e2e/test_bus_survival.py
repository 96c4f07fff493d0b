"""Processes and the broker are killed at every step; afterwards nothing is lost and nothing is doubled."""

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sqlmodel import select

from schemas.settings import DatabaseSettings, KafkaSettings, Settings
from schemas.tables import Outbox
from schemas.topics import LABEL
from services.runtime.database import Database
from services.runtime.run_state import RunState, read_state
from tests.bus_world import (
    POINTS,
    RELAY_POINTS,
    World,
    bus,
    emit_labels,
    everything_once,
    make_context,
    wait_until,
)

ROOT = Path(__file__).parents[2]
MOST_DANGEROUS = ("transaction.after_commit", "publish.after")


@pytest.fixture(scope="module")
def kafka() -> Iterator[KafkaSettings]:
    with bus() as settings:
        yield settings


@pytest.fixture
def world(sqlite_url: str, kafka: KafkaSettings, tmp_path: Path) -> Iterator[World]:
    context = make_context(sqlite_url, kafka, tmp_path / "state")
    with World(context, tmp_path / "log") as made:
        yield made


def die_at(world: World, point: str, labels: int = 120) -> None:
    """One process dies at the third pass of `point`; another takes its place. Everything has its effect once."""
    database = world.context.database
    victim = ("relay",) if point in RELAY_POINTS else ("join", "evaluate")
    helper = ("join", "evaluate") if point in RELAY_POINTS else ("relay",)
    world.start("helper", *helper)
    world.start("victim", *victim, fault=f"{point}:3")
    keys: list[str] = []
    deadline = time.monotonic() + 60
    while world.processes["victim"].poll() is None:
        assert time.monotonic() < deadline, f"{point} was not passed three times"
        keys += emit_labels(database, 10)
        time.sleep(0.1)
    world.wait_killed("victim")
    world.start("successor", *victim)
    keys += emit_labels(database, labels)
    wait_until(lambda: everything_once(database, keys), 60, f"all {len(keys)} labels after a death at {point}")
    assert set(world.stop().values()) == {0}


@pytest.mark.parametrize("point", MOST_DANGEROUS)
def test_a_death_between_commit_and_acknowledgement(world: World, point: str) -> None:
    die_at(world, point)


@pytest.mark.slow
@pytest.mark.parametrize("point", [point for point in POINTS if point not in MOST_DANGEROUS])
def test_a_death_between_any_two_steps(world: World, point: str) -> None:
    die_at(world, point)


@pytest.mark.slow
def test_random_deaths_over_many_rounds(world: World) -> None:
    """Consumers and relay are killed at random times under load, twenty times."""
    database, dice = world.context.database, random.Random(20260302)
    roles = {"relay": ("relay",), "one": ("join", "evaluate"), "two": ("join", "evaluate")}
    for name, parts in roles.items():
        world.start(name, *parts)
    keys: list[str] = []
    for _ in range(20):
        until = time.monotonic() + dice.uniform(0.5, 4.0)
        while time.monotonic() < until:
            keys += emit_labels(database, 20)
            time.sleep(0.1)
        name = dice.choice(list(roles))
        world.kill(name)
        world.start(name, *roles[name])
    wait_until(lambda: everything_once(database, keys), 120, f"all {len(keys)} labels after twenty deaths")
    # One that was only just started may be asked to stop before it can answer the signal.
    assert set(world.stop().values()) <= {0, -signal.SIGTERM}


CHILDREN = f"""
import asyncio, os, sys, logging
from pathlib import Path
from services.runtime.supervisor import ChildSpec, supervise
from schemas.settings import load_settings
logging.basicConfig(level=logging.INFO, format="supervisor: %(message)s")
logging.getLogger("aiokafka").setLevel(logging.ERROR)
def child(name, *roles, **options):
    return ChildSpec(name, [{sys.executable!r}, "-m", "tests.bus_world", *roles], **options)
children = [
    child("relay", "relay"),
    child("consumers", "join", "evaluate"),
    ChildSpec("listener", [{sys.executable!r}, "-c", "import time; time.sleep(600)"], uses_bus=False),
]
if os.environ.get("WITH_BROKEN"):
    children.append(ChildSpec("broken", [{sys.executable!r}, "-c", "raise SystemExit(3)"]))
sys.exit(asyncio.run(supervise(load_settings(), children)))
"""


class Supervised:
    """A supervisor in a process of its own over the test's state folder."""

    def __init__(self, state: Path, log: Path, kafka_bootstrap: str = "", **environment: str) -> None:
        self.state, self.log = state, log
        settings = {"RECLAIM_STATE_DIR": str(state), "RECLAIM_OUTBOX_LEASE_S": "2", "RECLAIM_KAFKA_GRACEFUL_TIMEOUT_S": "5"}
        settings |= {"RECLAIM_KAFKA_SESSION_TIMEOUT_MS": "2000", "RECLAIM_KAFKA_HEARTBEAT_INTERVAL_MS": "300"}
        settings |= {"RECLAIM_KAFKA_BOOTSTRAP": kafka_bootstrap, "RECLAIM_KAFKA_PARTITIONS": "4"} | environment
        with log.open("ab") as output:
            self.process = psutil.Popen(
                [sys.executable, "-c", CHILDREN],
                env=os.environ | settings,
                cwd=Path(__file__).parents[2],
                stdout=output,
                stderr=output,
            )

    def wait_state(self, other_than: str = "") -> RunState:
        def there() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            state = read_state(self.state)
            return state is not None and state.incarnation != other_than and all(state.children.values())

        wait_until(there, 60, "a running supervisor")
        state = read_state(self.state)
        assert state is not None
        return state

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def supervised(tmp_path: Path, sqlite_template: Path) -> Iterator[Supervised]:
    state = tmp_path / "state"
    state.mkdir()
    (state / "reclaim.sqlite").write_bytes(sqlite_template.read_bytes())
    made = Supervised(state, tmp_path / "log")
    yield made
    made.end()


def _database(state: Path) -> Database:
    return Database(Settings(state_dir=state, database=DatabaseSettings()).database_url)


def test_the_broker_dies_under_load_and_nothing_is_lost(supervised: Supervised) -> None:
    """Clients are stopped, a new broker starts, topics are made, clients start, the relay sends again what was lost."""
    first = supervised.wait_state()
    database = _database(supervised.state)
    keys = emit_labels(database, 300)
    wait_until(lambda: _sent(database) > 100, 40, "events on the first broker")
    os.kill(first.broker_pid, signal.SIGKILL)
    for _ in range(20):
        keys += emit_labels(database, 20)
        time.sleep(0.1)
    second = supervised.wait_state(other_than=first.incarnation)
    keys += emit_labels(database, 100)
    wait_until(lambda: everything_once(database, keys), 60, f"all {len(keys)} labels after the broker's death")
    assert second.children["listener"] == first.children["listener"], "what does not use the bus goes on"
    assert second.children["consumers"] != first.children["consumers"]
    database.close()
    supervised.process.terminate()
    assert supervised.process.wait(40) == 0
    assert read_state(supervised.state) is None
    assert not any(psutil.pid_exists(pid) for pid in [*second.children.values(), second.broker_pid])


def _sent(database: Database) -> int:
    with database.read() as session:
        return len(session.exec(select(Outbox.id).where(Outbox.topic == LABEL.name, Outbox.sent_to != "")).all())


def test_a_dead_child_is_started_again_and_a_broken_one_left_down(tmp_path: Path, sqlite_template: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "reclaim.sqlite").write_bytes(sqlite_template.read_bytes())
    supervised = Supervised(state, tmp_path / "log", WITH_BROKEN="1")
    try:
        wait_until(lambda: read_state(state) is not None, 60, "a supervisor")
        before = read_state(state)
        assert before
        os.kill(before.children["listener"], signal.SIGKILL)
        wait_until(lambda: _child(state, "listener") not in (0, before.children["listener"]), 20, "the listener again")
        wait_until(lambda: "is left down" in supervised.log.read_text(), 60, "the broken child given up")
        assert _child(state, "consumers")
        supervised.process.terminate()
        assert supervised.process.wait(40) == 70
    finally:
        supervised.end()


def _child(state: Path, name: str) -> int:
    found = read_state(state)
    return found.children[name] if found else 0


def test_a_second_supervisor_is_refused_and_all_die_with_a_killed_one(supervised: Supervised, tmp_path: Path) -> None:
    state = supervised.wait_state()
    second = Supervised(supervised.state, tmp_path / "second.log")
    assert second.process.wait(30) != 0
    assert f"process {state.pid}" in second.log.read_text()
    supervised.process.kill()
    supervised.process.wait()
    pids = [*state.children.values(), state.broker_pid]
    wait_until(lambda: not any(_runs(pid) for pid in pids), 10, "the end of all children")
    assert read_state(supervised.state) is None
    third = Supervised(supervised.state, tmp_path / "third.log")
    try:
        assert third.wait_state().pid == third.process.pid
    finally:
        third.end()


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
