"""The analysis of a report: all batches beside the classical rules, the metrics, subgroups, drift, and what labels changed."""

from collections.abc import Mapping
from typing import Any

from services.reporting import common, early
from services.reporting.chart import evidence_share
from services.reporting.facts import EvaluationFacts, Facts
from services.reporting.page import Section, Table
from services.reporting.wording import (
    DASH,
    KEYWORD,
    RULE_OF_CUSUM,
    RULE_OF_FIVE,
    STATUS,
    evidence_name,
    evidence_value,
    in_order,
    joined,
    metric_name,
    moment,
    number,
    on,
    percent,
    with_interval,
)

CUSUM = "cusum"
SHOWN_BATCHES = 26
_SHOWN_GROUPS = 40


def section(facts: Facts) -> Section:
    """The section with its figures and tables; what was not measured is said and not left out."""
    paragraphs = [*_rules(facts), *_missing(facts)]
    tables = [
        *_batches(facts),
        *common.metrics_table(facts),
        *_subgroups(facts),
        *early.tables(facts),
        *_revised(facts),
        *_evidence(facts),
    ]
    return Section(
        "Analysis", paragraphs, pictures=[*common.confusion_picture(facts), *common.reliability_picture(facts)], tables=tables
    )


def _rules(facts: Facts) -> list[str]:
    latest = facts.latest
    if latest is None:
        return ["No batch of labelled cases has been evaluated yet."]
    five = "would raise an alarm" if latest.reclaim_rule else "would raise no alarm"
    chart = _rule(latest, CUSUM)
    sums = f"CUSUM: {_cusum_words(chart)} {RULE_OF_CUSUM}" if chart is not None else "CUSUM: not on record for this evaluation."
    return [f"5 % rule: it {five} on the latest batch. {RULE_OF_FIVE}", sums]


def _cusum_words(chart: Mapping[str, Any]) -> str:
    side = "it alarms" if chart["alarmed"] else "it does not alarm"
    return f"{side}; {metric_name(str(chart['metric'])).lower()} stands at {chart['statistic']:.1f} of {chart['limit']:.1f}."


def _rule(evaluation: EvaluationFacts, name: str) -> Mapping[str, Any] | None:
    return next((each for each in evaluation.rules if each.get("rule") == name), None)


def _own(facts: Facts) -> list[EvaluationFacts]:
    """The batches of the version that the report is about, in order."""
    about = facts.latest.version if facts.latest is not None else facts.version
    return [each for each in facts.history if each.version == about]


def _batches(facts: Facts) -> list[Table]:
    """The version's batches, newest first."""
    own = _own(facts)
    if not own:
        return []
    note = (
        "An asterisk: closed in the period of this report. Evidence is the larger of the detector's two statistics as a share of "
        "its threshold. Neither the 5 % rule nor the CUSUM chart decides anything here."
    )
    columns = ("Batch", "Closed", "Cases", "Status", "Evidence", "5 % rule", "CUSUM")
    rows = [_batch_row(facts, each) for each in reversed(own[-SHOWN_BATCHES:])]
    return [Table(f"Batches of version {own[0].version}", columns, rows, note)]


def _batch_row(facts: Facts, each: EvaluationFacts) -> tuple[str, ...]:
    within = facts.period is not None and facts.period.since is not None and facts.period.holds(each.closed_at)
    shares = [share for key in ("a", "b") if (share := evidence_share(each, key)) is not None]
    chart = _rule(each, CUSUM)
    return (
        f"{each.number}{'*' if within else ''}",
        f"{each.closed_at:%d %b %Y}",
        number(each.cases),
        STATUS[each.status].lower(),
        percent(max(shares), 0) if shares else DASH,
        "alarm" if each.reclaim_rule else "no alarm",
        DASH if chart is None else f"{chart['statistic']:.1f} of {chart['limit']:.1f}" + (", alarm" if chart["alarmed"] else ""),
    )


def _revised(facts: Facts) -> list[Table]:
    """Every batch whose evaluation was re-opened, before and after."""
    rows = []
    for each in facts.history:
        for old in each.revisions:
            rows += [
                (
                    f"{each.version}/{each.number}",
                    on(old.evaluated_at),
                    metric_name(metric.name),
                    with_interval(before),
                    with_interval(metric),
                )
                for metric in each.metrics
                if (before := old.metric(metric.name)) is not None
                and metric.name.startswith(("recall:", "macro_recall", "accuracy"))
                and (before.value, before.cases) != (metric.value, metric.cases)
            ]
    columns = ("Version/batch", "Evaluated at first", "Metric", "Then", "Now")
    note = "Labels were corrected or came late. Both evaluations are kept; the alarms of the time are not rewritten."
    return [Table("Evaluations that labels re-opened", columns, rows, note)] if rows else []


def _subgroups(facts: Facts) -> list[Table]:
    """All groups that can be compared; a group too small to be judged is named with what it lacks."""
    found = facts.latest.subgroups if facts.latest is not None else ()
    if not found:
        return []
    note = (
        "Each group is compared with the other cases of the same batches, one case per patient. “Worse” keeps its risk of error "
        "over all groups and evaluations of a year. “Nobody beside it”: no batch had cases of others too. "
        "In brackets the 95 % interval."
    )
    columns = ("Group", "Cases", "Finding", "Class", "Recall", "The others", "Before", "Cases lacking")
    return [Table("Subgroups", columns, [_group_row(each) for each in found[:_SHOWN_GROUPS]], note)]


def _group_row(each: Mapping[str, Any]) -> tuple[str, ...]:
    recall, low, high = each.get("recall"), each.get("recall_low"), each.get("recall_high")
    # On one line, however narrow the column.
    limits = (
        f" ({100 * low:.0f}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{100 * high:.0f})" if low is not None and high is not None else ""
    )
    return (
        f"{KEYWORD.sub(' ', str(each.get('facet', '')))}: {each.get('group', '')}",
        number(each.get("cases")),
        _finding(each),
        str(each.get("label") or "all"),
        percent(recall, 0) + (limits if recall is not None else ""),
        percent(each.get("recall_others"), 0),
        percent(each.get("recall_before"), 0),
        number(each.get("more_cases")),
    )


def _finding(each: Mapping[str, Any]) -> str:
    if each.get("worse"):
        since = str(each.get("since") or "")
        return f"worse since {moment(since).partition(',')[0]}" if since else "worse"
    if each.get("more_cases"):
        return "nobody beside it" if each.get("compared") == 0 else "too few cases"
    return "suspected" if each.get("suspected") else "no difference shown"


def _missing(facts: Facts) -> list[str]:
    """What is not on record is said: an empty table would read as health."""
    kinds = {"subgroups": facts.latest.subgroups if facts.latest else (), "windows of the early warning": facts.windows}
    absent = [word for word, found in kinds.items() if not found]
    return [f"Not on record for this report: {joined(absent)}."] if absent else []


def _evidence(facts: Facts) -> list[Table]:
    if facts.latest is None or not facts.latest.evidence:
        return []
    rows = [(evidence_name(key), evidence_value(key, value)) for key, value in in_order(facts.latest.evidence)]
    return [Table("The detector's evidence", ("Statistic", "Value"), rows)]
