"""Studies that wait for a damaged version: looked after until it is whole again or another serves in its place."""

import asyncio
import contextlib
import logging

from services.inference import repository
from services.inference.bundles import RETRY_S, BundleCache
from services.inference.unscored import BROKEN
from services.runtime.database import Database
from services.runtime.service import StopSignal

logger = logging.getLogger(__name__)
MENDED = "the version in service was damaged"
"""Why a study still waits after the damage is gone: its turn to be announced again has not come."""


class Mender:
    """Looks every half minute whether the versions that studies wait for can be loaded again."""

    def __init__(self, database: Database, bundles: BundleCache) -> None:
        self._database, self._bundles = database, bundles

    async def run(self, stop: StopSignal) -> None:
        """Look until `stop`; raises Transient when the database is away."""
        while not stop.is_set:
            await asyncio.to_thread(mend, self._database, self._bundles)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), RETRY_S)


def mend(database: Database, bundles: BundleCache) -> tuple[str, ...]:
    """Let studies be announced again whose damaged version is whole, or was replaced; returns those models."""
    with database.read() as session:
        rows = repository.waited_for(session, BROKEN)
    whole = tuple(sorted(row.model for row in rows if bundles.is_whole(row)))
    if whole:
        with database.transaction() as tx:
            repository.release(tx, whole, BROKEN, MENDED)
        logger.warning("%s can score again; the studies that waited are scored now", ", ".join(whole))
    return whole
