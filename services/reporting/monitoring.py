"""The report on how a model is doing: routine, or after an alarm."""

from collections.abc import Mapping
from typing import Any

from schemas.vocabulary import Diagnosis, Status
from services.reporting import committee, common, early
from services.reporting.facts import EvaluationFacts, Facts, Rules
from services.reporting.modifications import change_control
from services.reporting.page import KeyFigure, Page, Part, Section
from services.reporting.wording import (
    DIAGNOSIS_STEP,
    EARLY_STEP,
    GROUP_STEP,
    KEEP_LABELLING,
    MIX_MOVED,
    NEXT_STEP,
    STATUS,
    STATUS_MEANING,
    UNTIL,
    WHOLE_IS_WELL,
    counted,
    day,
    estimate,
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
    two_sentences,
    worse_group,
)
from services.runtime.words import likely

UNWELL = (Status.DEGRADED, Status.WATCH)
_HEADLINES = ("macro_recall", "balanced_accuracy", "accuracy", "macro_auroc", "auroc")


def monitoring_page(facts: Facts, report_id: str, rules: Rules) -> Page:
    """Build the page: in short for those who read the images, then the chapters that a committee files."""
    status = facts.latest.status if facts.latest is not None else "undecided"
    routine = is_routine(facts)
    week = f", to {day(facts.cause.as_of)}" if routine else ""
    return Page(
        report_id=report_id,
        kind="monitoring" if not routine and (facts.cause.evaluation_id or status in UNWELL) else "routine",
        status=status,
        status_word=STATUS[status],
        title=f"{facts.cause.model}, version {facts.version}{week}: {STATUS[status].lower()}",
        summary=_routine_summary(facts) if routine else _summary(facts),
        model=facts.cause.model,
        task=facts.task,
        version=facts.version,
        as_of=facts.cause.as_of,
        key_figures=_key_figures(facts),
        parts=[
            Part("In short", (*_in_short(facts, rules), *common.history(facts))),
            committee.post_market(facts, rules),
            change_control(facts, rules),
            committee.records(facts, rules),
        ],
        data=common.data_of(facts),
    )


def is_routine(facts: Facts) -> bool:
    """Whether the report was asked for by the calendar or over a period, and not because of something that happened."""
    return facts.cause.settings.get("kind") == "routine"


def _routine_summary(facts: Facts) -> str:
    """How the model is, then what came in."""
    seen, period = facts.activity, facts.period
    since = f" since {day(period.since)}" if period is not None and period.since is not None else ""
    came = "One study was scored" if seen.predictions == 1 else f"{number(seen.predictions)} studies were scored"
    first = f"{came} by {facts.cause.model}{since}, and {counted(seen.labels, 'label')} came in."
    if facts.latest is None:
        return f"{first} No batch of version {facts.version} has been evaluated yet."
    return f"{sentences(facts.latest.summary)[0]} {first}"


def _in_short(facts: Facts, rules: Rules) -> tuple[Section, ...]:
    return _what_happened(facts), _how_sure(facts, rules), _since_when(facts), _what_next(facts)


def _summary(facts: Facts) -> str:
    if facts.latest is None:
        waiting = sum(facts.labels.waiting.values())
        return (
            f"No batch of version {facts.version} of {facts.cause.model} has been evaluated yet. "
            f"{number(waiting)} scored studies wait for their label."
        )
    return two_sentences(facts.latest.summary)


def _key_figures(facts: Facts) -> list[KeyFigure]:
    latest = facts.latest
    if latest is None:
        labelled, waiting = sum(facts.labels.labelled.values()), sum(facts.labels.waiting.values())
        return [KeyFigure("Labelled cases", number(labelled)), KeyFigure("Waiting for a label", number(waiting))]
    reference = common.reference(facts).removeprefix("the ")
    headline = next((metric for name in _HEADLINES if (metric := latest.metric(name)) is not None), None)
    figures = [
        KeyFigure("Labelled cases in this batch", number(latest.cases), f"{number(latest.stream_cases)} of this version so far")
    ]
    if headline is not None:
        note = f"{reference}: {metric_value(headline.name, headline.baseline)}"
        figures.insert(0, KeyFigure(metric_name(headline.name), metric_value(headline.name, headline.value), note))
    worst = falls(latest) if latest.status in UNWELL else []
    if worst:
        note = f"{reference}: {percent(worst[0].baseline)}"
        figures.append(KeyFigure(f"Largest fall, in this batch alone: recall, {worst[0].name[7:]}", percent(worst[0].value), note))
    figures.append(KeyFigure("Evaluated", f"{latest.evaluated_at:%d %b %Y}", f"batch {latest.number}"))
    return figures


def _what_happened(facts: Facts) -> Section:
    latest = facts.latest
    if latest is None:
        nothing = "No batch of labelled cases has been closed for this version, so nothing can be said yet."
        return Section("What happened", (nothing,), early.standing(facts))
    serving = "It serves." if facts.serving and facts.champion == facts.version else "It does not serve at present."
    reference = common.reference(facts)
    groups = [worse_group(each) for each in latest.subgroups if each.get("worse")]
    meaning = WHOLE_IS_WELL if groups and latest.status == Status.HEALTHY else STATUS_MEANING[latest.status]
    first = " ".join([meaning.format(reference=reference), *_cause(latest), serving])
    shown = falls(latest)[:4] if latest.status in UNWELL else []
    points = [f"In batch {latest.number} alone, {fall_sentence(each, reference)}" for each in shown]
    return Section("What happened", (first,), [*points, *groups, *early.standing(facts)])


def _cause(latest: EvaluationFacts) -> list[str]:
    if latest.status in UNWELL:
        return [f"{likely(latest.diagnosis, latest.evidence)}."]
    return [MIX_MOVED] if latest.diagnosis == Diagnosis.PREVALENCE else []


def _how_sure(facts: Facts, rules: Rules) -> Section:
    latest = facts.latest
    if latest is None:
        return Section("How sure is that", ("Not at all: there is no evaluation yet.",))
    alarm = (
        f"The alarm is set so that an unchanged model raises it within a year with a probability of at most "
        f"{percent(rules.false_alarms_per_year, 0)}. {_basis(latest)}"
    )
    absent = [metric.name[7:] for metric in latest.metrics if metric.name.startswith("recall:") and metric.cases == 0]
    gaps = (f"No case of {joined(absent)} was in the batch, so nothing is known about it this time.",) if absent else ()
    size = estimate(latest.evidence)
    return Section("How sure is that", (*([size] if size else []), alarm, *gaps))


def _basis(latest: EvaluationFacts) -> str:
    """Which cases the judgement rests on, and which are left out."""
    evidence = latest.evidence
    restart, own = _count(evidence, "recovered_after_batch"), _count(evidence, "own_baseline_cases")
    cases = _count(evidence, "independent_cases") or latest.stream_cases
    since = f", of which the cases since batch {restart + 1} count, because a decline was over then" if restart else ""
    parts = [f"The evidence comes from {number(cases)} labelled cases of this version, one of each patient{since}."]
    if own:
        parts.append(f"What it is compared with was too small, so its own first {number(own)} cases belong to that as well.")
    parts += _waiting(evidence)
    if out := _count(evidence, "returning_training_cases"):
        patients = number(_count(evidence, "returning_training_patients"))
        parts.append(f"{number(out)} studies of {patients} patients on whom the model was trained are left out.")
    return " ".join(parts)


def _waiting(evidence: Mapping[str, Any]) -> list[str]:
    """Weeks whose labels are not complete: errors in them may be unseen still, as a missing label counts as right."""
    held, weeks = _count(evidence, "cases_held_back"), _count(evidence, "weeks_waiting_for_labels")
    if not weeks:
        return []
    labels = counted(_count(evidence, "labels_awaited"), "label")
    since = f"{counted(weeks, 'week')} of acquisition (the first from {evidence.get('first_week_waiting')})"
    if evidence.get("judged_on") != "complete weeks":
        return [f"In {since} {labels} are missing; the alarm stands although each of them is counted as right."]
    return [f"Of these, {number(held)} cannot be judged fully yet: {labels} are missing in {since}, and count as right until then."]


def _count(evidence: Mapping[str, Any], name: str) -> int:
    value = evidence.get(name)
    return int(value) if isinstance(value, int | float) else 0


def _since_when(facts: Facts) -> Section:
    latest = facts.latest
    if latest is None or latest.status not in UNWELL:
        return Section("Since when", (_over(facts, latest),))
    first = _run_until(facts, latest)[0]
    start = start_of(latest.evidence)
    known = (
        f"The decline is estimated to have begun on {start}." if start else "The start cannot be estimated from the cases so far."
    )
    seen = f"It has been reported since batch {first.number}, evaluated on {on(first.evaluated_at)}."
    return Section("Since when", (f"{known} {seen}",))


def _over(facts: Facts, latest: EvaluationFacts | None) -> str:
    """No start to name; an earlier decline of this version is not forgotten."""
    own = [each for each in facts.history if latest is not None and each.version == latest.version]
    last = next((each for each in reversed(own) if each.status == Status.DEGRADED), None)
    if last is None:
        return "No decline has been found, so there is no start to name."
    alarms = [each for each in _run_until(facts, last) if each.status == Status.DEGRADED]
    return f"No alarm stands at present; the last alarm stood from batch {alarms[0].number} to batch {last.number}."


def _run_until(facts: Facts, last: EvaluationFacts) -> list[EvaluationFacts]:
    """The unbroken run of unhealthy batches that ends with this one."""
    run = [last]
    for each in reversed([each for each in facts.history if each.version == last.version and each.number < last.number]):
        if each.status not in UNWELL:
            break
        run.insert(0, each)
    return run


def _what_next(facts: Facts) -> Section:
    if facts.latest is None:
        return Section("What to do next", points=(NEXT_STEP["undecided"],))
    latest = facts.latest
    until = UNTIL.get(latest.diagnosis, "a repair has passed the gate")
    step = DIAGNOSIS_STEP.get(latest.diagnosis)
    worse = [GROUP_STEP] if any(each.get("worse") for each in latest.subgroups) else []
    early_step = [EARLY_STEP] if early.standing(facts) else []
    steps = [*([step] if step else []), *worse, *early_step]
    idle = latest.status == Status.HEALTHY and bool(steps)
    points = [KEEP_LABELLING if idle else NEXT_STEP[latest.status].format(until=until), *steps]
    waiting = sum(facts.labels.waiting.values())
    if waiting:
        points.append(f"{number(waiting)} scored studies still wait for their label; each one sharpens the next evaluation.")
    return Section("What to do next", points=points)
