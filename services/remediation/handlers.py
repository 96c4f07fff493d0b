"""Orders in: a repair becomes a job, a rollback or a stop is carried out at once. Nothing is trained here."""

import logging
from collections.abc import Callable
from typing import ClassVar

from schemas.events import MaintenanceOrder, MaintenancePromotion
from schemas.settings import Settings
from schemas.topics import ORDER, PROMOTION, Topic
from schemas.vocabulary import OrderKind, OrderState, Verdict
from services.remediation import repository
from services.remediation.ids import natural_id
from services.remediation.options import options_of, require_executable
from services.runtime import registry
from services.runtime.change_plans import plan_of, require_planned
from services.runtime.consumer import Batch, BatchConsumer
from services.runtime.errors import InvalidInput
from services.runtime.messages import Received
from services.runtime.transaction import Transaction

logger = logging.getLogger(__name__)
FINISHED = {OrderState.DONE, OrderState.FAILED, OrderState.REFUSED}


class Remediation(BatchConsumer[None]):
    """Carries out the orders that concern versions; reports and label requests are for others."""

    name: ClassVar[str] = "remediation"
    topics: ClassVar[tuple[Topic, ...]] = (ORDER,)
    max_records: ClassVar[int] = 50

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ways: dict[OrderKind, Callable[[Transaction, Received[MaintenanceOrder]], str | None]] = {
            OrderKind.REMEDY: self._enqueue,
            OrderKind.ROLLBACK: _roll_back,
            OrderKind.STOP_SERVING: _serving(serving=False),
            OrderKind.RESUME_SERVING: _serving(serving=True),
        }

    def apply(self, tx: Transaction, batch: Batch, prepared: None) -> None:  # noqa: ARG002 - nothing is prepared
        """Carry out each order in its turn."""
        for event in batch:
            if event.data.kind in self._ways:
                self._carry_out(tx, event)

    def _carry_out(self, tx: Transaction, event: Received[MaintenanceOrder]) -> None:
        """An order that cannot be carried out fails with its reason on its own row; the message itself is in order."""
        order = event.data
        if repository.order_row(tx, order).state in FINISHED:
            return
        try:
            explanation = self._ways[order.kind](tx, event)
        except InvalidInput as error:
            repository.close_order(tx, order.order_id, OrderState.FAILED, f"Not carried out: {error.reason}.")
            tx.audit(order.actor, "order.failed", order.order_id, kind=order.kind, model=order.model, reason=error.reason)
            logger.warning("order %s (%s) failed: %s", order.order_id, order.kind, error.reason)
            return
        if explanation is not None:
            repository.close_order(tx, order.order_id, OrderState.DONE, explanation)
            tx.audit(order.actor, "order.done", order.order_id, kind=order.kind, model=order.model)
            logger.info("order %s: %s", order.order_id, explanation)

    def _enqueue(self, tx: Transaction, event: Received[MaintenanceOrder]) -> None:
        order = event.data
        remedy, chosen = require_executable(order.remedy), options_of(self._settings, order.settings)
        require_planned(plan_of(self._settings, order.model, tx.clock.now().date()), remedy, chosen.model_dump())
        _require_champion(tx, order)
        row = repository.order_row(tx, order)
        if repository.enqueue(tx, row, event.traceparent):
            tx.audit(order.actor, "job.queued", row.order_id, model=order.model, remedy=order.remedy)


def _require_champion(tx: Transaction, order: MaintenanceOrder) -> None:
    """An order about a version that no longer serves is stale."""
    serving = registry.model(tx.session, order.model).champion
    if order.version is not None and order.version != serving:
        raise InvalidInput(registry.stale(order.model, order.version, serving))


def _roll_back(tx: Transaction, event: Received[MaintenanceOrder]) -> str:
    order = event.data
    repository.lock_known_model(tx.session, order.model)
    _require_champion(tx, order)
    wanted = order.settings.get("to_version")
    taken_out, back = registry.roll_back(tx, order.model, int(wanted) if wanted else None, actor=order.actor)
    promotion = MaintenancePromotion(
        model=order.model,
        challenger=back,
        champion_before=taken_out or 0,
        champion_after=back,
        verdict=Verdict.PROMOTE,
        reasons=(f"Rolled back on order: {order.reason}",),
        order_id=order.order_id,
        actor=order.actor,
        origin="rollback",
    )
    tx.emit(PROMOTION, promotion, event_id=natural_id("rollback", order.order_id), cause=event)
    return f"Version {back} serves again" + (f"; version {taken_out} was taken out." if taken_out else ".")


def _serving(*, serving: bool) -> Callable[[Transaction, Received[MaintenanceOrder]], str]:
    def carry_out(tx: Transaction, event: Received[MaintenanceOrder]) -> str:
        registry.set_serving(tx, event.data.model, serving=serving, actor=event.data.actor)
        return f"{event.data.model} {'scores again' if serving else 'scores no studies until it is resumed'}."

    return carry_out
