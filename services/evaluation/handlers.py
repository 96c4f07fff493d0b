"""The evaluation's consumer: a closed batch in, a judged model version out."""

import uuid
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from sqlmodel import Session

from schemas.evaluation_settings import EvaluationSettings
from schemas.events import BatchReady, EvaluationCompleted
from schemas.tables import Batch, Evaluation
from schemas.topics import BATCH_READY, EVALUATION_COMPLETED
from services.evaluation import repository
from services.evaluation.detector import Thresholds
from services.evaluation.evaluate import Material, Outcome, evaluate
from services.evaluation.lateness import Pending
from services.evaluation.pace import blocks_per_year
from services.evaluation.picture_repository import pictures
from services.evaluation.stream import StreamCase, one_per_patient
from services.evaluation.thresholds import Conditions, keep
from services.evaluation.truth_repository import scored_cases
from services.runtime.consumer import Batch as Polled
from services.runtime.consumer import BatchConsumer
from services.runtime.database import Database
from services.runtime.errors import InvalidInput
from services.runtime.messages import Received
from services.runtime.transaction import Transaction

CONSUMER = "evaluation"


@dataclass(frozen=True)
class Finished:
    """An outcome with what it is about."""

    batch: Batch
    task: str
    corrected: bool
    outcome: Outcome
    fingerprint: str
    thresholds: Thresholds
    batch_size: int


Prepared = dict[str, Finished]
"""Event id to evaluation."""


class Evaluate(BatchConsumer[Prepared]):
    """Evaluates closed batches. The statistics run before the transaction, which only stores and announces them."""

    name = CONSUMER
    topics = (BATCH_READY,)
    max_records = 20

    def __init__(self, database: Database, settings: EvaluationSettings, batch_size: int) -> None:
        self.database = database
        self.settings = settings
        self.batch_size = batch_size
        self._fresh: dict[str, Thresholds] = {}

    def prepare(self, batch: Polled) -> Prepared:
        """Compute the outcome of every batch; InvalidInput for a batch that does not exist."""
        return {event.event_id: self._finish(event) for event in batch}

    def apply(self, tx: Transaction, batch: Polled, prepared: Prepared) -> None:
        """Store, announce and audit each evaluation."""
        for event in batch:
            store(tx, event, prepared[event.event_id])

    def _finish(self, event: Received[BatchReady]) -> Finished:
        with self.database.read() as session:
            found = repository.batch(session, event.data.batch_id)
            if found is None:
                raise InvalidInput("there is no batch of this id")
            last = repository.last_number(session, found.model, found.version)
            every = repository.stream(session, found.model, found.version, last)
            stream, later = parted(every, self._up_to(session, event, found, last))
            baseline = repository.baseline(session, found.model, found.version)
            classes = repository.classes(session, found.model, found.version) or _classes_in(every)
            taught = repository.taught(session, found.model)
            task = repository.task_of(session, found.batch_id)
            known = taught | {row.patient_key for row in baseline}
            per_year = blocks_per_year((case.acquired_at for case in one_per_patient(every, known)), self.batch_size)
            conditions = Conditions(baseline, classes, self.batch_size, per_year)
            mark = conditions.mark(self.settings)
            kept = repository.thresholds(session, found.model, found.version, mark)
            seen = self._seen(session, found, stream, later)
        thresholds = kept or self._calibrate(mark, conditions)
        material = seen(classes=classes, baseline=baseline, taught=taught, thresholds=thresholds)
        return Finished(found, task, event.data.corrected, evaluate(material), mark, thresholds, self.batch_size)

    def _up_to(self, session: Session, event: Received[BatchReady], found: Batch, last: int) -> int:
        """The batch that the judged stream ends with: this one, also where later ones are closed already, as in a large import.

        A correction or a late delivery may concern an old batch: then the whole stream is judged.
        """
        judged = repository.last_judged(session, found.model, found.version)
        return last if event.data.corrected or judged >= found.number else found.number

    def _seen(self, session: Session, found: Batch, stream: list[StreamCase], later: list[Pending]) -> partial[Material]:
        """The material by what the version has seen and the settings, without classes, baseline, taught and thresholds.

        Cases of `later` batches are waited for like those without a label, however old they are.
        """
        version = (found.model, found.version)
        # A batch that a clock closed which ran ahead must not end the wait for labels.
        now = min(repository.last_closed(session, found), self.database.clock.now())
        wait_days = self.settings.label_wait_days
        waiting = [row for row in repository.pending(session, *version) if row.acquired_at > now - timedelta(days=wait_days)]
        oldest = min((row.acquired_at for row in later), default=now)
        return partial(
            Material,
            model=found.model,
            batch=found.number,
            batch_size=self.batch_size,
            stream=stream,
            draws=self.settings.bootstrap_draws,
            seed=self.settings.seed,
            variation=repository.earlier_variation(session, *version, self.batch_size),
            pending=[*waiting, *later],
            wait_days=max(wait_days, (now - oldest).days + 1 if later else 0.0),
            now=now,
            withdrawn=repository.withdrawn(session, *version),
            pictures=pictures(session, *version, stream),
            scored=scored_cases(session, *version),
            subgroup_risk=self.settings.subgroup_false_alarms_per_year,
            run_length=self.settings.cusum_run_length,
        )

    def _calibrate(self, mark: str, conditions: Conditions) -> Thresholds:
        """Seconds, once per version and volume."""
        if mark not in self._fresh:
            self._fresh[mark] = conditions.thresholds(self.settings)
        return self._fresh[mark]


def parted(stream: list[StreamCase], up_to: int) -> tuple[list[StreamCase], list[Pending]]:
    """The cases of batches up to one, and those of later batches as they were then: without a label."""
    later = [Pending(case.patient_key, case.predicted, case.acquired_at) for case in stream if case.batch > up_to]
    return [case for case in stream if case.batch <= up_to], later


def _classes_in(stream: list[StreamCase]) -> tuple[str, ...]:
    return tuple(sorted({name for case in stream for name in case.probabilities}))


def store(tx: Transaction, event: Received[Any], finished: Finished) -> None:
    """Write one evaluation with its event and its audit record; ids follow from the event that asked for it."""
    batch, outcome = finished.batch, finished.outcome
    identity = uuid.uuid5(uuid.NAMESPACE_URL, f"reclaim:evaluation:{batch.batch_id}:{event.event_id}").hex
    shared: dict[str, Any] = {
        "evaluation_id": identity,
        "batch_id": batch.batch_id,
        "model": batch.model,
        "version": batch.version,
        "status": outcome.status,
        "diagnosis": outcome.diagnosis,
        "cases": outcome.cases,
        "stream_cases": outcome.stream_cases,
        "evidence": outcome.evidence,
        "reclaim_rule": outcome.reclaim_rule,
        "summary": outcome.summary[:1000],
        "evaluated_at": tx.clock.now(),
    }
    keep(tx, (batch.model, batch.version), finished.fingerprint, finished.thresholds, finished.batch_size)
    parts: dict[str, Any] = {
        name: [each.model_dump(mode="json") for each in getattr(outcome, name)] for name in ("metrics", "subgroups", "rules")
    }
    matrix = outcome.confusion
    tx.session.add(Evaluation(**shared, **parts, confusion=matrix.model_dump(mode="json") if matrix else None))
    found: dict[str, Any] = {
        "metrics": outcome.metrics,
        "subgroups": outcome.subgroups,
        "rules": outcome.rules,
        "confusion": matrix,
    }
    data = EvaluationCompleted(**shared, **found, task=finished.task)
    tx.emit(EVALUATION_COMPLETED, data, event_id=identity, cause=event)
    detail = {
        "status": outcome.status,
        "diagnosis": outcome.diagnosis,
        "evidence": outcome.evidence,
        "corrected": finished.corrected,
    }
    subject = f"{batch.model}:{batch.version}"
    tx.audit(CONSUMER, "evaluation.completed", subject, evaluation=identity, event=event.event_id, **detail)
