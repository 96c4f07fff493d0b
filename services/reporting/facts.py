"""What a report is about and what it is made from. Plain values: nothing here knows the database or the bus."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from schemas.change_plan import ChangePlan
from schemas.events import MaintenancePromotion
from schemas.vocabulary import OrderKind


@dataclass(frozen=True)
class Cause:
    """The event that asks for a report. `as_of` bounds what the report may know, so that writing it again changes nothing.

    `since` is where the period begins that it looks back on; None: with the model's first study.
    """

    event_id: str
    as_of: datetime
    model: str
    version: int | None = None
    order_kind: OrderKind = OrderKind.REPORT
    order_id: str | None = None
    evaluation_id: str | None = None
    reason: str = ""
    actor: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    promotion: MaintenancePromotion | None = None
    since: datetime | None = None


@dataclass(frozen=True)
class ScoredCase:
    """A labelled prediction without anything that points at a patient."""

    truth: str
    predicted: str
    probabilities: Mapping[str, float]


@dataclass(frozen=True)
class Metric:
    """A metric with its 95 % interval, the cases behind it and the baseline's value; None where it is not defined."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    cases: int
    baseline: float | None


@dataclass(frozen=True)
class Revision:
    """An earlier judgement of the same batch, as it stood before labels were corrected or came late. The oldest is first."""

    evaluation_id: str
    status: str
    cases: int
    metrics: tuple[Metric, ...]
    evaluated_at: datetime

    def metric(self, name: str) -> Metric | None:
        """The metric of that name, None when the evaluation has none."""
        return next((metric for metric in self.metrics if metric.name == name), None)


@dataclass(frozen=True)
class EvaluationFacts:
    """One evaluated batch. `number` counts the batches of its version from 1."""

    evaluation_id: str
    batch_id: str
    number: int
    version: int
    status: str
    diagnosis: str
    cases: int
    stream_cases: int
    metrics: tuple[Metric, ...]
    evidence: Mapping[str, Any]
    reclaim_rule: bool
    summary: str
    evaluated_at: datetime
    closed_at: datetime
    revisions: tuple["Revision", ...] = ()
    subgroups: tuple[Mapping[str, Any], ...] = ()
    """`schemas.events.SubgroupResult`, worse groups first."""
    rules: tuple[Mapping[str, Any], ...] = ()
    """`schemas.events.RuleResult`: what classical rules say of the stream."""

    def metric(self, name: str) -> Metric | None:
        """The metric of that name, None when the evaluation has none."""
        return next((metric for metric in self.metrics if metric.name == name), None)


@dataclass(frozen=True)
class VersionFacts:
    """One version of the model."""

    version: int
    state: str
    sha256: str
    parent: int | None
    origin: str
    created_at: datetime


@dataclass(frozen=True)
class Change:
    """A version began to serve: a promotion or a rollback."""

    at: datetime
    action: str
    version: int


@dataclass(frozen=True)
class Intervention:
    """Something was done to the model at a time: an `order`, a `version` that began to serve, or the `service` itself.

    `action` says what: an order's kind, promoted, rolled_back, began_serving, stopped or resumed; `word` a reader's short form.
    """

    at: datetime
    kind: str
    action: str
    word: str
    actor: str = ""
    version: int = 0


@dataclass(frozen=True)
class OrderFacts:
    """An order for the model and what came of it."""

    order_id: str
    kind: str
    state: str
    remedy: str
    reason: str
    actor: str
    explanation: str
    created_at: datetime


@dataclass(frozen=True)
class JobFacts:
    """The run behind a remedy."""

    job_id: str
    remedy: str
    state: str
    attempt: int
    settings: Mapping[str, Any]
    result: Mapping[str, Any]
    error: str


@dataclass(frozen=True)
class LabelCounts:
    """Scored cases of the version by class. Waiting ones have no truth yet, so they count under their predicted class."""

    labelled: Mapping[str, int]
    waiting: Mapping[str, int]


@dataclass(frozen=True)
class Period:
    """The time that a report looks back on, to `until`; without `since` from the model's first study on."""

    since: datetime | None
    until: datetime

    def holds(self, at: datetime) -> bool:
        """Whether a moment lies in the period: after `since`, not after `until`, so that no moment lies in two."""
        return at <= self.until and (self.since is None or at > self.since)


@dataclass(frozen=True)
class Activity:
    """What came in during the period, of all versions of the model. Delays are those of labels that came in the period."""

    studies: int = 0
    predictions: int = 0
    shadow: int = 0
    labels: int = 0
    batches: int = 0
    evaluations: int = 0
    delays: tuple[timedelta, ...] = ()
    """Median, 90th percentile and longest time from prediction to label; empty without labels."""
    waiting: int = 0
    """Predictions of the champions that have no label at the period's end, whenever they were made."""
    waiting_long: int = 0
    """Those of them that have waited for more than 30 days."""


@dataclass(frozen=True)
class Judgement:
    """A verdict of the gate on a challenger. `evidence` is the audit record's: reasons, numbers, hashes and the seed."""

    at: datetime
    version: int
    verdict: str
    actor: str
    evidence: Mapping[str, Any]


@dataclass(frozen=True)
class Sign:
    """One signal of an early warning. `limit` is for the statistic, `p_limit` for the p-value; neither: it never warns."""

    name: str
    statistic: float
    limit: float | None
    p_value: float | None
    p_limit: float | None
    warning: bool
    sentence: str


@dataclass(frozen=True)
class Window:
    """What the label-free early warning measured: a window of predictions (`kind` cases), or a look at the feed."""

    at: datetime
    kind: str
    number: int
    version: int
    cases: int
    warning: bool
    suspected: str
    summary: str
    signs: tuple[Sign, ...] = ()

    @property
    def warned(self) -> frozenset[str]:
        """Names of the signals that warn."""
        return frozenset(each.name for each in self.signs if each.warning)


@dataclass(frozen=True)
class Rules:
    """The settings that alarms, repairs and promotions obey, as the reports state them."""

    false_alarms_per_year: float = 0.05
    batch_size: int = 100
    tune_share: float = 0.35
    gate_share: float = 0.25
    min_tune_cases: int = 40
    min_gate_cases: int = 30
    gate_alpha: float = 0.05
    gate_margin: float = 0.05
    approve_remedies: bool = False
    max_remedies_per_day: int = 4
    code: str = ""
    """Version of the software and SHA-256 of its source."""
    plan: ChangePlan | None = None
    plan_sha256: str = ""
    plan_fault: str = ""
    """Why the plan on file is not valid; empty where it is, or where there is none."""


@dataclass(frozen=True)
class Facts:
    """Everything one report is made from. `history`: each batch with its newest figures and its status, in closing order."""

    cause: Cause
    task: str
    classes: tuple[str, ...]
    serving: bool
    champion: int | None
    version: int
    versions: Sequence[VersionFacts]
    history: Sequence[EvaluationFacts]
    latest: EvaluationFacts | None
    cases: Sequence[ScoredCase]
    baseline: Sequence[ScoredCase]
    baseline_recalls: Mapping[tuple[int, str], tuple[int, int]]
    changes: Sequence[Change]
    orders: Sequence[OrderFacts]
    job: JobFacts | None
    labels: LabelCounts
    interventions: Sequence[Intervention] = ()
    period: Period | None = None
    activity: Activity = field(default_factory=Activity)
    judgements: Sequence[Judgement] = ()
    windows: Sequence[Window] = ()
    """The early warning's newest windows up to the report's end, oldest first."""
