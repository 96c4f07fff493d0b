"""One process: its services' consumers, timers and workers, from start to an orderly end.

What can pass (database or broker away) is waited for with log lines a person can read; what cannot ends the process with
an exit code (see `services.runtime.health`).
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Iterator, Sequence

from services.runtime import lease
from services.runtime.backoff import backoff
from services.runtime.errors import Transient
from services.runtime.health import EX_SOFTWARE, Health
from services.runtime.privacy import keep_to_this_user
from services.runtime.service import Context, Service, Ticker, Worker

logger = logging.getLogger(__name__)


async def run(services: Sequence[Service], context: Context, health: Health | None = None) -> int:
    """Run services until SIGTERM, SIGINT or a fatal error; returns the exit code. `health.stop.set()` ends it from within."""
    keep_to_this_user()
    health = health or Health()
    names = ", ".join(service.name for service in services)
    with _signals(health):
        try:
            async with _bus(services, context, health):
                if not health.stop.is_set:
                    logger.info("%s: running", names)
                    await _until_stopped(services, context, health)
        finally:
            _close(services)
    logger.info("%s: stopped%s", names, f" with exit code {health.exit_code}" if health.exit_code else "")
    return health.exit_code


@contextlib.contextmanager
def _signals(health: Health) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    wanted = (signal.SIGTERM, signal.SIGINT)
    for number in wanted:
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not the main thread, or not POSIX
            loop.add_signal_handler(number, _ask_to_stop, health, number.name)
    try:
        yield
    finally:
        for number in wanted:
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.remove_signal_handler(number)


def _ask_to_stop(health: Health, name: str) -> None:
    logger.info("%s: finishing what is in hand", name)
    health.stop.set()


@contextlib.asynccontextmanager
async def _bus(services: Sequence[Service], context: Context, health: Health) -> AsyncIterator[None]:
    """The broker with all subscribers, for as long as the body runs; nothing at all when no service consumes."""
    consumers = [consumer for service in services for consumer in service.consumers]
    if not consumers:
        yield
        return
    from services.runtime.subscriptions import subscribed  # noqa: PLC0415 - ten megabytes that only consumers need

    async with subscribed(consumers, context, health):
        yield


async def _until_stopped(services: Sequence[Service], context: Context, health: Health) -> None:
    tasks = [
        *[asyncio.create_task(_tick(ticker, context, health)) for service in services for ticker in service.tickers],
        *[asyncio.create_task(_work(worker, health)) for service in services for worker in service.workers],
    ]
    await health.stop.wait()
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=context.settings.kafka.graceful_timeout_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _work(worker: Worker, health: Health) -> None:
    failures = 0
    while not health.stop.is_set:
        try:
            await worker.run(health.stop)
        except Transient as error:
            delay = backoff(failures)
            failures += 1
            logger.warning("worker %s: %s; trying again in %.1f s", worker.name, error, delay)
            await health.pause(delay)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends the process loudly
            health.fail(EX_SOFTWARE, f"worker {worker.name} has a bug", error)
        else:
            if not health.stop.is_set:
                logger.info("worker %s is done", worker.name)
            return


async def _tick(ticker: Ticker, context: Context, health: Health) -> None:
    awake = asyncio.Event()
    with context.database.listen(ticker.bell, awake) if ticker.bell else contextlib.nullcontext():
        await _tick_until_stopped(ticker, context, health, awake)


async def _tick_until_stopped(ticker: Ticker, context: Context, health: Health, awake: asyncio.Event) -> None:
    owner = lease.new_owner()
    failures = 0
    while not health.stop.is_set:
        awake.clear()
        delay = ticker.interval_s
        try:
            await asyncio.to_thread(_tick_once, ticker, context, owner)
            failures = 0
        except Transient as error:
            delay = min(backoff(failures), ticker.interval_s)
            failures += 1
            if failures & (failures - 1) == 0:  # 1, 2, 4, …: some tickers try again several times a second
                logger.warning("ticker %s: %s; trying again every %.1f s", ticker.name, error, delay)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends the process loudly
            health.fail(EX_SOFTWARE, f"ticker {ticker.name} has a bug", error)
            return
        await health.pause(delay, awake)
    with contextlib.suppress(Transient):
        await asyncio.to_thread(_give_back, ticker, context, owner)


def _tick_once(ticker: Ticker, context: Context, owner: str) -> None:
    with context.database.transaction() as tx:
        if lease.hold(tx, _lease_of(ticker), owner, ticker.interval_s + 5.0):
            ticker.run(tx)


def _give_back(ticker: Ticker, context: Context, owner: str) -> None:
    with context.database.transaction() as tx:
        lease.release(tx, _lease_of(ticker), owner)


def _lease_of(ticker: Ticker) -> str:
    return f"tick:{ticker.name}"[:64]


def _close(services: Sequence[Service]) -> None:
    for service in services:
        for close in service.on_close:
            try:
                close()
            except Exception:
                logger.exception("%s: a resource could not be closed", service.name)
