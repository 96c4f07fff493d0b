"""Scores of a labelled data set by a model: the rows of a baseline and of the gate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.data import TensorSet
from models.predictor import Examined, Predictor, predicted_class
from models.signature import Seen

CHUNK = 256


@dataclass(frozen=True, slots=True)
class ScoredCase:
    """One study: its truth and what the model says; its embedding and what was seen of it where they are known."""

    case_key: str
    patient: str
    truth: str
    predicted: str
    probabilities: Mapping[str, float]
    findings: tuple[str, ...] = ()
    embedding: NDArray[np.float32] | None = field(default=None, compare=False)
    seen: Seen | None = field(default=None, compare=False)


def score(predictor: Predictor, tensors: TensorSet, classes: Sequence[str] | None = None) -> list[ScoredCase]:
    """Score every study of `tensors`, in its order. `classes` are those of its labels, where the model does not know them all."""
    names = classes or predictor.spec.classes
    rows: list[Examined] = []
    for start in range(0, len(tensors), CHUNK):
        rows.extend(predictor.examine(tensors.studies[start : start + CHUNK]))
    known = zip(tensors.keys, tensors.patients, tensors.labels, rows, strict=True)
    return [
        ScoredCase(
            key,
            patient,
            names[label],
            predicted_class(row.probabilities),
            row.probabilities,
            tensors.findings.get(key, ()),
            row.embedding,
            tensors.seen.get(key),
        )
        for key, patient, label, row in known
    ]


def accuracy(cases: Sequence[ScoredCase]) -> float:
    """Share of right predictions. Raises ZeroDivisionError for no cases."""
    return sum(case.truth == case.predicted for case in cases) / len(cases)
