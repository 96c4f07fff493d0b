"""What is known about a version's labels, read from the database in one go: for the command line and for the agents."""

from dataclasses import dataclass
from datetime import datetime

from sqlmodel import Session

from schemas.evaluation_settings import EvaluationSettings
from schemas.vocabulary import Status
from services.evaluation import repository
from services.evaluation.labelling import Labelling, examine
from services.evaluation.suspects import Conflict
from services.evaluation.truth_repository import Punctuality, conflicts, punctuality, scored_cases, unmatched
from services.runtime import registry
from services.runtime.errors import InvalidInput


@dataclass(frozen=True)
class Review:
    """A version's labels. `status`: of its newest evaluation, None before the first.

    A version that is `degraded` contradicts right labels; so may one that is watched.
    """

    model: str
    version: int
    classes: tuple[str, ...]
    labelling: Labelling
    conflicts: list[Conflict]
    punctuality: dict[str, Punctuality]
    unmatched: int
    status: Status | None

    @property
    def degraded(self) -> bool:
        """Whether the newest evaluation says so."""
        return self.status == Status.DEGRADED


def review(session: Session, settings: EvaluationSettings, model: str, version: int | None, now: datetime) -> Review:
    """Examine the labels of a version, of the champion without one. InvalidInput: there is none, or it has scored nothing yet."""
    owner = registry.model(session, model)
    wanted = version if version is not None else owner.champion
    if wanted is None:
        raise InvalidInput(f"{owner.name} has no champion: name a version")
    number = registry.version(session, owner.name, wanted).version
    taught = repository.taught(session, owner.name)
    cases = [case for case in scored_cases(session, owner.name, number) if case.patient_key not in taught]
    if not cases:
        raise InvalidInput(f"version {number} of {owner.name} has scored no study yet")
    baseline = repository.baseline(session, owner.name, number)
    newest, classes = repository.latest(session, owner.name, number), registry.classes_of(session, owner.name, number)
    return Review(
        model=owner.name,
        version=number,
        classes=classes,
        labelling=examine(cases, classes, baseline, now, settings.label_wait_days, settings.seed),
        conflicts=conflicts(session, owner.name, number),
        punctuality=punctuality(session, owner.name, number),
        unmatched=unmatched(session, owner.name, owner.task),
        status=Status(newest.status) if newest is not None else None,
    )
