"""What a rule would have said, batch by batch, of the cases that are stored. Pure; nothing is written or ordered."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from schemas.vocabulary import Status
from services.evaluation.cases import Cases, LabelledRow
from services.evaluation.cusum import chart
from services.evaluation.detector import Counts, Thresholds
from services.evaluation.dispersion import UNKNOWN, Variation
from services.evaluation.judgement import Question, judge_stream
from services.evaluation.lateness import Pending
from services.evaluation.reclaim_rule import LIMIT, apply_rule
from services.evaluation.stream import StreamCase, count, first_acquired, one_per_patient
from services.evaluation.verdict import Assessment


class Rule(StrEnum):
    """Rules that can be replayed."""

    PAIRED = "paired"
    RECLAIM = "reclaim"
    CUSUM = "cusum"


@dataclass(frozen=True)
class Period:
    """Which cases count: acquired from `since` to before `until`, with these facets. None and empty: all."""

    since: datetime | None = None
    until: datetime | None = None
    facets: Mapping[str, str] | None = None

    def holds(self, case: StreamCase) -> bool:
        """Whether a case is one of them."""
        return self.covers(case.acquired_at) and all(case.facets.get(name) == value for name, value in (self.facets or {}).items())

    def covers(self, time: datetime) -> bool:
        """Whether a case acquired then is one of them, its facets aside."""
        return not ((self.since is not None and time < self.since) or (self.until is not None and time >= self.until))


@dataclass(frozen=True)
class Record:
    """What is stored of one version. `stream` holds the cases of the period in order, without the patients it was trained on.

    `closed` is when each batch was closed, `pending` the predictions of the period that still have no label; the detector waits
    `wait_days` for a label.
    """

    classes: tuple[str, ...]
    baseline: Sequence[LabelledRow]
    stream: Sequence[StreamCase]
    batch_size: int
    closed: Mapping[int, datetime]
    pending: Sequence[Pending]
    wait_days: float
    seed: int = 0
    variation: Variation = UNKNOWN

    @property
    def numbers(self) -> list[int]:
        """Batches that have cases, in order."""
        return sorted({case.batch for case in self.stream})


@dataclass(frozen=True)
class Step:
    """A rule after one batch. `limit` is where it alarms; `what` names the metric, or the detector's verdict."""

    batch: int
    first: datetime
    last: datetime
    cases: int
    statistic: float
    limit: float
    alarmed: bool
    what: str


def replay(record: Record, rule: Rule, *, threshold: float | None, thresholds: Thresholds, run_length: float) -> list[Step]:
    """The rule after each batch, from what was known then. `threshold` replaces the rule's own limit.

    It is a relative fall (0.05) for the 5 % rule, the limit of the chart for CUSUM, and the log evidence of both statistics for
    the detector, which otherwise takes `thresholds`; `run_length` chooses the chart's limit.
    """
    run: dict[Rule, Callable[[], list[tuple[float, float, bool, str]]]] = {
        Rule.PAIRED: lambda: _paired(record, Thresholds(threshold, threshold, "given") if threshold else thresholds),
        Rule.RECLAIM: lambda: _reclaim(record, -threshold if threshold else LIMIT),
        Rule.CUSUM: lambda: _cusum(record, threshold, run_length),
    }
    return [_step(record, number, *said) for number, said in zip(record.numbers, run[rule](), strict=True)]


def _step(record: Record, number: int, statistic: float, limit: float, alarmed: bool, what: str) -> Step:
    own = [case for case in record.stream if case.batch == number]
    times = [case.acquired_at for case in own]
    return Step(number, min(times), max(times), len(own), statistic, limit, alarmed, what)


def counts_of(record: Record) -> Counts:
    """One case per patient, its batches numbered anew from 1 without gaps."""
    place = {number: position for position, number in enumerate(record.numbers, 1)}
    cases = [case._replace(batch=place[case.batch]) for case in independent_of(record)]
    return count(one_per_patient(record.baseline), cases, record.classes, len(place))


def independent_of(record: Record) -> list[StreamCase]:
    """One case per patient, none of a patient of the test set."""
    return first_acquired(record.stream, {row.patient_key for row in record.baseline})


def _paired(record: Record, thresholds: Thresholds) -> list[tuple[float, float, bool, str]]:
    """After each batch, what had a label is known and what had been acquired without one is awaited."""
    independent = independent_of(record)
    found = []
    for number in record.numbers:
        now = record.closed[number]
        question = _question(record, thresholds, now)
        later = [Pending(case.patient_key, case.predicted, case.acquired_at) for case in independent if case.batch > number]
        awaited = [row for row in (*later, *record.pending) if row.acquired_at <= now]
        verdict = judge_stream(question, [case for case in independent if case.batch <= number], awaited).assessment
        shown = max(((verdict.a, thresholds.a), (verdict.b, thresholds.b)), key=lambda pair: pair[0] - pair[1])
        found.append((*shown, verdict.status is Status.DEGRADED, _told(verdict)))
    return found


def _question(record: Record, thresholds: Thresholds, now: datetime) -> Question:
    return Question(
        record.classes, record.baseline, thresholds, record.batch_size, record.seed, now, record.wait_days, record.variation
    )


def _told(verdict: Assessment) -> str:
    """`degraded: recall of glioma 0.71, was 0.90` or the status alone."""
    fall = verdict.fall
    if fall is None:
        return str(verdict.status)
    return f"{verdict.status}: recall of {fall.label} {fall.recall:.2f}, was {fall.before:.2f}"


def _reclaim(record: Record, limit: float) -> list[tuple[float, float, bool, str]]:
    before = Cases.of(record.baseline, record.classes).confusion()
    found = []
    for number in record.numbers:
        batch = Cases.of([case for case in record.stream if case.batch == number], record.classes).confusion()
        verdict = apply_rule(before, batch, record.classes, limit)
        found.append((verdict.change, limit, verdict.declined, verdict.metric))
    return found


def _cusum(record: Record, threshold: float | None, run_length: float) -> list[tuple[float, float, bool, str]]:
    charts = chart(counts_of(record), run_length)
    limit = threshold or charts.limit
    names = [f"recall:{label}" for label in record.classes]
    return [(float(row.max()), limit, bool(row.max() > limit), names[int(row.argmax())]) for row in charts.values]


SHOWN: Final = {
    Rule.PAIRED: "log evidence",
    Rule.RECLAIM: "relative change",
    Rule.CUSUM: "chart",
}
"""What a step's statistic is, by rule."""
