"""The join's consumer: one transaction per polled batch of predictions and labels."""

import logging
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, NamedTuple

from schemas.events import BatchReady, Event
from schemas.settings import JoinSettings
from schemas.tables import Batch
from schemas.topics import BATCH_READY, LABEL, PREDICTION
from schemas.vocabulary import CaseRole, CaseState
from services.ground_truth import repository
from services.ground_truth.domain import CLOCK_SKEW, CaseKey, StoredLabel, check_label, decide
from services.ground_truth.reading import Reading, Values, read, text_of
from services.ground_truth.repository import KnownCase, Version
from services.ground_truth.sayings import Changes, Said, SourceKey, said_of
from services.ground_truth.statements import PATIENT, REVISION
from services.ground_truth.states import RESCORABLE, CaseEvent, Effect, step, truth_event
from services.runtime.consumer import Batch as Polled
from services.runtime.consumer import BatchConsumer
from services.runtime.messages import Received, decode
from services.runtime.transaction import Transaction

CONSUMER = "ground_truth"
AUDITED_AT_ONCE: Final = 500
logger = logging.getLogger(__name__)


class Join(BatchConsumer[Reading]):
    """Joins predictions with labels; emits `evaluation.batch.ready.v1` when a batch is full or its truth was corrected."""

    name = CONSUMER
    topics = (PREDICTION, LABEL)
    max_records = 4000
    polls_ahead = 7
    knows_repeats = True

    def __init__(self, settings: JoinSettings) -> None:
        self.settings = settings

    @property
    def _shares(self) -> tuple[float, float]:
        return self.settings.tune_share, self.settings.gate_share

    def read(self, events: Iterable[Received[Any]]) -> Reading:
        """Check events and make rows of them."""
        return read(events, self._shares)

    def apply(self, tx: Transaction, batch: Polled, prepared: Reading) -> None:
        """Store scores and labels, join what belongs together, close full batches, re-open corrected ones."""
        good = self._usable(tx, batch, prepared)
        now = text_of(tx.clock.now())
        studies = good.studies
        repository.look_up_by_key(tx.session)
        repository.lock_studies(tx.session, studies)
        stored, said = _said(tx, good, studies, now)
        known, new = self._scored(tx, good, studies)
        truths = _truths(said_of(stored, said.rows))
        joined = settle_all(known, truths)
        repository.clear_truths(tx.session, joined.withdrawn)  # before open cases are counted: these are open no more
        new.settle(truths, joined)
        closed = [batch for version in joined.versions for batch in plan(tx, version, joined, self.settings.batch_size)]
        changed = joined.changed_studies
        causes = causes_of(good, batch, changed, new, said, now) if changed else {}
        record(tx, joined.changes, causes)
        reopen(tx, joined.reopened, causes)
        for full in closed:
            last = good.last(full.studies)
            close(tx, full, "size", None if last is None else batch[last])
        tx.writing()  # from here on there are a dozen long statements and the commit
        placed = {key: batch_id for full in closed for key, batch_id in full.entries()}
        repository.store_cases(tx.session, new.rows(placed, now))
        repository.set_truths(tx.session, sorted(joined.placed(placed).items()), now)
        repository.store_labels(tx.session, said.rows, now)

    def _usable(self, tx: Transaction, batch: Polled, prepared: Reading) -> Reading:
        """Without those that nobody can use: they go to the dead letters."""
        tasks = {task for task, *_ in prepared.words}
        classes = repository.classes_by_task(tx.session, tasks) if tasks else {}
        now = tx.clock.now()
        unknown = any((known := classes.get(task)) and not taken and value not in known for task, value, _, taken in prepared.words)
        if unknown or prepared.latest > text_of(now + CLOCK_SKEW):
            again = (decode(event.record) for event in batch)
            checked = read(again, self._shares, lambda label: check_label(label, classes.get(label.task, ()), now))
            repeated = _repeated(tx, dict(prepared.said), checked)
            checked.refused = [each for each in checked.refused if each.place not in repeated]
            prepared = checked
        for place, error in prepared.refused:
            event = batch[place]
            tx.reject(self.name, event.record, type(error).__name__, error.reason)
            logger.warning("rejected %s %s: %s", event.topic.name, event.event_id, error.reason)
        return prepared

    def _scored(self, tx: Transaction, good: Reading, studies: Sequence[str]) -> tuple[Sequence[KnownCase], "New"]:
        """The stored cases of the studies, with new scores where they were scored again, and the new cases."""
        known = repository.known_cases(tx.session, studies)
        stored = {case[:3]: case for case in known}
        new = [score for score in good.scores if score[:3] not in stored]
        higher = [score for score in good.scores if (case := stored.get(score[:3])) and _replaces(score, case)]
        roles = self._roles(tx, good, [*new, *higher])
        if higher:
            repository.store_cases(tx.session, [(*score, roles[score[PATIENT]], *WAITING, None) for score in higher])
            known = repository.known_cases(tx.session, studies)
        return known, New(new, roles, higher)

    def _roles(self, tx: Transaction, good: Reading, scores: Sequence[Values]) -> Mapping[str, CaseRole]:
        return good.roles | repository.roles_of(tx.session, {score[PATIENT] for score in scores})


Causes = Mapping[str, tuple[int, Received[Any]]]
"""Study to the last event of this transaction that belongs to it and was no repetition, and that event's place among all."""
_STATES: Final = {str(state): state for state in CaseState}
WAITING: Final[repository.Truth] = (CaseState.WAITING, None, None)


def _replaces(score: Values, case: KnownCase) -> bool:
    return score[REVISION] > case.revision and case.state in RESCORABLE


def _said(tx: Transaction, good: Reading, studies: Sequence[str], now: str) -> tuple[Mapping[SourceKey, Said], Changes]:
    """What was said of the studies before, and what these labels change of it; remembers what has to be remembered."""
    stored = repository.known_labels(tx.session, studies)
    doubtful = good.sayings.doubtful(stored, now)
    identities = {item.identity for labels in doubtful.values() for item in labels}
    known = repository.remembered(tx.session, CONSUMER, identities) if identities else set()
    changes = good.sayings.changes(stored, doubtful, known, now)
    if changes.remembered:
        tx.claim(CONSUMER, changes.remembered)
    return stored, changes


def _repeated(tx: Transaction, said: Mapping[int, Said], good: Reading) -> set[int]:
    """Places of refused labels that count already: they came first when no model knew their task, or one knew their class."""
    refused = {place: said[place] for place, _ in good.refused if place in said}
    stored = repository.known_labels(tx.session, sorted({item.study_key for item in refused.values()}))
    known = repository.remembered(tx.session, CONSUMER, {item.identity for item in refused.values()}) if refused else set()
    return {place for place, item in refused.items() if stored.get(item.key) == item or item.identity in known}


def _truths(said: Iterable[Said]) -> dict[tuple[str, str], str | None]:
    """The truth by study and task; None where all labels were withdrawn."""
    single: dict[tuple[str, str], Said] = {}
    several: dict[tuple[str, str], list[Said]] = {}
    for item in said:
        place = item[:2]
        known = single.setdefault(place, item)
        if known is not item:
            several.setdefault(place, [known]).append(item)
    found = {place: item.value for place, item in single.items()}
    for place, items in several.items():
        found[place] = decide([StoredLabel(item.value, item.source, item.at) for item in items])
    return found


class New:
    """Cases that are not stored yet, in key order; `higher` are new scores of stored ones."""

    def __init__(self, scores: Sequence[Values], roles: Mapping[str, CaseRole], higher: Sequence[Values]) -> None:
        self.scores, self.higher = scores, higher
        self._roles = [roles[score[PATIENT]] for score in scores]
        self._truths: list[str | None] = []

    def settle(self, truths: Mapping[tuple[str, str], str | None], joined: "Joined") -> None:
        """Give those a truth whose studies have one, and enter the open ones into `joined.fresh`."""
        open_cases = joined.fresh
        for score, role in zip(self.scores, self._roles, strict=True):
            study, model, version, task, _, _, serving, *_, acquired_at, _ = score
            truth = truths.get((study, task))
            self._truths.append(truth)
            if truth is not None and serving and role == CaseRole.TRIGGER:
                open_cases.setdefault((model, version), []).append((acquired_at, study))

    def rows(self, placed: Mapping[CaseKey, str], now: str) -> list[Values]:
        """As they are stored."""
        return [
            (*score, role, *WAITING, None)
            if truth is None
            else (*score, role, BATCHED, truth, batch_id, now)
            if (batch_id := placed.get(score[:3]))
            else (*score, role, JOINED, truth, None, now)
            for score, role, truth in zip(self.scores, self._roles, self._truths, strict=True)
        ]


JOINED: Final = step(CaseState.WAITING, CaseEvent.LABELLED)[0]
BATCHED: Final = step(JOINED, CaseEvent.CLOSED)[0]


def causes_of(good: Reading, batch: Polled, studies: Collection[str], new: New, said: Changes, now: str) -> Causes:
    """Repetitions change nothing and are no cause: what they caused was announced under their name before."""
    scored = {(*score[:3], score[REVISION]) for score in chain(new.scores, new.higher) if score[0] in studies}
    labelled = {item for item in said.rows if item[0] in studies}
    found: dict[str, int] = {case[0]: place for place, case in good.scored if case in scored}
    for place, item in good.said:
        study = item[0]
        if study in studies and item._replace(at=min(item.at, now)) in labelled:
            found[study] = max(place, found.get(study, place))
    return {study: (place, batch[place]) for study, place in found.items()}


Acquired = tuple[str, str]
"""(acquired_at, study)"""


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
    def changed_studies(self) -> set[str]:
        """Studies of the truths that were known before."""
        return {change.case.study_key for found in self.changes.values() for change in found}.union(*self.reopened.values())

    @property
    def versions(self) -> list[Version]:
        """Versions that may have a full batch now, in the order of locking."""
        return sorted(self.fresh)

    def placed(self, batches: Mapping[CaseKey, str]) -> dict[CaseKey, repository.Truth]:
        """All changes of stored cases, with the batches that close now."""
        return {
            key: (BATCHED, truth, batches[key]) if key in batches else (state, truth, None)
            for key, (state, truth) in self.truths.items()
        }


def settle_all(cases: Iterable[KnownCase], truths: Mapping[tuple[str, str], str | None]) -> Joined:
    """Settle cases by the truths of their studies and tasks; a truth is None where all labels were withdrawn."""
    joined = Joined()
    for case in cases:
        study, model, version, task, stored, role, serving, known, batch_id, _, acquired_at = case
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
    def studies(self) -> set[str]:
        """Of all its cases."""
        return {*self.fresh, *self.waiting}

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


def divide(version: Version, fresh: Sequence[Acquired], waiting: Sequence[Acquired], size: int, number: int) -> list[Full]:
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
            close(tx, Full(version, repository.next_number(tx.session, version), (), waiting), "age", None)


def close(tx: Transaction, full: Full, closed_by: str, cause: Received[Any] | None) -> None:
    """Store the batch with the cases that waited for it, and announce it. Fresh cases have it from `set_truths`.

    The trace of `cause` goes on, the last event that belongs to one of its cases.
    """
    batch = Batch(
        batch_id=full.batch_id,
        model=full.version[0],
        version=full.version[1],
        number=full.number,
        cases=len(full.studies),
        closed_by=closed_by,
        closed_at=tx.clock.now(),
    )
    state, _ = step(CaseState.JOINED, CaseEvent.CLOSED)
    repository.store_batch(tx.session, batch)
    repository.enter_batch(tx.session, batch, full.waiting, state)
    _announce(tx, batch, corrected=False, event_id=batch.batch_id, cause=cause)


def _announce(tx: Transaction, batch: Batch, *, corrected: bool, event_id: str, cause: Received[Event] | None) -> None:
    fields = batch.model_dump(include={"batch_id", "model", "version", "cases", "closed_by"})
    tx.emit(BATCH_READY, BatchReady(**fields, corrected=corrected), event_id=event_id, cause=cause)


def _last(studies: Iterable[str], causes: Causes) -> Received[Event] | None:
    """The last event of this transaction that belongs to one of the studies: its trace goes on."""
    found = [causes[study] for study in studies if study in causes]
    return max(found)[1] if found else None
