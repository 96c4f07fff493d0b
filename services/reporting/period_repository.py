"""SQL over a period: what came in, and what the gate decided."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlmodel import Session, col, func, or_, select

from schemas.drift import DriftWindow
from schemas.tables import Audit, Batch, Case, Evaluation, ModelVersion, RegisteredModel, Study
from services.reporting.facts import Activity, Cause, Judgement, Period, Sign, Window

LONG_WAIT = timedelta(days=30)
MOST_WINDOWS = 400
"""A year of windows at the default pace."""
_TAKES_OVER = ("version.promoted", "version.rolled_back", "version.began_serving")
_SERVING = ("serving.stopped", "serving.resumed")
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


def champion_at(session: Session, owner: RegisteredModel, at: datetime) -> int | None:
    """The version that was in place at a moment, by the audit record; the first one needed no decision."""
    about = col(Audit.subject).startswith(f"{owner.name}:", autoescape=True)
    query = (
        select(Audit.subject).where(col(Audit.action).in_(_TAKES_OVER), about, col(Audit.at) <= at).order_by(col(Audit.id).desc())
    )
    for subject in session.exec(query):
        model, _, number = subject.rpartition(":")
        if model == owner.name and number.isdigit():
            return int(number)
    later = session.exec(select(Audit.id).where(col(Audit.action).in_(_TAKES_OVER), about).limit(1)).first()
    if later is None:
        return owner.champion
    first = select(ModelVersion.version).where(ModelVersion.model == owner.name, col(ModelVersion.created_at) <= at)
    return session.exec(first.order_by(col(ModelVersion.version)).limit(1)).first() or owner.champion


def serving_at(session: Session, owner: RegisteredModel, at: datetime) -> bool:
    """Whether the model was not stopped at a moment, by the audit record."""
    query = select(Audit.action).where(col(Audit.action).in_(_SERVING), Audit.subject == owner.name).order_by(col(Audit.id).desc())
    last = session.exec(query.where(col(Audit.at) <= at).limit(1)).first()
    if last is None:
        return owner.serving or session.exec(query.limit(1)).first() is not None
    return last == "serving.resumed"


def windows(session: Session, model: str, until: datetime) -> list[Window]:
    """What the label-free early warning has measured, the newest last."""
    query = select(DriftWindow).where(DriftWindow.model == model, col(DriftWindow.measured_at) <= until)
    newest = query.order_by(col(DriftWindow.measured_at).desc(), DriftWindow.drift_id).limit(MOST_WINDOWS)
    return [
        Window(
            at=row.measured_at,
            kind=row.kind,
            number=row.number,
            version=row.version,
            cases=row.cases,
            warning=row.warning,
            suspected=row.suspected,
            summary=row.summary,
            signs=tuple(map(_sign, row.signals)),
        )
        for row in reversed(session.exec(newest).all())
    ]


def _sign(signal: Mapping[str, Any]) -> Sign:
    """A signal as `schemas.events.DriftSignal` keeps it."""
    return Sign(
        name=signal["name"],
        statistic=signal["statistic"],
        limit=signal.get("threshold"),
        p_value=signal.get("p_value"),
        p_limit=(signal.get("detail") or {}).get("p_value_threshold"),
        warning=signal["warning"],
        sentence=signal["sentence"],
    )


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
