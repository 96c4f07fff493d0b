"""Messages to a channel: one at a time, in the order of their threads, tried again until the channel has them.

A message that may have arrived already (the process ended, the connection broke in the middle) is looked for before it is
posted again, where the channel can be asked.
"""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any, Protocol

from opentelemetry import trace

from agents.telemetry import under
from listeners.chat import repository
from listeners.chat.repository import Claim
from services.runtime import telemetry
from services.runtime.backoff import backoff
from services.runtime.errors import Transient
from services.runtime.health import pause
from services.runtime.lease import new_owner
from services.runtime.service import Context, StopSignal
from services.runtime.transaction import Transaction

logger = logging.getLogger(__name__)
IDLE_S = 5.0


@dataclass(frozen=True)
class Delivered:
    """What the channel calls the message, and what was learned about its thread."""

    external_id: str
    reference: dict[str, Any] = field(default_factory=dict)


class Later(Exception):  # noqa: N818 - named for when to come again
    """The channel does not take it now. `wait_s` is what it has said; `uncertain`: it may have taken it all the same."""

    def __init__(self, reason: str, wait_s: float | None = None, *, uncertain: bool = False) -> None:
        super().__init__(reason)
        self.wait_s, self.uncertain = wait_s, uncertain


class Never(Exception):  # noqa: N818 - named for when to come again
    """The channel will never take it."""


class Front(Protocol):
    """A channel to which messages are brought."""

    channel: str

    async def deliver(self, claim: Claim) -> Delivered:
        """Post or edit the message. Raises Later or Never."""

    async def close(self) -> None:
        """Give connections back."""


class Delivery:
    """Brings one channel's messages. Several processes may; each message is one's at a time."""

    def __init__(self, context: Context, front: Front) -> None:
        self._context = context
        self._front = front
        self._settings = context.settings.chat
        self._owner = new_owner()
        self._failures = 0

    async def run(self, stop: StopSignal) -> None:
        """Deliver until `stop`; the database may come and go."""
        awake = asyncio.Event()
        try:
            with self._context.database.listen(repository.BELL, awake):
                while not stop.is_set:
                    awake.clear()
                    await self._turn(stop, awake)
        finally:
            await self._front.close()

    async def _turn(self, stop: StopSignal, awake: asyncio.Event) -> None:
        try:
            worked = await self.run_one(stop)
            self._failures = 0
        except Transient as error:
            delay = backoff(self._failures)
            self._failures += 1
            logger.warning("CHT-103 %s: %s; trying again in %.1f s", self._front.channel, error, delay)
            await pause(stop, delay)
            return
        if not worked:
            await pause(stop, await asyncio.to_thread(self._until_next), awake)

    def _until_next(self) -> float:
        with self._context.database.read() as session:
            due = repository.next_due(session, self._front.channel)
        if due is None:
            return IDLE_S
        return min(IDLE_S, max(0.05, (due - self._context.clock.now()).total_seconds()))

    async def run_one(self, stop: StopSignal | None = None) -> bool:
        """See one message through one attempt; False when none is due."""
        claim = await asyncio.to_thread(self._claim)
        if claim is None:
            return False
        with under(claim.traceparent):
            attributes = {"reclaim.chat.channel": self._front.channel, "reclaim.chat.message": claim.message_id}
            with trace.get_tracer("reclaim").start_as_current_span(f"deliver {claim.kind}", attributes=attributes):
                await self._attempt(claim, stop)
        return True

    def _claim(self) -> Claim | None:
        with self._context.database.transaction() as tx:
            return repository.claim_next(tx, self._owner, self._front.channel, self._settings)

    async def _attempt(self, claim: Claim, stop: StopSignal | None) -> None:
        try:
            delivered = await self._front.deliver(claim)
        except Never as error:
            reason = str(error)
            await self._write(lambda tx: repository.give_up(tx, claim, reason))
            self._given_up(claim, reason)
        except Later as error:
            await self._later(claim, error)
        except asyncio.CancelledError:
            if stop is not None and stop.is_set:
                logger.info("CHT-104 %s is taken up again after the restart", claim.message_id)
            raise
        else:
            await self._write(lambda tx: repository.sent(tx, claim, delivered.external_id, delivered.reference))
            telemetry.count("reclaim.chat.messages", channel=self._front.channel, outcome="sent")

    async def _later(self, claim: Claim, error: Later) -> None:
        reason, wait_s, uncertain = str(error), error.wait_s, error.uncertain

        def write(tx: Transaction) -> bool:
            if wait_s is not None:
                repository.hold_channel(tx, self._front.channel, wait_s)
            return repository.postpone(tx, claim, reason, self._settings, wait_s=wait_s, uncertain=uncertain)

        if await self._write(write):
            self._given_up(claim, reason)
        else:
            logger.warning("CHT-101 %s waits, attempt %d failed: %s", claim.message_id, claim.attempt, reason)

    def _given_up(self, claim: Claim, reason: str) -> None:
        logger.error("CHT-102 %s (%s) is given up: %s", claim.message_id, claim.kind, reason)
        telemetry.count("reclaim.chat.messages", channel=self._front.channel, outcome="given_up")

    async def _write(self, write: Any) -> bool:
        """One fenced write; nothing happens when a successor has taken over and decides instead."""

        def once() -> bool:
            try:
                with self._context.database.transaction() as tx:
                    return bool(write(tx))
            except repository.DeliveryLost as error:
                logger.warning("CHT-105 %s", error)
                return False

        return await asyncio.to_thread(once)
