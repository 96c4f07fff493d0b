"""The verdict on a version's stream although labels come late: two streams are judged, and what waits is said."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from services.evaluation.cases import LabelledRow
from services.evaluation.detector import Thresholds
from services.evaluation.dispersion import UNKNOWN, Variation
from services.evaluation.lateness import Ordered, Pending, order
from services.evaluation.stream import StreamCase, count, one_per_patient
from services.evaluation.verdict import Assessment, assess

COMPLETE_WEEKS: Final = "complete weeks"
PENDING_AS_RIGHT: Final = "all weeks, pending counted as right"


@dataclass(frozen=True)
class Question:
    """What a stream is judged with. `now` is when it is looked at; predictions older than `wait_days` are not waited for."""

    classes: tuple[str, ...]
    baseline: Sequence[LabelledRow]
    thresholds: Thresholds
    size: int
    seed: int
    now: datetime
    wait_days: float
    variation: Variation = UNKNOWN
    """What earlier versions of the model showed of the variation from block to block."""


@dataclass(frozen=True)
class Judged:
    """A verdict, the labelled cases that it is about with `batch` as their block, and what their order leaves out."""

    assessment: Assessment
    cases: tuple[StreamCase, ...]
    ordered: Ordered
    basis: str


def judge_stream(question: Question, independent: Sequence[StreamCase], pending: Sequence[Pending]) -> Judged:
    """Judge the weeks that are complete; an alarm of all weeks with pending predictions counted as right stands too.

    Cases whose truth is no class of the model say nothing about a recall and fill no block.
    """
    known_classes = [case for case in independent if case.truth in question.classes]
    ordered = order(known_classes, pending, question.size, question.now, question.wait_days)
    labelled = {(case.patient_key, case.acquired_at) for case in known_classes}
    verdict, stream, basis = _assess(question, ordered.settled), ordered.settled, COMPLETE_WEEKS
    if verdict.alarm is None and ordered.late:
        assumed = _assess(question, ordered.assumed)
        if assumed.alarm is not None:
            verdict, stream, basis = replace(assumed, variation=verdict.variation), ordered.assumed, PENDING_AS_RIGHT
    return Judged(verdict, tuple(case for case in stream if (case.patient_key, case.acquired_at) in labelled), ordered, basis)


def _assess(question: Question, stream: Sequence[StreamCase]) -> Assessment:
    blocks = max((case.batch for case in stream), default=1)
    counts = count(one_per_patient(question.baseline), stream, question.classes, blocks)
    return assess(counts, question.classes, question.thresholds, question.size, question.seed, question.variation)


def waiting(judged: Judged) -> dict[str, float | str | None]:
    """What the evidence says about labels that are awaited; empty where every week is complete."""
    ordered = judged.ordered
    if not ordered.late:
        return {}
    return {
        "judged_on": judged.basis,
        "weeks_waiting_for_labels": len(ordered.weeks),
        "first_week_waiting": ordered.weeks[0].isoformat(),
        "last_week_waiting": ordered.weeks[-1].isoformat(),
        "labels_awaited": ordered.labels,
        "cases_held_back": ordered.held_back,
    }
