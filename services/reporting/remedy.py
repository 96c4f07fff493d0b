"""The report on a repair: what was tried, what the gate measured, and which version serves now."""

import re
from collections.abc import Mapping

from schemas.events import MaintenancePromotion
from schemas.vocabulary import Remedy, Verdict
from services.reporting import committee, common, plots
from services.reporting.facts import Facts, Rules
from services.reporting.modifications import change_control
from services.reporting.page import KeyFigure, Page, Part, Picture, Section, Table
from services.reporting.wording import DASH, VERDICT, evidence_value, is_rate, metric_name, metric_value, number, on
from services.runtime.words import DONE

_SIDES = (
    (re.compile(r"^champion[_:](.+)$"), "before"),
    (re.compile(r"^(.+)[_:](?:champion|before)$"), "before"),
    (re.compile(r"^before[_:](.+)$"), "before"),
    (re.compile(r"^challenger[_:](.+)$"), "after"),
    (re.compile(r"^(.+)[_:](?:challenger|after)$"), "after"),
    (re.compile(r"^after[_:](.+)$"), "after"),
)
_VERDICT_WORD = {Verdict.PROMOTE: "Promoted", Verdict.REJECT: "Not promoted", Verdict.NEED_LABELS: "Labels needed"}
_TONE = {Verdict.PROMOTE: "healthy", Verdict.REJECT: "degraded", Verdict.NEED_LABELS: "watch"}
_GATE = (
    "The new version is compared with the old one on cases of patients who neither raised the alarm nor trained the repair, "
    "and on the development test set, where it may not have become worse."
)
Pair = tuple[str, float, float]


def remedy_page(facts: Facts, promotion: MaintenancePromotion, report_id: str, rules: Rules) -> Page:
    """Build the page from the gate's verdict."""
    pairs, others = split_pairs(promotion.numbers)
    return Page(
        report_id=report_id,
        kind="remedy",
        status=_status(facts, promotion),
        status_word=_VERDICT_WORD[promotion.verdict],
        title=_title(promotion),
        summary=_summary(facts, promotion, pairs),
        model=promotion.model,
        task=facts.task,
        version=facts.version,
        as_of=facts.cause.as_of,
        key_figures=_key_figures(promotion, pairs),
        parts=[
            Part("In short", _sections(facts, promotion, pairs, others)),
            committee.post_market(facts, rules),
            change_control(facts, rules),
            committee.records(
                facts,
                rules,
                blind=("What the new version does on images that none of the compared cases resemble.",),
                rows=(("Decided by", promotion.actor), ("Run", facts.job.job_id if facts.job else DASH)),
            ),
        ],
        data=common.data_of(facts)
        | {
            "promotion": promotion.model_dump(mode="json"),
            "before": common.latest_data(facts),
            "run": common.vars_of(facts.job) if facts.job else None,
        },
        tone=_TONE[promotion.verdict],
    )


def split_pairs(numbers: Mapping[str, float | None]) -> tuple[list[Pair], list[tuple[str, float | None]]]:
    """The gate's numbers as (name, champion, challenger) where both are given, and all others."""
    sides: dict[str, dict[str, tuple[str, float | None]]] = {}
    for key, value in numbers.items():
        name, side = _side(key)
        sides.setdefault(name, {})[side] = (key, value)
    pairs: list[Pair] = []
    used: set[str] = set()
    for name, pair in sides.items():
        before, after = pair.get("before", ("", None)), pair.get("after", ("", None))
        if before[1] is not None and after[1] is not None:
            pairs.append((name, before[1], after[1]))
            used |= {before[0], after[0]}
    return pairs, [(key, value) for key, value in numbers.items() if key not in used]


def _side(key: str) -> tuple[str, str]:
    for pattern, side in _SIDES:
        found = pattern.match(key)
        if found is not None:
            return found[1], side
    return key, "single"


def _remedy_word(facts: Facts) -> str:
    return DONE.get(Remedy(facts.job.remedy), facts.job.remedy) if facts.job is not None else "a repair"


def _by_a_person(promotion: MaintenancePromotion) -> bool:
    """Whether a person brought the version and asked for the judgement; then no repair stands behind it."""
    return promotion.origin == "owner"


def _title(promotion: MaintenancePromotion) -> str:
    if promotion.verdict == Verdict.PROMOTE:
        return f"{promotion.model}: version {promotion.challenger} replaced version {promotion.champion_before}"
    return f"{promotion.model}: version {promotion.challenger} {VERDICT[promotion.verdict]}"


def _status(facts: Facts, promotion: MaintenancePromotion) -> str:
    """Health of the version that serves now; a fresh one has no evaluated batch yet."""
    own = [each.status for each in facts.history if each.version == promotion.champion_after]
    return own[-1] if own else "undecided"


def _summary(facts: Facts, promotion: MaintenancePromotion, pairs: list[Pair]) -> str:
    what = _remedy_word(facts)
    rates = [pair for pair in pairs if is_rate(pair[0])]
    gain = max(rates, key=lambda pair: abs(pair[2] - pair[1]), default=None)
    moved = (
        f" ({metric_name(gain[0]).lower()} {metric_value(gain[0], gain[1])} before, {metric_value(gain[0], gain[2])} after)"
        if gain
        else ""
    )
    brought = f"Brought by {promotion.actor}" if _by_a_person(promotion) else f"After {what}"
    first = f"{brought}, version {promotion.challenger} of {promotion.model} {VERDICT[promotion.verdict]}{moved}."
    if promotion.verdict == Verdict.PROMOTE:
        return f"{first} It serves from now on; version {promotion.champion_before} is kept and one command brings it back."
    return f"{first} Version {promotion.champion_after} goes on serving."


def _key_figures(promotion: MaintenancePromotion, pairs: list[Pair]) -> list[KeyFigure]:
    figures = [KeyFigure("Serves now", f"version {promotion.champion_after}", f"before: version {promotion.champion_before}")]
    figures += [
        KeyFigure(metric_name(name), metric_value(name, after), f"before: {metric_value(name, before)}")
        for name, before, after in pairs[:3]
    ]
    return figures


def _sections(
    facts: Facts, promotion: MaintenancePromotion, pairs: list[Pair], others: list[tuple[str, float | None]]
) -> list[Section]:
    gate = _gate_tables(promotion, pairs, others)
    return [
        _what_happened(facts, promotion),
        Section("What was done", (_done(facts, promotion),), tables=_run_table(facts)),
        Section("How sure is that: the gate's reasons", (_GATE,), promotion.reasons, _before_after(pairs), gate),
        _what_next(promotion),
        *common.history(facts),
    ]


def _what_happened(facts: Facts, promotion: MaintenancePromotion) -> Section:
    if _by_a_person(promotion):
        asked = (
            f"{promotion.actor} asked the gate to judge version {promotion.challenger} against version {promotion.champion_before}."
        )
        return Section("What happened", (asked,))
    if facts.latest is None:
        return Section(
            "What happened", (f"A repair of version {promotion.champion_before} was ordered without an evaluated batch.",)
        )
    since = f"Batch {facts.latest.number} of version {facts.latest.version}, evaluated on {on(facts.latest.evaluated_at)}:"
    return Section("What happened", (f"{since} {facts.latest.summary}",))


def _done(facts: Facts, promotion: MaintenancePromotion) -> str:
    order = next((each for each in facts.orders if each.order_id == promotion.order_id), None)
    why = f" Reason: {order.reason}" if order is not None else ""
    outcome = {
        Verdict.PROMOTE: f"Version {promotion.challenger} took over from version {promotion.champion_before}.",
        Verdict.REJECT: f"Version {promotion.challenger} was put aside; version {promotion.champion_after} goes on serving.",
        Verdict.NEED_LABELS: f"Version {promotion.challenger} waits in the shadow; version {promotion.champion_after} serves on.",
    }[promotion.verdict]
    if _by_a_person(promotion) and promotion.verdict == Verdict.NEED_LABELS:
        outcome = f"Version {promotion.challenger} stays a candidate; version {promotion.champion_after} serves on."
    made = f"Version {promotion.challenger} was made by {_remedy_word(facts)}." if facts.job is not None else ""
    return " ".join(part for part in (made, outcome) if part) + why


def _what_next(promotion: MaintenancePromotion) -> Section:
    points: tuple[str, ...] = {
        Verdict.PROMOTE: (
            "Use the model as before. Its first labelled batches will show whether the recovery holds outside the gate's cases.",
            f"If anything looks wrong, order a rollback: version {promotion.champion_before} comes back with the next study.",
        ),
        Verdict.REJECT: (
            "Go on reading the old version's answers with care: the decline is not repaired.",
            "The next stronger remedy can be ordered, or more recent cases labelled for it to learn from.",
        ),
        Verdict.NEED_LABELS: (
            "Have recent cases labelled as they come; the gate judges again when there are enough.",
            "Until then read the old version's answers with care.",
        ),
    }[promotion.verdict]
    if _by_a_person(promotion) and promotion.verdict == Verdict.REJECT:
        points = (
            f"Nothing has changed: version {promotion.champion_after} serves on. Version {promotion.challenger} is out for good.",
        )
    elif _by_a_person(promotion) and promotion.verdict == Verdict.NEED_LABELS:
        command = f"`reclaim models promote {promotion.model} {promotion.challenger} --reason …`"
        points = (f"Have recent cases labelled as they come, then ask again: {command}.",)
    return Section("What to do next", points=points)


def _before_after(pairs: list[Pair]) -> list[Picture]:
    rates = [
        (metric_name(name), before, after)
        for name, before, after in pairs
        if is_rate(name) and min(before, after) >= 0 and max(before, after) <= 1
    ]
    if not rates:
        return []
    alt = "; ".join(f"{name} {100 * before:.1f} % before, {100 * after:.1f} % after" for name, before, after in rates)
    caption = "The same cases scored by the version that served (square) and by the repaired one (circle)."
    drawing = plots.before_after(rates, ("before: old version", "after: repaired version"))
    return [Picture("before_after", "Before and after, on the gate's cases", alt, caption, drawing)]


def _gate_tables(promotion: MaintenancePromotion, pairs: list[Pair], others: list[tuple[str, float | None]]) -> list[Table]:
    tables: list[Table] = []
    if pairs:
        rows = [
            (metric_name(name), metric_value(name, before), metric_value(name, after), _difference(name, before, after))
            for name, before, after in pairs
        ]
        columns = ("Measured at the gate", f"Version {promotion.champion_before}", f"Version {promotion.challenger}", "Difference")
        tables.append(Table("Before and after", columns, rows))
    if others:
        rows_of_others = [(metric_name(key), evidence_value(key, value)) for key, value in others]
        tables.append(Table("Every other number of the gate", ("Number", "Value"), rows_of_others))
    return tables


def _difference(name: str, before: float, after: float) -> str:
    if is_rate(name):
        return f"{100 * (after - before):+.1f} points"
    return f"{after - before:+.3f}"


def _run_table(facts: Facts) -> list[Table]:
    if facts.job is None:
        return []
    flat = {**_flat("setting", facts.job.settings), **_flat("result", facts.job.result)}
    rows = [("Remedy", _remedy_word(facts)), ("State", facts.job.state), ("Attempts", str(facts.job.attempt))]
    rows += [(key, number(value)) for key, value in flat.items()]
    return [Table("The run", ("", ""), rows)]


def _flat(prefix: str, values: Mapping[str, object]) -> dict[str, object]:
    """Numbers and words of a record; nested parts and lists stay in the JSON."""
    plain = {key: value for key, value in values.items() if isinstance(value, str | int | float | bool)}
    return {f"{metric_name(key)} ({prefix})": value for key, value in plain.items()}
