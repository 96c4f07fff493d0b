"""Whether a process may go on, and with which exit code it ends when it may not.

Codes follow sysexits.h, so that a supervisor or a container's restart policy can tell the cases apart.
"""

import asyncio
import logging
from typing import Final

from services.runtime.service import StopSignal

logger = logging.getLogger(__name__)

EX_OK: Final = 0
EX_DATAERR: Final = 65
"""A consumer rejected too many messages."""
EX_UNAVAILABLE: Final = 69
"""The embedded broker is away and will not come back by waiting."""
EX_SOFTWARE: Final = 70
"""A bug."""
EX_CONFIG: Final = 78
"""Settings and broker contradict each other."""


class Health:
    """The stop signal of a process together with the reason. The first failure decides the exit code."""

    def __init__(self, stop: StopSignal | None = None) -> None:
        self.stop = stop or StopSignal()
        self.exit_code = EX_OK

    def fail(self, exit_code: int, message: str, error: BaseException | None = None) -> None:
        """Log at CRITICAL, with the traceback when there is an error, and have the process end."""
        logger.critical("%s", message, exc_info=error)
        self.exit_code = self.exit_code or exit_code
        self.stop.set()

    async def pause(self, seconds: float, awake: asyncio.Event | None = None) -> None:
        """Wait, but not longer than the process lives, nor than until `awake` is set."""
        await pause(self.stop, seconds, awake)


async def pause(stop: StopSignal, seconds: float, awake: asyncio.Event | None = None) -> None:
    """Wait until `stop` or `awake` is set, but not longer than `seconds`."""
    waits = [asyncio.ensure_future(event.wait()) for event in (stop, awake) if event is not None]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
