"""All SQL of the inference service."""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlmodel import Session, select

from models.spec import SelectionRule
from schemas.tables import Audit
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
            classes=frozenset(owner.classes),
            rule=SelectionRule.model_validate(owner.selection),
        )
        for owner, row in registry.scoring_versions(session)
    ]


def audit_broken(tx: Transaction, broken: Iterable[tuple[RegisteredVersion, str]]) -> None:
    """Record versions that cannot score, each one and its weights' hash once."""
    for version, reason in broken:
        subject = f"{version.model}:{version.version}"
        known = tx.session.exec(select(Audit.detail).where(Audit.subject == subject, Audit.action == BROKEN))
        if all(detail.get("sha256") != version.sha256 for detail in known):
            tx.audit(ACTOR, BROKEN, subject, sha256=version.sha256, reason=reason, serving=version.serving)
