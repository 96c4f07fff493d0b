"""The join's consumer: one transaction per polled batch of predictions and labels."""

import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import Any, Final, NamedTuple

from schemas.events import BatchReady, Event, Label, Prediction
from schemas.settings import JoinSettings
from schemas.tables import Batch
from schemas.topics import BATCH_READY, LABEL, PREDICTION
from schemas.vocabulary import CaseRole, CaseState
from services.ground_truth import repository
from services.ground_truth.domain import (
    CaseKey,
    check_label,
    check_numbers,
    check_words,
    decide,
    newest_labels,
    newest_predictions,
    role_of,
    time_fault,
)
from services.ground_truth.repository import KnownCase, Version
from services.ground_truth.states import CaseEvent, Effect, step, truth_event
from services.runtime.consumer import Batch as Polled
from services.runtime.consumer import BatchConsumer
from services.runtime.errors import InvalidInput
from services.runtime.messages import Received
from services.runtime.transaction import Transaction

CONSUMER = "ground_truth"
AUDITED_AT_ONCE: Final = 500
logger = logging.getLogger(__name__)


class Join(BatchConsumer[None]):
    """Joins predictions with labels; emits `evaluation.batch.ready.v1` when a batch is full or its truth was corrected."""

    name = CONSUMER
    topics = (PREDICTION, LABEL)
    max_records = 4000
    polls_ahead = 7

    def __init__(self, settings: JoinSettings) -> None:
        self.settings = settings

    def apply(self, tx: Transaction, batch: Polled, prepared: None) -> None:  # noqa: ARG002
        """Store scores and labels, join what belongs together, close full batches, re-open corrected ones."""
        good = self._valid(tx, batch)
        now = tx.clock.now()
        repository.look_up_by_key(tx.session)
        repository.lock_studies(tx.session, good.studies)
        repository.store_labels(tx.session, newest_labels(good.labels), now)
        known, new = self._scored(tx, good)
        labels = repository.known_labels(tx.session, {case.study_key for case in chain(known, new.cases)})
        joined = settle_all(chain(known, new.cases), {place: decide(found) for place, found in labels.items()})
        repository.clear_truths(tx.session, joined.withdrawn)  # before open cases are counted: these are open no more
        closed = [batch for version in joined.versions for batch in plan(tx, version, joined, self.settings.batch_size)]
        truths = joined.placed(closed)
        causes = good.causes if joined.changes or joined.reopened or closed else {}
        record(tx, joined.changes, causes)
        reopen(tx, joined.reopened, causes)
        for full in closed:
            close(tx, full, "size", causes)
        entered = [truths.pop(case[:3], WAITING) for case in new.cases]
        tx.writing()  # from here on there are a dozen long statements and the commit
        repository.store_cases(tx.session, new.scores, entered, now)
        repository.set_truths(tx.session, sorted(truths.items()), now)

    def _valid(self, tx: Transaction, batch: Polled) -> "Good":
        """Without those that nobody can use: they go to the dead letters."""
        tasks = {event.data.task for event in batch if isinstance(event.data, Label)}
        check = Checks(repository.classes_by_task(tx.session, tasks) if tasks else {}, tx.clock.now())
        good = Good([], [], [])
        for event in batch:
            try:
                good.add(event, check)
            except InvalidInput as error:
                tx.reject(self.name, event.record, type(error).__name__, error.reason)
                logger.warning("rejected %s %s: %s", event.topic.name, event.event_id, error.reason)
        return good

    def _scored(self, tx: Transaction, good: "Good") -> tuple[Sequence[KnownCase], "New"]:
        """The stored cases of the studies, with new scores where they were scored again, and the new cases."""
        predictions = newest_predictions(good.predictions)
        scores = repository.score_rows(tx.session, predictions, self._roles(tx, {item.patient_key for item in predictions}))
        known = repository.known_cases(tx.session, good.studies)
        keys = {case[:3] for case in known}
        again = [score for score in scores if score[:3] in keys]
        if again:
            repository.store_cases(tx.session, again, [WAITING] * len(again), tx.clock.now())
            known = repository.known_cases(tx.session, good.studies)
            scores = [score for score in scores if score[:3] not in keys]
        return known, New(scores)

    def _roles(self, tx: Transaction, patients: set[str]) -> dict[str, CaseRole]:
        known = repository.roles_of(tx.session, patients)
        shares = (self.settings.tune_share, self.settings.gate_share)
        return {patient: known.get(patient) or role_of(patient, *shares) for patient in patients}


Causes = Mapping[str, tuple[int, Received[Any]]]
"""Study to the last event of this transaction that belongs to it, and that event's place among all."""
_STATES: Final = {str(state): state for state in CaseState}
WAITING: Final[repository.Truth] = (CaseState.WAITING, None, None)


class Good(NamedTuple):
    """The events of a batch that can be used."""

    events: list[Received[Any]]
    predictions: list[Prediction]
    labels: list[Label]

    def add(self, event: Received[Any], check: "Checks") -> None:
        """One more; InvalidInput, and nothing done, when nobody can use it."""
        data = event.data
        if isinstance(data, Prediction):
            check.prediction(data)
            self.predictions.append(data)
        elif isinstance(data, Label):
            check.label(data)
            self.labels.append(data)
        self.events.append(event)

    @property
    def causes(self) -> Causes:
        """The last event of each study."""
        return {event.data.study_key: (place, event) for place, event in enumerate(self.events)}

    @property
    def studies(self) -> set[str]:
        """All that they speak of."""
        return {item.study_key for item in self.predictions} | {item.study_key for item in self.labels}


class New:
    """Cases that are not stored yet, in key order."""

    def __init__(self, scores: Sequence[repository.Values]) -> None:
        self.scores = scores
        self.cases = [
            KnownCase(study, model, version, task, CaseState.WAITING, role, serving, None, None, acquired_at)
            for study, model, version, task, _patient, role, _revision, serving, *_, acquired_at, _scored in scores
        ]


class Checks:
    """What an event must hold to be of use; remembers the words, which are always the same few."""

    def __init__(self, classes: Mapping[str, Sequence[str]], now: datetime) -> None:
        self._classes, self._now = classes, now
        self._known: set[tuple[object, ...]] = set()

    def label(self, data: Label) -> None:
        """Raise InvalidInput for a label that nobody can use."""
        words = (data.task, data.value, data.source, data.withdrawn)
        if words not in self._known or time_fault(data.labelled_at, self._now):
            check_label(data, self._classes.get(data.task, ()), self._now)
            self._known.add(words)

    def prediction(self, data: Prediction) -> None:
        """Raise InvalidInput for a score that nobody can use."""
        check_numbers(data)
        names, facets = data.probabilities, data.facets
        words = (data.model, data.task, data.predicted, len(names), *names, len(facets), *facets, *facets.values(), *data.findings)
        if words not in self._known:
            check_words(data)
            self._known.add(words)


Acquired = tuple[Any, str]
"""(acquired_at as stored, study)"""


class Change(NamedTuple):
    """A truth that was known: the case as it was, and what is the truth now, None for nothing."""

    case: KnownCase
    truth: str | None

    def said(self, event_id: str) -> dict[str, str | None]:
        """For the audit record: nothing else keeps what the truth was."""
        case = self.case
        return {
            "study": case.study_key,
            "was": case.truth,
            "is": self.truth,
            "role": case.role,
            "batch": case.batch_id,
            "event": event_id,
        }


@dataclass
class Joined:
    """What the labels of some studies change."""

    truths: dict[CaseKey, tuple[CaseState, str]] = field(default_factory=dict)
    """State and truth of every case whose truth is new or another than before."""
    fresh: dict[Version, list[Acquired]] = field(default_factory=dict)
    """The cases that are joined now and wait for a batch; a version with older ones only has none here."""
    withdrawn: dict[CaseKey, CaseState] = field(default_factory=dict)
    """State of every case that has no truth any more."""
    reopened: dict[str, set[str]] = field(default_factory=dict)
    """Batch to the studies whose truth is another one than when it was closed."""
    changes: dict[Version, list[Change]] = field(default_factory=dict)
    """Truths that were known before and are another one now, or none."""

    @property
    def versions(self) -> list[Version]:
        """Versions that may have a full batch now, in the order of locking."""
        return sorted(self.fresh)

    def placed(self, closed: Sequence["Full"]) -> dict[CaseKey, repository.Truth]:
        """All changes, with the batches that close now."""
        truths: dict[CaseKey, repository.Truth] = {key: (state, truth, None) for key, (state, truth) in self.truths.items()}
        state, _ = step(CaseState.JOINED, CaseEvent.CLOSED)
        for full in closed:
            for key, batch_id in full.entries():
                if key in truths:
                    truths[key] = (state, truths[key][1], batch_id)
        return truths


def settle_all(cases: Iterable[KnownCase], truths: Mapping[tuple[str, str], str | None]) -> Joined:
    """Settle cases by the truths of their studies and tasks; a truth is None where all labels were withdrawn."""
    joined = Joined()
    for case in cases:
        study, model, version, task, stored, role, serving, known, batch_id, acquired_at = case
        if (study, task) not in truths:
            continue
        truth, state = truths[study, task], _STATES[stored]
        event = truth_event(known, truth)
        if event:
            state, effects = step(state, event)
            if truth is None:
                joined.withdrawn[study, model, version] = state
            else:
                joined.truths[study, model, version] = (state, truth)
            if known is not None:
                joined.changes.setdefault((model, version), []).append(Change(case, truth))
            if Effect.REOPEN in effects and batch_id:
                joined.reopened.setdefault(batch_id, set()).add(study)
        if state is CaseState.JOINED and serving and role == CaseRole.TRIGGER:
            fresh = joined.fresh.setdefault((model, version), [])
            if stored == CaseState.WAITING:
                fresh.append((acquired_at, study))
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
        """All its cases with the batch's id."""
        batch_id = self.batch_id
        return (((study, *self.version), batch_id) for study in chain(self.fresh, self.waiting))


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


def record(tx: Transaction, changes: Mapping[Version, Sequence[Change]], causes: Causes) -> None:
    """Audit what the truths of joined cases were and are now, so that no correction and no withdrawal loses history."""
    for (model, version), found in sorted(changes.items()):
        for start in range(0, len(found), AUDITED_AT_ONCE):
            part = found[start : start + AUDITED_AT_ONCE]
            said = [change.said(cause.event_id if (cause := _last([change.case.study_key], causes)) else "") for change in part]
            tx.audit(CONSUMER, "truth.changed", f"{model}:{version}", cases=said)


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
            close(tx, Full(version, repository.next_number(tx.session, version), (), waiting), "age", {})


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
    repository.store_batch(tx.session, batch)
    repository.enter_batch(tx.session, batch, full.waiting, state)
    _announce(tx, batch, corrected=False, event_id=batch.batch_id, cause=_last(studies, causes))


def _announce(tx: Transaction, batch: Batch, *, corrected: bool, event_id: str, cause: Received[Event] | None) -> None:
    fields = batch.model_dump(include={"batch_id", "model", "version", "cases", "closed_by"})
    tx.emit(BATCH_READY, BatchReady(**fields, corrected=corrected), event_id=event_id, cause=cause)


def _last(studies: Iterable[str], causes: Causes) -> Received[Event] | None:
    """The last event of this transaction that belongs to one of the studies: its trace goes on."""
    found = [causes[study] for study in studies if study in causes]
    return max(found)[1] if found else None
