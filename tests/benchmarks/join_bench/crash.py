"""The consumer of the join, killed with SIGKILL at random moments while it works through the workload."""

import contextlib
import json
import random
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text
from sqlmodel import Session

from schemas.tables import Outbox
from services.runtime.database import Database
from services.runtime.errors import Transient

from .meter import Outcome
from .ours import handled, open_database, outcome
from .workload import make
from .world import filled_broker

PATIENCE_S = 300.0


@dataclass(frozen=True)
class Killed:
    """How it went."""

    kills: int
    cases: int
    faults: list[str]

    @property
    def sentence(self) -> str:
        """For people."""
        ended = "; ".join(self.faults) or "every case joined once, every batch whole, every event announced once"
        return f"After {self.kills} kills (SIGKILL) over {self.cases} cases: {ended}."


def survive(folder: Path, cases: int, kills: int, seed: int = 1, url: str = "") -> Killed:
    """Let the consumer work, kill it `kills` times between the first and the last event, then compare with what was sent."""
    folder.mkdir(parents=True)
    work, chance = make(cases, seed), random.Random(seed)
    url = url or f"sqlite:///{folder}/join.sqlite"
    database = open_database(url)
    job = {"variant": "consumer", "url": url, "folder": str(folder), "group": uuid.uuid4().hex}
    places = sorted(chance.sample(range(work.events // 20, work.events * 19 // 20), kills))
    with filled_broker(work) as broker:
        job["bootstrap"] = broker.bootstrap
        done = 0
        for place in places:
            with _consumer(job, folder) as process:
                _wait(database, place, process)
                time.sleep(chance.uniform(0, 0.05))
                done += process.poll() is None
                process.kill()
        with _consumer(job, folder) as process:
            _wait(database, work.events, process)
            process.terminate()
            process.wait(60)
    doubled = _doubled(database)
    found: Outcome = outcome(database)
    faults = found.faults(work.truths) + doubled
    return Killed(done, cases, faults if done == kills else [*faults, f"only {done} of {kills} kills struck"])


@contextlib.contextmanager
def _consumer(job: dict[str, str], folder: Path):
    with (folder / "consumer.log").open("ab") as log:
        command = [sys.executable, "-m", f"{__package__}.consumer", json.dumps(job)]
        root = Path(__file__).parents[len(__package__.split("."))]
        process = subprocess.Popen(command, cwd=root, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def _wait(database: Database, events: int, process: subprocess.Popen[bytes]) -> None:
    """Until so many events are dealt with."""
    deadline = time.monotonic() + PATIENCE_S
    while _handled(database) < events:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the consumer ended with {process.poll()} or is stuck at {_handled(database)} events of {events}")
        time.sleep(0.01)


def _handled(database: Database) -> int:
    with contextlib.suppress(Transient):
        return handled(database)
    return 0


def _count(session: Session, statement: str) -> int:
    return int(session.execute(text(statement)).scalar_one())


def _doubled(database: Database) -> list[str]:
    """Announcements beyond one for each batch and one for each event that re-opened some."""
    with database.read() as session:
        announced = _count(session, f"SELECT count(*) FROM {Outbox.__tablename__}")
        different = _count(session, f"SELECT count(DISTINCT event_id) FROM {Outbox.__tablename__}")
        waiting = _count(session, "SELECT count(*) FROM dead_letter")
    found = ["an event was announced twice"] if announced != different else []
    return found + (["there are dead letters"] if waiting else [])
