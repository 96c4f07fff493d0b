"""What is said in a thread, in a form that every channel can draw. Texts are plain: each channel escapes them."""

import re
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from schemas.events import (
    AgentReply,
    MaintenanceApproval,
    MaintenancePromotion,
    MaintenanceReport,
    MaintenanceRun,
    MonitoringDrift,
)
from schemas.vocabulary import JobState, OrderState, Verdict

MAX_TEXT: Final = 8_000
_UNSEEN: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
"""Controls, and what makes text look like another: zero-width characters and changes of direction."""
VERDICTS: Final = {
    Verdict.PROMOTE: "The gate let version {challenger} of {model} take over from version {champion_before}",
    Verdict.REJECT: "The gate turned version {challenger} of {model} down; version {champion_after} goes on serving",
    Verdict.NEED_LABELS: "The gate needs more labelled cases to judge version {challenger} of {model}",
}


class Button(BaseModel):
    """A decision on an order that waits."""

    model_config = ConfigDict(frozen=True)

    label: str
    order_id: str
    approve: bool


class Card(BaseModel):
    """A message. `picture` is a PNG relative to the reports folder; `link` is an address of ours, never one out of data."""

    model_config = ConfigDict(frozen=True)

    title: str = ""
    text: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    buttons: tuple[Button, ...] = ()
    picture: str = ""
    link: str = ""
    stages: tuple[str, ...] = Field(default=(), description="What a progress message has told so far")


def seen(text: str, limit: int = MAX_TEXT) -> str:
    """The text without characters that nobody sees, at most `limit` characters long."""
    clean = _UNSEEN.sub("", text.replace("\r\n", "\n")).strip()
    return clean if len(clean) <= limit else f"{clean[: limit - 2].rstrip()} …"


def reply_card(reply: AgentReply) -> Card:
    """The agents' answer."""
    return Card(text=seen(reply.text) or "There is nothing to say to that.")


def progress_card(run: MaintenanceRun, before: Card | None) -> Card:
    """One line for each stage, and the last epoch; epochs do not pile up."""
    stages = before.stages if before is not None else ()
    line = seen(run.message, 300)
    if run.epoch is None and line and line not in stages:
        stages = (*stages, line)
    running = (
        f"epoch {run.epoch} of {run.epochs}" if run.epoch is not None and run.epochs else line if run.epoch is not None else ""
    )
    lines = [*stages, *([running] if running else [])]
    done = {JobState.SUCCEEDED: "finished", JobState.FAILED: "failed"}.get(JobState(run.state), "under way")
    return Card(title=seen(f"Repair of {run.model} ({run.order_id}): {done}", 150), text="\n".join(lines), stages=stages)


def report_card(report: MaintenanceReport, picture: str, reports_url: str) -> Card:
    """Title, status, the two sentences, where the report lies."""
    link = f"{reports_url.rstrip('/')}/{report.location}" if reports_url else ""
    facts = (("model", f"{report.model}, version {report.version}"), ("status", str(report.status)), ("report", report.report_id))
    return Card(title=seen(report.title, 150), text=seen(report.summary, 1000), facts=_clean(facts), picture=picture, link=link)


def verdict_card(promotion: MaintenancePromotion) -> Card:
    """The gate's verdict with its reasons."""
    if promotion.origin == "rollback":
        title = f"Version {promotion.champion_after} of {promotion.model} serves again"
    else:
        title = VERDICTS[promotion.verdict].format(**promotion.model_dump())
    return Card(title=seen(title, 150), text="\n".join(seen(f"- {reason}", 400) for reason in promotion.reasons[:8]))


def warning_card(drift: MonitoringDrift) -> Card:
    """What can be seen of a change before any label arrives: the sentences of the signals that warn."""
    told = [f"- {each.sentence}" for each in drift.signals if each.warning]
    lines = [drift.summary, *told[:6]]
    facts = (
        ("model", f"{drift.model}, version {drift.version}"),
        ("suspected", str(drift.suspected)),
        ("studies", str(drift.cases)),
    )
    return Card(
        title=seen(f"Early warning for {drift.model}", 150), text="\n".join(seen(line, 400) for line in lines), facts=_clean(facts)
    )


def approval_card(approval: MaintenanceApproval) -> Card:
    """An order that waits, with buttons; without them once somebody has decided."""
    waits = approval.state == OrderState.AWAITING_APPROVAL
    buttons = (
        (
            Button(label="Approve", order_id=approval.order_id, approve=True),
            Button(label="Reject", order_id=approval.order_id, approve=False),
        )
        if waits
        else ()
    )
    title = (
        "An order waits for approval"
        if waits
        else f"The order was {'approved' if approval.state == OrderState.ACCEPTED else 'refused'}"
    )
    facts = [("order", f"{approval.order_id}: {approval.what}"), ("ordered by", approval.actor), ("reason", approval.reason)]
    if approval.decided_by:
        facts.append(("decided by", approval.decided_by))
    return Card(title=title, text=seen(approval.explanation, 1000), facts=_clean(facts), buttons=buttons)


def card_lines(card: Card) -> list[str]:
    """A card for a channel that draws none: its texts line by line, buttons as the words that do the same."""
    facts = [f"{name}: {value}" for name, value in card.facts]
    words = [f"to {button.label.lower()} it, write: {button.label.lower()} {button.order_id}" for button in card.buttons]
    return [line for line in (card.title, *card.text.splitlines(), *facts, *words, card.link) if line]


def _clean(facts: "list[tuple[str, str]] | tuple[tuple[str, str], ...]") -> tuple[tuple[str, str], ...]:
    return tuple((name, seen(value, 500)) for name, value in facts)
