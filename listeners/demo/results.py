"""The figures of one chapter: a version's predictions of that chapter's studies against their labels."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlmodel import Session, col, select

from schemas.tables import Case
from services.evaluation.metrics import MetricSet, measure
from services.runtime.service import Context


@dataclass(frozen=True)
class Figure:
    """A value in [0, 1] with its 95 % interval."""

    value: float
    low: float
    high: float
    of: str = ""

    def text(self) -> str:
        """`0.91 [0.87, 0.94]`, with the class where there is one."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]" + (f" {self.of}" if self.of else "")


@dataclass(frozen=True)
class PhaseResult:
    """One row of the table."""

    name: str
    version: int
    cases: int
    accuracy: Figure
    macro_recall: Figure
    lowest_recall: Figure
