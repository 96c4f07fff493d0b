"""The ladder of remedies as the agents use it: which rungs can be carried out, and which one to try next (docs/agents.md)."""

import math
from collections.abc import Collection
from typing import Final

from schemas.vocabulary import Diagnosis, Remedy

EXECUTABLE: Final = (Remedy.HEAD_ONLY, Remedy.PARTIAL, Remedy.FULL)
"""Rungs that the remediation service can carry out."""

FEW: Final = 1.25
GROWN: Final = 1.5
"""With this many times the labelled cases that a repair was turned down with, its verdict is out of date: it may be tried again."""
ADVICE: Final[dict[Diagnosis, Remedy]] = {
    Diagnosis.PIPELINE: Remedy.FIX_FEED,
    Diagnosis.PREVALENCE: Remedy.RETHRESHOLD,
}
"""Diagnoses that new weights would not cure: the report tells a person what would."""


def cases_for_another_round(used: int, present: int) -> int:
    """Labelled cases still missing before the verdict on a repair with `used` cases is out of date."""
    return max(0, math.ceil(GROWN * used) - present)


def above(remedy: Remedy | None, other: Remedy | None) -> bool:
    """Whether a remedy stands higher on the ladder than another one."""
    return remedy in EXECUTABLE and other in EXECUTABLE and EXECUTABLE.index(remedy) > EXECUTABLE.index(other)


def next_rung(tune_cases: int, min_tune_cases: int, rejected: Collection[Remedy]) -> Remedy | None:
    """The rung to try next, None when the ladder is used up and only more labels or a person help.

    `rejected` are the remedies of this decline that the gate turned down; the next is the one above the highest of them.
    Close to the least number of tune cases (`FEW` times it) only the last layer is trained: fewer weights, less to overfit.
    """
    climbed = [EXECUTABLE.index(remedy) for remedy in rejected if remedy in EXECUTABLE]
    if climbed:
        return EXECUTABLE[max(climbed) + 1] if max(climbed) + 1 < len(EXECUTABLE) else None
    return Remedy.HEAD_ONLY if tune_cases < FEW * min_tune_cases else Remedy.PARTIAL
