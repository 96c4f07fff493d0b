"""The model registry: which versions exist, which serves, where a rollback goes. All SQL about models and versions.

Promotion and rollback are single transactions; the inference service reads the registry for every batch, so a change
takes effect with the next batch.

Which version may serve (decision 0009): one that has passed the gate, or, where none serves, one that passes by its own
baseline. Archived versions have served and may come back; a retired one never does.
"""

import difflib
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
        raise InvalidInput(f"there is no model {name!r}{_known(name, [item.name for item in models(session)])}")
    return found


def _known(name: str, names: Sequence[str]) -> str:
    """What to say after a name that was not found."""
    close = difflib.get_close_matches(name, names, 1)
    guess = f"; did you mean {close[0]}?" if close else ""
    return f"{guess}; registered: {', '.join(names) or 'none'}" if not guess or len(names) > 1 else guess


def stale(name: str, number: int | None, champion: int | None) -> str:
    """Why an order about a version that no longer serves cannot be carried out."""
    now = f"version {champion} does" if champion is not None else "none does since it was retired"
    return f"version {number} of {name!r} does not serve any more; {now}" if number else f"no version of {name!r} serves"


def lock_model(session: Session, name: str) -> RegisteredModel:
    """The model's row, locked: version numbers and the champion change under this lock. InvalidInput as `model`."""
    session.exec(select(RegisteredModel).where(RegisteredModel.name == name).with_for_update()).first()
    return model(session, name)


def version(session: Session, name: str, number: int) -> ModelVersion:
    """One version; InvalidInput when there is none of that number."""
    found = session.get(ModelVersion, (name, number))
    if found is None:
        listed = ", ".join(str(row.version) for row in versions(session, name)) or "none"
        raise InvalidInput(f"model {name!r} has no version {number}; it has {listed}")
    return found


def versions(session: Session, name: str) -> Sequence[ModelVersion]:
    """All versions of a model, oldest first."""
    return session.exec(select(ModelVersion).where(ModelVersion.model == name).order_by(col(ModelVersion.version))).all()


def classes_of(session: Session, name: str, number: int) -> tuple[str, ...]:
    """Classes that a version knows, in the order of its outputs."""
    return _classes(model(session, name), version(session, name, number))


def _classes(owner: RegisteredModel, row: ModelVersion) -> tuple[str, ...]:
    return tuple(row.classes or owner.classes)


def served_versions(session: Session, name: str) -> list[int]:
    """Versions that have served before and may come back, newest first."""
    return [row.version for row in reversed(versions(session, name)) if row.state == VersionState.ARCHIVED]


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


def stopped_models(session: Session) -> Sequence[RegisteredModel]:
    """Models that have a champion and do not serve: they will score again when they are resumed."""
    query = select(RegisteredModel).where(col(RegisteredModel.serving).is_(False), col(RegisteredModel.champion).is_not(None))
    return session.exec(query.order_by(RegisteredModel.name)).all()


def next_version(session: Session, name: str) -> int:
    """The number after the highest one given so far."""
    highest = session.exec(select(func.max(ModelVersion.version)).where(ModelVersion.model == name)).one()
    return int(highest or 0) + 1


def register_model(tx: Transaction, name: str, task: str, classes: list[str], selection: dict[str, Any]) -> RegisteredModel:
    """Enter a model if it is new. One whose versions are all retired is defined anew, otherwise task and classes must agree.

    Further classes behind those that serve are those of the version alone until it serves. InvalidInput when they differ
    otherwise.
    """
    existing = tx.session.get(RegisteredModel, name)
    if existing is None:
        existing = RegisteredModel(name=name, task=task, classes=classes, selection=selection, created_at=tx.clock.now())
        tx.session.add(existing)
        tx.session.flush()
        return existing
    require_same(tx.session, name, task, classes)
    if _all_retired(tx.session, name):
        before = {"task": existing.task, "classes": existing.classes, "selection": existing.selection}
        existing.task, existing.classes, existing.selection = task, classes, selection
        tx.session.add(existing)
        tx.audit("service:registry", "model.defined_anew", name, before=before)
    return existing


def require_same(session: Session, name: str, task: str, classes: Sequence[str]) -> None:
    """InvalidInput when a model of that name has another task or other classes and a version that is not retired.

    Classes may be added behind those there are (decision 0023).
    """
    existing = session.get(RegisteredModel, name)
    if existing is None or _all_retired(session, name):
        return
    if (existing.task, existing.classes) != (task, list(classes[: len(existing.classes)])):
        raise InvalidInput(
            f"model {name!r} is registered for task {existing.task!r} with classes {existing.classes}; take another name, or "
            f"retire it first: reclaim models retire {name}"
        )


def known_classes(session: Session, name: str, task: str) -> tuple[str, ...]:
    """Classes of a model of that name and task in their order; none where there is none, or all its versions are retired."""
    existing = session.get(RegisteredModel, name)
    if existing is None or existing.task != task or _all_retired(session, name):
        return ()
    return tuple(existing.classes)


def has_been_retired(session: Session, name: str) -> bool:
    """Whether any version of the model was taken out for good."""
    return any(row.state == VersionState.RETIRED for row in versions(session, name))


def _all_retired(session: Session, name: str) -> bool:
    rows = versions(session, name)
    return bool(rows) and all(row.state == VersionState.RETIRED for row in rows)


def add_version(
    tx: Transaction,
    row: ModelVersion,
    baseline: Sequence[BaselineCase],
    *,
    actor: str,
    serve: bool = True,
) -> None:
    """Enter a version with its baseline cases. Where none serves it becomes the champion, unless `serve` is false."""
    owner = model(tx.session, row.model)
    tx.session.add(row)
    tx.session.flush()
    tx.session.add_all(baseline)
    if owner.champion is None and serve:
        row.state = VersionState.CHAMPION
        _hand_over(tx, owner, row)
    tx.audit(actor, "version.added", f"{row.model}:{row.version}", sha256=row.sha256, baseline=len(baseline), origin=row.origin)


def _hand_over(tx: Transaction, owner: RegisteredModel, row: ModelVersion) -> None:
    """The version is the champion, and the model's classes are its classes."""
    owner.champion, owner.classes = row.version, list(_classes(owner, row))
    tx.session.add_all([owner, row])


def begin_serving(tx: Transaction, name: str, number: int, *, actor: str, **evidence: Any) -> None:
    """Make a candidate the champion of a model that no version serves; it passes by its baseline (decision 0009).

    InvalidInput when a version serves, or this one is no candidate or has no baseline.
    """
    owner, row = model(tx.session, name), version(tx.session, name, number)
    if owner.champion is not None:
        raise InvalidInput(f"version {owner.champion} of {name!r} serves; another takes its place only through the gate")
    if row.state != VersionState.CANDIDATE:
        raise InvalidInput(f"version {number} of {name!r} is {row.state}, only a candidate can begin to serve")
    if not baseline(tx.session, name, number):
        raise InvalidInput(f"version {number} of {name!r} has no baseline, so nothing speaks for it")
    row.state, row.champion_before = VersionState.CHAMPION, None
    _hand_over(tx, owner, row)
    tx.audit(actor, "version.began_serving", f"{name}:{number}", **evidence)


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
    challenger.champion_before = before.version
    tx.session.add(before)
    _hand_over(tx, owner, challenger)
    tx.audit(actor, "version.promoted", f"{name}:{number}", replaced=before.version, **evidence)
    return before.version


def reject(tx: Transaction, name: str, number: int, *, actor: str, **evidence: Any) -> None:
    """Take a challenger out of the shadow for good."""
    challenger = version(tx.session, name, number)
    challenger.state = VersionState.REJECTED
    tx.session.add(challenger)
    tx.audit(actor, "version.rejected", f"{name}:{number}", **evidence)


def roll_back(tx: Transaction, name: str, number: int | None = None, *, actor: str, reason: str = "") -> tuple[int | None, int]:
    """Bring a version back that has served: the last one, or `number`.

    Returns (version taken out, None where none served; version that serves again). InvalidInput says which may come back.
    """
    owner = model(tx.session, name)
    current = version(tx.session, name, owner.champion) if owner.champion else None
    if number is None:
        number = last_champion(tx.session, name)
    target = version(tx.session, name, number) if number is not None else None
    if target is None or target.state != VersionState.ARCHIVED:
        raise InvalidInput(_why_not_back(tx.session, owner, number, target))
    if current is not None:
        current.state = VersionState.ARCHIVED
        tx.session.add(current)
    target.state = VersionState.CHAMPION
    _hand_over(tx, owner, target)
    taken_out = current.version if current is not None else None
    why = {"reason": reason} if reason else {}
    tx.audit(actor, "version.rolled_back", f"{name}:{target.version}", taken_out=taken_out, **why)
    return taken_out, target.version


def last_champion(session: Session, name: str) -> int | None:
    """Where a rollback without a number goes: the champion before, or the one before that where it is retired."""
    number = model(session, name).champion
    while number is not None:
        number = version(session, name, number).champion_before
        if number is not None and version(session, name, number).state == VersionState.ARCHIVED:
            return number
    return None


def _why_not_back(session: Session, owner: RegisteredModel, number: int | None, target: ModelVersion | None) -> str:
    served = ", ".join(map(str, served_versions(session, owner.name)))
    if target is None:
        first = f"model {owner.name!r} has no earlier champion to go back to"
    elif number == owner.champion:
        first = f"version {number} of {owner.name!r} serves already"
    else:
        first = f"version {number} of {owner.name!r} is {target.state}, it has not served or must not serve again"
    return f"{first}; versions that may come back: {served}" if served else first


def retire(tx: Transaction, name: str, number: int | None = None, *, actor: str, reason: str = "") -> list[int]:
    """Take one version, or every version, out for good; returns the numbers. Rows, cases, bundles and audit stay.

    A retired champion leaves the model without one, and rejects the challengers that were to replace it. InvalidInput
    when nothing is left to retire.
    """
    owner = model(tx.session, name)
    rows = versions(tx.session, name) if number is None else [version(tx.session, name, number)]
    chosen = [row for row in rows if row.state != VersionState.RETIRED]
    if not chosen:
        what = f"version {number} of {name!r} is" if number is not None else f"every version of {name!r} is"
        raise InvalidInput(f"{what} retired already")
    for row in chosen:
        tx.audit(actor, "version.retired", f"{name}:{row.version}", was=row.state, reason=reason)
        row.state = VersionState.RETIRED
        tx.session.add(row)
    gone = [row.version for row in chosen]
    if owner.champion in gone:
        _reject_challengers(tx, name, owner.champion, actor)
        owner.champion = None
        tx.session.add(owner)
    return gone


def _reject_challengers(tx: Transaction, name: str, champion: int | None, actor: str) -> None:
    for row in versions(tx.session, name):
        if row.state == VersionState.CHALLENGER and row.parent == champion:
            reject(tx, name, row.version, actor=actor, champion_retired=champion)


def set_serving(tx: Transaction, name: str, *, serving: bool, actor: str) -> None:
    """Stop or resume scoring with this model."""
    owner = model(tx.session, name)
    owner.serving = serving
    tx.session.add(owner)
    tx.audit(actor, "serving.resumed" if serving else "serving.stopped", name)
