"""Parts that several kinds of report share."""

from collections.abc import Sequence
from typing import Any

from schemas.vocabulary import Remedy
from services.reporting import early, plots, statistics
from services.reporting.chart import Story, control_charts
from services.reporting.facts import Activity, Facts, Metric, OrderFacts, Period
from services.reporting.page import Picture, Section, Table
from services.reporting.wording import (
    DASH,
    ended,
    joined,
    metric_name,
    metric_value,
    number,
    on,
    with_interval,
)
from services.runtime.words import DONE

_ORDER_WORDS = {
    "report": "report",
    "remedy": "repair",
    "label_request": "request for labels",
    "rollback": "return to the last version",
    "stop_serving": "stop of the model",
    "resume_serving": "restart of the model",
}

SHOWN_DEEDS = 6
_SHOWN_BATCHES = 60
_CHART_CAPTION = (
    "Each mark is one batch of labelled cases, the line through it its 95 % interval. The blue band is what the version is "
    "compared with: the development test set or, after a promotion, the gate's cases. The rows at the top show alarms, early "
    "warnings without labels (a bar as long as one stood), orders and what serves; hatching shows between which batches a fall "
    "began. Below, the detector's two statistics as a share of the thresholds that raise the alarm."
)


def reference(facts: Facts) -> str:
    """What the version that the report is about was compared with: a promoted one serves cases like those of its gate."""
    about = facts.latest.version if facts.latest is not None else facts.version
    promoted = any(each.version == about and each.action.endswith("promoted") for each in facts.changes)
    return "the gate's cases" if promoted else "the development test set"


def capitalised(text: str) -> str:
    """A phrase as a heading, without its article."""
    bare = text.removeprefix("the ")
    return f"{bare[:1].upper()}{bare[1:]}"


def order_line(order: OrderFacts) -> str:
    """One line on an order: when, what, its state, the reason and what came of it."""
    what = _ORDER_WORDS.get(order.kind, order.kind)
    remedy = f" ({DONE.get(Remedy(order.remedy), order.remedy)})" if order.remedy else ""
    outcome = f" {order.explanation}" if order.explanation else ""
    return f"{on(order.created_at)}: {what}{remedy}, {order.state.replace('_', ' ')}. Reason: {ended(order.reason)}{outcome}"


def metrics_table(facts: Facts) -> list[Table]:
    """All metrics of the latest batch beside the baseline."""
    latest = facts.latest
    if latest is None:
        return []
    rows = [
        (metric_name(each.name), with_interval(each), metric_value(each.name, each.baseline), number(each.cases))
        for each in latest.metrics
    ]
    title = f"All metrics of batch {latest.number} of version {latest.version}"
    note = "In brackets the 95 % interval. A dash: the batch cannot define the metric, e.g. recall of a class that did not occur."
    columns = ("Metric", "This batch", capitalised(reference(facts)), "Cases")
    return [Table(title, columns, rows, note)]


def versions_table(facts: Facts) -> Table:
    """The registry's versions of the model."""
    rows = [
        (f"{each.version}", each.state, each.origin or DASH, on(each.created_at), each.sha256[:12])
        for each in reversed(facts.versions)
    ]
    return Table("Versions of the model", ("Version", "State", "Origin", "Made", "Weights (SHA-256)"), rows)


def history_picture(facts: Facts) -> list[Picture]:
    """The control chart of the last batches; several charts where the model has many classes."""
    if not facts.history:
        return []
    shown = facts.history[-_SHOWN_BATCHES:]
    batches = f"{len(shown)} batches" if len(shown) > 1 else "one batch"
    title = f"{facts.cause.model}: recall by class, {batches} to {shown[-1].closed_at:%d %b %Y}"
    rates = statistics.baseline_rates(facts.baseline_recalls)
    warnings = early.stretches(facts.windows, facts.version, shown[-1].closed_at) if facts.windows else None
    charts = control_charts(Story(title, shown, facts.classes, rates, facts.interventions, warnings))
    alarms = joined([f"batch {each.number}" for each in shown if each.status == "degraded"] or ["none"])
    return [
        Picture(
            name="control_chart" if place == 1 else f"control_chart_{place}",
            title="Control chart: how many of each class were found, batch by batch",
            alt=f"Control chart of the recall of {joined(list(classes))} over {len(shown)} batches. Alarm stands at: {alarms}.",
            caption=_CHART_CAPTION,
            drawing=drawing,
        )
        for place, (classes, drawing) in enumerate(charts, start=1)
    ]


def history(facts: Facts) -> list[Section]:
    """The control chart as a section of its own, at the end of what is said in short."""
    pictures = history_picture(facts)
    return [Section("The history", pictures=pictures)] if pictures else []


def confusion_picture(facts: Facts) -> list[Picture]:
    """The latest batch's confusion matrix beside the baseline's."""
    named = [
        (title, statistics.confusion(cases, facts.classes))
        for title, cases in ((capitalised(reference(facts)), facts.baseline), ("Latest batch", facts.cases))
        if cases
    ]
    if not named:
        return []
    alt = "Confusion matrices: " + "; ".join(f"{title} {matrix.tolist()}" for title, matrix in named)
    caption = "Rows are the truth, columns the model's answer. Off the diagonal are the errors: which class was taken for which."
    drawing = plots.confusion_matrices(named, facts.classes)
    return [Picture("confusion", "What was taken for what", alt, caption, drawing, 0.85 if len(facts.classes) <= 4 else 1.0)]


def reliability_picture(facts: Facts) -> list[Picture]:
    """The reliability curve of the latest batch beside the baseline's."""
    named = [
        (f"{title} ({len(cases)} cases)", bins)
        for title, cases in ((reference(facts), facts.baseline), ("latest batch", facts.cases))
        if (bins := statistics.reliability(cases))
    ]
    if not named:
        return []
    caption = f"Below the diagonal the model is surer than it should be.{_calibration_words(facts)}"
    drawing = plots.reliability_curve(named)
    title = "Does the model's confidence keep its word?"
    return [Picture("reliability", title, f"Reliability curves. {caption}", caption, drawing, 0.57)]


def _calibration_words(facts: Facts) -> str:
    """The evaluation's own calibration error, in ten bins of equal width; the figure's groups are of equal size."""
    error = facts.latest.metric("ece") if facts.latest is not None else None
    if error is None or error.value is None:
        return ""
    before = f"; {reference(facts)}: {error.baseline:.3f}" if error.baseline is not None else ""
    return f" Expected calibration error of the latest batch: {with_interval(error)}{before}."


def latest_data(facts: Facts) -> dict[str, Any]:
    """The latest evaluation as JSON data."""
    latest = facts.latest
    if latest is None:
        return {}
    return {
        "evaluation_id": latest.evaluation_id,
        "batch_id": latest.batch_id,
        "batch_number": latest.number,
        "version": latest.version,
        "status": latest.status,
        "diagnosis": latest.diagnosis,
        "cases": latest.cases,
        "stream_cases": latest.stream_cases,
        "metrics": [vars_of(metric) for metric in latest.metrics],
        "evidence": dict(latest.evidence),
        "reclaim_rule": latest.reclaim_rule,
        "evaluated_at": latest.evaluated_at.isoformat(),
    }


def data_of(facts: Facts) -> dict[str, Any]:
    """The numbers behind a report on a model, for machines."""
    return {
        "period": _period_data(facts.period) if facts.period else None,
        "latest": latest_data(facts),
        "history": history_data(facts),
        "labels": vars_of(facts.labels),
        "activity": _activity_data(facts.activity),
        "early_warning": early.data(facts),
        "interventions": [
            {"at": each.at.isoformat(), "kind": each.kind, "action": each.action, "word": each.word, "actor": each.actor}
            for each in facts.interventions
        ],
        "judgements": [
            {"at": each.at.isoformat(), "version": each.version, "verdict": each.verdict, "numbers": each.evidence.get("numbers")}
            for each in facts.judgements
        ],
    }


def _period_data(period: Period) -> dict[str, Any]:
    return {"since": period.since.isoformat() if period.since else None, "until": period.until.isoformat()}


def _activity_data(activity: Activity) -> dict[str, Any]:
    counts = {name: value for name, value in vars_of(activity).items() if name != "delays"}
    seconds = (each.total_seconds() for each in activity.delays)
    return counts | {"label_delay_s": dict(zip(("median", "p90", "longest"), seconds, strict=False))}


def vars_of(value: Any) -> dict[str, Any]:
    """The fields of a dataclass instance."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def history_data(facts: Facts) -> list[dict[str, Any]]:
    """Recall of every class over the batches as JSON data."""
    return [
        {
            "version": each.version,
            "batch": each.number,
            "status": each.status,
            "evaluated_at": each.evaluated_at.isoformat(),
            "revisions": [
                {"evaluation_id": old.evaluation_id, "evaluated_at": old.evaluated_at.isoformat(), "recall": _recalls(old.metrics)}
                for old in each.revisions
            ],
            "recall": _recalls(each.metrics),
        }
        for each in facts.history
    ]


def _recalls(metrics: Sequence[Metric]) -> dict[str, float | None]:
    return {metric.name.removeprefix("recall:"): metric.value for metric in metrics if metric.name.startswith("recall:")}
