"""Complete studies in, predictions out. A study that no model wants passes in silence, an unreadable one never does."""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from models.predictor import predicted_class
from schemas.events import Prediction, StudyReceived
from schemas.topics import PREDICTION, STUDY_RECEIVED, Topic
from services.inference import repository
from services.inference.bundles import BrokenChampion, BundleCache, ScoringModel
from services.inference.repository import RegisteredVersion
from services.inference.scoring import Score, Scorer
from services.inference.selection import Task, tasks_of, views_of
from services.runtime.consumer import Batch, BatchConsumer
from services.runtime.database import Database
from services.runtime.errors import InvalidInput, Transient
from services.runtime.messages import Received
from services.runtime.transaction import Transaction

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rejection:
    """An event that goes to the dead letters, whatever else came of it."""

    event: Received[StudyReceived]
    error: str
    reason: str


@dataclass(frozen=True)
class Prepared:
    """A batch after the slow part."""

    scores: tuple[Score, ...]
    rejections: tuple[Rejection, ...]
    broken: tuple[tuple[RegisteredVersion, str], ...]


class Inference(BatchConsumer[Prepared]):
    """Scores studies with every champion and challenger that is meant for them."""

    name: ClassVar[str] = "inference"
    topics: ClassVar[tuple[Topic, ...]] = (STUDY_RECEIVED,)
    max_records: ClassVar[int] = 64

    def __init__(self, database: Database, archive: Path, bundles: BundleCache, scorer: Scorer) -> None:
        self._database = database
        self._archive = archive
        self._bundles = bundles
        self._scorer = scorer
        self.unwanted = 0
        """Studies of this process's life that no model was meant for."""

    def prepare(self, batch: Batch) -> Prepared:
        """Read, decode and score. Raises BrokenChampion, and Transient while the archive is away."""
        if not self._archive.is_dir():
            raise Transient("the archive folder is not there")
        ready, broken = self._scoring_models()
        tasks, rejections = self._tasks(batch, ready)
        scored = self._scorer.score(tasks)
        wanted = {id(task.event) for task in tasks} - _without_scores(scored.unwanted, tasks)
        self._count_unwanted(len(batch) - len(wanted) - len(rejections))
        failed = _rejections((failure.task.event, failure.kind, failure.reason) for failure in scored.failures)
        return Prepared(scored.scores, (*rejections, *failed), tuple(broken))

    def apply(self, tx: Transaction, batch: Batch, prepared: Prepared) -> None:  # noqa: ARG002
        """Publish the predictions, reject the unreadable studies, record broken versions."""
        now = tx.clock.now()
        for score in prepared.scores:
            tx.emit(PREDICTION, prediction_of(score, now), event_id=prediction_id(score), cause=score.task.event)
        for rejection in prepared.rejections:
            tx.reject(self.name, rejection.event.record, rejection.error, rejection.reason)
            logger.warning("rejected study event %s: %s", rejection.event.event_id, rejection.reason)
        repository.audit_broken(tx, prepared.broken)

    def close(self) -> None:
        """End the worker threads."""
        self._scorer.close()

    def _scoring_models(self) -> tuple[list[ScoringModel], list[tuple[RegisteredVersion, str]]]:
        with self._database.read() as session:
            rows = repository.scoring_versions(session)
        ready, broken = self._bundles.refresh(rows)
        champions = [(row, reason) for row, reason in broken if row.serving]
        if champions:
            with self._database.transaction() as tx:
                repository.audit_broken(tx, champions)
            row, reason = champions[0]
            raise BrokenChampion(f"the version in service, {row.model}:{row.version}, cannot score: {reason}")
        return ready, broken

    def _tasks(self, batch: Batch, ready: Sequence[ScoringModel]) -> tuple[list[Task], list[Rejection]]:
        tasks: list[Task] = []
        rejections: list[Rejection] = []
        views = views_of(ready)
        for event in batch:
            try:
                tasks += tasks_of(event, views, self._archive)
            except InvalidInput as error:
                rejections.append(Rejection(event, type(error).__name__, error.reason))
        return tasks, rejections

    def _count_unwanted(self, count: int) -> None:
        self.unwanted += count
        if count:
            logger.info("%d studies came that no serving model selects (%d since the start)", count, self.unwanted)


def prediction_of(score: Score, now: datetime) -> Prediction:
    """The event of a score."""
    study, row = score.task.event.data, score.model.row
    return Prediction(
        study_key=study.study_key,
        patient_key=study.patient_key,
        revision=study.revision,
        model=row.model,
        version=row.version,
        serving=row.serving,
        task=row.task,
        probabilities={name: min(max(value, 0.0), 1.0) for name, value in score.probabilities.items()},
        predicted=predicted_class(score.probabilities),
        acquired_at=study.acquired_at,
        scored_at=now,
        facets=dict(score.prepared.facets),
        findings=score.prepared.codes,
    )


def prediction_id(score: Score) -> str:
    """The same for the same study revision and version, so that scoring again publishes nothing."""
    study, row = score.task.event.data, score.model.row
    return hashlib.sha256(f"prediction|{study.study_key}|{study.revision}|{row.model}|{row.version}".encode()).hexdigest()


def _without_scores(unwanted: Iterable[Task], tasks: Iterable[Task]) -> set[int]:
    """Events all of whose tasks turned out to be unwanted."""
    dropped = {id(task) for task in unwanted}
    kept = {id(task.event) for task in tasks if id(task) not in dropped}
    return {id(task.event) for task in tasks} - kept


def _rejections(failed: Iterable[tuple[Received[StudyReceived], str, str]]) -> list[Rejection]:
    """One rejection per event, with all its distinct reasons."""
    by_event: dict[str, Rejection] = {}
    for event, error, reason in failed:
        before = by_event.get(event.event_id)
        if before is None:
            by_event[event.event_id] = Rejection(event, error, reason)
        elif reason not in before.reason:
            by_event[event.event_id] = Rejection(event, before.error, f"{before.reason}; {reason}")
    return list(by_event.values())
