"""SQL of the questions about labels: scored cases with their labels, and sources that contradict each other."""

from statistics import median
from typing import Any, Final, NamedTuple

from sqlalchemy import exists
from sqlmodel import Session, and_, col, func, select

from schemas.tables import Case, GroundTruth
from services.evaluation.scored import ScoredCase
from services.evaluation.suspects import Conflict

NEWEST: Final = 10_000
"""Predictions that are looked at: what the labels of years ago were like says little about today's."""


def scored_cases(session: Session, model: str, version: int, limit: int = NEWEST) -> list[ScoredCase]:
    """Predictions of a serving version in all roles, the newest `limit`, in the order of scoring."""
    columns = (Case.study_key, Case.patient_key, Case.predicted, Case.probabilities, Case.truth)
    query = (
        select(*columns, Case.acquired_at, Case.scored_at, Case.joined_at, Case.facets)  # type: ignore[call-overload]
        .where(Case.model == model, Case.version == version, col(Case.serving).is_(True))
        .order_by(col(Case.scored_at).desc(), col(Case.study_key))
        .limit(limit)
    )
    rows = [ScoredCase(*row) for row in session.execute(query)]
    sources = _sources(session, model, version)
    return [row._replace(source=sources.get(row.study_key)) if row.truth is not None else row for row in reversed(rows)]


def _sources(session: Session, model: str, version: int) -> dict[str, str]:
    """Study to the source that decides: the last by time of labelling, at the same instant the last by name."""
    query = (
        select(GroundTruth.study_key, GroundTruth.source)
        .join(Case, and_(col(Case.study_key) == col(GroundTruth.study_key), col(Case.task) == col(GroundTruth.task)))
        .where(Case.model == model, Case.version == version, col(Case.serving).is_(True), col(GroundTruth.value).is_not(None))
        .order_by(col(GroundTruth.labelled_at), col(GroundTruth.source))
    )
    return dict(session.execute(query).tuples().all())


class Punctuality(NamedTuple):
    """How long after the stated times a source's labels come. The shortest bounds how far its clock can run ahead unseen."""

    labels: int
    shortest_hours: float
    median_hours: float
    ahead: int
    """Labels from the future, which count as given at their receipt: its clock, or this one, is wrong."""


def punctuality(session: Session, model: str, version: int, limit: int = NEWEST) -> dict[str, Punctuality]:
    """By source, of the newest labels of the version's studies."""
    query = (
        select(GroundTruth.source, GroundTruth.labelled_at, GroundTruth.received_at)
        .join(Case, and_(col(Case.study_key) == col(GroundTruth.study_key), col(Case.task) == col(GroundTruth.task)))
        .where(Case.model == model, Case.version == version)
        .order_by(col(GroundTruth.received_at).desc())
        .limit(limit)
    )
    waits: dict[str, list[float]] = {}
    for source, labelled_at, received_at in session.exec(query):
        waits.setdefault(source, []).append((received_at - labelled_at).total_seconds() / 3600)
    return {
        source: Punctuality(len(each), min(each), median(each), sum(wait <= 0 for wait in each))
        for source, each in sorted(waits.items())
    }


def unmatched(session: Session, model: str, task: str) -> int:
    """Labels of a model's task that belong to no study that any of its versions has scored: not come yet, or wrongly named."""
    scored = exists().where(col(Case.study_key) == col(GroundTruth.study_key), col(Case.model) == model)
    query = select(func.count()).where(GroundTruth.task == task, col(GroundTruth.value).is_not(None), ~scored)
    return int(session.exec(query).one())


def conflicts(session: Session, model: str, version: int, limit: int = 1000) -> list[Conflict]:
    """Scored studies of which two sources say different things, the most recently labelled first."""
    same = and_(col(Case.study_key) == col(GroundTruth.study_key), col(Case.task) == col(GroundTruth.task))
    newest = func.max(GroundTruth.labelled_at)
    contested: Any = (
        select(GroundTruth.study_key, GroundTruth.task)
        .join(Case, same)
        .where(Case.model == model, Case.version == version)
        .group_by(col(GroundTruth.study_key), col(GroundTruth.task))
        .having(func.count(func.distinct(GroundTruth.value)) > 1)
        .order_by(newest.desc(), col(GroundTruth.study_key))
        .limit(limit)
    )
    found = []
    for study, task in session.execute(contested).all():
        rows = session.exec(select(GroundTruth).where(GroundTruth.study_key == study, GroundTruth.task == task)).all()
        ordered = sorted(rows, key=lambda row: (row.labelled_at, row.source), reverse=True)
        said = tuple((row.source, row.value, row.labelled_at) for row in ordered if row.value is not None)
        found.append(Conflict(study, task, said))
    return found
