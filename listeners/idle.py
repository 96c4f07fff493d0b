"""Connections of the HTTP port on which nothing is being served: where they become too many, the oldest give way.

aiohttp limits how long they last, not how many there are, and each holds a descriptor that the database may need.
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from aiohttp import web

logger = logging.getLogger(__name__)
LOOK_S: Final = 0.2
TELL_S: Final = 60.0


class IdleConnections:
    """Knows which connections are not idle. For one event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._served: set[asyncio.BaseTransport] = set()
        self._told_until = 0.0

    @contextmanager
    def serving(self, request: web.Request) -> Iterator[None]:
        """While a request is dealt with, whose sender has proved what it has to, its connection stays."""
        transport = request.transport
        if transport is None:  # the client has gone
            yield
            return
        self._served.add(transport)
        try:
            yield
        finally:
            self._served.discard(transport)

    async def watch(self, server: web.Server) -> None:
        """Close the oldest idle connections beyond the limit; until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            idle = [connection for connection in server.connections if connection.transport not in self._served]
            surplus = idle[: max(0, len(idle) - self._most)]
            for connection in surplus:
                connection.force_close()
            if surplus and time.monotonic() >= self._told_until:
                self._told_until = time.monotonic() + TELL_S
                logger.warning(
                    "http: %d connections that asked for nothing were closed, the oldest first: find out who opens them, or "
                    "raise RECLAIM_HTTP_MAX_IDLE_CONNECTIONS",
                    len(surplus),
                )
