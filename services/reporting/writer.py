"""From a cause to a report on disk, and from there to its row and its event.

The files come first, then row, event and audit commit together: what is announced can be read. A process that dies in
between leaves a folder that the same cause fills again.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from schemas.events import MaintenanceReport
from schemas.tables import Report
from schemas.topics import REPORT
from schemas.vocabulary import OrderKind, Status
from services.reporting import repository
from services.reporting.facts import Cause, Facts, Rules
from services.reporting.files import write_report
from services.reporting.label_request import label_request_page
from services.reporting.monitoring import monitoring_page
from services.reporting.page import Page
from services.reporting.remedy import remedy_page
from services.reporting.render import render
from services.reporting.rollback import ORIGIN, rollback_page
from services.reporting.wording import two_sentences
from services.runtime.database import Database
from services.runtime.messages import Received
from services.runtime.transaction import Transaction

logger = logging.getLogger(__name__)
ACTOR: Final = "service:reporting"


@dataclass(frozen=True)
class Written:
    """A report whose files are on disk."""

    cause: Cause
    page: Page


class Writer:
    """Writes reports into the reports folder and enters them. `rules` tells those of a model by its name.

    `address` is where the site serves the reports folder, empty where it does not.
    """

    def __init__(self, database: Database, reports: Path, rules: Callable[[str], Rules], address: str = "") -> None:
        self._database = database
        self._address = address.rstrip("/")
        self._reports = reports
        self._rules = rules

    def write(self, cause: Cause) -> Written:
        """Gather, draw and write the files; InvalidInput when what the cause names does not exist."""
        with self._database.read() as session:
            facts = repository.gather(session, cause)
        page = self._page(facts, report_id(cause))
        page = replace(page, summary=two_sentences(page.summary))
        write_report(self._reports / page.report_id, render(page))
        return Written(cause, page)

    def enter(self, tx: Transaction, written: Written, event: Received[Any] | None = None) -> MaintenanceReport:
        """The report's row, its event and its audit record; once, however often it is entered."""
        page, cause = written.page, written.cause
        data = _event_of(page, cause, tx.clock.now(), self._address)
        if repository.store(tx, _row_of(data)):
            tx.emit(REPORT, data, event_id=_hash(f"report.written|{page.report_id}")[:32], cause=event)
            tx.audit(ACTOR, "report.written", page.model, report=page.report_id, cause=cause.event_id, kind=page.kind)
            logger.info("wrote %s report %s on %s: %s", page.kind, page.report_id, page.model, page.status_word)
        return data

    def _page(self, facts: Facts, identity: str) -> Page:
        promotion, rules = facts.cause.promotion, self._rules(facts.cause.model)
        if promotion is not None and promotion.origin == ORIGIN:
            return rollback_page(facts, promotion, identity, rules)
        if promotion is not None:
            return remedy_page(facts, promotion, identity, rules)
        if facts.cause.order_kind == OrderKind.LABEL_REQUEST:
            return label_request_page(facts, identity, rules)
        return monitoring_page(facts, identity, rules)


def report_id(cause: Cause) -> str:
    """Day of the cause and a hash of it: sortable for people, the same at every redelivery."""
    return f"{cause.as_of:%Y%m%d}-{_hash(f'reporting|{cause.event_id}')[:16]}"


def _event_of(page: Page, cause: Cause, now: datetime, address: str) -> MaintenanceReport:
    return MaintenanceReport(
        report_id=page.report_id,
        model=page.model,
        version=page.version,
        kind=page.kind,
        status=Status(page.status),
        title=page.title[:255],
        summary=page.summary,
        location=f"{page.report_id}/report.html",
        link=f"{address}/{page.report_id}/report.html" if address else "",
        markdown=f"{page.report_id}/report.md",
        data=f"{page.report_id}/report.json",
        pdf=f"{page.report_id}/report.pdf",
        since=cause.since,
        until=cause.as_of if cause.since else None,
        order_id=cause.order_id,
        written_at=now,
    )


def _row_of(data: MaintenanceReport) -> Report:
    return Report(html=data.location, **data.model_dump(exclude={"location", "link", "since", "until"}))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
