"""From an event to a cause: the one message that the agents receive, as JSON that we alone write.

A person's words stand inside it as a value, so that no typed text can pass for an evaluation.
"""

import json
from datetime import datetime
from typing import Any

from sqlmodel import Session

from agents import repository
from agents.guardrails import LABELS_ONCE_IN
from agents.ladder import ADVICE
from agents.proposals import Cause, Decision
from agents.redaction import plain, without_uids
from agents.tools.desk import plain_evidence
from schemas.events import AgentCommand, EvaluationCompleted, MaintenancePromotion
from schemas.tables import Evaluation, RegisteredModel
from schemas.vocabulary import Status, Verdict
from services.runtime.messages import Received
from services.runtime.words import small

METRICS_IN_PROMPT = 24


def command_cause(event: Received[AgentCommand]) -> Cause:
    """The cause that a person's command is."""
    command = event.data
    text = without_uids(command.text).strip()
    said = {"kind": "command", "role": command.user_role, "today": event.record.headers.get("ce_time", "")[:10], "text": text}
    prompt = json.dumps(said, ensure_ascii=False)
    return Cause(
        event_id=event.event_id,
        kind="command",
        actor=f"user:{command.user}"[:128],
        prompt=prompt,
        role=command.user_role,
        thread=command.thread[:128],
        channel=command.channel,
        text=text,
        pressed=Decision(**command.decision.model_dump()) if command.decision is not None else None,
        traceparent=event.traceparent,
    )


def evaluation_cause(session: Session, event: Received[EvaluationCompleted]) -> Cause:
    """The cause that an evaluation is: its numbers, and what else the decision turns on."""
    data = event.data
    row = session.get(RegisteredModel, data.model)
    prompt = {
        "kind": "evaluation",
        "model": data.model,
        "version": data.version,
        "in_service": row is not None and row.champion == data.version,
        "status": data.status,
        "reported": _reported(session, data.model),
        "diagnosis": data.diagnosis,
        "cases": data.cases,
        "stream_cases": data.stream_cases,
        "unlabelled": repository.unlabelled(session, data.model, data.version),
        "metrics": _metrics(data),
        "evidence": plain_evidence(dict(data.evidence)),
        "reclaim_rule": data.reclaim_rule,
        "summary": plain(data.summary, 600),
    }
    return Cause(
        event_id=event.event_id,
        kind="evaluation",
        actor="agent:orchestrator",
        prompt=json.dumps(prompt, ensure_ascii=False),
        evaluation=data,
        evaluation_id=data.evaluation_id,
        traceparent=event.traceparent,
    )


def promotion_cause(session: Session, event: Received[MaintenancePromotion], now: datetime) -> Cause:
    """The cause that the gate's verdict is: the verdict, and how the version in service is doing."""
    data = event.data
    row = session.get(RegisteredModel, data.model)
    in_service = row is not None and row.champion == data.champion_after
    newest = repository.latest(session, data.model, data.champion_after)
    after = now - LABELS_ONCE_IN
    prompt = {
        "kind": "promotion",
        "model": data.model,
        "version": data.champion_after,
        "challenger": data.challenger,
        "in_service": in_service,
        "origin": plain(data.origin, 40),
        "verdict": data.verdict,
        "remedy": repository.remedy_of(session, data.order_id),
        "reasons": [plain(reason, 300) for reason in data.reasons[:8]],
        "open_label_request": repository.label_request_between(session, data.model, data.champion_after, after, now),
        **_state_of(newest),
    }
    degraded = newest if newest is not None and newest.status == Status.DEGRADED else None
    helpless = degraded is not None and degraded.diagnosis not in ADVICE and not small(degraded.evidence)
    return Cause(
        event_id=event.event_id,
        kind="promotion",
        actor="agent:orchestrator",
        prompt=json.dumps(prompt, ensure_ascii=False),
        promotion=data,
        evaluation_id=newest.evaluation_id if newest is not None else None,
        needs_help=in_service and helpless and data.verdict == Verdict.REJECT,
        traceparent=event.traceparent,
    )


def _state_of(row: Evaluation | None) -> dict[str, Any]:
    if row is None:
        return {"status": None, "diagnosis": "none"}
    evidence, summary = plain_evidence(row.evidence), plain(row.summary, 600)
    return {"status": row.status, "diagnosis": row.diagnosis, "evidence": evidence, "summary": summary}


def _metrics(data: EvaluationCompleted) -> list[dict[str, Any]]:
    shown = data.metrics[:METRICS_IN_PROMPT]
    return [item.model_dump(exclude_none=True) | {"name": plain(item.name, 80)} for item in shown]


def _reported(session: Session, model: str) -> str | None:
    """The status that the agents' last report on this model told."""
    told = repository.reported(session, model)
    return told.status if told is not None else None
