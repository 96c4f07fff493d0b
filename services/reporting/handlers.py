"""Orders and verdicts in, reports out. Files are on disk before the row and the event that announce them commit."""

import hashlib
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from schemas.events import MaintenanceOrder, MaintenancePromotion, MaintenanceReport
from schemas.tables import Report
from schemas.topics import ORDER, PROMOTION, REPORT, Topic
from schemas.vocabulary import OrderKind, Status
from services.reporting import repository
from services.reporting.facts import Cause, Facts
from services.reporting.files import write_report
from services.reporting.label_request import label_request_page
from services.reporting.monitoring import monitoring_page
from services.reporting.page import Page
from services.reporting.remedy import remedy_page
from services.reporting.render import render
from services.reporting.rollback import ORIGIN, rollback_page
from services.runtime.consumer import Batch, BatchConsumer
from services.runtime.database import Database
from services.runtime.errors import InvalidInput
from services.runtime.messages import Received, Record
from services.runtime.transaction import Transaction

logger = logging.getLogger(__name__)
ACTOR = "service:reporting"


@dataclass(frozen=True)
class Written:
    """A report whose files are on disk."""

    cause: Cause
    page: Page


class Reporting(BatchConsumer[dict[str, Written]]):
    """Writes a report for every order that asks for one and for every verdict of the gate."""

    name: ClassVar[str] = "reporting"
    topics: ClassVar[tuple[Topic, ...]] = (ORDER, PROMOTION)
    max_records: ClassVar[int] = 16

    def __init__(self, database: Database, reports: Path, false_alarms_per_year: float) -> None:
        self._database = database
        self._reports = reports
        self._budget = false_alarms_per_year

    def prepare(self, batch: Batch) -> dict[str, Written]:
        """Gather, draw and write the files; the same event writes the same report again. Event id to report."""
        causes = [cause for event in batch if (cause := cause_of(event)) is not None]
        return {cause.event_id: self._write(cause) for cause in causes}

    def apply(self, tx: Transaction, batch: Batch, prepared: dict[str, Written]) -> None:
        """Enter the reports, announce them and close their orders."""
        for event in batch:
            written = prepared.get(event.event_id)
            if written is not None:
                self._announce(tx, event, written)

    def _write(self, cause: Cause) -> Written:
        with self._database.read() as session:
            facts = repository.gather(session, cause)
        page = self._page(facts, report_id(cause))
        write_report(self._reports / page.report_id, render(page))
        return Written(cause, page)

    def _page(self, facts: Facts, identity: str) -> Page:
        if facts.cause.promotion is not None and facts.cause.promotion.origin == ORIGIN:
            return rollback_page(facts, facts.cause.promotion, identity)
        if facts.cause.promotion is not None:
            return remedy_page(facts, facts.cause.promotion, identity)
        if facts.cause.order_kind == OrderKind.LABEL_REQUEST:
            return label_request_page(facts, identity)
        return monitoring_page(facts, identity, self._budget)

    def _announce(self, tx: Transaction, event: Received[MaintenanceOrder | MaintenancePromotion], written: Written) -> None:
        page, cause = written.page, written.cause
        data = _event_of(page, cause, tx.clock.now())
        repository.store(tx, _row_of(data))
        tx.emit(REPORT, data, event_id=_hash(f"report.written|{page.report_id}")[:32], cause=event)
        tx.audit(ACTOR, "report.written", page.model, report=page.report_id, cause=cause.event_id, kind=page.kind)
        if cause.order_id is not None and cause.promotion is None:
            repository.finish_order(tx, cause.order_id, f"Report {page.report_id} is written.")
        logger.info("wrote %s report %s on %s: %s", page.kind, page.report_id, page.model, page.status_word)


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
    )


def report_id(cause: Cause) -> str:
    """Day of the cause and a hash of it: sortable for people, the same at every redelivery."""
    return f"{cause.as_of:%Y%m%d}-{_hash(f'reporting|{cause.event_id}')[:16]}"


def _sent_at(record: Record) -> datetime:
    """CloudEvents time of a record; InvalidInput when it is missing or is no time with a zone."""
    try:
        at = datetime.fromisoformat(record.headers["ce_time"])
    except (KeyError, ValueError):
        raise InvalidInput("the CloudEvents header ce_time is missing or is no time") from None
    if at.tzinfo is None:
        raise InvalidInput("the CloudEvents header ce_time has no time zone")
    return at.astimezone(UTC)


def _event_of(page: Page, cause: Cause, now: datetime) -> MaintenanceReport:
    return MaintenanceReport(
        report_id=page.report_id,
        model=page.model,
        version=page.version,
        kind=page.kind,
        status=Status(page.status),
        title=page.title[:255],
        summary=page.summary[:1000],
        location=f"{page.report_id}/report.html",
        markdown=f"{page.report_id}/report.md",
        data=f"{page.report_id}/report.json",
        order_id=cause.order_id,
        written_at=now,
    )


def _row_of(data: MaintenanceReport) -> Report:
    return Report(html=data.location, **data.model_dump(exclude={"location"}))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
