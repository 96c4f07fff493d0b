"""A web server on a free port of this machine, which stands for a service of others."""

from abc import ABC, abstractmethod

from aiohttp import web
from aiohttp.test_utils import TestServer


class LocalServer(ABC):
    """`routes` is the service; it answers between `start` and `stop`."""

    _server: TestServer | None = None

    @abstractmethod
    def routes(self) -> web.Application:
        """What it answers, and how."""

    async def start(self) -> None:
        self._server = TestServer(self.routes())
        await self._server.start_server()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.close()

    def at(self, path: str) -> str:
        """The address of a path of the running server."""
        assert self._server is not None
        return str(self._server.make_url(path))
