"""The ladder of remedies as the agents use it: which rungs can be carried out, and which one to try next (docs/agents.md)."""

import math
from collections.abc import Collection
from typing import Final

from schemas.vocabulary import Diagnosis, Remedy

EXECUTABLE: Final = (
    Remedy.RETHRESHOLD,
    Remedy.RECALIBRATE,
    Remedy.HARMONISE,
    Remedy.ADAPT_STATISTICS,
    Remedy.HEAD_ONLY,
    Remedy.PARTIAL,
    Remedy.PARAMETER_EFFICIENT,
    Remedy.GRADUAL,
    Remedy.FULL,
)
"""Rungs that the remediation service can carry out, cheapest first."""

WEIGHTS: Final = (Remedy.HEAD_ONLY, Remedy.PARTIAL, Remedy.FULL)
CLIMB: Final[dict[Diagnosis, tuple[Remedy, ...]]] = {
    Diagnosis.PREVALENCE: (Remedy.RETHRESHOLD, Remedy.RECALIBRATE),
    Diagnosis.COVARIATE: (Remedy.HARMONISE, Remedy.ADAPT_STATISTICS, *WEIGHTS),
    Diagnosis.CONCEPT: WEIGHTS,
    Diagnosis.UNKNOWN: WEIGHTS,
    Diagnosis.NONE: WEIGHTS,
    Diagnosis.PIPELINE: (),
}
"""What the agents order by themselves for a diagnosis, one after the other as the gate turns them down.

Another mix of patients needs no new weights. Images of another scanner may need none either: to read them in
a way of their own costs no old class anything, statistics for all images come next. Gradual
unfreezing is `full` in another order of layers, and small added matrices cost as much as `full` (decision 0024); people may
order both, the ladder does not spend a judgement of the gate on them.
"""

FEW: Final = 1.25
PLENTY: Final = 4
"""From this many times the least number of tune cases on, everything is trained where a part would be: that costs little more."""
GROWN: Final = 1.5
"""With this many times the labelled cases that a repair was turned down with, its verdict is out of date: it may be tried again."""
ADVICE: Final[dict[Diagnosis, Remedy]] = {Diagnosis.PIPELINE: Remedy.FIX_FEED}
"""Diagnoses that no change of the model would cure: the report tells a person what would."""


def cases_for_another_round(used: int, present: int) -> int:
    """Labelled cases still missing before the verdict on a repair with `used` cases is out of date."""
    return max(0, math.ceil(GROWN * used) - present)


def above(remedy: Remedy | None, other: Remedy | None) -> bool:
    """Whether a remedy stands higher on the ladder than another one."""
    return remedy in EXECUTABLE and other in EXECUTABLE and EXECUTABLE.index(remedy) > EXECUTABLE.index(other)


def next_rung(
    tune_cases: int,
    min_tune_cases: int,
    rejected: Collection[Remedy],
    diagnosis: Diagnosis = Diagnosis.UNKNOWN,
    allowed: Collection[Remedy] = EXECUTABLE,
) -> Remedy | None:
    """The rung to try next, None when the ladder is used up and only more labels or a person help.

    `rejected` are the remedies of this decline that the gate turned down; the next is the first of the diagnosis above the
    highest of them. Close to the least number of tune cases (`FEW` times it) only the last layer is trained before more is:
    fewer weights, less to overfit. Far from it (`PLENTY`) the rear part is not trained before everything is.
    `allowed` are the remedies that the model's change control plan covers.
    """
    highest = max((EXECUTABLE.index(remedy) for remedy in rejected if remedy in EXECUTABLE), default=-1)
    left = [rung for rung in CLIMB[diagnosis] if EXECUTABLE.index(rung) > highest and rung in allowed]
    if tune_cases >= FEW * min_tune_cases and Remedy.HEAD_ONLY in left[:-1]:
        left.remove(Remedy.HEAD_ONLY)
    if tune_cases >= PLENTY * min_tune_cases and Remedy.PARTIAL in left[:-1]:
        left.remove(Remedy.PARTIAL)
    return left[0] if left else None
