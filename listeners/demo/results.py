"""The figures of one chapter: a version's predictions of that chapter's studies against their labels."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlmodel import col, select

from schemas.tables import Case
from services.evaluation.cases import Cases
from services.evaluation.metrics import Measured, MetricSet, measure
from services.runtime import registry
from services.runtime.service import Context


@dataclass(frozen=True)
class Figure:
    """A value in [0, 1] with its 95 % interval, and the class it is of where there is one."""

    value: float | None
    low: float | None
    high: float | None
    of: str = ""

    def text(self) -> str:
        """`0.910 [0.870, 0.940]`, with the class where there is one."""
        if self.value is None or self.low is None or self.high is None:
            return "-"
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


def phase_result(context: Context, name: str, model: str, version: int, study_keys: Sequence[str]) -> PhaseResult:
    """Measure a version on the labelled studies of a chapter."""
    with context.database.read() as session:
        classes = registry.classes_of(session, model, version)
        query = select(Case).where(Case.model == model, Case.version == version, col(Case.truth).is_not(None))
        wanted = set(study_keys)
        rows = [row for row in session.exec(query.order_by(Case.study_key)) if row.study_key in wanted]
    metrics = measure(Cases.of(rows, classes))
    return PhaseResult(
        name, version, len(rows), _figure(metrics["accuracy"]), _figure(metrics["macro_recall"]), _lowest(metrics, classes)
    )


def _figure(measured: Measured, of: str = "") -> Figure:
    return Figure(measured.value, measured.low, measured.high, of)


def _lowest(metrics: MetricSet, classes: Sequence[str]) -> Figure:
    recalls = {label: metrics[f"recall:{label}"] for label in classes}
    defined = {label: recall for label, recall in recalls.items() if recall.value is not None}
    worst = min(defined, key=lambda label: defined[label].value or 0.0)
    return _figure(defined[worst], worst)
