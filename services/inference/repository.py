"""All SQL of the inference service."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy
from sqlalchemy import case, update
from sqlmodel import Session, col, delete, func, select

from models.spec import SelectionRule
from schemas.drift import ImageSignature
from schemas.tables import Audit, RegisteredModel, Study
from schemas.unscored import UnscoredStudy
from schemas.vocabulary import VersionState
from services.runtime import registry
from services.runtime.transaction import Transaction

ACTOR = "service:inference"
BROKEN = "version.broken"


@dataclass(frozen=True)
class RegisteredVersion:
    """A version that shall score, as the registry has it. `bundle` is relative to the models folder."""

    model: str
    version: int
    sha256: str
    bundle: str
    serving: bool
    task: str
    classes: frozenset[str]
    rule: SelectionRule


def scoring_versions(session: Session) -> list[RegisteredVersion]:
    """Champions and challengers of all serving models."""
    return [
        RegisteredVersion(
            model=owner.name,
            version=row.version,
            sha256=row.sha256,
            bundle=row.bundle,
            serving=row.state == VersionState.CHAMPION,
            task=owner.task,
            classes=frozenset(row.classes or owner.classes),
            rule=SelectionRule.model_validate(owner.selection),
        )
        for owner, row in registry.scoring_versions(session)
    ]


def stopped_models(session: Session) -> dict[str, SelectionRule]:
    """Models that will score again when they are resumed, with the studies that they are meant for."""
    return {row.name: SelectionRule.model_validate(row.selection) for row in registry.stopped_models(session)}


def note_unscored(tx: Transaction, rows: Sequence[UnscoredStudy]) -> None:
    """Keep notes on studies without a score; the first note on a study revision and model stays."""
    tx.insert_new(UnscoredStudy, rows, returning="study_key")


def note_images(tx: Transaction, rows: Sequence[ImageSignature]) -> None:
    """Keep what predictions leave of their images; a study revision that is scored again leaves nothing new."""
    tx.insert_new(ImageSignature, rows, returning="study_key")


def resumed(session: Session, limit: int, but: str) -> Sequence[UnscoredStudy]:
    """Notes on studies that wait for a model which serves, for another reason than `but`; the oldest first."""
    query = (
        select(UnscoredStudy)
        .join(RegisteredModel, col(RegisteredModel.name) == col(UnscoredStudy.model))
        .where(col(RegisteredModel.serving), col(UnscoredStudy.reason) != but)
        .order_by(col(UnscoredStudy.noticed_at), UnscoredStudy.study_key, col(UnscoredStudy.revision))
        .limit(limit)
    )
    return session.exec(query).all()


def waited_for(session: Session, reason: str) -> list[RegisteredVersion]:
    """Versions in service that studies wait for, for that reason."""
    waited = set(session.exec(select(UnscoredStudy.model).where(UnscoredStudy.reason == reason).distinct()))
    return [row for row in scoring_versions(session) if row.serving and row.model in waited] if waited else []


def release(tx: Transaction, models: Sequence[str], before: str, after: str) -> None:
    """Give the notes on studies that wait for these models another reason."""
    waiting = (col(UnscoredStudy.model).in_(models), col(UnscoredStudy.reason) == before)
    tx.session.execute(update(UnscoredStudy).where(*waiting).values(reason=after))


def forget_unscored(tx: Transaction, before: datetime) -> None:
    """Drop notes from before a time."""
    tx.session.execute(delete(UnscoredStudy).where(col(UnscoredStudy.noticed_at) < before))


def forget_purged(tx: Transaction) -> int:
    """Drop notes on studies whose images retention has deleted; returns how many."""
    purged = select(Study.study_key).where(col(Study.purged_at).is_not(None))
    gone = delete(UnscoredStudy).where(col(UnscoredStudy.model) != "", col(UnscoredStudy.study_key).in_(purged))
    return len(tx.session.execute(gone.returning(col(UnscoredStudy.study_key))).all())


@dataclass(frozen=True)
class Unscored:
    """How many studies of a kind have no score. `model` is the one that they wait for, empty where none takes them.

    `damaged`: some wait because that model's version in service cannot be loaded, not because it was stopped.
    """

    model: str
    modality: str
    body_part: str
    studies: int
    damaged: bool = False


def unscored(session: Session, since: datetime, damaged: str = "") -> list[Unscored]:
    """Studies that no model took since then, and all that wait for a model, the reason `damaged` marked; most first."""
    number = func.count(func.distinct(col(UnscoredStudy.study_key)))
    marked = func.max(case((col(UnscoredStudy.reason) == damaged, 1), else_=0))
    kind = (UnscoredStudy.model, UnscoredStudy.modality, UnscoredStudy.body_part)
    columns: tuple[Any, ...] = (*kind, number, marked)
    query = (
        sqlalchemy.select(*columns)
        .where((col(UnscoredStudy.model) != "") | (col(UnscoredStudy.noticed_at) >= since))
        .group_by(*kind)
        .order_by(number.desc(), *kind)
    )
    rows = session.execute(query)
    return [Unscored(model, modality, part, studies, bool(mark)) for model, modality, part, studies, mark in rows]


def audit_broken(tx: Transaction, broken: Iterable[tuple[RegisteredVersion, str]]) -> None:
    """Record versions that cannot score, each one and its weights' hash once."""
    for version, reason in broken:
        subject = f"{version.model}:{version.version}"
        known = tx.session.exec(select(Audit.detail).where(Audit.subject == subject, Audit.action == BROKEN))
        if all(detail.get("sha256") != version.sha256 for detail in known):
            tx.audit(ACTOR, BROKEN, subject, sha256=version.sha256, reason=reason, serving=version.serving)
