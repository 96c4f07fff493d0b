"""A scored case with what is known of its label: what the questions about the labels themselves are asked of."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np

from services.evaluation.cases import Integers


class ScoredCase(NamedTuple):
    """A prediction of one version, labelled or not, in any role."""

    study_key: str
    patient_key: str
    predicted: str
    probabilities: dict[str, float]
    truth: str | None
    acquired_at: datetime
    scored_at: datetime
    joined_at: datetime | None
    """When the first label and the score had both come; a correction does not move it."""
    facets: dict[str, str]
    source: str | None = None
    """Who gave the label that counts."""

    @property
    def confidence(self) -> float:
        """Probability of the predicted class."""
        return self.probabilities.get(self.predicted, 0.0)


def patients_of(cases: Sequence[ScoredCase]) -> Integers:
    """[n] number of each case's patient."""
    keys = np.array([case.patient_key for case in cases], dtype=object)
    return np.unique(keys.astype(str), return_inverse=True)[1].astype(np.int64)
