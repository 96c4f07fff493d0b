"""The stream of a version's batched cases: one case per patient, counted per batch and true class."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import NamedTuple, TypeVar

import numpy as np

from services.evaluation.cases import Integers, LabelledRow
from services.evaluation.detector import Counts


class StreamCase(NamedTuple):
    """A batched case. `batch` is the batch's number within its version, from 1."""

    batch: int
    patient_key: str
    truth: str | None
    predicted: str
    probabilities: dict[str, float]
    acquired_at: datetime
    facets: dict[str, str]
    findings: Sequence[str]
    study_key: str = ""


Row = TypeVar("Row", bound=LabelledRow)


def one_per_patient(rows: Iterable[Row], excluded: Collection[str] = ()) -> list[Row]:
    """The first row of each patient, without the excluded patients: rows of one patient are no independent evidence."""
    seen, found = set(excluded), []
    for row in rows:
        if row.patient_key not in seen:
            seen.add(row.patient_key)
            found.append(row)
    return found


def first_acquired(cases: Sequence[StreamCase], excluded: Collection[str] = ()) -> list[StreamCase]:
    """The case of each patient that was acquired first, without the excluded patients, in the given order.

    Not the one that was labelled first: where errors get their label sooner, that would be the wrong one of a patient's cases.
    """
    by_acquisition = sorted(cases, key=lambda case: (case.acquired_at, case.study_key))
    chosen = {id(case) for case in one_per_patient(by_acquisition, excluded)}
    return [case for case in cases if id(case) in chosen]


def count(baseline: Sequence[LabelledRow], stream: Sequence[StreamCase], classes: Sequence[str], batches: int) -> Counts:
    """Counts of one stream (R = 1) of `batches` batches. Cases of classes that the model does not know are left out."""
    base = _table([(0, row) for row in baseline], classes, 1)
    run = _table([(row.batch - 1, row) for row in stream], classes, batches)
    return Counts(base[0], base[1], run[0][None], run[1][None])


def _table(rows: Sequence[tuple[int, LabelledRow]], classes: Sequence[str], height: int) -> tuple[Integers, Integers]:
    """Errors and cases, each [height, K]."""
    place = {name: number for number, name in enumerate(classes)}
    errors, cases = np.zeros((2, height, len(classes)), np.int64)
    for line, row in rows:
        if row.truth in place:
            cases[line, place[row.truth]] += 1
            errors[line, place[row.truth]] += row.predicted != row.truth
    return errors, cases
