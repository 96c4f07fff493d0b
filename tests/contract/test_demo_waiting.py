"""How long the demonstration waits for a repair: as long as somebody is at work on it."""

from datetime import timedelta
from typing import Any

from listeners.demo.stage import job_progress
from schemas.tables import Job
from services.runtime.database import Database


def test_a_worker_that_renews_its_lease_is_at_work(sqlite_database: Database, clock: Any) -> None:
    now = clock.now()
    job = {"order_id": "o", "model": "m", "remedy": "partial", "state": "running", "attempt": 1, "progress": {"epoch": 30}}
    with sqlite_database.transaction() as tx:
        tx.session.add(Job(job_id="o", **job, lease_until=now, created_at=now, updated_at=now))
    seen = [_look(sqlite_database), _look(sqlite_database)]
    with sqlite_database.transaction() as tx:
        tx.session.get_one(Job, "o").lease_until = now + timedelta(seconds=20)
    seen.append(_look(sqlite_database))
    with sqlite_database.transaction() as tx:
        tx.session.get_one(Job, "o").progress = {"epoch": 31}
    seen.append(_look(sqlite_database))
    assert seen[0] == seen[1]
    assert len({str(each) for each in seen}) == 3


def _look(database: Database) -> object:
    with database.read() as session:
        return job_progress(session, "o")
