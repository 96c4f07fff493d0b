"""Does a baseline show that a model knows anything? Balanced accuracy with its interval, against guessing. Pure.

The gate of a version that has no champion to be compared with (decision 0009).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from schemas.tables import BaselineCase

LEVEL: Final = 0.95
DRAWS: Final = 20_000


@dataclass(frozen=True)
class Standing:
    """Balanced accuracy of a baseline with its 95 % limits; `guessing` is what chance reaches, `missing` classes have no case."""

    value: float
    low: float
    high: float
    guessing: float
    cases: int
    missing: tuple[str, ...] = ()

    @property
    def at_chance(self) -> bool:
        """Whether guessing cannot be ruled out."""
        return self.low <= self.guessing

    @property
    def text(self) -> str:
        """One sentence for a person."""
        lacking = f"; no test case shows {', '.join(self.missing)}" if self.missing else ""
        return (
            f"balanced accuracy {self.value:.2f} (95 % interval {self.low:.2f} to {self.high:.2f}) on {self.cases} test cases, "
            f"guessing reaches {self.guessing:.2f}{lacking}"
        )


def standing(baseline: Sequence[BaselineCase], classes: Sequence[str]) -> Standing:
    """Mean recall over the classes that have cases, against one over the number of classes.

    The interval is that of the mean of the classes' recalls under Jeffreys' priors, patients instead of cases counted. With
    cases of fewer than two classes nothing can be told, and the interval is [0, 1].
    """
    rows = {name: [row for row in baseline if row.truth == name] for name in classes}
    shown = [own for own in rows.values() if own]
    missing = tuple(name for name, own in rows.items() if not own)
    guessing, value = 1 / max(len(classes), 1), float(np.mean([_recall(own) for own in shown])) if shown else 0.0
    if len(shown) < 2:
        return Standing(value, 0.0, 1.0, guessing, len(baseline), missing)
    random = np.random.default_rng(0)
    draws = np.mean([_posterior(own, random) for own in shown], axis=0)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Standing(value, float(low), float(high), guessing, len(baseline), missing)


def _recall(rows: Sequence[BaselineCase]) -> float:
    return sum(row.predicted == row.truth for row in rows) / len(rows)


def _posterior(rows: Sequence[BaselineCase], random: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Draws [DRAWS] of a class's recall; a patient's cases count as one, because they are not independent."""
    patients, recall = len({row.patient_key for row in rows}), _recall(rows)
    return random.beta(recall * patients + 0.5, (1 - recall) * patients + 0.5, DRAWS)
