"""Topics: name with version, key, event model, who publishes and which of our consumers read it.

Creation at start-up, the outbox relay, replay after a broker loss, AsyncAPI and dead letters all read this one table.
"""

from dataclasses import dataclass
from typing import Final

from schemas import events


@dataclass(frozen=True)
class Topic:
    """One topic. `key` names the event field used as the Kafka key; `readers` are our own consumer names."""

    name: str
    model: type[events.Event]
    key: str
    publisher: str
    readers: tuple[str, ...]
    summary: str

    @property
    def dead_letter(self) -> str:
        """Name of the topic that carries messages which cannot be processed."""
        return f"{self.name}.dlq"

    @property
    def ce_type(self) -> str:
        """CloudEvents `type`: the topic name in reverse-DNS form."""
        return f"org.reclaim.{self.name}"


STUDY_RECEIVED: Final = Topic(
    "imaging.study.received.v1", events.StudyReceived, "study_key", "assembly", ("inference",), "A study is complete in the archive"
)
PREDICTION: Final = Topic(
    "inference.prediction.v1",
    events.Prediction,
    "study_key",
    "inference",
    ("ground_truth", "results", "drift"),
    "One model version scored one study",
)
LABEL: Final = Topic(
    "ground-truth.label.v1", events.Label, "study_key", "labels", ("ground_truth",), "Ground truth for one study and task"
)
BATCH_READY: Final = Topic(
    "evaluation.batch.ready.v1", events.BatchReady, "model", "ground_truth", ("evaluation",), "A batch of labelled cases is closed"
)
EVALUATION_COMPLETED: Final = Topic(
    "evaluation.completed.v1", events.EvaluationCompleted, "model", "evaluation", ("agents",), "A batch has been evaluated"
)
DRIFT: Final = Topic(
    "monitoring.drift.v1",
    events.MonitoringDrift,
    "model",
    "drift",
    ("chat",),
    "What can be seen of a change before any label arrives",
)
AGENT_COMMAND: Final = Topic("agent.command.v1", events.AgentCommand, "thread", "chat", ("agents",), "Plain language from a person")
AGENT_REPLY: Final = Topic("agent.reply.v1", events.AgentReply, "thread", "agents", ("chat",), "The agents' answer to a command")
ORDER: Final = Topic(
    "maintenance.order.v1",
    events.MaintenanceOrder,
    "model",
    "agents",
    ("reporting", "remediation"),
    "An order that passed the guardrails",
)
APPROVAL: Final = Topic(
    "maintenance.approval.v1",
    events.MaintenanceApproval,
    "model",
    "agents",
    ("chat",),
    "An order waits for a person, or a person has decided",
)
RUN: Final = Topic(
    "maintenance.run.v1", events.MaintenanceRun, "model", "remediation", ("chat",), "Progress of a remedy or a training"
)
PROMOTION: Final = Topic(
    "maintenance.promotion.v1",
    events.MaintenancePromotion,
    "model",
    "remediation",
    ("reporting", "agents", "chat"),
    "The gate's verdict on a challenger",
)
REPORT: Final = Topic(
    "maintenance.report.v1", events.MaintenanceReport, "model", "reporting", ("chat",), "A maintenance report is written"
)

TOPICS: Final[tuple[Topic, ...]] = (
    STUDY_RECEIVED,
    PREDICTION,
    LABEL,
    BATCH_READY,
    EVALUATION_COMPLETED,
    DRIFT,
    AGENT_COMMAND,
    AGENT_REPLY,
    ORDER,
    APPROVAL,
    RUN,
    PROMOTION,
    REPORT,
)
BY_NAME: Final[dict[str, Topic]] = {topic.name: topic for topic in TOPICS}
