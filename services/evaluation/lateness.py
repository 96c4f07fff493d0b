"""Late labels: which weeks of acquisition can be judged, and blocks of equal size in the order of acquisition.

Where errors get their label sooner than right answers, whatever is judged as labels trickle in looks worse than it is.
Two streams are free of that, and both are watched. One ends before the first week in which not nearly every prediction has
its label: a later week that is complete already may be so because it has more errors. The other has every week. In both a
prediction that still waits counts as right, which can hide a fall but never make one up.

Assumed: a prediction that has no label after `wait_days` never gets one, and whether it got one says nothing about whether
it was right. A week is one of acquisition, from Monday, UTC.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.evaluation.cases import Integers
from services.evaluation.stream import StreamCase

COMPLETE: Final = 0.95
"""Share of a week's predictions that must have their label before the week is judged."""


class Pending(NamedTuple):
    """A prediction of the version that has no label yet."""

    patient_key: str
    predicted: str
    acquired_at: datetime


@dataclass(frozen=True)
class Ordered:
    """The two streams in order of acquisition, `batch` being the number of the block, and what is waited for.

    `settled`: weeks up to which all are complete. `assumed`: all weeks. What waits is in both, counted as right.
    """

    settled: tuple[StreamCase, ...]
    assumed: tuple[StreamCase, ...]
    weeks: tuple[date, ...]
    """Mondays of the weeks that wait for labels, or for an earlier week's, the oldest first."""
    labels: int
    """Labels that these weeks wait for."""
    held_back: int
    """Labelled cases of these weeks, which the first stream does not have yet."""

    @property
    def late(self) -> bool:
        """Whether any week waits for labels; without one both streams are the same."""
        return bool(self.weeks)


def order(cases: Sequence[StreamCase], pending: Sequence[Pending], size: int, now: datetime, wait_days: float) -> Ordered:
    """Order independent `cases` (one of each patient) by acquisition and cut them into blocks of `size`.

    A patient whose first prediction waits counts as waiting also where a later one has its label: whichever of a patient's
    predictions is labelled first may be so because it was wrong.
    """
    oldest = now - timedelta(days=wait_days)
    latest_first = sorted(pending, key=lambda row: row.acquired_at, reverse=True)
    first = {row.patient_key: row for row in latest_first if row.acquired_at > oldest}
    cases = [case for case in cases if (row := first.get(case.patient_key)) is None or case.acquired_at <= row.acquired_at]
    known = {case.patient_key for case in cases}
    waiting = {patient: row for patient, row in first.items() if patient not in known}
    weeks = np.array([*map(_week_of, cases), *map(_week_of, waiting.values())], np.int64)
    labelled = np.arange(len(weeks)) < len(cases)
    done = complete(weeks, labelled)
    every = [*cases, *(_right(row) for row in waiting.values())]
    kept = [case for case, ready in zip(every, done, strict=True) if ready]
    late = sorted(set(weeks[~done].tolist()))
    return Ordered(
        settled=tuple(blocks(kept, size)),
        assumed=tuple(blocks(every if late else kept, size)),
        weeks=tuple(date.fromordinal(7 * week + 1) for week in late),
        labels=int((~done & ~labelled).sum()),
        held_back=int((~done & labelled).sum()),
    )


def complete(weeks: Integers, labelled: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Per prediction [n], whether in its week and all weeks before at least 95 % of each week's predictions are labelled."""
    _, place = np.unique(weeks, return_inverse=True)
    share = np.bincount(place, labelled) / np.maximum(np.bincount(place), 1)
    found: NDArray[np.bool_] = np.logical_and.accumulate(share >= COMPLETE)[place]
    return found


def blocks(cases: Sequence[StreamCase], size: int) -> list[StreamCase]:
    """The cases in order of acquisition, numbered by block of `size` cases from 1; the last block may be smaller.

    Equal blocks keep the thresholds right whatever the sizes of the batches that the labels came in. Of cases acquired at the same
    time (a day's, where a scanner sends no StudyTime) the pseudonyms decide: they know nothing of truth and prediction.
    """
    ordered = sorted(cases, key=lambda case: (case.acquired_at, case.patient_key))
    return [case._replace(batch=1 + place // size) for place, case in enumerate(ordered)]


def _right(row: Pending) -> StreamCase:
    return StreamCase(0, row.patient_key, row.predicted, row.predicted, {}, row.acquired_at, {}, ())


def _week_of(row: StreamCase | Pending) -> int:
    """Number of the week of acquisition, counted from the Monday of 1 January of year 1."""
    return (row.acquired_at.astimezone(UTC).toordinal() - 1) // 7
