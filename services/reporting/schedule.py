"""Orders the routine reports.

An order and its event commit together, under a key of model and week: one report, however often, from however many processes
and after whatever crash this is called.
"""

import hashlib
import logging
from collections.abc import Callable
from typing import Final

from schemas.events import MaintenanceOrder
from schemas.report_settings import ReportSettings
from schemas.tables import Order, RegisteredModel
from schemas.topics import ORDER
from schemas.vocabulary import OrderKind, OrderState
from services.reporting import repository
from services.reporting.calendar import Slot, latest_slot, period_of
from services.reporting.facts import Period
from services.reporting.handlers import KIND, ROUTINE, SINCE
from services.reporting.writer import ACTOR
from services.runtime import registry
from services.runtime.service import Ticker
from services.runtime.transaction import Transaction

logger = logging.getLogger(__name__)
INTERVAL_S: Final = 60.0


def ticker(settings: ReportSettings) -> Ticker:
    """Looks every minute whether a routine report is due."""
    return Ticker("reporting.routine", INTERVAL_S, order_due(settings))


def order_due(settings: ReportSettings) -> Callable[[Transaction], None]:
    """A step that orders what is due at the transaction's time."""

    def run(tx: Transaction) -> None:
        slot = latest_slot(tx.clock.now(), settings)
        for model in registry.models(tx.session):
            # Without a version that serves there is nothing to report on; a model that is stopped has one.
            if model.champion is not None:
                _order(tx, model, slot)

    return run


def _order(tx: Transaction, model: RegisteredModel, slot: Slot) -> None:
    period = period_of(slot, model.created_at, repository.covered(tx.session, model.name, tx.clock.now()))
    if period is None or period.since is None:
        return
    row = _row(tx, model, slot, period)
    if not tx.insert_new(Order, [row], returning="order_id"):
        return
    event = MaintenanceOrder(
        order_id=row.order_id,
        kind=OrderKind.REPORT,
        model=row.model,
        settings=row.settings,
        reason=row.reason,
        actor=row.actor,
        ordered_at=period.until,
    )
    tx.emit(ORDER, event, event_id=row.order_id)
    tx.audit(ACTOR, "order.accepted", row.order_id, kind=row.kind, model=row.model, week=slot.week)
    logger.info("ordered the routine report on %s for %s", model.name, slot.week)


def _row(tx: Transaction, model: RegisteredModel, slot: Slot, period: Period) -> Order:
    assert period.since is not None
    key = f"routine|{hashlib.sha256(model.name.encode()).hexdigest()[:32]}|{slot.week}"
    now = tx.clock.now()
    return Order(
        order_id=f"ord-{hashlib.sha256(key.encode()).hexdigest()[:12]}",
        idempotency_key=key,
        kind=OrderKind.REPORT,
        state=OrderState.ACCEPTED,
        model=model.name,
        settings={KIND: ROUTINE, SINCE: period.since.isoformat(), "until": period.until.isoformat()},
        reason=f"Routine report of week {slot.week}.",
        actor=ACTOR,
        created_at=now,
        updated_at=now,
    )
