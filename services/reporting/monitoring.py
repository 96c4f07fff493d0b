"""The report on how a model is doing: routine, or after an alarm."""

from services.reporting import common
from services.reporting.facts import EvaluationFacts, Facts
from services.reporting.page import KeyFigure, Page, Section, Table
from services.reporting.wording import (
    DIAGNOSIS,
    DIAGNOSIS_STEP,
    NEXT_STEP,
    STATUS,
    STATUS_MEANING,
    estimate,
    evidence_name,
    evidence_value,
    fall_sentence,
    falls,
    joined,
    metric_name,
    metric_value,
    number,
    on,
    percent,
    sentences,
    start_of,
)

_HEADLINES = ("macro_recall", "balanced_accuracy", "accuracy", "macro_auroc", "auroc")


def monitoring_page(facts: Facts, report_id: str, false_alarms_per_year: float) -> Page:
    """Build the page. `false_alarms_per_year` is the budget that the alarm was calibrated to."""
    status = facts.latest.status if facts.latest is not None else "undecided"
    return Page(
        report_id=report_id,
        kind="monitoring" if facts.cause.evaluation_id or status in ("degraded", "watch") else "routine",
        status=status,
        status_word=STATUS[status],
        title=f"{facts.cause.model}, version {facts.version}: {STATUS[status].lower()}",
        summary=_summary(facts),
        model=facts.cause.model,
        task=facts.task,
        version=facts.version,
        as_of=facts.cause.as_of,
        key_figures=_key_figures(facts),
        sections=[
            _what_happened(facts),
            _how_sure(facts, false_alarms_per_year),
            _since_when(facts),
            common.what_was_done(facts),
            _what_next(facts),
            common.rule_of_five(facts),
            common.blind_spots(facts),
        ],
        pictures=[*common.history_picture(facts), *common.confusion_picture(facts), *common.reliability_picture(facts)],
        tables=[*common.metrics_table(facts), *_evidence_table(facts), common.versions_table(facts)],
        provenance=common.provenance(facts),
        data={"latest": common.latest_data(facts), "history": common.history_data(facts), "labels": common.vars_of(facts.labels)},
    )


def _summary(facts: Facts) -> str:
    if facts.latest is None:
        waiting = sum(facts.labels.waiting.values())
        return (
            f"No batch of version {facts.version} of {facts.cause.model} has been evaluated yet. "
            f"{number(waiting)} scored studies wait for their label."
        )
    return sentences(facts.latest.summary, 2)


def _key_figures(facts: Facts) -> list[KeyFigure]:
    latest = facts.latest
    if latest is None:
        labelled, waiting = sum(facts.labels.labelled.values()), sum(facts.labels.waiting.values())
        return [KeyFigure("Labelled cases", number(labelled)), KeyFigure("Waiting for a label", number(waiting))]
    headline = next((metric for name in _HEADLINES if (metric := latest.metric(name)) is not None), None)
    figures = [
        KeyFigure("Labelled cases in this batch", number(latest.cases), f"{number(latest.stream_cases)} of this version so far")
    ]
    if headline is not None:
        note = f"development test set: {metric_value(headline.name, headline.baseline)}"
        figures.insert(0, KeyFigure(metric_name(headline.name), metric_value(headline.name, headline.value), note))
    worst = falls(latest)
    if worst:
        note = f"development test set: {percent(worst[0].baseline)}"
        figures.append(KeyFigure(f"Largest fall: recall, {worst[0].name[7:]}", percent(worst[0].value), note))
    figures.append(KeyFigure("Evaluated", f"{latest.evaluated_at:%d %b %Y}", f"batch {latest.number}"))
    return figures


def _what_happened(facts: Facts) -> Section:
    latest = facts.latest
    if latest is None:
        return Section(
            "What happened", ("No batch of labelled cases has been closed for this version, so nothing can be said yet.",)
        )
    serving = "It serves." if facts.serving and facts.champion == facts.version else "It does not serve at present."
    first = f"{STATUS_MEANING[latest.status]} {DIAGNOSIS[latest.diagnosis]} {_cause(latest)}{serving}"
    points = [fall_sentence(metric) for metric in falls(latest)[:4]] if latest.status in ("degraded", "watch") else []
    return Section("What happened", (first,), points)


def _cause(latest: EvaluationFacts) -> str:
    cause = latest.evidence.get("root_cause")
    return f"Likely cause: {cause.rstrip('.')}. " if isinstance(cause, str) and cause else ""


def _how_sure(facts: Facts, budget: float) -> Section:
    latest = facts.latest
    if latest is None:
        return Section("How sure is that", ("Not at all: there is no evaluation yet.",))
    alarm = (
        f"The alarm is set so that an unchanged model raises it within a year with a probability of at most {percent(budget, 0)}. "
        f"The evidence comes from {number(latest.stream_cases)} labelled cases of this version."
    )
    absent = [metric.name[7:] for metric in latest.metrics if metric.name.startswith("recall:") and metric.cases == 0]
    gaps = (f"No case of {joined(absent)} was in the batch, so nothing is known about it this time.",) if absent else ()
    size = estimate(latest.evidence)
    return Section("How sure is that", (*([size] if size else []), alarm, *gaps))


def _since_when(facts: Facts) -> Section:
    latest = facts.latest
    if latest is None or latest.status in ("healthy", "undecided"):
        return Section("Since when", ("No decline has been found, so there is no start to name.",))
    first = _first_alarm(facts, latest)
    start = start_of(latest.evidence)
    known = (
        f"The decline is estimated to have begun on {start}." if start else "The start cannot be estimated from the cases so far."
    )
    return Section(
        "Since when", (f"{known} The status left “healthy” with batch {first.number}, evaluated on {on(first.evaluated_at)}.",)
    )


def _first_alarm(facts: Facts, latest: EvaluationFacts) -> EvaluationFacts:
    """The first batch of the unbroken run of unhealthy ones that ends with the latest."""
    own = [each for each in facts.history if each.version == latest.version and each.number <= latest.number]
    first = latest
    for each in reversed(own):
        if each.status not in ("degraded", "watch"):
            break
        first = each
    return first


def _what_next(facts: Facts) -> Section:
    if facts.latest is None:
        return Section("What to do next", points=(NEXT_STEP["undecided"],))
    points = [NEXT_STEP[facts.latest.status]]
    if facts.latest.status in ("degraded", "watch") and facts.latest.diagnosis in DIAGNOSIS_STEP:
        points.append(DIAGNOSIS_STEP[facts.latest.diagnosis])
    waiting = sum(facts.labels.waiting.values())
    if waiting:
        points.append(f"{number(waiting)} scored studies still wait for their label; each one sharpens the next evaluation.")
    return Section("What to do next", points=points)


def _evidence_table(facts: Facts) -> list[Table]:
    if facts.latest is None or not facts.latest.evidence:
        return []
    rows = [(evidence_name(key), evidence_value(key, value)) for key, value in sorted(facts.latest.evidence.items())]
    return [Table("The detector's evidence", ("Statistic", "Value"), rows)]
