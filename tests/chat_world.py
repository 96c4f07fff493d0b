"""A site with its agents and its chat on one database, and a bus that is a loop over the outbox."""

import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlmodel import col, select

from agents.handlers import AgentsConsumer
from agents.runner import Runner
from listeners.chat.app import fronts
from listeners.chat.courier import Courier
from listeners.chat.delivery import Delivery
from schemas.chat import ChatMessage
from schemas.settings import RemediationSettings, Settings
from schemas.tables import Audit, Case, Job, ModelVersion, Order, Outbox, RegisteredModel
from schemas.topics import BY_NAME
from schemas.vocabulary import JobState, Remedy
from services.remediation import jobs
from services.runtime.consumer import process
from services.runtime.database import Database
from services.runtime.identity import Pseudonyms
from services.runtime.messages import Record
from services.runtime.service import Context


@dataclass
class Site:
    """What one hospital runs. `restart` forgets everything that is not in the database."""

    database: Database
    clock: Any
    settings: Settings
    deliveries: dict[str, Delivery] = field(default_factory=dict)

    @classmethod
    def of(cls, database: Database, clock: Any, state: Any, **settings: Any) -> "Site":
        settings.setdefault("remediation", RemediationSettings(min_tune_cases=1, min_gate_cases=1))
        site = cls(database, clock, Settings(state_dir=state, **settings))
        site.settings.reports_dir.mkdir(parents=True, exist_ok=True)
        site.populate()
        return site

    @property
    def context(self) -> Context:
        return Context(self.settings, self.database, self.clock, Pseudonyms(b"k" * 32))

    def populate(self) -> None:
        now = self.clock.now()
        with self.database.transaction() as tx:
            tx.session.add(RegisteredModel(name="brain_mri", task="tumour", classes=["a", "b"], champion=1, created_at=now))
            tx.session.flush()
            tx.session.add(
                ModelVersion(model="brain_mri", version=1, state="champion", bundle="x", sha256="0" * 64, created_at=now)
            )
            for number, role in enumerate(["tune"] * 3 + ["gate"] * 3):
                key = f"{number + 1:032x}"
                case = {"study_key": key, "patient_key": key, "role": role, "truth": "b", "predicted": "a", "state": "joined"}
                shared = {"model": "brain_mri", "version": 1, "task": "tumour", "probabilities": {"a": 0.9, "b": 0.1}}
                tx.session.add(Case(**case, **shared, acquired_at=now, scored_at=now, joined_at=now))

    def pump(self) -> None:
        """Bring every event to its readers here, until there is none left."""
        while rows := self._unsent():
            for row in rows:
                record = Record(row.topic, 0, row.id or 0, row.key, row.headers, row.body)
                for consumer in self._consumers():
                    if BY_NAME.get(row.topic) in consumer.topics:
                        assert process(self.database, consumer, [record]) == 0
                with self.database.transaction() as tx:
                    tx.session.get_one(Outbox, row.id).sent_at = self.clock.now()

    def _unsent(self) -> list[Outbox]:
        with self.database.read() as session:
            return list(session.exec(select(Outbox).where(col(Outbox.sent_at).is_(None)).order_by(col(Outbox.id))))

    def _consumers(self) -> list[Any]:
        return [AgentsConsumer(Runner.of(self.database, self.clock, self.settings), self.settings), Courier(self.settings)]

    async def deliver(self, *, most: int = 50) -> int:
        """Let every channel deliver what is due; returns how many attempts that were."""
        if not self.deliveries:
            self.deliveries = {front.channel: Delivery(self.context, front) for front in fronts(self.settings)}
        attempts = 0
        for delivery in self.deliveries.values():
            while attempts < most and await delivery.run_one():
                attempts += 1
        return attempts

    async def answer(self) -> None:
        """From the command to the answer in the thread."""
        self.pump()
        await self.deliver()

    def restart(self) -> None:
        self.deliveries = {}

    def emit(self, topic: Any, data: Any, event_id: str | None = None) -> None:
        with self.database.transaction() as tx:
            tx.emit(topic, data, event_id=event_id)

    def start_job(self, order_id: str) -> jobs.Claim:
        """Enter the job of an order and take it, as remediation does."""
        now = self.clock.now()
        with self.database.transaction() as tx:
            order = tx.session.get_one(Order, order_id)
            shared = {"model": order.model, "remedy": Remedy.PARTIAL, "state": JobState.QUEUED}
            tx.session.add(Job(job_id=order_id, order_id=order_id, **shared, created_at=now, updated_at=now))
            tx.session.flush()
            claim = jobs.claim_next(tx, "worker", lease_s=600, max_attempts=3)
        assert claim is not None
        return claim

    def orders(self) -> list[Order]:
        with self.database.read() as session:
            return list(session.exec(select(Order).order_by(col(Order.created_at))))

    def messages(self) -> list[ChatMessage]:
        with self.database.read() as session:
            return list(session.exec(select(ChatMessage).order_by(col(ChatMessage.id))))

    def commands(self) -> list[dict[str, Any]]:
        with self.database.read() as session:
            rows = session.exec(select(Outbox).where(Outbox.topic == "agent.command.v1").order_by(col(Outbox.id)))
            return [json.loads(row.body) for row in rows]

    def audit(self, action: str) -> list[Audit]:
        with self.database.read() as session:
            return list(session.exec(select(Audit).where(Audit.action == action).order_by(col(Audit.id))))

    def later(self, seconds: float) -> None:
        self.clock.set(self.clock.now() + timedelta(seconds=seconds))
