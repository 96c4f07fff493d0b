"""A classical control chart: CUSUM of each class's recall, computed beside the detector for those who must report it.

As in FDA's AIM-CU (Smriti et al., SPIE 2024): the chart adds up how far each batch lies below the in-control mean in standard
deviations, less an allowance of 0.5, and alarms above a limit chosen by the wanted run length without change. Mean and
deviation are those of the baseline, the deviation that of the batch's size (AIM-CU takes both from the first 30 batches). The
baseline is taken for the truth, so its luck is inherited: false alarms are far more than the run length says
(docs/evaluation.md). It orders nothing.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from services.evaluation.cases import Floats
from services.evaluation.detector import Counts

ALLOWANCE: Final = 0.5
"""Half the shift, in standard deviations, that the chart is quickest for."""
STATES: Final = 200


@dataclass(frozen=True)
class Chart:
    """Values after each batch [T, K], and the limit."""

    values: Floats
    limit: float


def chart(counts: Counts, run_length: float) -> Chart:
    """The charts of one stream (R = 1). A class that a batch lacks, or the baseline, stands still."""
    rate = (counts.baseline_errors[0] + 0.5) / (counts.baseline_cases[0] + 1)
    cases, errors = counts.cases[0], counts.errors[0]
    present = (cases > 0) & (counts.baseline_cases[0] > 0)
    above = np.where(present, (errors - cases * rate) / np.sqrt(np.maximum(cases, 1) * rate * (1 - rate)), 0.0)
    value, found = np.zeros(cases.shape[1]), np.empty(cases.shape)
    for batch in range(len(cases)):
        value = np.where(present[batch], np.maximum(value + above[batch] - ALLOWANCE, 0.0), value)
        found[batch] = value
    return Chart(found, limit_for(run_length))


@lru_cache(maxsize=32)
def limit_for(run_length: float) -> float:
    """The limit with this mean number of normal batches until a false alarm."""
    return float(brentq(lambda limit: np.log(mean_run_length(limit) / run_length), 0.01, 30.0, xtol=1e-6))


def mean_run_length(limit: float) -> float:
    """Mean run length of the one-sided chart in control, by Brook and Evans (1972): a Markov chain over `STATES` steps."""
    width = 2 * limit / (2 * STATES - 1)
    middle = np.arange(STATES) * width
    edges = middle[None, :] - middle[:, None] + ALLOWANCE
    chances = norm.cdf(edges + width / 2) - norm.cdf(edges - width / 2)
    chances[:, 0] = norm.cdf(edges[:, 0] + width / 2)
    return float(np.linalg.solve(np.eye(STATES) - chances, np.ones(STATES))[0])
