"""The ladder of remedies as the agents use it: which rungs can be carried out, and which one to try next (DESIGN §6)."""

from collections.abc import Collection
from typing import Final

from schemas.vocabulary import Diagnosis, Remedy

EXECUTABLE: Final = (Remedy.HEAD_ONLY, Remedy.PARTIAL, Remedy.FULL)
"""Rungs that the remediation service can carry out."""

FEW: Final = 1.25
ADVICE: Final[dict[Diagnosis, Remedy]] = {
    Diagnosis.PIPELINE: Remedy.FIX_FEED,
    Diagnosis.PREVALENCE: Remedy.RETHRESHOLD,
}
"""Diagnoses that new weights would not cure: the report tells a person what would."""

WORDS: Final[dict[Remedy, str]] = {
    Remedy.FIX_FEED: "fix the image feed",
    Remedy.RETHRESHOLD: "set the decision thresholds anew, or recalibrate, for the new mix of patients",
    Remedy.RECALIBRATE: "recalibrate the probabilities",
    Remedy.HEAD_ONLY: "fine-tune the last layer only",
    Remedy.PARTIAL: "fine-tune the rear part of the network",
    Remedy.FULL: "fine-tune the whole network",
}


def next_rung(tune_cases: int, min_tune_cases: int, rejected: int, tried: Collection[Remedy]) -> Remedy | None:
    """The rung to try next, None when the ladder is used up and only more labels help.

    `rejected` counts challengers of the present champion that the gate turned down; `tried` are its earlier remedies.
    Close to the least number of tune cases (`FEW` times it) only the last layer is trained: fewer weights, less to overfit.
    """
    if rejected and Remedy.FULL in tried:
        return None
    if rejected:
        return Remedy.FULL
    return Remedy.HEAD_ONLY if tune_cases < FEW * min_tune_cases else Remedy.PARTIAL
