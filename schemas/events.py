"""Data of every event on the bus. Bodies are JSON; the CloudEvents envelope travels in Kafka headers.

A field is added, never renamed or removed; consumers ignore fields they do not know. No field holds a patient's
name, ID or birth date: studies and patients appear as keyed pseudonyms (see `services.runtime.identity`).
"""

from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from schemas.vocabulary import Diagnosis, OrderKind, OrderState, Remedy, Status, UserRole, Verdict

Pseudonym = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", description="HMAC-SHA-256 of an identifier, first 128 bits in hex")]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(pattern=r"^[\w.:-]{1,64}$", description="Letters, digits, _ . : -, at most 64: no room for a sentence")]
ClassName = Annotated[
    str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f\^]{1,64}$", description="1 to 64 characters, no ^ (a person name's separator)")
]


class Event(BaseModel):
    """Base of all event data: immutable, unknown fields ignored, NaN and infinities refused."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class SeriesReference(Event):
    """One series of a received study. `path` is relative to the archive; pixel data never travels on the bus."""

    series_key: Pseudonym
    modality: str = Field(description="Modality (0008,0060)")
    path: str = Field(description="Folder of the series' files, relative to the archive root")
    instances: int = Field(ge=1, description="Instances of this series in the archive")


class StudyReceived(Event):
    """A study is complete in the archive. A late instance brings the same study again with a higher revision."""

    study_key: Pseudonym
    patient_key: Pseudonym
    revision: int = Field(ge=1, description="1 at first completion, +1 each time late instances reopen the study")
    modality: str = Field(description="Modality of the first scorable series")
    body_part: str = Field(default="", description="BodyPartExamined (0018,0015), upper case, empty when absent")
    acquired_at: AwareDatetime = Field(description="Study date and time, or receipt time when absent")
    received_at: AwareDatetime
    completed_by: str = Field(description="mpps, storage_commitment, instance_count, quiet_period or longest_open")
    series: tuple[SeriesReference, ...]
    models: tuple[str, ...] = Field(
        default=(), description="Only these models score it, where it is announced again because they were resumed; else empty"
    )


class Prediction(Event):
    """One model version's probabilities for one study revision."""

    study_key: Pseudonym
    patient_key: Pseudonym
    revision: int = Field(ge=1)
    model: str
    version: int = Field(ge=1)
    serving: bool = Field(description="True for the champion, false for a challenger scored in the shadow")
    task: str
    probabilities: dict[str, Probability] = Field(description="Class name to probability; sums to one for exclusive classes")
    predicted: str
    acquired_at: AwareDatetime
    scored_at: AwareDatetime
    facets: dict[str, str] = Field(default_factory=dict, description="Scanner and acquisition facts, e.g. Manufacturer")
    findings: tuple[str, ...] = Field(default=(), description="Doubts about the feed, e.g. window_missing")
    finding_details: dict[str, str] = Field(
        default_factory=dict, description="Finding to its numbers, e.g. 3 missing at 1 places; a finding without any is left out"
    )


class Label(Event):
    """Ground truth for one study and task. A later label of the same source corrects the earlier one.

    A withdrawal takes back whatever its source said of the study and task up to `labelled_at`, that instant included.
    """

    study_key: Pseudonym
    task: Name
    value: ClassName | None = Field(
        default=None, description="Class name: 1 to 64 characters, no ^ and no control characters; only a withdrawal may lack it"
    )
    source: Name = Field(description="Who says so, e.g. csv:worklist or http:pathology: letters, digits, _ . : -, at most 64")
    labelled_at: AwareDatetime
    withdrawn: bool = Field(
        default=False, description="The source takes back what it said, and says nothing instead (HL7 v2 OBX-11 D, W or X)"
    )


class BatchReady(Event):
    """A batch of labelled cases of one model version is closed and may be evaluated."""

    batch_id: str
    model: str
    version: int
    cases: int = Field(ge=1)
    closed_by: str = Field(description="size or age")
    corrected: bool = Field(default=False, description="True when a corrected label re-opens an evaluated batch")


class MetricValue(Event):
    """A metric with its 95 % interval, the number of cases behind it, and the baseline's value."""

    name: str = Field(description="accuracy, macro_recall, recall:CLASS, auroc …")
    value: float | None = Field(description="None where the batch cannot define it, e.g. recall of an absent class")
    low: float | None = None
    high: float | None = None
    cases: int = Field(ge=0)
    baseline: float | None = None


class SubgroupResult(Event):
    """One group of cases (a site, a scanner, an age band …) beside the other cases of the same batches, one case per patient.

    `worse` keeps a risk a year over all groups and evaluations; a group that is not worse and has `more_cases` is too small
    to say so of it. Recalls are of `label`, or of all classes where that is empty, from `since_batch` on.
    """

    facet: str = Field(description="Site, Manufacturer, PatientSex, AgeBand …")
    group: str = Field(description="Value of the facet")
    cases: int = Field(ge=0)
    worse: bool = Field(description="Worse than the others, beyond chance")
    suspected: bool = Field(description="Some group of this facet is worse, be it unknown which")
    label: str = Field(description="Class whose recall differs most, empty for all classes")
    recall: float | None = None
    recall_low: float | None = None
    recall_high: float | None = None
    recall_others: float | None = None
    recall_before: float | None = Field(
        default=None, description="Of the group before; None where it was worse from its first batch"
    )
    since: AwareDatetime | None = Field(default=None, description="Median acquisition time of that batch")
    since_batch: int = Field(ge=1)
    since_batch_low: int = Field(ge=1, description="Lower 95 % limit")
    since_batch_high: int = Field(ge=1, description="Upper 95 % limit")
    log_evidence: float = Field(description="Log of the group's e-process")
    threshold: float = Field(description="Log evidence at which it alone, beside groups without any, is worse")
    compared: int | None = Field(
        default=None, ge=0, description="Cases of the group with others of the same batch and class beside them, which alone count"
    )
    more_cases: int | None = Field(
        default=None, description="Cases of the group still lacking before a fall of 20 points would show; None where none lack"
    )


class RuleResult(Event):
    """What a classical rule says of the stream, for those who must report it. It orders nothing."""

    rule: str = Field(description="reclaim (5 % relative) or cusum (AIM-CU style)")
    alarmed: bool
    metric: str = Field(description="Metric that is furthest beyond its limit, or nearest to it")
    statistic: float = Field(description="reclaim: relative change; cusum: the chart's value")
    limit: float


class ConfusionMatrix(Event):
    """Cases by truth (row) and prediction (column), and 95 % limits of each cell's share of its row, clustered by patient."""

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    low: tuple[tuple[float | None, ...], ...] = Field(description="None in the row of a class without cases")
    high: tuple[tuple[float | None, ...], ...]


class EvaluationCompleted(Event):
    """The statistics of a batch and of the run of batches so far, against the baseline."""

    evaluation_id: str
    batch_id: str
    model: str
    version: int
    task: str
    status: Status
    diagnosis: Diagnosis
    cases: int
    stream_cases: int = Field(description="Cases of all batches of this version, also those whose label was withdrawn since")
    metrics: tuple[MetricValue, ...]
    evidence: dict[str, float | str | None] = Field(
        default_factory=dict, description="Detector statistics, thresholds, the class and the estimated start"
    )
    reclaim_rule: bool = Field(description="What the published 5 % rule says, for those who must report it")
    summary: str = Field(description="Two sentences a radiologist understands")
    evaluated_at: AwareDatetime
    subgroups: tuple[SubgroupResult, ...] = Field(default=(), description="All groups that can be compared, worse ones first")
    rules: tuple[RuleResult, ...] = Field(default=(), description="Classical rules beside the detector")
    confusion: ConfusionMatrix | None = Field(default=None, description="Of the batch; None where it has no cases")


class OrderDecision(Event):
    """A button that a person pressed below an order that waits."""

    order_id: str = Field(pattern=r"^ord-[0-9a-f]{12}$")
    approve: bool


class DriftSignal(Event):
    """One signal of the early warning. A signal without threshold is shown and never warns."""

    name: str
    statistic: float
    threshold: float | None = Field(None, description="Level of the statistic that warns, or None where the p-value decides")
    p_value: float | None = None
    warning: bool
    sentence: str = Field(description="What it says, in plain words")
    detail: dict[str, float | str | None] = Field(default_factory=dict)


class MonitoringDrift(Event):
    """What the label-free early warning sees in a window of predictions, or in the arrival of studies. It orders nothing."""

    drift_id: str
    model: str
    version: int
    kind: str = Field(description="cases: a window of predictions; feed: the arrival of studies")
    number: int = Field(ge=1, description="1, 2, 3 … within version and kind")
    cases: int = Field(ge=0)
    first_at: AwareDatetime
    last_at: AwareDatetime
    warning: bool
    new: bool = Field(description="True where the window before did not warn of the same")
    suspected: Diagnosis = Field(description="Kind of change that fits what warns; a concept cannot be seen without labels")
    signals: tuple[DriftSignal, ...]
    summary: str = Field(description="Two sentences")
    measured_at: AwareDatetime


class AgentCommand(Event):
    """Plain language from a person, or a button pressed; then `decision` says it and nothing is read out of `text`."""

    command_id: str
    thread: str
    user: str = Field(description="Login of the person who asked")
    user_role: UserRole
    channel: str = Field(description="console, http, slack or teams")
    text: str = Field(max_length=4000)
    decision: OrderDecision | None = None


class AgentReply(Event):
    """What the agents answer to a command."""

    command_id: str
    thread: str
    text: str
    order_ids: tuple[str, ...] = ()


class MaintenanceOrder(Event):
    """An order that passed the guardrails and shall be carried out."""

    order_id: str
    kind: OrderKind
    model: str
    version: int | None = None
    remedy: Remedy | None = None
    settings: dict[str, float | int | str | bool] = Field(default_factory=dict)
    reason: str
    evaluation_id: str | None = None
    actor: str = Field(description="agent:NAME or user:LOGIN")
    ordered_at: AwareDatetime


class MaintenanceApproval(Event):
    """An order waits for a person's approval, or a person has decided on it (`state`)."""

    order_id: str
    kind: OrderKind
    model: str
    version: int | None = None
    what: str = Field(description="The order in plain words")
    reason: str
    explanation: str = Field("", description="Why it waits, or what was decided and by whom")
    actor: str = Field(description="Who ordered: agent:NAME or user:LOGIN")
    thread: str = Field("", description="Thread of the chat in which it was ordered")
    state: OrderState = Field(description="awaiting_approval, accepted or refused")
    decided_by: str = ""
    at: AwareDatetime


class MaintenanceRun(Event):
    """Progress of a remedy's job; without an order and with the remedy `none`, of a training that a person asked for."""

    run_id: str
    order_id: str
    model: str
    remedy: Remedy
    state: str
    epoch: int | None = None
    epochs: int | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    message: str = ""


class MaintenancePromotion(Event):
    """The gate's verdict on a challenger, and which version serves after it."""

    model: str
    challenger: int
    champion_before: int = Field(description="0 where none served")
    champion_after: int
    verdict: Verdict
    reasons: tuple[str, ...]
    numbers: dict[str, float | None] = Field(default_factory=dict)
    order_id: str | None = None
    actor: str
    origin: str = Field(
        "gate", description="gate; owner: the gate, asked by a person; rollback: a version that served was brought back without one"
    )
    change_plan: str = Field("", description="Change control plan and clause that cover the change; empty where there is no plan")


class MaintenanceReport(Event):
    """A report is written. `location` and its siblings are paths relative to the reports folder."""

    report_id: str
    model: str
    version: int
    kind: str = Field(description="monitoring, routine, remedy or label_request")
    status: Status
    title: str
    summary: str = Field(description="Two sentences")
    location: str = Field(description="HTML report, relative to the reports folder")
    link: str = Field(default="", description="Its address, where RECLAIM_CHAT_REPORTS_URL says where the site serves the folder")
    markdown: str
    data: str = Field(description="JSON report, relative to the reports folder")
    pdf: str = Field(default="", description="PDF report, relative to the reports folder; empty in reports of older versions")
    since: AwareDatetime | None = Field(default=None, description="Begin of the period that a routine report covers")
    until: AwareDatetime | None = Field(default=None, description="Its end")
    order_id: str | None = None
    written_at: AwareDatetime
