"""Whether the service is at work, on whichever machine: asked by commands whose effect waits for it."""

from typing import Final

from services.runtime import lease
from services.runtime.database import Database
from services.runtime.outbox import RELAY

HOW_TO_START: Final = "start it with `reclaim up`"


def is_at_work(database: Database) -> bool:
    """Whether a relay holds its lease: without one, nothing that is put in reaches a consumer."""
    with database.read() as session:
        return lease.is_held(session, RELAY, database.clock.now())
