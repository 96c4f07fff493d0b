"""Doorbells between processes: "look now" instead of waiting for the next look.

A bell says only that something may have happened; the database says what. A ring that is lost costs the listener's
ordinary interval and nothing else. On PostgreSQL the database carries the ring (NOTIFY, with the commit), to other machines
too. Beside SQLite, each listener has a FIFO of its own under the state folder: writing to it never blocks, fails at once
when nobody listens, and no address has to be agreed on.
"""

import asyncio
import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sqlalchemy import Engine, func, select
from sqlmodel import Session

_MOST_BYTES: Final = 65_536
_RECONNECT_S: Final = 1.0


class Bells:
    """The FIFOs of one state folder; thread-safe. `ring` never raises: bells are a courtesy."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ring(self, name: str) -> None:
        """Wake whoever listens to `name` on this machine."""
        with contextlib.suppress(OSError):
            for path in (self._folder / name).iterdir():
                _ring(path)

    @contextlib.contextmanager
    def listen(self, name: str, awake: asyncio.Event) -> Iterator[None]:
        """Set `awake` at every ring while the body runs; without effect where FIFOs cannot be made. Needs a running loop."""
        try:
            path, descriptor = _make(self._folder / name)
        except OSError:
            yield
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, _heard, descriptor, awake)
        try:
            yield
        finally:
            loop.remove_reader(descriptor)
            path.unlink(missing_ok=True)
            os.close(descriptor)


def notify(session: Session, name: str) -> None:
    """PostgreSQL: ring with the commit of this transaction."""
    session.execute(select(func.pg_notify(_channel(name), "")))


@contextlib.contextmanager
def listen_to_notifications(engine: Engine, name: str, awake: asyncio.Event) -> Iterator[None]:
    """PostgreSQL: set `awake` at every ring while the body runs, over a connection of its own. Needs a running loop."""
    task = asyncio.get_running_loop().create_task(_hear_notifications(engine, name, awake))
    try:
        yield
    finally:
        task.cancel()


async def _hear_notifications(engine: Engine, name: str, awake: asyncio.Event) -> None:
    """Listen until cancelled; a database that is away comes back, and then what was missed is looked at."""
    import psycopg  # noqa: PLC0415 - installed only where PostgreSQL is used
    from psycopg.sql import SQL, Identifier  # noqa: PLC0415

    arguments, parameters = engine.dialect.create_connect_args(engine.url)
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(*arguments, **parameters, autocommit=True) as connection:
                await connection.execute(SQL("LISTEN {}").format(Identifier(_channel(name))))
                awake.set()
                async for _ in connection.notifies():
                    awake.set()
        except (psycopg.Error, OSError):
            await asyncio.sleep(_RECONNECT_S)


def _channel(name: str) -> str:
    return f"reclaim_{name}"


def _make(folder: Path) -> tuple[Path, int]:
    """A FIFO, open, under a name that `ring` finds; it appears only once it is open, or a ring would take it for a dead one."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder.parent / f".{secrets.token_hex(8)}"
    os.mkfifo(fresh, 0o600)
    try:
        # Read and write, so that the end of a ringing process is no end of file.
        descriptor = os.open(fresh, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        path = fresh.rename(folder / f"{os.getpid()}-{fresh.name[1:]}")
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    return path, descriptor


def _ring(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:  # its process is gone
            path.unlink(missing_ok=True)
        return
    try:
        os.write(descriptor, b"!")
    except BlockingIOError:
        pass  # it has been rung 65,536 times and not looked yet
    finally:
        os.close(descriptor)


def _heard(descriptor: int, awake: asyncio.Event) -> None:
    with contextlib.suppress(BlockingIOError):
        os.read(descriptor, _MOST_BYTES)
    awake.set()
