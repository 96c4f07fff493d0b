"""The tool that reads the label-free early warning. It tells; nothing is ordered on its word alone."""

from sqlmodel import Session, col, select

from agents.redaction import plain
from agents.tools.answers import Answer, Problem
from agents.tools.arguments import OneModel
from agents.tools.desk import Desk, resolve
from schemas.drift import DriftWindow

NEWEST = 5


class DriftLine(Answer):
    """One window of predictions, or one look at the feed."""

    measured_at: str
    version: int
    kind: str
    cases: int
    warning: bool
    suspected: str
    summary: str
    signals: tuple[str, ...]

    def say(self) -> str:
        """When, whether it warns, and in which words."""
        seen = "warning" if self.warning else "quiet"
        return f"{self.measured_at}, version {self.version}, {seen}: {self.summary}"


class Drift(Answer):
    """What the early warning has seen of a model, newest first."""

    model: str
    windows: tuple[DriftLine, ...]

    def say(self) -> str:
        """The newest window with its signals, then the ones before; that labels decide."""
        if not self.windows:
            return f"The early warning has measured nothing of {self.model} yet: it needs a full window of scored studies."
        newest, *earlier = self.windows
        lines = [newest.say(), *(f"- {sentence}" for sentence in newest.signals)]
        lines += ["Before that:", *(f"- {line.say()}" for line in earlier)] if earlier else []
        return "\n".join([*lines, "These are signs without labels: they call for a look or for more labels, and order nothing."])


def drift_warnings(desk: Desk, args: OneModel) -> Answer:
    """Signs of drift without labels: images, answers, scanner facts, estimated recall, arrival of studies. They order nothing."""
    with desk.database.read() as session:
        name = resolve(session, args.model)
        return name if isinstance(name, Problem) else Drift(model=name, windows=_lines(session, name))


def _lines(session: Session, model: str) -> tuple[DriftLine, ...]:
    newest = (col(DriftWindow.measured_at).desc(), col(DriftWindow.kind), col(DriftWindow.number).desc())
    rows = session.exec(select(DriftWindow).where(DriftWindow.model == model).order_by(*newest).limit(NEWEST))
    return tuple(_line(row) for row in rows)


def _line(row: DriftWindow) -> DriftLine:
    return DriftLine(
        measured_at=f"{row.measured_at:%Y-%m-%d %H:%M} UTC",
        version=row.version,
        kind=row.kind,
        cases=row.cases,
        warning=row.warning,
        suspected=row.suspected,
        summary=plain(row.summary, 400),
        signals=tuple(plain(str(signal["sentence"]), 300) for signal in row.signals),
    )
