"""The report that asks for labels: how many, of which class, and why."""

from collections.abc import Mapping
from typing import Any

from services.reporting import committee, common, early, statistics
from services.reporting.facts import Facts, Rules
from services.reporting.page import KeyFigure, Page, Part, Section, Table
from services.reporting.wording import STATUS, number

HALF_WIDTH = 0.10
"""Where the order names no number per class: enough for a 95 % interval of about ± 10 points around the class's recall."""


def label_request_page(facts: Facts, report_id: str, rules: Rules) -> Page:
    """Build the page. The order's settings may say `cases` (in all) and `cases:CLASS`; what they leave open is computed."""
    status = facts.latest.status if facts.latest is not None else "undecided"
    needs = needed_cases(facts)
    total = asked_total(facts.cause.settings) or sum(needs.values())
    return Page(
        report_id=report_id,
        kind="label_request",
        status=status,
        status_word=f"Labels needed ({STATUS[status].lower()})",
        title=f"{facts.cause.model}: {number(total)} more labelled cases are needed",
        summary=_summary(facts, total, needs),
        model=facts.cause.model,
        task=facts.task,
        version=facts.version,
        as_of=facts.cause.as_of,
        key_figures=_key_figures(facts, total),
        parts=[Part("In short", _sections(facts, needs)), committee.records(facts, rules)],
        data=common.data_of(facts) | {"needed": needs, "needed_total": total},
    )


def needed_cases(facts: Facts) -> dict[str, int]:
    """Further labelled cases per class."""
    named = {
        name: int(value)
        for name in facts.classes
        for key in (f"cases:{name}", f"cases_{name}")
        if isinstance(value := facts.cause.settings.get(key), int | float) and value > 0
    }
    if named:
        return named
    computed, total = _computed(facts), asked_total(facts.cause.settings)
    return _shared_out(total, computed) if total else computed


def _shared_out(total: int, computed: Mapping[str, int]) -> dict[str, int]:
    """`total` divided in proportion to the computed needs, evenly where nothing is missing; adds up to `total`."""
    weights = dict(computed) if any(computed.values()) else dict.fromkeys(computed, 1)
    whole, given, parts = sum(weights.values()), 0, {}
    running = 0
    for name, weight in weights.items():
        running += weight
        parts[name] = round(total * running / whole) - given
        given += parts[name]
    return parts


def asked_total(settings: Mapping[str, Any]) -> int:
    """The order's own number of cases, 0 when it names none."""
    found = next((settings[key] for key in ("cases", "cases_needed", "needed") if isinstance(settings.get(key), int | float)), 0)
    return int(found)


def _computed(facts: Facts) -> dict[str, int]:
    rates = statistics.baseline_rates(facts.baseline_recalls)
    needs: dict[str, int] = {}
    for name in facts.classes:
        known = rates.get((facts.version, name))
        wanted = statistics.cases_for_half_width(known.value if known else 0.5, HALF_WIDTH)
        needs[name] = max(wanted - facts.labels.labelled.get(name, 0), 0)
    return needs


def _summary(facts: Facts, total: int, needs: Mapping[str, int]) -> str:
    most = max(needs, key=lambda name: needs[name], default="")
    first = f"{number(total)} more labelled cases are needed for {facts.cause.model}."
    if most and (len(needs) == 1 or needs[most] > min(needs.values())):
        return f"{first} Cases of “{most}” are wanted most ({number(needs[most])})."
    return f"{first} Recent cases of every class help."


def _key_figures(facts: Facts, total: int) -> list[KeyFigure]:
    labelled, waiting = sum(facts.labels.labelled.values()), sum(facts.labels.waiting.values())
    return [
        KeyFigure("Labels needed", number(total)),
        KeyFigure("Labelled so far", number(labelled), f"version {facts.version}"),
        KeyFigure("Scored, waiting for a label", number(waiting), "the quickest to label"),
    ]


def _sections(facts: Facts, needs: Mapping[str, int]) -> list[Section]:
    waiting = sum(facts.labels.waiting.values())
    first = "Label the studies that wait, the most recent ones first." if waiting else "None waits at present: label new studies."
    return [
        Section("What happened", (facts.cause.reason,)),
        Section("How the numbers come about", (_basis(facts),), tables=(_needs_table(facts, needs),)),
        Section(
            "What to do next",
            points=(
                f"{first} One label per patient is enough.",
                "Take them as they come; do not pick the clear ones, or the model will look better than it is.",
                "Labels may come as a CSV file or over the HTTP endpoint; the next evaluation starts by itself.",
            ),
        ),
        _standing(facts),
        *common.history(facts),
    ]


def _standing(facts: Facts) -> Section:
    none = () if facts.latest is not None else (f"No batch of version {facts.version} has been evaluated yet.",)
    return Section("How it stands", none, early.standing(facts), tables=common.metrics_table(facts))


def _basis(facts: Facts) -> str:
    if total := asked_total(facts.cause.settings):
        return f"The order asks for {number(total)}. They are shared out between the classes by how many each of them lacks."
    return (
        f"A recall is known to about ± {100 * HALF_WIDTH:.0f} percentage points (95 % interval) from the cases that are labelled "
        "and those asked for here together."
    )


def _needs_table(facts: Facts, needs: Mapping[str, int]) -> Table:
    labels = facts.labels
    rows = [
        (name, number(needs.get(name, 0)), number(labels.labelled.get(name, 0)), number(labels.waiting.get(name, 0)))
        for name in facts.classes
    ]
    note = "Waiting studies have no truth yet; they are counted under the class that the model gave them."
    return Table("Cases by class", ("Class", "Needed", "Labelled so far", "Waiting for a label"), rows, note)
