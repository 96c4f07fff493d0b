"""The chapters that a quality committee files: post-market monitoring, change control, limits and records.

Their headings follow Article 72 of Regulation (EU) 2024/1689 (what is collected, analysed, concluded and corrected over the
lifetime) and the parts of a predetermined change control plan in the FDA's guidance (modifications, protocol, impact).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from schemas.vocabulary import OrderKind, Verdict
from services.reporting import analysis, common
from services.reporting.facts import Facts, Intervention, Judgement, Record, Rules
from services.reporting.page import Part, Section, Table
from services.reporting.statistics import digest
from services.reporting.wording import (
    BLIND_SPOTS,
    DASH,
    STATUS,
    STATUS_MEANING,
    VERDICT,
    duration,
    ended,
    estimate,
    evidence_value,
    joined,
    metric_name,
    number,
    on,
    percent,
    smallest_fall,
)

_ARTICLE_72 = "The headings follow the post-market monitoring of Article 72 of Regulation (EU) 2024/1689."
_PCCP = (
    "The headings follow the parts of a predetermined change control plan in the FDA's guidance: description of modifications, "
    "modification protocol, impact assessment."
)
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
_SHOWN_NUMBERS = ("gate_cases", "baseline_cases", "accuracy_gain_low", "accuracy_gain_high", "baseline_loss_upper", "mcnemar_p")


def post_market(facts: Facts, rules: Rules) -> Part:
    """Data collected, analysis, conclusions, corrective actions."""
    sections = (_collected(facts, rules), analysis.section(facts), _conclusions(facts), _corrective(facts))
    return Part("Post-market monitoring", sections, _ARTICLE_72)


def change_control(facts: Facts, rules: Rules) -> Part:
    """Description of modifications, modification protocol, impact assessment."""
    return Part("Change control", (_modifications(facts), _protocol(facts, rules), _impact(facts)), _PCCP)


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
    tables = [Table("What came in", ("", "Number"), rows), _by_class(facts)]
    suspects = facts.extras.get("suspects", ())
    if suspects:
        tables.append(_as_they_are("Labels that may be wrong, for review", suspects))
    return Section("Data collected", (span, roles, *_silence(facts)), tables=tables)


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


def _modifications(facts: Facts) -> Section:
    made = [each for each in facts.versions if facts.period is None or facts.period.holds(each.created_at)]
    names = joined([f"version {each.version}" for each in made]) if made else ""
    first = f"Made in the period: {names}." if made else "No version was made in the period."
    serves = f"Version {facts.champion} serves." if facts.serving and facts.champion else "No version serves at present."
    return Section("Description of modifications", (f"{first} {serves}", _plan(facts)), tables=(common.versions_table(facts),))


def _plan(facts: Facts) -> str:
    """The change control plan of the model, cited by version and hash."""
    plans = facts.extras.get("plan", ())
    if not plans:
        return (
            "The model has no change control plan of its own on file: what may change is what the ladder of repairs allows "
            "(thresholds, calibration, statistics of the network, its last layer, its rear part, added layers, the whole "
            "network), under the protocol below."
        )
    cited = "; ".join(f"{name} {value}" for name, value in plans[-1].cells.items())
    return f"Change control plan in force: {ended(cited)}"


def _protocol(facts: Facts, rules: Rules) -> Section:
    leave = "A repair waits for a person's approval." if rules.approve_remedies else "A repair needs no approval beforehand."
    data = (
        "Data: each patient has one role for ever, so that no case that raised the alarm or trained the repair judges it. "
        f"A repair needs at least {rules.min_tune_cases} labelled cases to learn from."
    )
    acceptance = (
        f"Acceptance, fixed beforehand: on at least {rules.min_gate_cases} cases of patients kept for it the new version reads "
        f"more patients better than worse (exact McNemar test, level {percent(rules.gate_alpha, 0)}); in no class does the recall "
        f"on the old test set fall by more than {100 * rules.gate_margin:.0f} points (upper limit); it is calibrated, and not "
        "slower."
    )
    update = (
        "Update: a version that passes serves from the next study on, a version that does not is put aside. The version before "
        f"it is kept whole: `reclaim models rollback {facts.cause.model}` brings it back."
    )
    points = (
        data,
        f"Ordering: {leave} At most {rules.max_remedies_per_day} repairs of one model a day.",
        acceptance,
        update,
        "Deviation: where too few cases judge a version, it does not serve, and labels are asked for instead.",
    )
    return Section("Modification protocol", points=points)


def _impact(facts: Facts) -> Section:
    if not facts.judgements:
        return Section("Impact assessment", ("No version was judged in the period, so there is no change whose impact to assess.",))
    points = [_judged(each) for each in facts.judgements]
    rest = (
        "Benefit is measured on the gate's cases, risk as recall lost in any class of the old test set. Groups of patients that "
        "the data do not name, and images unlike those compared, are not assessed."
    )
    return Section(
        "Impact assessment", (rest,), points, tables=[_impact_table(facts.judgements), _training_records(facts.judgements)]
    )


def _judged(judgement: Judgement) -> str:
    reasons = judgement.evidence.get("reasons")
    told = " ".join(ended(str(each)) for each in reasons) if isinstance(reasons, list) else ""
    return f"{on(judgement.at)}: version {judgement.version} {_verdict(judgement)}. {told}".strip()


def _verdict(judgement: Judgement) -> str:
    return VERDICT.get(judgement.verdict, judgement.verdict) if judgement.verdict in list(Verdict) else "was judged"


def _impact_table(judgements: Sequence[Judgement]) -> Table:
    numbers = [_mapping(each.evidence.get("numbers")) for each in judgements]
    rows = [
        (metric_name(key), *(evidence_value(key, known.get(key)) for known in numbers))
        for key in _SHOWN_NUMBERS
        if any(key in known for known in numbers)
    ]
    return Table("What the gate measured", ("", *(f"Version {each.version}" for each in judgements)), rows)


def _training_records(judgements: Sequence[Judgement]) -> Table:
    names = {
        "data_sha256": "Data (SHA-256)",
        "code_sha256": "Code (SHA-256)",
        "weights_sha256": "Weights (SHA-256)",
        "seed": "Seed",
    }
    rows = [
        (f"Version {each.version}: {title}", str(each.evidence[key]))
        for each in judgements
        for key, title in names.items()
        if each.evidence.get(key) is not None
    ]
    return Table(
        "What these versions were made from", ("", ""), rows, "" if rows else "The audit record names no hashes.", mono=True
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _as_they_are(title: str, found: Sequence[Record]) -> Table:
    columns = list(dict.fromkeys(key for each in found for key in each.cells))
    rows = [tuple(number(each.cells.get(key)) for key in columns) for each in found]
    return Table(title, tuple(key.replace("_", " ").capitalize() for key in columns), rows)


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
