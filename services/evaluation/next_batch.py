"""How far a version is from its next evaluation: the labelled cases that count, and those still missing."""

import math
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, and_, case
from sqlmodel import Session, col, func, select

from schemas.settings import JoinSettings
from schemas.tables import OPEN_CASE, Batch, Case, RegisteredModel
from schemas.vocabulary import CaseRole, CaseState


class NextBatch(NamedTuple):
    """What has come and what is missing until the version's next batch is full and evaluated.

    Only cases of patients who may raise the alarm fill batches; those of the others teach and judge repairs.
    """

    model: str
    version: int
    size: int
    """Labelled cases that a batch takes."""
    ready: int
    """Of those, how many have come."""
    waiting: int
    """Scored studies that would count and have no label yet."""
    labelled: int
    """Labelled cases of this version in all, whatever they are for."""
    batches: int
    """Batches closed before; 0 before the first evaluation."""
    closes_at: datetime | None
    """When a batch of what is ready closes although it is not full; None with nothing ready."""
    share: float
    """Share of patients whose cases fill batches."""

    @property
    def missing(self) -> int:
        """Labelled cases that count and are still missing; 0 where the batch is about to close."""
        return max(0, self.size - self.ready)

    @property
    def studies(self) -> int:
        """About how many studies have to be labelled for that, where nobody chooses whose: the others' cases do not count."""
        return math.ceil(self.missing / self.share)

    def say(self) -> str:
        """One or two sentences for a person, without the model's name."""
        which = "next" if self.batches else "first"
        said = f"The {which} evaluation takes {self.size} labelled cases; {self.ready} have come, {self.missing} are missing"
        if self.missing:
            said += f" (about {self.studies} labels, because cases of patients who teach or judge repairs do not count)"
        lacking = self.missing - self.waiting
        if lacking > 0:
            said += f"; only {self.waiting} scored studies that count wait for a label, so studies have to come too"
        return f"{said}." + (f" At {self.closes_at:%Y-%m-%d %H:%M} UTC it begins with what has come." if self.closes_at else "")


def next_batch(session: Session, join: JoinSettings, model: str, version: int | None = None) -> NextBatch | None:
    """Of a version, by default of the champion; None for a model that nobody knows or that has no champion.

    One walk over the version's cases by index. Nothing about the studies is returned but their number.
    """
    owner = session.get(RegisteredModel, model)
    number = version if version is not None or owner is None else owner.champion
    if owner is None or number is None:
        return None
    mine = (Case.model == model, Case.version == number)
    unlabelled = and_(col(Case.role) == CaseRole.TRIGGER, col(Case.state) == CaseState.WAITING, col(Case.serving).is_(True))
    query = select(_count(unlabelled), _count(col(Case.truth).is_not(None))).where(*mine)
    waiting, labelled = session.execute(query).one()
    ready, oldest = session.execute(select(func.count(), func.min(Case.joined_at)).where(*mine, OPEN_CASE)).one()
    batches = session.exec(select(func.count()).select_from(Batch).where(Batch.model == model, Batch.version == number)).one()
    closes_at = oldest + timedelta(seconds=join.batch_max_age_s) if oldest is not None else None
    share = 1.0 - join.tune_share - join.gate_share
    return NextBatch(model, number, join.batch_size, ready, waiting, labelled, batches, closes_at, share)


def _count(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)
