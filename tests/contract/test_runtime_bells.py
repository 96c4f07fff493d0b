"""A committed transaction wakes who listens, on both engines; one that is rolled back wakes nobody."""

import asyncio

import pytest

from services.runtime.bells import Bells
from services.runtime.database import Database
from services.runtime.transaction import RELAY_BELL


@pytest.fixture
def ringing(database_url, tmp_path):
    database = Database(database_url, bells=Bells(tmp_path / "bells"))
    yield database
    database.close()


def ring(database, bell=RELAY_BELL):
    with database.transaction() as tx:
        tx.ring(bell)


async def heard(awake, seconds=5.0):
    try:
        await asyncio.wait_for(awake.wait(), seconds)
    except TimeoutError:
        return False
    awake.clear()
    return True


async def settled(database, awake):
    """Listening has begun once a ring is heard."""
    for _ in range(100):
        await asyncio.to_thread(ring, database)
        if await heard(awake, 0.1):
            break
    await asyncio.sleep(0.3)
    awake.clear()


async def test_a_commit_wakes_a_listener(ringing):
    awake = asyncio.Event()
    with ringing.listen(RELAY_BELL, awake):
        await settled(ringing, awake)
        await asyncio.to_thread(ring, ringing)
        assert await heard(awake)
        await asyncio.to_thread(ring, ringing, "assembly")
        assert not await heard(awake, 0.2)


async def test_a_rollback_wakes_nobody(ringing):
    awake = asyncio.Event()
    with ringing.listen(RELAY_BELL, awake):
        await settled(ringing, awake)
        with pytest.raises(ZeroDivisionError), ringing.transaction() as tx:
            tx.ring(RELAY_BELL)
            _ = 1 / 0
        assert not await heard(awake, 0.2)


@pytest.mark.postgres
async def test_a_listener_outlives_its_database(postgres_server):
    database, awake = Database(postgres_server.url), asyncio.Event()
    with database.listen(RELAY_BELL, awake):
        await settled(database, awake)
        await asyncio.to_thread(postgres_server.stop)
        await asyncio.to_thread(postgres_server.start)
        database.engine.dispose()
        assert await heard(awake, 10)
        await settled(database, awake)
        await asyncio.to_thread(ring, database)
        assert await heard(awake)
    database.close()
