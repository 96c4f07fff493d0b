"""What a finished evaluation leads to: status and diagnosis to orders, as a table (docs/agents.md)."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from agents.planner.transcript import Act, Observation, Say, Step
from agents.tools.answers import RemedyOptions
from agents.wording import advice, advice_for
from schemas.vocabulary import Diagnosis, Remedy, Status
from services.runtime.words import TO_DO, decline, likely, small

Facts = dict[str, Any]
REASON: Final = 900
"""Characters of a reason that may name many groups; an order holds 1000."""


def next_step(facts: Facts, observed: Sequence[Observation]) -> Step:
    """The next tool for this evaluation, or the closing words."""
    if not facts.get("in_service", True):
        return Say(f"Version {facts['version']} of {facts['model']} is not in service; nothing to do.")
    return _BY_STATUS[Status(facts["status"])](facts, observed)


def _healthy(facts: Facts, observed: Sequence[Observation]) -> Step:
    """A report where the last one told of a decline or a group is worse than the others, otherwise nothing."""
    groups = facts.get("evidence", {}).get("worse_subgroups")
    if groups:
        return _uneven(facts, observed, str(groups))
    if facts.get("reported") not in {Status.DEGRADED, Status.WATCH}:
        return Say(f"{facts['model']} is healthy on {facts['cases']} cases; nothing to do.")
    if done(observed, "order_report") is None:
        reason = f"{facts['model']} is healthy again: its labelled cases show no decline. The last report told of one."
        return Act("order_report", {"model": facts["model"], "reason": reason})
    return Say(f"{facts['model']} is healthy again on {facts['cases']} cases.")


def _uneven(facts: Facts, observed: Sequence[Observation], groups: str) -> Step:
    """A report, which the guardrails refuse when it brings no news. A repair of the whole is no answer to a group."""
    if done(observed, "order_report") is None:
        first = f"As a whole {facts['model']} shows no decline."
        reason = f"{first} It reads some patients worse than the others of the same time: {groups}."
        return Act("order_report", {"model": facts["model"], "reason": reason[:REASON]})
    seen = f"{facts['model']} is healthy as a whole, but reads some patients worse than the others: {groups}."
    return Say(f"{seen} A person has to look at why.")


def _watch(facts: Facts, observed: Sequence[Observation]) -> Step:
    if done(observed, "order_report") is None:
        reason = f"{_seen(facts)} This is not certain yet, so {facts['model']} is being watched."
        return Act("order_report", {"model": facts["model"], "reason": reason})
    return Say(f"{facts['model']} is being watched: the decline is not certain yet.")


def _undecided(facts: Facts, observed: Sequence[Observation]) -> Step:
    """Labels, where studies wait for them and enough of them would decide."""
    if not facts.get("evidence", {}).get("more_cases_needed"):
        why = facts.get("summary", "")
        return Say(f"{facts['model']} cannot be judged, and no number of labels alone would change that. {why}")
    if not facts.get("unlabelled"):
        return Say(f"Too few cases to judge {facts['model']}, and no scored study waits for a label.")
    if done(observed, "order_label_request") is None:
        reason = f"There are too few labelled cases to judge {facts['model']}. {facts['unlabelled']} scored studies have no label."
        return Act("order_label_request", {"model": facts["model"], "reason": reason})
    return Say(f"Too few labelled cases to judge {facts['model']}; more labels are asked for.")


def _degraded(facts: Facts, observed: Sequence[Observation]) -> Step:
    """A report, which the guardrails refuse when it brings no news; then, unless new weights would not help, a repair."""
    remedy = advice_for(facts["diagnosis"])
    if done(observed, "order_report") is None:
        what = advice(remedy) if remedy else _considered(facts)
        arguments = {"model": facts["model"], "reason": _because(facts, what)}
        return Act("order_report", arguments | ({"advice": str(remedy)} if remedy else {}))
    if remedy is not None:
        return Say(f"{facts['model']} is degraded, cause: {facts['diagnosis']}. New weights would not help; {advice(remedy)}.")
    if small(facts.get("evidence", {})):
        return Say(f"{facts['model']} is degraded, probably by less than 3 points. A repair is for a person to order.")
    return repair(facts, observed)


def _considered(facts: Facts) -> str:
    if small(facts.get("evidence", {})):
        return "the fall is probably smaller than 3 points, so a repair is for a person to order"
    return "a repair is being considered"


def repair(facts: Facts, observed: Sequence[Observation]) -> Step:
    """The next rung of the ladder for a degraded model; labels and a person when it is used up."""
    seen = done(observed, "remedy_options")
    if seen is None:
        return Act("remedy_options", {"model": facts["model"]})
    options = RemedyOptions.model_validate_json(seen.content)
    if options.active_remedy is not None:
        return Say(f"{facts['model']} is degraded; a remedy is under way already ({options.active_remedy}).")
    return _labels(facts, options, observed) if options.suggestion is None else _remedy(facts, options, observed)


def _labels(facts: Facts, options: RemedyOptions, observed: Sequence[Observation]) -> Step:
    """Once, with what a person can do; then nothing until labels, a person's order or another verdict change the matter."""
    if options.told is not None:
        return Say(
            f"{facts['model']} is degraded and the ladder of remedies is used up; what can be done was told already "
            f"({options.told}). A person has to decide."
        )
    if done(observed, "order_label_request") is None:
        what = f"the gate turned down {_repairs(options)} and none is left. A person can now {_choices(options)}"
        cases = {"cases": options.more_studies} if options.more_studies else {}
        return Act("order_label_request", {"model": facts["model"], "reason": _because(facts, what)} | cases)
    return Say(
        f"{facts['model']} is degraded and the ladder of remedies is used up. More labels are asked for; a person has to decide "
        "whether it goes on serving."
    )


def _choices(options: RemedyOptions) -> str:
    number = f"about {options.more_studies}" if options.more_studies else "clearly"
    return (
        f"have someone label {number} more studies, with which the agents begin again; bring an earlier version back; put another "
        "version to the gate; order a repair with other settings; or stop the model"
    )


def _remedy(facts: Facts, options: RemedyOptions, observed: Sequence[Observation]) -> Step:
    rung = Remedy(str(options.suggestion))
    if done(observed, "order_remedy") is None:
        repairs = f"the gate turned down {_repairs(options)}, so the next" if options.rejected_challengers else "the remedy"
        studies = f"{options.tune_cases} labelled studies{' made since then' if facts.get('evidence', {}).get('since') else ''}"
        what = f"{repairs} is to {TO_DO[rung]} on {studies}"
        return Act("order_remedy", {"model": facts["model"], "remedy": str(rung), "reason": _because(facts, what)})
    return Say(f"{facts['model']} is degraded, cause: {Diagnosis(facts['diagnosis'])}. Proposed: {TO_DO[rung]}.")


def _repairs(options: RemedyOptions) -> str:
    return "1 repair" if options.rejected_challengers == 1 else f"{options.rejected_challengers} repairs"


def _because(facts: Facts, what: str) -> str:
    """Two sentences: what was seen, then the likely cause and what follows."""
    return f"{_seen(facts)} {likely(facts['diagnosis'], facts.get('evidence', {}))}; {what}."


def _seen(facts: Facts) -> str:
    return decline(facts["model"], facts.get("evidence", {}), facts.get("summary", ""))


def done(observed: Sequence[Observation], tool: str) -> Observation | None:
    """The observation of a tool in this run, None when it has not been called."""
    return next((item for item in observed if item.tool == tool), None)


_BY_STATUS: Final[dict[Status, Callable[[Facts, Sequence[Observation]], Step]]] = {
    Status.HEALTHY: _healthy,
    Status.WATCH: _watch,
    Status.UNDECIDED: _undecided,
    Status.DEGRADED: _degraded,
}
