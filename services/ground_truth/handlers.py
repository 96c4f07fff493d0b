"""The join's consumer: one transaction per polled batch of predictions and labels."""

import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
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
    time_fault,
)
from services.ground_truth.repository import LabelledCase, Version
from services.ground_truth.states import CaseEvent, Effect, step, truth_event
from services.runtime.consumer import Batch as Polled
from services.runtime.consumer import BatchConsumer
from services.runtime.errors import InvalidInput
from services.runtime.messages import Received
from services.runtime.transaction import Transaction

CONSUMER = "ground_truth"
logger = logging.getLogger(__name__)


class Join(BatchConsumer[None]):
    """Joins predictions with labels; emits `evaluation.batch.ready.v1` when a batch is full or its truth was corrected."""

    name = CONSUMER
    topics = (PREDICTION, LABEL)
    max_records = 4000

    def __init__(self, settings: JoinSettings) -> None:
        self.settings = settings

    def apply(self, tx: Transaction, batch: Polled, prepared: None) -> None:  # noqa: ARG002
        """Store scores and labels, join what belongs together, close full batches, re-open corrected ones."""
        good = self._valid(tx, batch)
        predictions = [event.data for event in good if isinstance(event.data, Prediction)]
        labels = [event.data for event in good if isinstance(event.data, Label)]
        studies = {item.study_key for item in predictions} | {item.study_key for item in labels}
        repository.look_up_by_key(tx.session)
        repository.lock_studies(tx.session, studies)
        self._store(tx, newest_predictions(predictions), newest_labels(labels))
        joined = settle_all(repository.labelled_cases(tx.session, studies))
        causes = [(event.record.key, event) for event in good]
        closed = [batch for version in joined.versions for batch in plan(tx, version, joined, self.settings.batch_size)]
        repository.set_truths(tx.session, joined.placed(closed), tx.clock.now())
        reopen(tx, joined.reopened, causes)
        for full in closed:
            close(tx, full, "size", causes)

    def _valid(self, tx: Transaction, batch: Polled) -> list[Received[Event]]:
        """Without those that nobody can use: they go to the dead letters."""
        labels = [event.data for event in batch if isinstance(event.data, Label)]
        classes = repository.classes_by_task(tx.session, {label.task for label in labels}) if labels else {}
        check = Checks(classes, tx.clock.now())
        good = []
        for event in batch:
            try:
                check(event.data)
            except InvalidInput as error:
                tx.reject(self.name, event.record, type(error).__name__, error.reason)
                logger.warning("rejected %s %s: %s", event.topic.name, event.event_id, error.reason)
            else:
                good.append(event)
        return good

    def _store(self, tx: Transaction, predictions: Sequence[Prediction], labels: Sequence[Label]) -> None:
        patients = {item.patient_key for item in predictions}
        known = repository.roles_of(tx.session, patients)
        shares = (self.settings.tune_share, self.settings.gate_share)
        roles = {patient: known.get(patient) or role_of(patient, *shares) for patient in patients}
        repository.store_predictions(tx.session, predictions, roles)
        repository.store_labels(tx.session, labels, tx.clock.now())


class Checks:
    """What an event must hold to be of use; remembers the words of labels, which are always the same few."""

    def __init__(self, classes: Mapping[str, Sequence[str]], now: datetime) -> None:
        self._classes, self._now = classes, now
        self._known: set[tuple[str, str, str]] = set()

    def __call__(self, data: Event) -> None:
        """Raise InvalidInput for an event that nobody can use."""
        if isinstance(data, Prediction):
            check_prediction(data)
        elif isinstance(data, Label):
            words = (data.task, data.value, data.source)
            if words not in self._known or time_fault(data.labelled_at, self._now):
                check_label(data, self._classes.get(data.task, ()), self._now)
                self._known.add(words)


Acquired = tuple[Any, str]
"""(acquired_at as stored, study)"""


@dataclass
class Joined:
    """What the labels of some studies change."""

    truths: dict[CaseKey, tuple[CaseState, str]] = field(default_factory=dict)
    """State and truth of every case whose truth is new or another than before."""
    fresh: dict[Version, list[Acquired]] = field(default_factory=dict)
    """The cases that are joined now and wait for a batch; a version with older ones only has none here."""
    reopened: dict[str, set[str]] = field(default_factory=dict)
    """Batch to its corrected studies."""

    @property
    def versions(self) -> list[Version]:
        """Versions that may have a full batch now, in the order of locking."""
        return sorted(self.fresh)

    def placed(self, closed: Sequence["Full"]) -> list[repository.Change]:
        """All changes, in key order, with the batches that close now."""
        state, _ = step(CaseState.JOINED, CaseEvent.CLOSED)
        batch_of = {key: batch_id for full in closed for key, batch_id in full.entries()}
        changes = []
        for key in sorted(self.truths):
            before, truth = self.truths[key]
            batch_id = batch_of.get(key)
            changes.append((key, state if batch_id else before, truth, batch_id))
        return changes


def settle_all(cases: Iterable[LabelledCase]) -> Joined:
    """Decide the truth of labelled cases."""
    joined = Joined()
    for case in cases:
        truth = decide(case.labels)
        state = CaseState(case.state)
        event = truth_event(case.truth, truth)
        if event:
            state, effects = step(state, event)
            joined.truths[case.key] = (state, truth)
            if Effect.REOPEN in effects and case.batch_id:
                joined.reopened.setdefault(case.batch_id, set()).add(case.study_key)
        if state is CaseState.JOINED and case.role == CaseRole.TRIGGER and case.serving:
            fresh = joined.fresh.setdefault((case.model, case.version), [])
            if case.state == CaseState.WAITING:
                fresh.append((case.acquired_at, case.study_key))
    return joined


@dataclass(frozen=True)
class Full:
    """A batch that closes: cases that become labelled in this transaction, and cases that waited for it."""

    version: Version
    number: int
    fresh: Sequence[str]
    waiting: Sequence[str]

    @property
    def batch_id(self) -> str:
        """The same whenever and wherever the batch is closed."""
        model, version = self.version
        return uuid.uuid5(uuid.NAMESPACE_URL, f"reclaim:batch:{model}:{version}:{self.number}").hex

    def entries(self) -> Iterator[tuple[CaseKey, str]]:
        """The fresh cases with the batch's id."""
        batch_id = self.batch_id
        return (((study, *self.version), batch_id) for study in self.fresh)


def plan(tx: Transaction, version: Version, joined: Joined, size: int) -> list[Full]:
    """As many batches of `size` as the open cases of this version fill, those acquired first in the first."""
    repository.lock_version(tx.session, version)
    fresh = joined.fresh[version]
    count = (repository.count_open(tx.session, version) + len(fresh)) // size
    if not count:
        return []
    # Fewer than counted: another transaction is changing some of them; it counts again when it is done.
    waiting = repository.open_cases(tx.session, version, count * size)
    return divide(version, fresh, waiting, size, repository.next_number(tx.session, version))


def divide(
    version: Version, fresh: Sequence[tuple[Any, str]], waiting: Sequence[tuple[Any, str]], size: int, number: int
) -> list[Full]:
    """Full batches of these cases by acquisition, numbered from `number`; what is left over stays open."""
    ordered = sorted([(*case, True) for case in fresh] + [(*case, False) for case in waiting])
    batches: list[Full] = []
    for place in range(0, len(ordered) // size * size, size):
        members = ordered[place : place + size]
        new = [study for _, study, is_new in members if is_new]
        old = [study for _, study, is_new in members if not is_new]
        batches.append(Full(version, number + len(batches), new, old))
    return batches


Causes = Sequence[tuple[str, Received[Event]]]
"""Study (the key of both topics) and event, in the order of arrival."""


def reopen(tx: Transaction, reopened: Mapping[str, set[str]], causes: Causes) -> None:
    """Announce each batch with corrected cases once more, once per transaction."""
    for batch in repository.batches(tx.session, reopened) if reopened else ():
        cause = _last(reopened[batch.batch_id], causes)
        identity = f"{batch.batch_id}:{cause.event_id if cause else ''}"
        _announce(tx, batch, corrected=True, event_id=uuid.uuid5(uuid.NAMESPACE_URL, identity).hex, cause=cause)


def close_overdue(tx: Transaction, size: int, max_age_s: float) -> None:
    """Close the batches that are not full but have waited for long enough, so that a rare version is evaluated too."""
    for version in repository.overdue_versions(tx.session, tx.clock.now(), max_age_s):
        repository.lock_version(tx.session, version)
        waiting = [study for _, study in repository.open_cases(tx.session, version, size)]
        if waiting:
            close(tx, Full(version, repository.next_number(tx.session, version), (), waiting), "age", ())


def close(tx: Transaction, full: Full, closed_by: str, causes: Causes) -> None:
    """Store the batch with the cases that waited for it, and announce it. Fresh cases have it from `set_truths`."""
    studies = [*full.fresh, *full.waiting]
    batch = Batch(
        batch_id=full.batch_id,
        model=full.version[0],
        version=full.version[1],
        number=full.number,
        cases=len(studies),
        closed_by=closed_by,
        closed_at=tx.clock.now(),
    )
    state, _ = step(CaseState.JOINED, CaseEvent.CLOSED)
    repository.enter_batch(tx.session, batch, full.waiting, state)
    _announce(tx, batch, corrected=False, event_id=batch.batch_id, cause=_last(studies, causes))


def _announce(tx: Transaction, batch: Batch, *, corrected: bool, event_id: str, cause: Received[Event] | None) -> None:
    fields = batch.model_dump(include={"batch_id", "model", "version", "cases", "closed_by"})
    tx.emit(BATCH_READY, BatchReady(**fields, corrected=corrected), event_id=event_id, cause=cause)


def _last(studies: Iterable[str], causes: Causes) -> Received[Event] | None:
    """The last event of this transaction that belongs to one of the studies: its trace goes on."""
    wanted = set(studies)
    return next((event for study, event in reversed(causes) if study in wanted), None)
