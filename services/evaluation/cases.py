"""Cases as arrays: what every statistic here is computed from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


class LabelledRow(Protocol):
    """A joined case or a baseline case."""

    @property
    def patient_key(self) -> str:
        """Pseudonym of the patient."""

    @property
    def truth(self) -> str | None:
        """Class name."""

    @property
    def predicted(self) -> str:
        """Class name."""

    @property
    def probabilities(self) -> dict[str, float]:
        """Class name to probability."""

    @property
    def findings(self) -> Sequence[str] | None:
        """Codes of doubts about the images; None where they were not kept."""


@dataclass(frozen=True)
class Cases:
    """n labelled cases of one model version with k classes."""

    classes: tuple[str, ...]
    truth: Integers
    """[n] index into `classes`"""
    predicted: Integers
    """[n] index into `classes`"""
    probabilities: Floats
    """[n, k]"""
    patients: Integers
    """[n] number of the patient, 0 … patients - 1"""

    @property
    def count(self) -> int:
        """How many cases there are (n)."""
        return len(self.truth)

    @classmethod
    def of(cls, rows: Sequence[LabelledRow], classes: Sequence[str]) -> "Cases":
        """From stored rows; a row whose truth or prediction is no class of this model is left out (see `foreign`)."""
        place = {name: number for number, name in enumerate(classes)}
        known = [row for row in rows if row.truth in place and row.predicted in place]
        patients = {key: number for number, key in enumerate(dict.fromkeys(row.patient_key for row in known))}
        return cls(
            classes=tuple(classes),
            truth=np.array([place[row.truth or ""] for row in known], np.int64),
            predicted=np.array([place[row.predicted] for row in known], np.int64),
            probabilities=_probabilities(known, classes),
            patients=np.array([patients[row.patient_key] for row in known], np.int64),
        )

    def confusion(self) -> Integers:
        """[k, k] cases by truth (row) and prediction (column)."""
        k = len(self.classes)
        return np.bincount(self.truth * k + self.predicted, minlength=k * k).reshape(k, k)


def _probabilities(rows: Sequence[LabelledRow], classes: Sequence[str]) -> Floats:
    values = [[row.probabilities.get(name, 0.0) for name in classes] for row in rows]
    return np.array(values, float).reshape(len(rows), len(classes))


def foreign(rows: Sequence[LabelledRow], classes: Sequence[str]) -> int:
    """How many rows have a truth or prediction that is no class of this model."""
    known = set(classes)
    return sum(row.truth not in known or row.predicted not in known for row in rows)
