"""The join without bus and database: which score and which label count, who decides the truth, what a patient is for."""

import hashlib
import re
from collections.abc import Sequence
from datetime import MAXYEAR, MINYEAR, UTC, datetime, timedelta
from typing import Final, NamedTuple

from schemas.events import Label, Prediction
from schemas.vocabulary import CaseRole
from services.runtime.errors import InvalidInput

CLOCK_SKEW: Final = timedelta(days=1)
"""A label from further in the future is refused: nobody knows when it was given. A nearer one counts from its receipt."""
MAX_NAME: Final = 64
NAME: Final = re.compile(r"[\w.:-]{1,64}")
NAME_RULE: Final = "letters, digits and _ . : -, at most 64 of them, without blanks"
CLASS_NAME: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f^]{1,64}")
CLASS_RULE: Final = "a class name of 1 to 64 characters without ^ and control characters"
"""Labels go onto the bus: there must be no room for a report's sentence or a person's name (`schemas.events.Label`)."""
MAX_INTEGER: Final = 2**31 - 1

CaseKey = tuple[str, str, int]
"""(study_key, model, version)"""


class StoredLabel(NamedTuple):
    """The newest label of one source, without a value where the source has withdrawn it.

    `labelled_at` is a time, or the text of one as SQLite stores it, which sorts alike.
    """

    value: str | None
    source: str
    labelled_at: datetime | str


def role_of(patient_key: str, tune_share: float, gate_share: float) -> CaseRole:
    """What this patient's cases are for: a fixed function of the pseudonym, so all studies of a patient share one role.

    SHA-256 of the pseudonym gives a uniform number in [0, 1); the first `gate_share` of that range judges repairs, the
    next `tune_share` trains them, the rest raises the alarm (promise 7).
    """
    digest = hashlib.sha256(f"role\x1e{patient_key}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < gate_share:
        return CaseRole.GATE
    return CaseRole.TUNE if place < gate_share + tune_share else CaseRole.TRIGGER


def decide(labels: Sequence[StoredLabel]) -> str | None:
    """The truth among the newest labels of all sources: the most recently labelled one, at the same instant the last by source.

    A withdrawal says nothing, so the other sources decide; None where all have withdrawn.
    """
    if len(labels) == 1:
        return labels[0].value
    said = [label for label in labels if label.value is not None]
    return max(said, key=lambda label: (label.labelled_at, label.source)).value if said else None


def check_words(prediction: Prediction) -> None:
    """Raise InvalidInput for names and texts that cannot be stored, and for a predicted class without a probability."""
    facets = prediction.facets
    names = (prediction.model, prediction.task, prediction.predicted, *prediction.probabilities, *facets)
    if "" in names or max(map(len, names)) > MAX_NAME:
        raise InvalidInput(f"a name is empty or longer than {MAX_NAME} characters")
    if "\0" in "".join((*names, *facets.values(), *prediction.findings)):
        raise InvalidInput("a text holds a NUL character")  # PostgreSQL stores none
    if prediction.predicted not in prediction.probabilities:
        raise InvalidInput("predicted names a class that has no probability")


def check_numbers(prediction: Prediction) -> None:
    """Raise InvalidInput for times without a UTC equivalent and for numbers that are too large for their columns."""
    acquired_at, scored_at = prediction.acquired_at, prediction.scored_at
    if not (MINYEAR < acquired_at.year < MAXYEAR and MINYEAR < scored_at.year < MAXYEAR):
        _check_time("acquired_at", acquired_at)
        _check_time("scored_at", scored_at)
    if prediction.version > MAX_INTEGER or prediction.revision > MAX_INTEGER:
        raise InvalidInput("version or revision is not a 32-bit integer")


def check_label(label: Label, known_classes: Sequence[str], now: datetime) -> None:
    """Raise InvalidInput with all faults of a label nobody can use.

    `known_classes` is empty when no model knows the task: all are kept.
    """
    faults = label_faults(label.task, label.value or "", label.source, known_classes, withdrawn=label.withdrawn)
    faults += [fault] if (fault := time_fault(label.labelled_at, now)) else []
    if faults:
        raise InvalidInput("; ".join(faults))


def label_faults(task: str, value: str, source: str, known_classes: Sequence[str], *, withdrawn: bool = False) -> list[str]:
    """What is wrong with a label's words, each with what is allowed; never quotes a value that is out of shape.

    What a withdrawal takes back is of no matter: it may be the very class that should never have been sent.
    """
    faults = [f"{name} must be {NAME_RULE}" for name, text in (("task", task), ("source", source)) if not NAME.fullmatch(text)]
    if withdrawn:
        return faults
    if not CLASS_NAME.fullmatch(value):
        return [*faults, f"the label must be {CLASS_RULE}"]
    if known_classes and value not in known_classes:
        faults.append(f"the label is no class of task {task!r}; its classes are {', '.join(known_classes)}")
    return faults


def time_fault(labelled_at: datetime, now: datetime) -> str:
    """What is wrong with a label's time; empty for nothing."""
    if not MINYEAR < labelled_at.year < MAXYEAR and utc_fault(labelled_at):
        return "labelled_at cannot be expressed in UTC"
    return "labelled_at lies in the future" if labelled_at > now + CLOCK_SKEW else ""


def _check_time(name: str, value: datetime) -> None:
    """Times within a day of year 1 or 9999 have no UTC equivalent."""
    if not MINYEAR < value.year < MAXYEAR and utc_fault(value):
        raise InvalidInput(f"{name} cannot be expressed in UTC")


def utc_fault(value: datetime) -> bool:
    """Whether a time cannot be expressed in UTC."""
    try:
        value.astimezone(UTC)
    except (OverflowError, ValueError):
        return True
    return False
