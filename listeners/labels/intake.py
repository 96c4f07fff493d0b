"""From what a person or a system says to a label event: one validation for every way in.

A label names its study by StudyInstanceUID, by accession number or by the study's pseudonym. Identifiers become
pseudonyms here and appear in no reason, event or log (promise 5).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from sqlmodel import Session, col, select

from listeners.labels.status import is_withdrawn
from schemas.events import Label
from schemas.tables import GroundTruth, Outbox, Study
from schemas.topics import LABEL
from services.ground_truth.domain import label_faults, time_fault
from services.ground_truth.repository import classes_by_task, known_tasks
from services.runtime.errors import InvalidInput
from services.runtime.service import Context

ALIASES: Final[dict[str, tuple[str, ...]]] = {
    "study": ("study", "studyinstanceuid", "studyuid"),
    "study_key": ("studykey",),
    "accession": ("accession", "accessionnumber"),
    "task": ("task",),
    "label": ("label", "value", "class", "truth"),
    "source": ("source",),
    "labelled_at": ("labelledat", "labeledat", "timestamp"),
    "status": ("status", "resultstatus", "obx11", "withdrawn"),
}
"""Field to its accepted names, compared without case, spaces, hyphens and underscores."""
T = TypeVar("T")
REFERENCES: Final = ("study_key", "study", "accession")
_UID: Final = re.compile(r"^(0|[1-9]\d*)(\.(0|[1-9]\d*))+$")
_PSEUDONYM: Final = re.compile(r"^[0-9a-f]{32}$")


@dataclass(frozen=True)
class Fault:
    """A label that was refused: its place (row of the file, position in the list) and why."""

    row: int
    reason: str


@dataclass(frozen=True)
class RawLabel:
    """A label as it came: canonical field names, text values without surrounding blanks, empty ones left out."""

    row: int
    fields: Mapping[str, str]


@dataclass(frozen=True)
class Outcome:
    """What became of some labels: how many are new, how many were known already, which were refused, and what is odd."""

    accepted: int
    known: int
    faults: tuple[Fault, ...]
    warnings: tuple[str, ...] = ()


def canonical(name: str) -> str | None:
    """The field that a column or key means; None when it is none of ours."""
    plain = re.sub(r"[\s_\-]", "", name).lower()
    return next((field for field, names in ALIASES.items() if plain in names), None)


def take_in(context: Context, labels: Sequence[RawLabel], source: str, default_time: datetime) -> Outcome:
    """Validate labels and put the good ones into the outbox, all in one transaction.

    `source` and `default_time` stand in for fields that a label lacks. The event id follows from the content, so the same
    label handed in again changes nothing. A label goes on in its study's trace, so that one trace runs from C-STORE to report.
    A label whose status says so withdraws what its source has said (`listeners.labels.status`).
    """
    faults: list[Fault] = []
    events: dict[str, Label] = {}
    with context.database.transaction() as tx:
        resolve = _Resolver(context, tx.session, labels, source, default_time)
        for raw in labels:
            try:
                label = resolve.label(raw.fields)
            except InvalidInput as error:
                faults.append(Fault(raw.row, error.reason))
            else:
                events[event_id(label)] = label
        fresh = events.keys() - _already_there(tx.session, events.keys())
        traces = _traces(tx.session, {events[identity].study_key for identity in fresh})
        for identity in sorted(fresh):
            tx.emit(LABEL, events[identity], event_id=identity, cause=traces.get(events[identity].study_key))
        warnings = _unknown_tasks(tx.session, {label.task for label in events.values()} - resolve.classes.keys())
        warnings += _nothing_said(tx.session, [label for label in events.values() if label.withdrawn])
    return Outcome(len(fresh), len(labels) - len(faults) - len(fresh), tuple(faults), warnings)


def event_id(label: Label) -> str:
    """Natural id: the same for the same statement by the same source at the same time."""
    said = (label.study_key, label.task, label.value or "", label.source, label.labelled_at.astimezone(UTC).isoformat())
    return hashlib.sha256("\x1f".join(said).encode()).hexdigest()[:48]


def _unknown_tasks(session: Session, tasks: Collection[str]) -> tuple[str, ...]:
    """One sentence per task that no model knows: most likely it is misspelt."""
    known = known_tasks(session) if tasks else ()
    listed = f"known tasks are {', '.join(known)}" if known else "no model is registered yet"
    return tuple(f"no model knows task {task!r}: its labels are kept and count for nothing ({listed})" for task in sorted(tasks))


def _nothing_said(session: Session, withdrawals: Sequence[Label]) -> tuple[str, ...]:
    """One sentence per source that withdraws what it has not said: most likely another source said it."""
    studies = sorted({label.study_key for label in withdrawals})
    query = select(GroundTruth.study_key, GroundTruth.task, GroundTruth.source).where(col(GroundTruth.study_key).in_(studies))
    said = set(session.exec(query)) if studies else set()
    missing = Counter(label.source for label in withdrawals if (label.study_key, label.task, label.source) not in said)
    return tuple(
        f"{many} withdrawals of source {source!r} take back nothing that has come yet (a source withdraws its own labels only)"
        for source, many in sorted(missing.items())
    )


def _already_there(session: Session, identities: Any) -> set[str]:
    return set(session.exec(select(Outbox.event_id).where(col(Outbox.event_id).in_(sorted(identities)))))


def _traces(session: Session, studies: Collection[str]) -> dict[str, str]:
    """Study to the traceparent of its last C-STORE; nothing for a study that has not come yet or came untraced."""
    query = select(Study.study_key, Study.traceparent).where(col(Study.study_key).in_(sorted(studies)), Study.traceparent != "")
    return {study: traceparent for study, traceparent in session.exec(query)}  # noqa: C416 - rows are no pairs to mypy


class _Resolver:
    """Turns raw labels into events, with the look-ups of the whole chunk done at once."""

    def __init__(self, context: Context, session: Session, labels: Sequence[RawLabel], source: str, at: datetime) -> None:
        self.context, self.source, self.at, self.now = context, source, at, context.clock.now()
        self.classes = classes_by_task(session, {raw.fields.get("task", "") for raw in labels})
        keys = {context.pseudonyms.accession(raw.fields["accession"]) for raw in labels if raw.fields.get("accession")}
        self.studies: dict[str, list[str]] = {}
        query = select(Study.accession_key, Study.study_key).where(col(Study.accession_key).in_(sorted(keys)))
        for accession, study in session.exec(query):
            self.studies.setdefault(accession or "", []).append(study)

    def label(self, fields: Mapping[str, str]) -> Label:
        """The event of a raw label; InvalidInput names everything that is wrong with it at once."""
        task, value, source = fields.get("task", ""), fields.get("label", ""), fields.get("source") or self.source
        unread: list[str] = []
        withdrawn = bool(_tried(unread, lambda: is_withdrawn(fields.get("status", "final"))))
        missing = [name for name in ("task", "label") if not fields.get(name) and not (withdrawn and name == "label")]
        words = label_faults(task, value, source, self.classes.get(task, ()), withdrawn=withdrawn)
        faults = [*unread, *([f"{' and '.join(missing)} missing"] if missing else words)]
        study = _tried(faults, lambda: self._study(fields))
        at = _tried(faults, lambda: _moment(fields["labelled_at"]) if fields.get("labelled_at") else self.at)
        faults += [fault] if at and (fault := time_fault(at, self.now)) else []
        if faults or study is None or at is None:
            raise InvalidInput("; ".join(faults))
        said = None if withdrawn else value
        return Label(study_key=study, task=task, value=said, source=source, labelled_at=at, withdrawn=withdrawn)

    def _study(self, fields: Mapping[str, str]) -> str:
        named = [name for name in REFERENCES if fields.get(name)]
        if not named:
            raise InvalidInput("no study: give StudyInstanceUID, accession number or study_key")
        keys = {getattr(self, f"_by_{name}")(fields[name]) for name in named}
        if len(keys) > 1:
            raise InvalidInput(f"{' and '.join(named)} name different studies")
        return str(keys.pop())

    def _by_study_key(self, key: str) -> str:
        if not _PSEUDONYM.match(key):
            raise InvalidInput("study_key is not a pseudonym (32 hexadecimal digits)")
        return key

    def _by_study(self, uid: str) -> str:
        """A UID as PS3.5 section 9.1 has it."""
        if len(uid) > 64 or not _UID.match(uid):
            raise InvalidInput("study is not a DICOM UID")
        return self.context.pseudonyms.study(uid)

    def _by_accession(self, accession: str) -> str:
        found = self.studies.get(self.context.pseudonyms.accession(accession), [])
        if not found:
            raise InvalidInput("no study with this accession number has been received")
        if len(found) > 1:
            raise InvalidInput(f"{len(found)} studies have this accession number: give the StudyInstanceUID")
        return found[0]


def _tried(faults: list[str], read: Callable[[], T]) -> T | None:
    """What `read` gives, or None with its fault noted."""
    try:
        return read()
    except InvalidInput as error:
        faults.append(error.reason)
        return None


def _moment(text: str) -> datetime:
    """ISO 8601; a time without offset is UTC."""
    try:
        parsed = datetime.fromisoformat(text)
        return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidInput("labelled_at is not an ISO 8601 time such as 2026-03-02T08:00:00+01:00") from None
