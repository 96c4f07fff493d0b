"""The gate by subgroups: does the challenger read the cases of one scanner, sex or age band worse than the champion? Pure.

A group with 3 / margin cases or more has to show non-inferiority, like a class. A smaller one cannot, whatever the challenger
does; there the gate objects when the loss itself exceeds the margin and is shown: more patients read worse than better by an
exact one-sided test at the level of the bounds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.stats import binomtest

from services.remediation import resampling
from services.remediation.discordance import discordant
from services.remediation.resampling import Floats
from services.runtime.conventions import GROUP_FACETS

LEAST: Final = 10
"""Cases of a group below which it is not looked at."""


@dataclass(frozen=True, slots=True)
class Group:
    """Loss of one group in share of its cases; `bound` is None where it has too few cases for one, `p_value` tests for a loss."""

    facet: str
    value: str
    cases: int
    lost: float
    bound: float | None
    p_value: float

    @property
    def title(self) -> str:
        """The group in a sentence."""
        return f"{self.facet} {self.value} ({self.cases})"

    def harmed(self, margin: float, level: float) -> bool:
        """Whether the loss is more than tolerated, or may be where the group is large enough to say so."""
        if self.lost <= margin:
            return self.bound is not None and self.bound > margin
        return self.bound is not None or self.p_value <= level


def groups_of(
    facets: Sequence[Mapping[str, str]], patients: Sequence[str], loss: Floats, draws: Floats, margin: float, level: float
) -> Iterator[Group]:
    """Every group of at least ten cases. `loss` [cases] is 1 where only the champion was right, -1 where only the challenger was.

    A facet with one value for all cases makes no groups.
    """
    for facet in GROUP_FACETS:
        values = np.array([each.get(facet, "") for each in facets])
        found = sorted(set(values.tolist()) - {""})
        for value in found if len(set(values.tolist())) > 1 else []:
            own = np.flatnonzero(values == value)
            if len(own) >= LEAST:
                large = len(own) >= 3 / margin
                bound = resampling.upper(resampling.means(loss[own], draws[:, own]), level) if large else None
                p_value = _shown([patients[int(place)] for place in own], loss[own])
                yield Group(facet, value, len(own), float(loss[own].mean()), bound, p_value)


def _shown(patients: Sequence[str], loss: Floats) -> float:
    """P-value of the exact test that more patients are read worse than better."""
    worse, better = discordant(patients, loss.tolist())
    return float(binomtest(worse, worse + better, 0.5, alternative="greater").pvalue) if worse + better else 1.0
