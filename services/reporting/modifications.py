"""The chapter on change control: what was changed, by which protocol, and with what impact.

Where the model has a predetermined change control plan its clauses are cited; its limits are in the rules already.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from schemas.vocabulary import Verdict
from services.reporting import common
from services.reporting.facts import Facts, Judgement, Rules
from services.reporting.page import Part, Section, Table
from services.reporting.wording import VERDICT, ended, evidence_value, joined, metric_name, on, percent
from services.runtime.words import DONE

_PCCP = (
    "The headings follow the parts of a predetermined change control plan in the FDA's guidance: description of modifications, "
    "modification protocol, impact assessment."
)
_NO_PLAN = (
    "The model has no change control plan of its own on file: what may change is what the ladder of repairs allows (thresholds, "
    "calibration, statistics of the network, its last layer, its rear part, added layers, the whole network), under the protocol "
    "below."
)
_REST = (
    "Benefit is measured on the gate's cases, risk as recall lost in any class of the old test set. Groups of patients that the "
    "data do not name, and images unlike those compared, are not assessed."
)
_SHOWN_NUMBERS = ("gate_cases", "baseline_cases", "accuracy_gain_low", "accuracy_gain_high", "baseline_loss_upper", "mcnemar_p")
_HASHES = {"data_sha256": "data (SHA-256)", "code_sha256": "code (SHA-256)", "weights_sha256": "weights (SHA-256)", "seed": "seed"}


def change_control(facts: Facts, rules: Rules) -> Part:
    """Description of modifications, modification protocol, impact assessment."""
    return Part("Change control", (_modifications(facts, rules), _protocol(facts, rules), _impact(facts, rules)), _PCCP)


def _modifications(facts: Facts, rules: Rules) -> Section:
    made = [each for each in facts.versions if facts.period is None or facts.period.holds(each.created_at)]
    names = joined([f"version {each.version}" for each in made]) if made else ""
    first = f"Made in the period: {names}." if made else "No version was made in the period."
    serves = f"Version {facts.champion} serves." if facts.serving and facts.champion else "No version serves at present."
    plan, table = rules.plan, (common.versions_table(facts),)
    clauses = () if plan is None else plan.modifications
    points = [
        f"Clause {each.id}: {ended(each.description)} Covers {_covered(each.remedies, owner=each.owner_versions)}. {each.rationale}"
        for each in clauses
    ]
    return Section("Description of modifications", (f"{first} {serves}", _plan(rules)), points, tables=table)


def _covered(remedies: Sequence[Any], *, owner: bool) -> str:
    words = [DONE.get(each, str(each)) for each in remedies] + (["versions that a person brings"] if owner else [])
    return joined(words) if words else "nothing by itself"


def _plan(rules: Rules) -> str:
    """The change control plan of the model, cited by version and hash."""
    plan = rules.plan
    if rules.plan_fault:
        return f"The change control plan on file is not valid, so nothing may change: {ended(rules.plan_fault)}"
    if plan is None:
        return _NO_PLAN
    until = f", valid until {plan.valid_until}" if plan.valid_until else ""
    return (
        f"Change control plan in force: version {plan.version}, approved by {plan.approved_by} on {plan.approved_on}{until}, "
        f"SHA-256 {rules.plan_sha256}. Intended use: {ended(plan.intended_use)}"
    )


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
    return Section("Modification protocol", points=(*points, *_own_words(rules)))


def _own_words(rules: Rules) -> list[str]:
    """The protocol in the words of the plan's owner."""
    if rules.plan is None:
        return []
    protocol = rules.plan.protocol
    parts = {
        "data management": protocol.data_management,
        "retraining": protocol.retraining,
        "evaluation": protocol.evaluation,
        "update": protocol.update,
    }
    return [f"The plan on {name}: {ended(text)}" for name, text in parts.items()]


def _impact(facts: Facts, rules: Rules) -> Section:
    risks = () if rules.plan is None else rules.plan.impact_assessment
    foreseen = [f"Clause {each.id}, foreseen: {ended(each.risk)} Against it: {ended(each.mitigation)}" for each in risks]
    if not facts.judgements:
        nothing = "No version was judged in the period, so there is no change whose impact to assess."
        return Section("Impact assessment", (nothing,), foreseen)
    points = [*(_judged(each) for each in facts.judgements), *foreseen]
    return Section("Impact assessment", (_REST,), points, tables=(_impact_table(facts.judgements), _records(facts.judgements)))


def _judged(judgement: Judgement) -> str:
    reasons, cited = judgement.evidence.get("reasons"), judgement.evidence.get("change_plan")
    told = " ".join(ended(str(each)) for each in reasons) if isinstance(reasons, list) else ""
    covered = f"Covered by {cited}." if cited else ""
    first = f"{on(judgement.at)}: version {judgement.version} {_verdict(judgement)}."
    return " ".join(part for part in (first, told, covered) if part)


def _verdict(judgement: Judgement) -> str:
    return VERDICT[judgement.verdict] if judgement.verdict in list(Verdict) else "was judged"


def _impact_table(judgements: Sequence[Judgement]) -> Table:
    numbers = [_mapping(each.evidence.get("numbers")) for each in judgements]
    rows = [
        (metric_name(key), *(evidence_value(key, known.get(key)) for known in numbers))
        for key in _SHOWN_NUMBERS
        if any(key in known for known in numbers)
    ]
    return Table("What the gate measured", ("", *(f"Version {each.version}" for each in judgements)), rows)


def _records(judgements: Sequence[Judgement]) -> Table:
    rows = [
        (f"Version {each.version}: {title}", str(each.evidence[key]))
        for each in judgements
        for key, title in _HASHES.items()
        if each.evidence.get(key) is not None
    ]
    note = "" if rows else "The audit record names no hashes."
    return Table("What these versions were made from", ("", ""), rows, note, mono=True)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
