"""The gate on classes that only the challenger knows: does it read their cases better than guessing? Pure.

There is no champion to compare with: it misreads every one of them. What the new class costs the others shows in their recalls.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scipy.stats import binomtest


@dataclass(frozen=True, slots=True)
class Introduction:
    """One added class: its gate cases, the recall among them, and the p-value of the exact test that it is above guessing."""

    name: str
    cases: int
    recall: float
    guessing: float
    p_value: float

    @property
    def words(self) -> str:
        """What was seen, for a sentence."""
        seen = f"{self.recall:.1%} of its {self.cases} cases, guessing reaches {self.guessing:.1%}"
        return f"{seen} (exact test, p = {self.p_value:.3g})"


def introductions(
    truths: Sequence[str], right: Sequence[float], patients: Sequence[str], added: Sequence[str], classes: int
) -> Iterator[Introduction]:
    """Each added class that the cases show; a patient counts once, as read when more than half of the patient's cases are.

    `right` is 1 where the challenger reads the case as its truth; `classes` counts all classes that it knows.
    """
    rows = list(zip(truths, right, patients, strict=True))
    for name in added:
        own: dict[str, list[float]] = {}
        for truth, read, patient in rows:
            if truth == name:
                own.setdefault(patient, []).append(read)
        every = [read for reads in own.values() for read in reads]
        if every:
            patients_read = sum(sum(reads) * 2 > len(reads) for reads in own.values())
            p_value = float(binomtest(patients_read, len(own), 1 / classes, alternative="greater").pvalue)
            yield Introduction(name, len(every), sum(every) / len(every), 1 / classes, p_value)
