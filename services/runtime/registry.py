"""The model registry: which versions exist, which serves, where a rollback goes. All SQL about models and versions.

Promotion and rollback are single transactions; the inference service reads the registry for every batch, so a change
takes effect with the next batch.
"""

from collections.abc import Sequence
from typing import Any

from sqlmodel import Session, col, func, select

from schemas.tables import BaselineCase, ModelVersion, RegisteredModel
from schemas.vocabulary import VersionState
from services.runtime.errors import InvalidInput
from services.runtime.transaction import Transaction


def models(session: Session) -> Sequence[RegisteredModel]:
    """All models by name."""
    return session.exec(select(RegisteredModel).order_by(RegisteredModel.name)).all()


def model(session: Session, name: str) -> RegisteredModel:
    """One model; InvalidInput names the known ones when there is none of that name."""
    found = session.get(RegisteredModel, name)
    if found is None:
        known = ", ".join(item.name for item in models(session)) or "none"
        raise InvalidInput(f"there is no model {name!r}; registered: {known}")
    return found


def version(session: Session, name: str, number: int) -> ModelVersion:
    """One version; InvalidInput when there is none of that number."""
    found = session.get(ModelVersion, (name, number))
    if found is None:
        raise InvalidInput(f"model {name!r} has no version {number}")
    return found


def versions(session: Session, name: str) -> Sequence[ModelVersion]:
    """All versions of a model, oldest first."""
    return session.exec(select(ModelVersion).where(ModelVersion.model == name).order_by(col(ModelVersion.version))).all()


def scoring_versions(session: Session) -> Sequence[tuple[RegisteredModel, ModelVersion]]:
    """Champions of serving models and all challengers: what the inference service scores."""
    wanted = (VersionState.CHAMPION, VersionState.CHALLENGER)
    query = (
        select(RegisteredModel, ModelVersion)
        .join(ModelVersion, col(ModelVersion.model) == col(RegisteredModel.name))
        .where(col(ModelVersion.state).in_(wanted), col(RegisteredModel.serving))
        .order_by(RegisteredModel.name, col(ModelVersion.version))
    )
    return [(model_row, version_row) for model_row, version_row in session.exec(query)]


def next_version(session: Session, name: str) -> int:
    """The number after the highest one given so far."""
    highest = session.exec(select(func.max(ModelVersion.version)).where(ModelVersion.model == name)).one()
    return int(highest or 0) + 1


def register_model(tx: Transaction, name: str, task: str, classes: list[str], selection: dict[str, Any]) -> RegisteredModel:
    """Enter a model if it is new; InvalidInput when it exists with another task or other classes."""
    existing = tx.session.get(RegisteredModel, name)
    if existing is None:
        existing = RegisteredModel(name=name, task=task, classes=classes, selection=selection, created_at=tx.clock.now())
        tx.session.add(existing)
        tx.session.flush()
    if (existing.task, existing.classes) != (task, classes):
        raise InvalidInput(f"model {name!r} is registered for task {existing.task!r} with classes {existing.classes}")
    return existing


def add_version(
    tx: Transaction,
    row: ModelVersion,
    baseline: Sequence[BaselineCase],
    *,
    actor: str,
) -> None:
    """Enter a version with its baseline cases; the first version of a model serves at once."""
    owner = model(tx.session, row.model)
    tx.session.add(row)
    tx.session.flush()
    tx.session.add_all(baseline)
    if owner.champion is None:
        row.state, owner.champion = VersionState.CHAMPION, row.version
        tx.session.add(owner)
    tx.audit(actor, "version.added", f"{row.model}:{row.version}", sha256=row.sha256, baseline=len(baseline), origin=row.origin)


def baseline(session: Session, name: str, number: int) -> Sequence[BaselineCase]:
    """A version's baseline cases."""
    query = select(BaselineCase).where(BaselineCase.model == name, BaselineCase.version == number)
    return session.exec(query.order_by(BaselineCase.case_key)).all()


def promote(tx: Transaction, name: str, number: int, *, actor: str, **evidence: Any) -> int:
    """Make a challenger the champion; returns the version it replaces. The gate alone decides when this may be called."""
    owner, challenger = model(tx.session, name), version(tx.session, name, number)
    if challenger.state != VersionState.CHALLENGER or owner.champion is None:
        raise InvalidInput(f"version {number} of {name!r} is {challenger.state}, only a challenger can be promoted")
    before = version(tx.session, name, owner.champion)
    before.state, challenger.state = VersionState.ARCHIVED, VersionState.CHAMPION
    challenger.champion_before, owner.champion = before.version, number
    tx.session.add_all([before, challenger, owner])
    tx.audit(actor, "version.promoted", f"{name}:{number}", replaced=before.version, **evidence)
    return before.version


def reject(tx: Transaction, name: str, number: int, *, actor: str, **evidence: Any) -> None:
    """Take a challenger out of the shadow for good."""
    challenger = version(tx.session, name, number)
    challenger.state = VersionState.REJECTED
    tx.session.add(challenger)
    tx.audit(actor, "version.rejected", f"{name}:{number}", **evidence)


def roll_back(tx: Transaction, name: str, *, actor: str) -> tuple[int, int]:
    """Bring the last champion back; returns (version taken out, version that serves again). InvalidInput when there is none."""
    owner = model(tx.session, name)
    current = version(tx.session, name, owner.champion) if owner.champion else None
    if current is None or current.champion_before is None:
        raise InvalidInput(f"model {name!r} has no earlier champion to go back to")
    last = version(tx.session, name, current.champion_before)
    current.state, last.state, owner.champion = VersionState.ARCHIVED, VersionState.CHAMPION, last.version
    tx.session.add_all([current, last, owner])
    tx.audit(actor, "version.rolled_back", f"{name}:{last.version}", taken_out=current.version)
    return current.version, last.version


def set_serving(tx: Transaction, name: str, *, serving: bool, actor: str) -> None:
    """Stop or resume scoring with this model."""
    owner = model(tx.session, name)
    owner.serving = serving
    tx.session.add(owner)
    tx.audit(actor, "serving.resumed" if serving else "serving.stopped", name)
