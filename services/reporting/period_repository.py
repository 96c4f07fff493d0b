"""SQL over a period: what came in, and what the gate decided."""

from datetime import datetime, timedelta
from typing import Any

from sqlmodel import Session, col, func, or_, select

from schemas.tables import Audit, Batch, Case, Evaluation, Study
from services.reporting.facts import Activity, Cause, Judgement, Period

LONG_WAIT = timedelta(days=30)
_MOST_DELAYS = 50_000
"""Newest labels whose delay is looked at: enough for its quantiles."""


def activity(session: Session, model: str, period: Period) -> Activity:
    """Counts of the period; waiting ones as they stood at its end."""
    scored, joined = _within(Case.scored_at, period), _within(Case.joined_at, period)
    of_model = Case.model == model
    waiting = (
        of_model,
        col(Case.serving),
        col(Case.scored_at) <= period.until,
        or_(col(Case.joined_at).is_(None), col(Case.joined_at) > period.until),
    )
    return Activity(
        studies=_count(session, Study, *_within(Study.first_instance_at, period)),
        predictions=_count(session, Case, of_model, col(Case.serving), *scored),
        shadow=_count(session, Case, of_model, ~col(Case.serving), *scored),
        labels=_count(session, Case, of_model, col(Case.serving), *joined),
        batches=_count(session, Batch, Batch.model == model, *_within(Batch.closed_at, period)),
        evaluations=_count(session, Evaluation, Evaluation.model == model, *_within(Evaluation.evaluated_at, period)),
        delays=_delays(session, of_model, *joined),
        waiting=_count(session, Case, *waiting),
        waiting_long=_count(session, Case, *waiting, col(Case.scored_at) <= period.until - LONG_WAIT),
    )


def judgements(session: Session, cause: Cause, period: Period) -> list[Judgement]:
    """The gate's verdicts of the period, in order of time."""
    about = col(Audit.subject).startswith(f"{cause.model}:", autoescape=True)
    query = select(Audit).where(Audit.action == "gate.judged", about, *_within(Audit.at, period)).order_by(col(Audit.id))
    found = []
    for row in session.exec(query):
        model, _, number = row.subject.rpartition(":")
        if model == cause.model and number.isdigit():
            found.append(Judgement(row.at, int(number), str(row.detail.get("verdict", "")), row.actor, dict(row.detail)))
    return found


def _within(column: Any, period: Period) -> list[Any]:
    bounds = [col(column) <= period.until]
    return bounds if period.since is None else [*bounds, col(column) > period.since]


def _count(session: Session, table: Any, *where: Any) -> int:
    return int(session.exec(select(func.count()).select_from(table).where(*where)).one())


def _delays(session: Session, *where: Any) -> tuple[timedelta, ...]:
    """Median, 90th percentile and longest, each one that occurred."""
    query = select(Case.scored_at, Case.joined_at).where(*where, col(Case.serving)).order_by(col(Case.joined_at).desc())
    rows: list[tuple[datetime, datetime | None]] = list(session.exec(query.limit(_MOST_DELAYS)))
    waits = sorted(max(joined - scored, timedelta()) for scored, joined in rows if joined is not None)
    if not waits:
        return ()
    return waits[(len(waits) - 1) // 2], waits[-(-9 * len(waits) // 10) - 1], waits[-1]
