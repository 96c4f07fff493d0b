"""What a service consists of, and what it is given to build it."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from schemas.settings import Settings
from services.runtime.clock import Clock
from services.runtime.consumer import BatchConsumer
from services.runtime.database import Database
from services.runtime.identity import Pseudonyms
from services.runtime.transaction import Transaction


@dataclass(frozen=True)
class Context:
    """Process-wide resources, built once and handed to every service's `build`."""

    settings: Settings
    database: Database
    clock: Clock
    pseudonyms: Pseudonyms


@dataclass(frozen=True)
class Ticker:
    """Work that time triggers: `run` is called every `interval_s` in one transaction, by one process at a time (lease).

    A ring of `bell` (see `services.runtime.bells`) has it called at once.
    """

    name: str
    interval_s: float
    run: Callable[[Transaction], None]
    bell: str = ""


@dataclass(frozen=True)
class Worker:
    """A long-running part of a service (a listener's server, a job worker). `run` returns when `stop` is set."""

    name: str
    run: Callable[["StopSignal"], Awaitable[None]]


class StopSignal:
    """Says that the process shall end. Safe to read from any thread; async code may await `wait`."""

    def __init__(self) -> None:
        self.thread_event = threading.Event()
        self._async_event = asyncio.Event()

    def set(self) -> None:
        """Ask everything to end; call from the event loop's thread."""
        self.thread_event.set()
        self._async_event.set()

    @property
    def is_set(self) -> bool:
        """True once the process shall end."""
        return self.thread_event.is_set()

    async def wait(self) -> None:
        """Return when the process shall end."""
        await self._async_event.wait()


@dataclass(frozen=True)
class Service:
    """One service: its consumers, its timers and its workers."""

    name: str
    consumers: tuple[BatchConsumer[Any], ...] = ()
    tickers: tuple[Ticker, ...] = ()
    workers: tuple[Worker, ...] = ()
    on_close: tuple[Callable[[], None], ...] = field(default=())
