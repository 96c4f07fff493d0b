"""Orders and verdicts in, reports out. Files are on disk before the row and the event that announce them commit."""

from datetime import UTC, datetime
from typing import ClassVar

from schemas.events import MaintenanceOrder, MaintenancePromotion
from schemas.topics import ORDER, PROMOTION, Topic
from schemas.vocabulary import OrderKind
from services.reporting import repository
from services.reporting.facts import Cause
from services.reporting.writer import Writer, Written
from services.runtime.consumer import Batch, BatchConsumer
from services.runtime.errors import InvalidInput
from services.runtime.messages import Received, Record
from services.runtime.transaction import Transaction

SINCE = "since"
"""Setting of an order: the report looks back to this moment (ISO 8601 with a zone)."""
KIND, ROUTINE = "kind", "routine"
"""Setting of an order: a routine report, whatever the model's status."""


class Reporting(BatchConsumer[dict[str, Written]]):
    """Writes a report for every order that asks for one and for every verdict of the gate."""

    name: ClassVar[str] = "reporting"
    topics: ClassVar[tuple[Topic, ...]] = (ORDER, PROMOTION)
    max_records: ClassVar[int] = 16

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def prepare(self, batch: Batch) -> dict[str, Written]:
        """Gather, draw and write the files; the same event writes the same report again. Event id to report."""
        causes = [cause for event in batch if (cause := cause_of(event)) is not None]
        return {cause.event_id: self._writer.write(cause) for cause in causes}

    def apply(self, tx: Transaction, batch: Batch, prepared: dict[str, Written]) -> None:
        """Enter the reports, announce them and close their orders."""
        for event in batch:
            written = prepared.get(event.event_id)
            if written is not None:
                self._announce(tx, event, written)

    def _announce(self, tx: Transaction, event: Received[MaintenanceOrder | MaintenancePromotion], written: Written) -> None:
        data, cause = self._writer.enter(tx, written, event), written.cause
        if cause.order_id is not None and cause.promotion is None:
            repository.finish_order(tx, cause.order_id, f"Report {data.report_id} is written.")


def cause_of(event: Received[MaintenanceOrder | MaintenancePromotion]) -> Cause | None:
    """What the event asks to report, None when it asks for no report."""
    data = event.data
    if isinstance(data, MaintenancePromotion):
        return Cause(event.event_id, _sent_at(event.record), data.model, order_id=data.order_id, actor=data.actor, promotion=data)
    if data.kind not in (OrderKind.REPORT, OrderKind.LABEL_REQUEST):
        return None
    return Cause(
        event_id=event.event_id,
        as_of=data.ordered_at.astimezone(UTC),
        model=data.model,
        version=data.version,
        order_kind=data.kind,
        order_id=data.order_id,
        evaluation_id=data.evaluation_id,
        reason=data.reason,
        actor=data.actor,
        settings=data.settings,
        since=_moment(str(data.settings[SINCE]), f"the order's setting {SINCE!r}") if SINCE in data.settings else None,
    )


def _sent_at(record: Record) -> datetime:
    """CloudEvents time of a record; InvalidInput when it is missing or is no time with a zone."""
    return _moment(record.headers.get("ce_time", ""), "the CloudEvents header ce_time")


def _moment(text: str, what: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(f"{what} is missing or is no time") from None
    if at.tzinfo is None:
        raise InvalidInput(f"{what} has no time zone")
    return at.astimezone(UTC)
