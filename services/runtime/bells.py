"""Doorbells between the processes of one machine: "look now" instead of waiting for the next look.

A bell says only that something may have happened; the database says what. A ring that is lost, or a listener on another
machine, costs the listener's ordinary interval and nothing else. Each listener has a FIFO of its own under the state
folder: writing to it never blocks, fails at once when nobody listens, and no address has to be agreed on.
"""

import asyncio
import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_MOST_BYTES: Final = 65_536


class Bells:
    """The bells of one state folder; thread-safe. `ring` never raises: bells are a courtesy."""

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
