"""What happened to a model, told to a person: the decline, what was ordered, what the gate said, how it is now; then figures."""

from pydantic import Field

from agents.tools.answers import Answer, EvaluationFacts, Metric
from services.runtime.words import decline, likely

MOST_REPAIRS = 3
FIGURES = 3


class Repair(Answer):
    """One remedy that went out. `verdict` is the gate's, empty while there is none; wins and losses count patients.

    One that was not `judged` was left before the gate: the numbers are of the cases that it was made from.
    """

    ordered_at: str
    by: str
    remedy: str
    state: str
    progress: str = ""
    verdict: str = ""
    challenger: int | None = None
    judged: bool = True
    gate_cases: int = 0
    wins: int = 0
    losses: int = 0
    objection: str = ""

    def say(self) -> str:
        """Order and verdict in one or two sentences."""
        ordered = f"On {self.ordered_at} {self.by} ordered to {self.remedy}."
        return f"{ordered} {self._outcome()}"

    def _outcome(self) -> str:
        if self.state == "failed":
            return "That run failed."
        if not self.verdict:
            return f"It is under way ({self.progress})." if self.progress else "It is under way."
        version = f"version {self.challenger}" if self.challenger else "its result"
        if self.verdict == "need_labels":
            return (
                f"There were too few labelled cases to judge {version}." if self.challenger else "There were too few cases for it."
            )
        if not self.judged:
            return (
                f"That gave back too little to be judged: of the {self.gate_cases} cases it was made from, "
                f"{version} read {self.wins} better and {self.losses} worse than the old one."
            )
        compared = f"On {self.gate_cases} new cases {version} read {self.wins} better and {self.losses} worse than the old one"
        if self.verdict == "promote":
            return f"{compared}: it passed the gate."
        return f"{compared}: the gate turned it down{f', because {self.objection}' if self.objection else ''}."


class Explanation(Answer):
    """Why a model has the status it has, and what has been done about it. `decline` is its last degraded evaluation."""

    model: str
    champion: int | None = None
    serving: bool = True
    evaluation: EvaluationFacts | None
    decline: EvaluationFacts | None = None
    noticed_on: str = ""
    repairs: tuple[Repair, ...] = ()
    waiting: str = Field("", description="A remedy that waits for a person")
    labels_asked: str = Field("", description="The last label request since the decline")
    labels: str = Field("", description="What the first or next evaluation lacks")
    rolled_back: str = Field("", description="The last rollback since the decline")

    def say(self) -> str:
        """The story, then the figures; at most about fifteen lines."""
        if self.champion is None:
            return f"{self.model} has no version in service yet."
        if self.evaluation is None and self.decline is None:
            nothing = f"{self.model}, version {self.champion}, has not been evaluated yet, so there is nothing to explain"
            return f"{nothing}: {self.labels}." if self.labels else f"{nothing}."
        return "\n".join([*self._decline(), *self._done(), self._now(), *self._figures()])

    def _decline(self) -> list[str]:
        item = self.decline
        if item is None and self.evaluation is not None and self.evaluation.status == "watch":
            return [decline(self.model, self.evaluation.evidence, self.evaluation.summary)]
        if item is None:
            return [f"No decline of {self.model} has been found so far."]
        found = f" (found on {self.noticed_on}, in version {item.version})" if self.noticed_on else ""
        seen = decline(self.model, item.evidence, item.summary).rstrip(".")
        return [f"{seen}{found}.", f"{likely(item.diagnosis, item.evidence)}."]

    def _done(self) -> list[str]:
        lines = [repair.say() for repair in self.repairs[-MOST_REPAIRS:]]
        lines += [f"A remedy waits for a person's approval: {self.waiting}."] if self.waiting else []
        lines += [line for line in (self.labels_asked, self.rolled_back) if line]
        if self.decline is not None and not lines:
            lines = ["No repair of the model has been ordered since."]
        return lines

    def _now(self) -> str:
        serves = f"Version {self.champion} " + ("serves now" if self.serving else "is stopped and scores nothing now")
        item = self.evaluation
        if item is None:
            few = f"{serves}; too few of its cases are labelled yet to say how it does"
            return f"{few}: {self.labels}." if self.labels else f"{few}."
        return f"{serves}. {_STATUS[item.status].format(cases=item.stream_cases or item.cases)}{_missing(item)}"

    def _figures(self) -> list[str]:
        item = self.evaluation or self.decline
        if item is None or not item.metrics:
            return []
        earlier = self.decline if self.decline and self.decline.evaluation_id != item.evaluation_id else None
        then = {metric.name: metric.value for metric in earlier.metrics} if earlier else {}
        shown = [*item.metrics[:FIGURES], *self._worst(item.metrics[FIGURES:])]
        lines = [f"- {_figure(metric, then.get(metric.name))}" for metric in shown if metric.value is not None]
        return [f"Figures of its latest {item.cases} labelled cases:", *lines]

    def _worst(self, metrics: tuple[Metric, ...]) -> list[Metric]:
        """The class that the decline was clearest in."""
        label = self.decline.evidence.get("class") if self.decline else None
        return [metric for metric in metrics if metric.name == f"recall:{label}"]


_STATUS = {
    "healthy": "It is healthy: its {cases} labelled cases show no decline.",
    "watch": "It is being watched: its {cases} labelled cases hint at a decline that is not certain yet.",
    "degraded": "It is degraded, as its {cases} labelled cases show.",
    "undecided": "It is too early to call it healthy: its {cases} labelled cases show no decline, but they are too few to be sure.",
}


def _missing(item: EvaluationFacts) -> str:
    more = item.evidence.get("more_cases_needed") if item.status == "undecided" else None
    return f" About {more} more are needed." if more else ""


def _figure(metric: Metric, then: float | None) -> str:
    return metric.say() + (f"; during the decline {then:.2f}" if then is not None else "")
