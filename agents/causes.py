"""From an event to a cause: the one message that the agents receive, as JSON that we alone write.

A person's words stand inside it as a value, so that no typed text can pass for an evaluation.
"""

import json
from typing import Any

from sqlmodel import Session

from agents import repository
from agents.proposals import Cause
from agents.redaction import plain, without_uids
from agents.tools.desk import plain_evidence
from schemas.events import AgentCommand, EvaluationCompleted
from schemas.tables import RegisteredModel
from services.runtime.messages import Received

METRICS_IN_PROMPT = 24


def command_cause(event: Received[AgentCommand]) -> Cause:
    """The cause that a person's command is."""
    command = event.data
    text = without_uids(command.text).strip()
    prompt = json.dumps({"kind": "command", "role": command.user_role, "text": text}, ensure_ascii=False)
    return Cause(
        event_id=event.event_id,
        kind="command",
        actor=f"user:{command.user}"[:128],
        prompt=prompt,
        role=command.user_role,
        thread=command.thread[:128],
        text=text,
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
        "status_before": _status_before(session, data),
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
        traceparent=event.traceparent,
    )


def _metrics(data: EvaluationCompleted) -> list[dict[str, Any]]:
    shown = data.metrics[:METRICS_IN_PROMPT]
    return [item.model_dump(exclude_none=True) | {"name": plain(item.name, 80)} for item in shown]


def _status_before(session: Session, data: EvaluationCompleted) -> str | None:
    rows = repository.evaluations(session, data.model, data.version, limit=20)
    earlier = (row for row in rows if row.batch_id != data.batch_id and row.evaluated_at < data.evaluated_at)
    return next((row.status for row in earlier), None)
