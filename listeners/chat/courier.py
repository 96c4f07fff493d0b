"""From the bus into threads: replies, progress, reports, verdicts, approvals and warnings become messages, each once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final

from sqlmodel import Session

from listeners.chat import repository
from listeners.chat.cards import Card, approval_card, progress_card, reply_card, report_card, verdict_card, warning_card
from schemas.chat import ChatThread
from schemas.events import (
    AgentReply,
    MaintenanceApproval,
    MaintenancePromotion,
    MaintenanceReport,
    MaintenanceRun,
    MonitoringDrift,
)
from schemas.settings import Settings
from schemas.tables import Order
from schemas.topics import AGENT_REPLY, APPROVAL, DRIFT, PROMOTION, REPORT, RUN, Topic
from schemas.vocabulary import JobState
from services.runtime.consumer import Batch, BatchConsumer
from services.runtime.messages import Received
from services.runtime.transaction import Transaction

FIRST_PICTURES: Final = ("before_after", "control_chart", "recall_history")
"""Figures that tell most, in the order in which they are looked for."""


class Courier(BatchConsumer[None]):
    """Puts news into the thread that ordered it, and into the site's own channels what no thread has ordered."""

    name: ClassVar[str] = "chat"
    topics: ClassVar[tuple[Topic, ...]] = (AGENT_REPLY, APPROVAL, RUN, REPORT, PROMOTION, DRIFT)
    max_records: ClassVar[int] = 100

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ways: dict[str, Callable[[Transaction, Received[Any]], None]] = {
            AGENT_REPLY.name: self._reply,
            APPROVAL.name: self._approval,
            RUN.name: self._progress,
            REPORT.name: self._report,
            PROMOTION.name: self._verdict,
            DRIFT.name: self._warning,
        }

    def apply(self, tx: Transaction, batch: Batch, prepared: None) -> None:  # noqa: ARG002 - nothing is prepared
        """Enter the messages; delivery is the workers' business."""
        for event in batch:
            self._ways[event.topic.name](tx, event)

    def _reply(self, tx: Transaction, event: Received[AgentReply]) -> None:
        thread = repository.thread(tx.session, event.data.thread)
        if thread is not None:
            repository.put(tx, thread, event.event_id, "reply", reply_card(event.data), traceparent=event.traceparent)

    def _approval(self, tx: Transaction, event: Received[MaintenanceApproval]) -> None:
        """Approvers may read the site's channel and not the thread, so it is told in both; the decision changes both."""
        asked = repository.thread(tx.session, event.data.thread)
        threads = {each.thread: each for each in (*([asked] if asked else []), *self._homes(tx))}
        for thread in threads.values():
            key, card = f"approval|{event.data.order_id}", approval_card(event.data)
            repository.put(tx, thread, key, "approval", card, traceparent=event.traceparent)

    def _progress(self, tx: Transaction, event: Received[MaintenanceRun]) -> None:
        run, thread = event.data, _ordered_in(tx.session, event.data.order_id)
        if thread is None:
            return
        key = f"progress|{run.order_id}"
        before = repository.card_of(tx.session, repository.message_id(thread.thread, key))
        ended = run.state in {JobState.SUCCEEDED, JobState.FAILED}
        pause = 0.0 if ended else self._settings.chat.progress_interval_s
        card = progress_card(run, before)
        repository.put(tx, thread, key, "progress", card, traceparent=event.traceparent, not_before_s=pause)

    def _report(self, tx: Transaction, event: Received[MaintenanceReport]) -> None:
        report = event.data
        picture = first_picture(self._settings.reports_dir, report.data)
        card = report_card(report, picture, self._settings.chat.reports_url)
        for thread in self._threads_of(tx, report.order_id):
            apart = thread.channel == "slack" and bool(picture)
            shown = card.model_copy(update={"picture": ""}) if apart else card
            repository.put(tx, thread, event.event_id, "report", shown, traceparent=event.traceparent)
            if apart:
                drawn = Card(title=card.title, picture=picture)
                repository.put(tx, thread, f"{event.event_id}|picture", "picture", drawn, traceparent=event.traceparent)

    def _verdict(self, tx: Transaction, event: Received[MaintenancePromotion]) -> None:
        for thread in self._threads_of(tx, event.data.order_id):
            repository.put(tx, thread, event.event_id, "verdict", verdict_card(event.data), traceparent=event.traceparent)

    def _warning(self, tx: Transaction, event: Received[MonitoringDrift]) -> None:
        """A window that warns of what the one before did not; nobody has ordered it."""
        if not (event.data.warning and event.data.new):
            return
        for thread in self._homes(tx):
            repository.put(tx, thread, event.event_id, "warning", warning_card(event.data), traceparent=event.traceparent)

    def _threads_of(self, tx: Transaction, order_id: str | None) -> list[ChatThread]:
        """The thread in which it was ordered, else the site's channels."""
        ordered = _ordered_in(tx.session, order_id)
        return [ordered] if ordered is not None else self._homes(tx)

    def _homes(self, tx: Transaction) -> list[ChatThread]:
        """The site's channels, as the settings name them today."""
        for name, channel, reference in homes(self._settings):
            repository.remember(tx, name, channel, reference)
        tx.session.flush()
        found = [repository.thread(tx.session, name) for name, _, _ in homes(self._settings)]
        return [each for each in found if each is not None]


def homes(settings: Settings) -> list[tuple[str, str, dict[str, Any]]]:
    """Thread, channel and reference of what no thread has ordered."""
    slack, teams = settings.slack, settings.teams
    found: list[tuple[str, str, dict[str, Any]]] = []
    if slack.bot_token.get_secret_value() and slack.channel:
        found.append((f"slack:home:{slack.channel}", "slack", {"channel": slack.channel}))
    if teams.app_id and teams.conversation:
        reference = {"conversation": teams.conversation, "service_url": teams.service_url}
        found.append((f"teams:home:{teams.conversation}"[:128], "teams", reference))
    return found


def first_picture(reports: Path, data: str) -> str:
    """The figure of a report that tells most, relative to the reports folder; empty when it has none or cannot be read."""
    try:
        document = json.loads((reports / data).read_text(encoding="utf-8"))
        files = [str(each["file"]) for each in document["figures"]]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    files.sort(key=lambda name: next((place for place, first in enumerate(FIRST_PICTURES) if name.startswith(first)), 99))
    folder = Path(data).parent
    return next((str(folder / name) for name in files if (reports / folder / name).is_file()), "")


def _ordered_in(session: Session, order_id: str | None) -> ChatThread | None:
    order = session.get(Order, order_id) if order_id else None
    return repository.thread(session, order.thread) if order is not None else None
