"""What the tools answer: typed facts, each able to say itself in plain words."""

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True)

    def say(self) -> str:
        """The facts in plain words."""
        raise NotImplementedError


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
            return f"{self.name} cannot be computed"
        interval = f" ({self.low:.3f} to {self.high:.3f})" if self.low is not None and self.high is not None else ""
        baseline = f", baseline {self.baseline:.3f}" if self.baseline is not None else ""
        return f"{self.name.replace('_', ' ')} {self.value:.3f}{interval}{baseline}"


class ModelLine(Answer):
    """One model in the overview."""

    name: str
    task: str
    champion: int | None
    serving: bool
    status: str

    def say(self) -> str:
        """One line."""
        serving = "in service" if self.serving else "stopped"
        version = f"version {self.champion} {serving}" if self.champion else "no version yet"
        return f"{self.name} ({self.task}): {version}, {self.status}"


class Models(Answer):
    """All registered models."""

    models: tuple[ModelLine, ...]

    def say(self) -> str:
        """One line per model."""
        if not self.models:
            return "No model is registered yet."
        return "\n".join(["Registered models:", *(f"- {line.say()}" for line in self.models)])


class EvaluationFacts(Answer):
    """One evaluation."""

    evaluation_id: str
    model: str
    version: int
    status: str
    diagnosis: str
    cases: int
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
    active_orders: tuple[str, ...] = ()

    def say(self) -> str:
        """Status with numbers and intervals."""
        if self.champion is None:
            return f"{self.model} has no version in service yet."
        serving = "in service" if self.serving else "stopped: it scores nothing at present"
        lines = [f"{self.model}, version {self.champion} ({serving})."]
        if self.evaluation is None:
            lines.append(f"It has not been evaluated yet; {self.unlabelled} scored studies wait for labels.")
        else:
            lines += [
                f"Status {self.evaluation.status}, from {self.evaluation.cases} labelled cases on {self.evaluation.evaluated_at}."
            ]
            lines += [self.evaluation.summary] if self.evaluation.summary else []
            lines += [f"- {metric.say()}" for metric in self.evaluation.metrics[:6]]
        return "\n".join([*lines, *(f"Under way: {order}" for order in self.active_orders)])


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
        return [f"From the first to the last of them {newest[0].name.replace('_', ' ')} changed by {change:+.3f}."]


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
        words = "do not overlap: the difference is real" if apart else "overlap: the difference may be chance"
        return [f"Their intervals of {first.name.replace('_', ' ')} {words}. They were not measured on the same patients."]


CAUSES = {
    "none": "No change was found.",
    "prevalence": "The mix of diagnoses among the patients has changed; the model itself reads each of them as before.",
    "covariate": "The images have changed (scanner, protocol or patients), and the model reads the new ones worse.",
    "concept": "The images look as before, but what they mean has changed: the same appearance now goes with another truth.",
    "pipeline": "The feed is broken (window, orientation, wrong series or missing instances); this needs a person, not training.",
    "unknown": "The cause could not be told apart with the cases at hand.",
}


class Explanation(Answer):
    """Why a model has the status it has; for a model that is well, what its last decline was and what was done about it."""

    model: str
    evaluation: EvaluationFacts | None
    decline: EvaluationFacts | None = None
    remedies: tuple[str, ...] = ()

    def say(self) -> str:
        """Status, cause, evidence, remedies."""
        if self.evaluation is None and self.decline is None:
            return f"{self.model} has not been evaluated yet, so there is nothing to explain."
        lines = self._now(self.evaluation) + (self._then(self.decline) if self.decline else [])
        lines += ["What was done:", *(f"- {line}" for line in self.remedies)] if self.remedies else []
        return "\n".join(line for line in lines if line)

    def _now(self, item: EvaluationFacts | None) -> list[str]:
        if item is None:
            return [f"The version of {self.model} in service has not been evaluated yet."]
        lines = [f"{self.model}, version {item.version}, is {item.status}.", item.summary]
        return lines + (_causes(item) if item.status in {"degraded", "watch"} else [])

    def _then(self, item: EvaluationFacts) -> list[str]:
        return [f"Before that, on {item.evaluated_at}, version {item.version} was degraded.", item.summary, *_causes(item)]


def _causes(item: EvaluationFacts) -> list[str]:
    """The cause in plain words, the metrics that fell most, the evidence."""
    fallen = [
        (metric.value - metric.baseline, metric)
        for metric in item.metrics
        if metric.value is not None and metric.baseline is not None and metric.value < metric.baseline
    ]
    fallen.sort(key=lambda pair: pair[0])
    lines = [CAUSES.get(item.diagnosis, CAUSES["unknown"]), *(f"- {metric.say()}" for _, metric in fallen[:4])]
    evidence = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in list(item.evidence.items())[:6])
    return [*lines, f"Evidence: {evidence}."] if evidence else lines


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
    active_remedy: str | None
    suggestion: str | None

    def say(self) -> str:
        """Cases, former remedies, suggestion."""
        tried = f" Tried on this version: {', '.join(self.tried)}." if self.tried else ""
        return (
            f"{self.model}: {self.tune_cases} cases to train on (at least {self.min_tune_cases}), {self.gate_cases} to prove it on "
            f"(at least {self.min_gate_cases}), {self.rejected_challengers} repairs turned down by the gate.{tried} "
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
