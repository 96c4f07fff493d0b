"""What the tools answer: typed facts, each able to say itself in plain words."""

from abc import ABC, abstractmethod

from pydantic import BaseModel, ConfigDict, Field

from services.runtime import words


class Answer(BaseModel, ABC):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True)

    @abstractmethod
    def say(self) -> str:
        """The facts in plain words."""


class Problem(Answer):
    """The tool could not do it; `known` are names that would work."""

    error: str
    known: tuple[str, ...] = ()

    def say(self) -> str:
        """What went wrong, and what is known."""
        return f"{self.error} Known: {', '.join(self.known)}." if self.known else self.error


class Metric(Answer):
    """A metric with its 95 % interval and the baseline's value."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    baseline: float | None = None
    cases: int = 0

    def say(self) -> str:
        """Value, interval and baseline."""
        if self.value is None:
            return f"{words.metric(self.name)} cannot be computed"
        interval = f"between {self.low:.2f} and {self.high:.2f}" if self.low is not None and self.high is not None else ""
        baseline = f"on the test set {self.baseline:.2f}" if self.baseline is not None else ""
        known = "; ".join(part for part in (interval, baseline) if part)
        return f"{words.metric(self.name)} {self.value:.2f}" + (f" ({known})" if known else "")


class ModelLine(Answer):
    """One model in the overview."""

    name: str
    task: str
    champion: int | None
    serving: bool
    status: str
    labels: str = Field("", description="What the first or next evaluation lacks")

    def say(self) -> str:
        """One line."""
        if not self.champion:
            return f"{self.name} ({self.task}): no version yet, {self.status}"
        serving = "in service" if self.serving else "stopped"
        lacks = f"; {self.labels}" if self.labels else ""
        return f"{self.name} ({self.task}): version {self.champion} {serving}, {self.status}{lacks}"


class Models(Answer):
    """All registered models, and the orders that wait for a person."""

    models: tuple[ModelLine, ...]
    waiting: tuple[str, ...] = ()

    def say(self) -> str:
        """One line per model, then one per order that waits."""
        if not self.models:
            return "No model is registered yet."
        waiting = (f"Waits for approval: {order}" for order in self.waiting)
        return "\n".join(["Registered models:", *(f"- {line.say()}" for line in self.models), *waiting])


class EvaluationFacts(Answer):
    """One evaluation."""

    evaluation_id: str
    model: str
    version: int
    status: str
    diagnosis: str
    cases: int
    stream_cases: int = 0
    summary: str
    evaluated_at: str
    reclaim_rule: bool
    metrics: tuple[Metric, ...] = ()
    evidence: dict[str, str] = Field(default_factory=dict)

    def headline(self) -> str:
        """Status, cases and the leading metric in one line."""
        lead = f", {self.metrics[0].say()}" if self.metrics else ""
        cause = f" ({self.diagnosis})" if self.diagnosis not in {"none", ""} else ""
        return f"{self.evaluated_at}, {self.model} version {self.version}: {self.status}{cause}, {self.cases} cases{lead}"

    def say(self) -> str:
        """The headline."""
        return self.headline()


class ModelStatus(Answer):
    """How a model is doing."""

    model: str
    champion: int | None
    serving: bool
    evaluation: EvaluationFacts | None
    tune_cases: int = 0
    gate_cases: int = 0
    unlabelled: int = 0
    since: str = Field("", description="The day on which it came to its status")
    labels: str = Field("", description="What the first or next evaluation lacks")
    active_orders: tuple[str, ...] = ()

    def say(self) -> str:
        """Status with numbers and intervals."""
        if self.champion is None:
            return f"{self.model} has no version in service yet."
        serving = "in service" if self.serving else "stopped: it scores nothing at present"
        lines = [f"{self.model}, version {self.champion} ({serving})."]
        if self.evaluation is None:
            return "\n".join([*lines, f"It has not been evaluated yet: {self.labels}.", *self._under_way()])
        since = f" since {words.date(self.since)}" if self.since else ""
        judged = f"from {self.evaluation.cases} labelled cases on {self.evaluation.evaluated_at}"
        lines += [f"Status {self.evaluation.status}{since}, {judged}."]
        lines += [self.evaluation.summary] if self.evaluation.summary else []
        lines += [f"- {metric.say()}" for metric in self.evaluation.metrics[:6]]
        lines += [f"Labels: {self.labels}."] if self.labels else []
        return "\n".join([*lines, *self._under_way()])

    def _under_way(self) -> list[str]:
        return [f"Under way: {order}" for order in self.active_orders]


class History(Answer):
    """A model's evaluations, newest first."""

    model: str
    evaluations: tuple[EvaluationFacts, ...]

    def say(self) -> str:
        """One line per evaluation, oldest first, and the change between the ends."""
        if not self.evaluations:
            return f"{self.model} has not been evaluated yet."
        lines = [f"{len(self.evaluations)} evaluations of {self.model}, oldest first:"]
        lines += [f"- {item.headline()}" for item in reversed(self.evaluations)]
        return "\n".join(lines + self._change())

    def _change(self) -> list[str]:
        newest, oldest = self.evaluations[0].metrics, self.evaluations[-1].metrics
        several = len({item.model for item in self.evaluations}) > 1
        if several or len(self.evaluations) < 2 or not newest or not oldest or newest[0].value is None or oldest[0].value is None:
            return []
        change = newest[0].value - oldest[0].value
        return [f"From the first to the last of them {words.metric(newest[0].name)} changed by {change:+.3f}."]


class VersionFacts(Answer):
    """One version in a comparison."""

    version: int
    state: str
    evaluation: EvaluationFacts | None
    baseline_cases: int
    baseline_accuracy: float | None

    def say(self) -> str:
        """State, baseline and latest evaluation."""
        known = (
            f"baseline accuracy {self.baseline_accuracy:.3f} on {self.baseline_cases} cases"
            if self.baseline_accuracy is not None
            else "no baseline"
        )
        seen = self.evaluation.headline() if self.evaluation else "not evaluated in service yet"
        return f"version {self.version} ({self.state}): {known}; {seen}"


class Comparison(Answer):
    """Two versions side by side."""

    model: str
    versions: tuple[VersionFacts, VersionFacts]

    def say(self) -> str:
        """Both, and whether their intervals overlap."""
        lines = [f"{self.model}:", *(f"- {item.say()}" for item in self.versions)]
        return "\n".join(lines + self._judgement())

    def _judgement(self) -> list[str]:
        first, second = (
            item.evaluation.metrics[0] if item.evaluation and item.evaluation.metrics else None for item in self.versions
        )
        if first is None or second is None or None in (first.low, first.high, second.low, second.high):
            return ["There is no evaluation of both in service, so no fair comparison of their work there."]
        apart = (first.low or 0.0) > (second.high or 0.0) or (second.low or 0.0) > (first.high or 0.0)
        verdict = "do not overlap: the difference is real" if apart else "overlap: the difference may be chance"
        return [f"Their intervals of {words.metric(first.name)} {verdict}. They were not measured on the same patients."]


class OrderLine(Answer):
    """One order."""

    order_id: str
    kind: str
    state: str
    model: str
    remedy: str = ""
    actor: str = ""
    reason: str = ""
    explanation: str = ""
    progress: str = ""

    def say(self) -> str:
        """One line."""
        what = self.kind.replace("_", " ") + (f" {self.remedy.replace('_', ' ')}" if self.remedy else "")
        tail = self.explanation or self.progress
        return f"{self.order_id}: {what} of {self.model}, {self.state.replace('_', ' ')}, by {self.actor}" + (
            f" ({tail})" if tail else ""
        )


class Orders(Answer):
    """Orders, newest first."""

    orders: tuple[OrderLine, ...]
    waiting: bool = False

    def say(self) -> str:
        """One line per order."""
        if not self.orders:
            return "No order waits for approval." if self.waiting else "There are no orders yet."
        return "\n".join(["Orders, newest first:", *(f"- {line.say()}" for line in self.orders)])


class ReportLine(Answer):
    """One report."""

    report_id: str
    model: str
    kind: str
    status: str
    title: str
    summary: str
    written_at: str
    location: str

    def say(self) -> str:
        """One line."""
        return f"{self.written_at}: {self.title} ({self.status}), {self.location}"


class Reports(Answer):
    """Reports, newest first."""

    reports: tuple[ReportLine, ...]

    def say(self) -> str:
        """One line per report."""
        if not self.reports:
            return "There are no reports yet."
        return "\n".join(["Reports, newest first:", *(f"- {line.say()}" for line in self.reports)])


class RemedyOptions(Answer):
    """What a remedy of the model has to go by."""

    model: str
    champion: int | None
    status: str
    diagnosis: str
    tune_cases: int
    gate_cases: int
    min_tune_cases: int
    min_gate_cases: int
    rejected_challengers: int
    tried: tuple[str, ...]
    since: str = ""
    active_remedy: str | None
    suggestion: str | None
    told: str | None = Field(None, description="The label request that said that no rung is left")
    more_studies: int = Field(0, description="Labelled studies that must arrive before the ladder begins anew")
    labels: str = Field("", description="What the first or next evaluation lacks")

    def say(self) -> str:
        """What the next evaluation lacks; cases, former remedies, suggestion."""
        tried = f" Turned down: {', '.join(self.tried)}." if self.tried else ""
        began = f", since the decline began on {words.date(self.since)}" if self.since else ""
        return (
            f"{self.model}: {self.labels}. For a repair{began}: "
            f"{self.tune_cases} cases to train on (at least {self.min_tune_cases}), "
            f"{self.gate_cases} to prove it on (at least {self.min_gate_cases}), "
            f"{self.rejected_challengers} repairs turned down by the gate.{tried} "
            f"Next rung: {(self.suggestion or 'ask for labels').replace('_', ' ')}."
        )


class Recorded(Answer):
    """A proposal or a decision is recorded; the guardrails decide after the conversation."""

    recorded: str
    note: str = "Recorded as a proposal. Guardrails decide afterwards; do not tell the person that it has been done."

    def say(self) -> str:
        """Nothing: what came of it is added when the guardrails have decided."""
        return ""


class Help(Answer):
    """What may be said."""

    text: str

    def say(self) -> str:
        """The text."""
        return self.text
