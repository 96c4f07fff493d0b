"""The join's consumer: one transaction per polled batch of predictions and labels."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from schemas.events import BatchReady, Event, Label, Prediction
from schemas.settings import JoinSettings
from schemas.tables import Batch
from schemas.topics import BATCH_READY, LABEL, PREDICTION
from schemas.vocabulary import CaseRole, CaseState
from services.ground_truth import repository
from services.ground_truth.domain import (
    CaseKey,
    check_label,
    check_prediction,
    decide,
    newest_labels,
    newest_predictions,
    role_of,
)
from services.ground_truth.repository import Version
from services.ground_truth.states import CaseEvent, Effect, step, truth_event
from services.runtime.consumer import Batch as Polled
from services.runtime.consumer import BatchConsumer
from services.runtime.messages import Received
from services.runtime.transaction import Transaction

CONSUMER = "ground_truth"


class Join(BatchConsumer[None]):
    """Joins predictions with labels; emits `evaluation.batch.ready.v1` when a batch is full or its truth was corrected."""

    name = CONSUMER
    topics = (PREDICTION, LABEL)
    max_records = 1000

    def __init__(self, settings: JoinSettings) -> None:
        self.settings = settings

    def apply(self, tx: Transaction, batch: Polled, prepared: None) -> None:  # noqa: ARG002
        """Store scores and labels, join what belongs together, close full batches, re-open corrected ones."""
        predictions = [event.data for event in batch if isinstance(event.data, Prediction)]
        labels = [event.data for event in batch if isinstance(event.data, Label)]
        self._check(tx, predictions, labels)
        studies = {item.study_key for item in predictions} | {item.study_key for item in labels}
        repository.lock_studies(tx.session, studies)
        self._store(tx, newest_predictions(predictions), newest_labels(labels))
        counted, reopened = self._join(tx, studies)
        causes = [(event.record.key, event) for event in batch]
        reopen(tx, reopened, causes)
        for version in sorted(counted):
            close_full(tx, version, self.settings.batch_size, causes)

    def _check(self, tx: Transaction, predictions: Sequence[Prediction], labels: Sequence[Label]) -> None:
        for prediction in predictions:
            check_prediction(prediction)
        classes = repository.classes_by_task(tx.session, {label.task for label in labels}) if labels else {}
        for label in labels:
            check_label(label, classes.get(label.task, ()), tx.clock.now())

    def _store(self, tx: Transaction, predictions: Sequence[Prediction], labels: Sequence[Label]) -> None:
        patients = {item.patient_key for item in predictions}
        known = repository.roles_of(tx.session, patients)
        shares = (self.settings.tune_share, self.settings.gate_share)
        roles = {patient: known.get(patient) or role_of(patient, *shares) for patient in patients}
        repository.store_predictions(tx.session, predictions, roles)
        repository.store_labels(tx.session, labels, tx.clock.now())

    def _join(self, tx: Transaction, studies: set[str]) -> tuple[set[Version], dict[str, set[str]]]:
        """Decide the truth of all cases of these studies; returns versions to count and studies by batch to evaluate again."""
        labels = repository.labels_of(tx.session, studies)
        truths = {key: decide(values) for key, values in labels.items()}
        changes: list[tuple[CaseKey, CaseState, str]] = []
        counted: set[Version] = set()
        reopened: dict[str, set[str]] = {}
        for row in repository.cases_of(tx.session, studies):
            state, effects = _settle(row, truths.get((row.study_key, row.task)))
            if Effect.SET_TRUTH in effects:
                changes.append(((row.study_key, row.model, row.version), state, truths[row.study_key, row.task]))
            if Effect.REOPEN in effects:
                reopened.setdefault(row.batch_id, set()).add(row.study_key)
            if state is CaseState.JOINED and row.role == CaseRole.TRIGGER and row.serving:
                counted.add((row.model, row.version))
        repository.set_truths(tx.session, changes, tx.clock.now())
        return counted, reopened


def _settle(row: Any, truth: str | None) -> tuple[CaseState, frozenset[Effect]]:
    state = CaseState(row.state)
    event = truth_event(row.truth, truth) if truth is not None else None
    return step(state, event) if event else (state, frozenset())


Causes = Sequence[tuple[str, Received[Event]]]
"""Study (the key of both topics) and event, in the order of arrival."""


def reopen(tx: Transaction, reopened: Mapping[str, set[str]], causes: Causes) -> None:
    """Announce each batch with corrected cases once more, once per transaction."""
    for batch in repository.batches(tx.session, reopened) if reopened else ():
        cause = _last(reopened[batch.batch_id], causes)
        identity = f"{batch.batch_id}:{cause.event_id if cause else ''}"
        _announce(tx, batch, corrected=True, event_id=uuid.uuid5(uuid.NAMESPACE_URL, identity).hex, cause=cause)


def close_full(tx: Transaction, version: Version, size: int, causes: Causes) -> None:
    """Close as many batches of `size` as the open cases of this version fill."""
    repository.lock_version(tx.session, version)
    for _ in range(repository.count_open(tx.session, version) // size):
        studies = repository.open_studies(tx.session, version, size)
        # Fewer: another transaction is changing some of them; it counts again when it is done.
        if len(studies) == size:
            _close(tx, version, studies, "size", causes)


def close_overdue(tx: Transaction, size: int, max_age_s: float) -> None:
    """Close the batches that are not full but have waited for long enough, so that a rare version is evaluated too."""
    for version in repository.overdue_versions(tx.session, tx.clock.now(), max_age_s):
        repository.lock_version(tx.session, version)
        studies = repository.open_studies(tx.session, version, size)
        if studies:
            _close(tx, version, studies, "age", ())


def _close(tx: Transaction, version: Version, studies: Sequence[str], closed_by: str, causes: Causes) -> None:
    model, number = version
    ordinal = repository.next_number(tx.session, version)
    batch = Batch(
        batch_id=uuid.uuid5(uuid.NAMESPACE_URL, f"reclaim:batch:{model}:{number}:{ordinal}").hex,
        model=model,
        version=number,
        number=ordinal,
        cases=len(studies),
        closed_by=closed_by,
        closed_at=tx.clock.now(),
    )
    state, _ = step(CaseState.JOINED, CaseEvent.CLOSED)
    repository.enter_batch(tx.session, version, batch, studies, state)
    _announce(tx, batch, corrected=False, event_id=batch.batch_id, cause=_last(studies, causes))


def _announce(tx: Transaction, batch: Batch, *, corrected: bool, event_id: str, cause: Received[Event] | None) -> None:
    fields = batch.model_dump(include={"batch_id", "model", "version", "cases", "closed_by"})
    tx.emit(BATCH_READY, BatchReady(**fields, corrected=corrected), event_id=event_id, cause=cause)


def _last(studies: Iterable[str], causes: Causes) -> Received[Event] | None:
    """The last event of this transaction that belongs to one of the studies: its trace goes on."""
    wanted = set(studies)
    return next((event for study, event in reversed(causes) if study in wanted), None)
