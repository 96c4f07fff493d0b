"""All tools in one table: name, which agent has it, what it takes, what it answers. The workflow and the planner read it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from agents.tools import answers, drift, orders, past, read, replay, suspects
from agents.tools import arguments as arg
from agents.tools.answers import Answer
from agents.tools.desk import Desk
from agents.tools.story import Explanation

ORCHESTRATOR, MONITORING, EVALUATION = "orchestrator", "monitoring", "evaluation"
FINE_TUNING, REPORTING = "fine_tuning", "reporting"


@dataclass(frozen=True)
class ToolSpec:
    """One tool. `run` takes the desk and the validated arguments; `also` are other agents that have it."""

    agent: str
    run: Callable[[Desk, Any], Answer]
    takes: type[arg.Arguments]
    answers: type[Answer]
    orders: bool = False
    also: tuple[str, ...] = ()

    def belongs_to(self, agent: str) -> bool:
        """Whether an agent has this tool."""
        return agent == self.agent or agent in self.also

    @property
    def name(self) -> str:
        """The function's name."""
        return "help" if self.run is read.tell_help else self.run.__name__

    @property
    def description(self) -> str:
        """The function's docstring."""
        return (self.run.__doc__ or "").strip()


CATALOGUE: Final[tuple[ToolSpec, ...]] = (
    ToolSpec(ORCHESTRATOR, read.tell_help, arg.NoArguments, answers.Help),
    ToolSpec(ORCHESTRATOR, read.list_models, arg.NoArguments, answers.Models),
    ToolSpec(ORCHESTRATOR, read.list_orders, arg.OrdersArguments, answers.Orders),
    ToolSpec(REPORTING, read.list_reports, arg.ListArguments, answers.Reports, also=(ORCHESTRATOR,)),
    ToolSpec(ORCHESTRATOR, orders.approve_order, arg.DecideArguments, answers.Recorded, orders=True),
    ToolSpec(ORCHESTRATOR, orders.reject_order, arg.DecideArguments, answers.Recorded, orders=True),
    ToolSpec(MONITORING, read.model_status, arg.OneModel, answers.ModelStatus),
    ToolSpec(MONITORING, read.metric_history, arg.HistoryArguments, answers.History),
    ToolSpec(MONITORING, past.explain_decline, arg.OneModel, Explanation),
    ToolSpec(MONITORING, drift.drift_warnings, arg.OneModel, drift.Drift),
    ToolSpec(MONITORING, suspects.suspect_labels, arg.SuspectArguments, suspects.SuspectLabels),
    ToolSpec(REPORTING, orders.order_report, arg.ReportArguments, answers.Recorded, orders=True, also=(MONITORING,)),
    ToolSpec(EVALUATION, read.list_evaluations, arg.ListArguments, answers.History),
    ToolSpec(EVALUATION, replay.replay_evaluation, arg.ReplayArguments, replay.Replay),
    ToolSpec(EVALUATION, read.compare_versions, arg.CompareArguments, answers.Comparison),
    ToolSpec(EVALUATION, orders.order_label_request, arg.LabelArguments, answers.Recorded, orders=True),
    ToolSpec(FINE_TUNING, read.remedy_options, arg.OneModel, answers.RemedyOptions),
    ToolSpec(FINE_TUNING, orders.order_remedy, arg.RemedyArguments, answers.Recorded, orders=True),
    ToolSpec(FINE_TUNING, orders.order_rollback, arg.RollbackArguments, answers.Recorded, orders=True),
    ToolSpec(FINE_TUNING, orders.order_stop_serving, arg.OrderArguments, answers.Recorded, orders=True),
    ToolSpec(FINE_TUNING, orders.order_resume_serving, arg.OrderArguments, answers.Recorded, orders=True),
)
BY_NAME: Final[dict[str, ToolSpec]] = {spec.name: spec for spec in CATALOGUE}
