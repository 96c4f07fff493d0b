"""Complete studies in, predictions out. A study that no model takes is noted, an unreadable one is a dead letter."""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from models.predictor import predicted_class
from models.spec import SelectionRule
from schemas.drift import ImageSignature
from schemas.events import Prediction, StudyReceived
from schemas.topics import PREDICTION, STUDY_RECEIVED, Topic
from services.inference import repository
from services.inference.bundles import BundleCache, ScoringModel
from services.inference.repository import RegisteredVersion
from services.inference.scoring import Failure, Score, Scorer
from services.inference.selection import Task, tasks_of, views_of
from services.inference.unscored import BROKEN, STOPPED, unmatched_row, waiting_row, waits_for
from services.runtime import telemetry
from services.runtime.consumer import Batch, BatchConsumer
from services.runtime.database import Database
from services.runtime.errors import InvalidInput, Transient
from services.runtime.messages import Received
from services.runtime.signatures import packed
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
    unmatched: tuple[tuple[StudyReceived, str], ...]
    """Studies that no model takes, and why."""
    waiting: tuple[tuple[StudyReceived, str, str], ...]
    """Studies that came while a model was stopped or its version damaged, that model's name, and which of these it was."""


class Inference(BatchConsumer[Prepared]):
    """Scores studies with every champion and challenger that is meant for them."""

    name: ClassVar[str] = "inference"
    topics: ClassVar[tuple[Topic, ...]] = (STUDY_RECEIVED,)
    max_records: ClassVar[int] = 64

    def __init__(self, database: Database, archive: Path, bundles: BundleCache, scorer: Scorer) -> None:
        self._database = database
        self._archive = archive
        self.bundles = bundles
        self._scorer = scorer

    def prepare(self, batch: Batch) -> Prepared:
        """Read, decode and score; a damaged version stops its own model only. Raises Transient while the archive is away."""
        if not self._archive.is_dir():
            raise Transient("the archive folder is not there")
        ready, broken, stopped = self._scoring_models()
        tasks, rejections = self._tasks(batch, ready)
        scored = self._scorer.score(tasks)
        failed = _rejections((failure.task.event, failure.kind, failure.reason) for failure in scored.failures)
        rejected = (*rejections, *failed)
        damaged = {row.model: row.rule for row, _ in broken if row.serving}
        waiting = (*_waiting(batch, stopped, STOPPED), *_waiting(batch, damaged, BROKEN))
        dealt_with = {id(score.task.event) for score in scored.scores} | {id(each.event) for each in rejected}
        dealt_with |= {id(event) for event in batch if event.data.models or waits_for(event.data, stopped | damaged)}
        unmatched = _unmatched((event for event in batch if id(event) not in dealt_with), scored.unwanted)
        return Prepared(scored.scores, rejected, tuple(broken), unmatched, waiting)

    def apply(self, tx: Transaction, batch: Batch, prepared: Prepared) -> None:  # noqa: ARG002
        """Publish the predictions, reject the unreadable studies, note those without a score, record broken versions."""
        now = tx.clock.now()
        notes = [unmatched_row(study, reason, now) for study, reason in prepared.unmatched]
        repository.note_unscored(tx, [*notes, *(waiting_row(study, model, now, why) for study, model, why in prepared.waiting)])
        _tell(prepared)
        for score in prepared.scores:
            tx.emit(PREDICTION, prediction_of(score, now), event_id=prediction_id(score), cause=score.task.event)
        repository.note_images(tx, image_rows(prepared.scores, now))
        for rejection in prepared.rejections:
            tx.reject(self.name, rejection.event.record, rejection.error, rejection.reason)
            logger.warning("rejected study event %s: %s", rejection.event.event_id, rejection.reason)
        repository.audit_broken(tx, prepared.broken)

    def close(self) -> None:
        """End the worker threads."""
        self._scorer.close()

    def _scoring_models(
        self,
    ) -> tuple[list[ScoringModel], list[tuple[RegisteredVersion, str]], dict[str, SelectionRule]]:
        with self._database.read() as session:
            rows = repository.scoring_versions(session)
            stopped = repository.stopped_models(session)
        return *self.bundles.refresh(rows), stopped

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
        finding_details={finding.code: finding.detail for finding in score.prepared.findings if finding.detail},
    )


def image_rows(scores: Iterable[Score], now: datetime) -> list[ImageSignature]:
    """What the early warning and the diagnosis need of the images, which never go on the bus."""
    return [
        ImageSignature(
            study_key=score.task.event.data.study_key,
            revision=score.task.event.data.revision,
            model=score.model.row.model,
            version=score.model.row.version,
            scored_at=now,
            **packed(score.prepared.signature, score.embedding),
        )
        for score in scores
        if score.prepared.signature is not None
    ]


def prediction_id(score: Score) -> str:
    """The same for the same study revision and version, so that scoring again publishes nothing."""
    study, row = score.task.event.data, score.model.row
    return hashlib.sha256(f"prediction|{study.study_key}|{study.revision}|{row.model}|{row.version}".encode()).hexdigest()


def _waiting(batch: Batch, models: dict[str, SelectionRule], why: str) -> list[tuple[StudyReceived, str, str]]:
    return [(event.data, model, why) for event in batch for model in waits_for(event.data, models)]


def _unmatched(left: Iterable[Received[StudyReceived]], unwanted: Iterable[Failure]) -> tuple[tuple[StudyReceived, str], ...]:
    """Studies without score or rejection, each with what its files said, or that its modality already is no model's."""
    reasons = {id(each.task.event): each.reason for each in unwanted}
    return tuple((event.data, reasons.get(id(event), "no serving model takes its modality")) for event in left)


def _tell(prepared: Prepared) -> None:
    for row, _ in prepared.broken:
        telemetry.count("reclaim.versions.broken", model=row.model, serves=str(row.serving).lower())
    for study, reason in prepared.unmatched:
        # BodyPartExamined is a word of a list, but scanners let people type it: it stays out of the log.
        modality = study.modality if study.modality.isalnum() else "?"
        logger.warning("no model takes study %s (modality %s): %s", study.study_key, modality, reason)
        telemetry.count("reclaim.studies.unmatched", modality=modality)
    for score in prepared.scores:
        for code in score.prepared.codes if score.model.row.serving else ():
            telemetry.count("reclaim.predictions.findings", code=code, model=score.model.row.model)


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
