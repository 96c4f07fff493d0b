"""Everything on one machine: the embedded broker when no Kafka is named, and the child processes, in one terminal.

An embedded broker and its clients share one lifetime: a client that outlives the broker may write into a topic that the
next broker has forgotten, or skip what the next one gets. So its end means: stop clients, start broker, make topics,
start clients. Children that do not use the bus (a DICOM listener) go on receiving meanwhile.
"""

import asyncio
import contextlib
import inspect
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import datetime

from schemas.settings import KafkaSettings, Settings
from services.runtime.backoff import backoff
from services.runtime.child import Child, ChildSpec
from services.runtime.clock import Clock, SystemClock
from services.runtime.embedded import BrokerMissing, EmbeddedBroker
from services.runtime.errors import Transient
from services.runtime.health import EX_CONFIG, EX_OK, EX_SOFTWARE, EX_UNAVAILABLE, Health
from services.runtime.privacy import keep_to_this_user
from services.runtime.run_state import AlreadyRunning, RunState, lock, read_state, remove_state, write_state
from services.runtime.topics_admin import TopicsDiffer, ensure_topics

logger = logging.getLogger(__name__)
WATCH_S = 0.2
BROKER_TRIES = 5

__all__ = ["AlreadyRunning", "ChildSpec", "RunState", "read_state", "supervise"]

OnReady = Callable[[RunState], Awaitable[None] | None]


async def supervise(
    settings: Settings,
    children: Sequence[ChildSpec],
    on_ready: OnReady | None = None,
    health: Health | None = None,
    clock: Clock | None = None,
) -> int:
    """Run children until SIGTERM or SIGINT; returns the exit code. `on_ready` is called once, when all are started.

    Call it from the main thread: on Linux children die with the thread that started them. Raises AlreadyRunning when
    another supervisor uses the same state folder.
    """
    keep_to_this_user()
    health = health or Health()
    with lock(settings.state_dir), _signals(health):
        supervisor = _Supervisor(settings, children, health, clock or SystemClock())
        try:
            await supervisor.run(on_ready)
        finally:
            await supervisor.stop()
            remove_state(settings.state_dir)
    return health.exit_code or supervisor.exit_code


@contextlib.contextmanager
def _signals(health: Health) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, health.stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


class _Supervisor:
    def __init__(self, settings: Settings, specs: Sequence[ChildSpec], health: Health, clock: Clock) -> None:
        self._settings = settings
        self._health = health
        self._started_at: datetime = clock.now()
        self._unpublished = False
        self._broker: EmbeddedBroker | None = None
        width = max((len(spec.name) for spec in specs), default=0)
        self._children = [Child(spec, number, width, clock) for number, spec in enumerate(specs)]

    @property
    def lost(self) -> list[str]:
        """Children that are left down, for a while or until somebody puts their settings right."""
        return [child.spec.name for child in self._children if child.given_up]

    @property
    def misconfigured(self) -> list[str]:
        """Those of them whose settings are at fault."""
        return [child.spec.name for child in self._children if child.misconfigured]

    @property
    def exit_code(self) -> int:
        """What the children's ends amount to."""
        return EX_CONFIG if self.misconfigured else EX_SOFTWARE if self.lost else EX_OK

    async def run(self, on_ready: OnReady | None) -> None:
        if not await self._bring_up_bus():
            return
        await self._start(self._children)
        self._publish()
        logger.info("running at broker %s; the services start now and say so; Ctrl+C stops everything", self._kafka().bootstrap)
        if on_ready is not None:
            outcome = on_ready(self._state())
            if inspect.isawaitable(outcome):
                await outcome
        while not self._health.stop.is_set:
            await self._health.pause(WATCH_S)
            await self._look_after()

    async def _look_after(self) -> None:
        if self._health.stop.is_set:
            return
        if self._broker is not None and not self._broker.alive():
            await self._replace_broker()
            return
        changed = self._unpublished
        for child in self._children:
            changed = await child.look_after(self._environment()) or changed
        if changed:
            self._publish()
        if self._children and len(self.misconfigured) == len(self._children):
            self._health.fail(EX_CONFIG, "nothing can work with these settings: the lines above name them")

    async def _replace_broker(self) -> None:
        """The order matters: see the module's first lines."""
        logger.error("the embedded broker is gone; its clients are stopped, then everything starts with a new one")
        clients = [child for child in self._children if child.spec.uses_bus]
        await self._stop_children(clients)
        if await self._bring_up_bus():
            await self._start(clients)
            self._publish()

    async def _bring_up_bus(self) -> bool:
        """Broker and topics are there. False when the process has to end instead."""
        failures = 0
        while not self._health.stop.is_set:
            try:
                self._start_broker()
                await ensure_topics(self._kafka())
            except BrokerMissing as error:
                self._health.fail(EX_UNAVAILABLE, str(error))
            except TopicsDiffer as error:
                self._health.fail(EX_CONFIG, str(error))
            except Transient as error:
                failures += 1
                if self._embeds and failures >= BROKER_TRIES:
                    self._health.fail(EX_UNAVAILABLE, str(error))
                    break
                delay = backoff(failures)
                logger.warning("%s; trying again in %.1f s", error, delay)
                await self._health.pause(delay)
            else:
                return True
        return False

    @property
    def _embeds(self) -> bool:
        return not self._settings.kafka.servers

    def _start_broker(self) -> None:
        if not self._embeds or (self._broker is not None and self._broker.alive()):
            return
        log_file = self._settings.state_dir / "run" / "broker.log"
        self._broker = EmbeddedBroker(log_file, self._settings.kafka.embedded_port).start()
        logger.info("embedded broker at %s (in memory; what it loses is sent again from the outbox)", self._broker.bootstrap)

    def _kafka(self) -> KafkaSettings:
        if self._broker is None:
            return self._settings.kafka
        life = {"bootstrap": self._broker.bootstrap, "embedded": True, "incarnation": self._broker.incarnation}
        return self._settings.kafka.model_copy(update=life)

    def _environment(self) -> dict[str, str]:
        kafka = self._kafka()
        return {
            "RECLAIM_STATE_DIR": str(self._settings.state_dir),
            "RECLAIM_KAFKA_BOOTSTRAP": kafka.bootstrap,
            "RECLAIM_KAFKA_EMBEDDED": str(kafka.embedded).lower(),
            "RECLAIM_KAFKA_INCARNATION": kafka.incarnation,
        }

    async def _start(self, children: Sequence[Child]) -> None:
        for child in children:
            await child.start(self._environment())

    async def _stop_children(self, children: Sequence[Child]) -> None:
        grace = self._settings.kafka.graceful_timeout_s + 5.0
        await asyncio.gather(*(child.stop(grace) for child in children))

    async def stop(self) -> None:
        """Clients first, the broker last."""
        await self._stop_children(self._children)
        if self._broker is not None:
            await asyncio.to_thread(self._broker.stop)
        if self.lost:
            logger.error("left down: %s", ", ".join(self.lost))

    def _publish(self) -> None:
        """Say what runs; tried again while the disk is full or away, because the listener's end would help nobody."""
        try:
            write_state(self._settings.state_dir, self._state())
        except OSError as error:
            if not self._unpublished:
                logger.warning("%s/run cannot be written (%s): free the disk", self._settings.state_dir, error.strerror)
            self._unpublished = True
        else:
            self._unpublished = False

    def _state(self) -> RunState:
        kafka = self._kafka()
        ports = {"dicom": self._settings.dicom.port, "http": self._settings.http.port}
        return RunState(
            pid=os.getpid(),
            bootstrap=kafka.bootstrap,
            embedded=kafka.embedded,
            incarnation=kafka.incarnation,
            broker_pid=self._broker.pid if self._broker else 0,
            started_at=self._started_at,
            ports=ports,
            children={child.spec.name: child.pid for child in self._children},
            misconfigured=tuple(self.misconfigured),
        )
