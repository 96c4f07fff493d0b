"""The chapters that a quality committee files: post-market monitoring, change control, limits and records.

Their headings follow Article 72 of Regulation (EU) 2024/1689 (what is collected, analysed, concluded and corrected over the
lifetime) and the parts of a predetermined change control plan in the FDA's guidance (modifications, protocol, impact).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from schemas.vocabulary import OrderKind
from services.reporting import analysis, common
from services.reporting.facts import Facts, Intervention, Rules
from services.reporting.page import Part, Section, Table
from services.reporting.statistics import digest
from services.reporting.wording import (
    BLIND_SPOTS,
    DASH,
    STATUS,
    STATUS_MEANING,
    duration,
    estimate,
    number,
    on,
    percent,
    smallest_fall,
)

_ARTICLE_72 = "The headings follow the post-market monitoring of Article 72 of Regulation (EU) 2024/1689."
_INCIDENT = (
    "Whether anything reported here is a serious incident (Article 73 of the same regulation) is for people to judge; this "
    "software reports none."
)
_DEEDS = {
    "began_serving": "Version {version} began to serve",
    "promoted": "Version {version} passed the gate and took over",
    "rolled_back": "Version {version} was brought back by a rollback",
    "stopped": "The model was stopped",
    "resumed": "The model was resumed",
    "remedy": "A repair was ordered: {word}",
    "label_request": "Labels were asked for",
}


def post_market(facts: Facts, rules: Rules) -> Part:
    """Data collected, analysis, conclusions, corrective actions."""
    sections = (_collected(facts, rules), analysis.section(facts), _conclusions(facts), _corrective(facts))
    return Part("Post-market monitoring", sections, _ARTICLE_72)


def records(facts: Facts, rules: Rules, *, blind: Sequence[str] = (), rows: Sequence[tuple[str, str]] = ()) -> Part:
    """What nobody should conclude from the report, and what it rests on. `blind` and `rows` add to both."""
    limits = Section(
        "What this monitoring cannot see",
        points=(*blind, smallest_fall(facts.latest.evidence if facts.latest else {}), *BLIND_SPOTS),
    )
    return Part("Limits and records", (limits, Section("Records", tables=(_provenance(facts, rules, rows),))))


def _collected(facts: Facts, rules: Rules) -> Section:
    period, seen = facts.period, facts.activity
    until = on(period.until if period else facts.cause.as_of)
    span = f"From {on(period.since)} to {until}." if period and period.since else f"From the model's first study to {until}."
    roles = (
        f"The label of a study decides about an alarm only if its patient is in the monitored share "
        f"({percent(1 - rules.tune_share - rules.gate_share, 0)} of all patients); the labels of the other patients are kept for "
        f"repairs ({percent(rules.tune_share, 0)}) and for judging them ({percent(rules.gate_share, 0)})."
    )
    rows = [
        ("Studies that arrived, for all models", number(seen.studies)),
        ("Predictions of the serving version", number(seen.predictions)),
        ("Predictions of a version in the shadow", number(seen.shadow)),
        ("Labels that were joined with a prediction", number(seen.labels)),
        ("Batches of labelled cases closed", number(seen.batches)),
        ("Evaluations made", number(seen.evaluations)),
        ("Predictions that wait for a label at the end", number(seen.waiting)),
        ("… of them for more than 30 days", number(seen.waiting_long)),
        *zip(_DELAYS, map(duration, seen.delays), strict=False),
    ]
    tables = (Table("What came in", ("", "Number"), rows), _by_class(facts), *_trust(facts))
    return Section("Data collected", (span, roles, *_silence(facts)), tables=tables)


_LABELS = {
    "labelled_share": "Predictions that have a label",
    "labels_selected_by": "Labels are not given by chance, but by",
    "label_delay_median_days": "Half of the predictions have their label after",
    "label_delay_90_percent_days": "Nine of ten have it after",
    "wrong_labelled_sooner": "Probability that a wrong prediction has its label before a right one",
    "label_noise": "Labels that are wrong, estimated (95 % interval)",
    "suspect_labels": "Labels to look at again",
}
_DELAYS = ("Time from prediction to label: median", "… nine of ten within", "… the longest")


def _silence(facts: Facts) -> list[str]:
    """An empty feed is a fault and not health; a label that arrives sooner for errors is a bias."""
    seen, period = facts.activity, facts.period
    if period is None or period.since is None:
        return []
    if not seen.predictions:
        return ["Nothing was scored in this period: that is a fault of the feed or a stop of the model, and no sign of health."]
    return [] if seen.labels else ["No label came in this period, so a decline in it would be unseen."]


def _by_class(facts: Facts) -> Table:
    names = [*facts.classes, *sorted(set(facts.labels.labelled) - set(facts.classes))]
    rows = [(name, number(facts.labels.labelled.get(name, 0)), number(facts.labels.waiting.get(name, 0))) for name in names]
    note = "Since the version began. Studies without a label are counted under the class that the model gave them."
    return Table(f"Cases of version {facts.version} by class", ("Class", "Labelled", "Waiting for a label"), rows, note)


def _trust(facts: Facts) -> list[Table]:
    """How late labels are, how they were chosen and how many are wrong, as far as the newest evaluation says."""
    said = facts.latest.evidence if facts.latest is not None else {}
    rows = [(name, words) for key, name in _LABELS.items() if (words := _label_words(key, said))]
    note = "Of the whole stream of this version. Suspects are a reason to look again at a study, never a correction."
    return [Table("How far the labels can be relied on", ("", "Estimate"), rows, note)] if rows else []


def _label_words(key: str, said: Mapping[str, Any]) -> str:
    value = said.get(key)
    if value is None or isinstance(value, str):
        return value or ""
    if key.endswith("_days"):
        return f"{value:.1f} days"
    if key == "suspect_labels":
        return number(value)
    low, high = said.get(f"{key}_low"), said.get(f"{key}_high")
    limits = "" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"
    return percent(float(value)) + limits


def _conclusions(facts: Facts) -> Section:
    latest = facts.latest
    if latest is None:
        return Section("Conclusions", ("None can be drawn: no batch of labelled cases has been evaluated yet.",))
    status = f"Status: {STATUS[latest.status].lower()}. {STATUS_MEANING[latest.status].format(reference=common.reference(facts))}"
    size = estimate(latest.evidence)
    return Section("Conclusions", tuple(part for part in (status, latest.summary, size, smallest_fall(latest.evidence)) if part))


def _corrective(facts: Facts) -> Section:
    shown = [each for each in facts.interventions if facts.period is None or facts.period.holds(each.at)]
    orders = [each for each in facts.orders if each.kind != OrderKind.REPORT]
    tables = []
    if shown:
        rows = [(on(each.at), _deed(each), each.actor or DASH) for each in shown]
        tables.append(Table("What was done to the model in the period", ("When", "What", "By"), rows))
    points = [common.order_line(each) for each in orders[: common.SHOWN_DEEDS]]
    nothing = () if shown or points else ("Nothing was done to the model in this period, and nothing is ordered.",)
    return Section("Corrective actions", (*nothing, _INCIDENT), points, tables=tables)


def _deed(each: Intervention) -> str:
    sentence = _DEEDS.get(each.action)
    return sentence.format(version=each.version, word=each.word) if sentence else each.word


def _provenance(facts: Facts, rules: Rules, extra: Sequence[tuple[str, str]]) -> Table:
    """What the report rests on, for the audit."""
    rows = [("Asked for by", facts.cause.actor or "the gate"), ("Cause (event)", facts.cause.event_id)]
    if facts.latest is not None:
        rows += [("Evaluation", facts.latest.evaluation_id), ("Batch", facts.latest.batch_id)]
    rows += [
        (f"Weights of version {each.version} (SHA-256)", each.sha256) for each in facts.versions if each.version == facts.version
    ]
    rows += [(f"{common.capitalised(common.reference(facts))}: cases", number(len(facts.baseline)))]
    rows += [("… their SHA-256", digest(facts.baseline))] if facts.baseline else []
    rows += [("Cases of the latest batch (SHA-256)", digest(facts.cases))] if facts.cases else []
    rows += [("Software (version, SHA-256 of its source)", rules.code)] if rules.code else []
    return Table("Where the numbers come from", ("", ""), [*rows, *extra], mono=True)
