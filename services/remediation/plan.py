"""Which cases a repair learns from and which judge it. Pure; trigger, tune, gate and baseline never share a patient."""

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from typing import Any


class SharedPatient(Exception):  # noqa: N818 - named for what is wrong, not for the mechanism
    """Two of the sets trigger, tune, gate and baseline share a patient: a bug or a tampered table, never to be worked around."""


@dataclass(frozen=True, slots=True)
class LabelledCase:
    """A scored study of the champion with its truth. Keys are pseudonyms."""

    study_key: str
    patient_key: str
    truth: str
    acquired_at: datetime


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run uses; frozen into the job at its first attempt, so that a resumed run has the same data."""

    champion: int
    tune: tuple[LabelledCase, ...]
    gate: tuple[LabelledCase, ...]
    since: datetime | None
    foreign: int = 0
    """Cases left out because their label is no class of the model."""
    recent: tuple[LabelledCase, ...] = ()
    """Cases of the patients who may teach, with or without a label, for remedies that learn from images alone."""

    @property
    def digest(self) -> str:
        """SHA-256 over all cases and truths."""
        return hashlib.sha256(json.dumps(to_json(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class TooFew:
    """There is not enough to learn from or to judge with: how many cases there are and how many it takes."""

    tune: int
    gate: int
    tune_needed: int
    gate_needed: int
    foreign: int = 0

    @property
    def missing(self) -> dict[str, int]:
        """Further labelled cases needed of either role."""
        return {"tune": max(0, self.tune_needed - self.tune), "gate": max(0, self.gate_needed - self.gate)}

    @property
    def reason(self) -> str:
        """One sentence for a person."""
        return (
            f"There are {self.tune} labelled cases to learn from and {self.gate} to judge with since the decline began; "
            f"it takes {self.tune_needed} and {self.gate_needed}."
            + (f" Labels that are no class of the model and were left out: {self.foreign}." if self.foreign else "")
        )


def choose(
    champion: int,
    tune: Iterable[LabelledCase],
    gate: Iterable[LabelledCase],
    *,
    classes: Collection[str],
    taken: Collection[str],
    since: datetime | None,
    min_tune: int,
    min_gate: int,
    most: int,
) -> Plan | TooFew:
    """The newest `most` cases of either role from `since` on, without the `taken` patients (development data, older gates).

    A label that is none of the model's `classes` (the classes of a task are those of all its models) teaches and judges
    nothing here: such cases are left out and counted.
    """
    eligible = [[case for case in cases if _fits(case, taken, since)] for cases in (tune, gate)]
    foreign = sum(case.truth not in classes for cases in eligible for case in cases)
    chosen_tune, chosen_gate = (_newest([case for case in cases if case.truth in classes], most) for cases in eligible)
    if len(chosen_tune) < min_tune or len(chosen_gate) < min_gate:
        return TooFew(len(chosen_tune), len(chosen_gate), min_tune, min_gate, foreign)
    return Plan(champion, chosen_tune, chosen_gate, since, foreign)


def with_recent(plan: Plan, recent: Iterable[LabelledCase], taken: Collection[str], most: int) -> Plan:
    """The plan with the newest `most` cases whose labels are not used, by the same rules."""
    return replace(plan, recent=_newest([case for case in recent if _fits(case, taken, plan.since)], most))


def _fits(case: LabelledCase, taken: Collection[str], since: datetime | None) -> bool:
    return case.patient_key not in taken and (since is None or case.acquired_at >= since)


def _newest(cases: Iterable[LabelledCase], most: int) -> tuple[LabelledCase, ...]:
    newest = sorted(cases, key=lambda case: (case.acquired_at, case.study_key), reverse=True)[:most]
    return tuple(sorted(newest, key=lambda case: case.study_key))


def looks(gate: Iterable[str], earlier: Iterable[Collection[str]]) -> int:
    """How many earlier gates are tied to this one by shared patients, directly or through one another.

    Following the ties makes the levels alpha / 2^(looks + 1) sum to at most alpha for each gate of wholly fresh patients,
    whatever gates are joined by later ones.
    """
    tied, rest = set(gate), [set(each) for each in earlier]
    number = len(rest)
    while joined := [each for each in rest if each & tied]:
        rest = [each for each in rest if not each & tied]
        tied = tied.union(*joined)
    return number - len(rest)


def require_disjoint(groups: Mapping[str, Collection[str]]) -> None:
    """Raise SharedPatient when two of the named groups of patients overlap; the message names groups and number, no patient."""
    for (first, patients), (second, others) in combinations(groups.items(), 2):
        shared = set(patients) & set(others)
        if shared:
            raise SharedPatient(f"{first} and {second} share {len(shared)} patient(s)")


def start_of_decline(evidence: Mapping[str, Any]) -> datetime | None:
    """The estimated start in an evaluation's evidence (`since`, an ISO date or time), None where it names none."""
    value = evidence.get("since")
    if not isinstance(value, str) or not value:
        return None
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def labels_for(missing: int, share: float) -> int:
    """Labelled studies that must arrive until `missing` of them belong to patients of a role with this share."""
    return math.ceil(missing / share) if missing > 0 and share > 0 else max(missing, 0)


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as a JSON document."""
    cases = {name: [asdict(case) | {"acquired_at": case.acquired_at.isoformat()} for case in getattr(plan, name)] for name in SETS}
    since = plan.since.isoformat() if plan.since else None
    return cases | {"champion": plan.champion, "since": since, "foreign": plan.foreign}


def from_json(document: Mapping[str, Any]) -> Plan:
    """The plan that `to_json` wrote."""
    since = datetime.fromisoformat(document["since"]) if document["since"] else None
    foreign = int(document.get("foreign", 0))
    tune, gate, recent = (_cases(document.get(name, ())) for name in SETS)
    return Plan(int(document["champion"]), tune, gate, since, foreign, recent)


def _cases(rows: Sequence[Mapping[str, Any]]) -> tuple[LabelledCase, ...]:
    return tuple(
        LabelledCase(row["study_key"], row["patient_key"], row["truth"], datetime.fromisoformat(row["acquired_at"])) for row in rows
    )


SETS = ("tune", "gate", "recent")
