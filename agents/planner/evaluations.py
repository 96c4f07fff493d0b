"""What a finished evaluation leads to: status and diagnosis to orders, as a table (DESIGN §6)."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from agents.ladder import ADVICE, WORDS
from agents.planner.transcript import Act, Observation, Say, Step
from agents.tools.answers import RemedyOptions
from schemas.vocabulary import Diagnosis, Remedy, Status

Facts = dict[str, Any]


def next_step(facts: Facts, observed: Sequence[Observation]) -> Step:
    """The next tool for this evaluation, or the closing words."""
    if not facts.get("in_service", True):
        return Say(f"Version {facts['version']} of {facts['model']} is not in service; nothing to do.")
    return _BY_STATUS[Status(facts["status"])](facts, observed)


def _healthy(facts: Facts, _observed: Sequence[Observation]) -> Step:
    return Say(f"{facts['model']} is healthy on {facts['cases']} cases; nothing to do.")


def _watch(facts: Facts, observed: Sequence[Observation]) -> Step:
    """A report once, when the model begins to be watched."""
    if facts.get("status_before") == Status.WATCH:
        return Say(f"{facts['model']} is still being watched; the report is written already.")
    if _done(observed, "order_report") is None:
        return Act("order_report", {"model": facts["model"], "reason": _because(facts, "The model is being watched.")})
    return Say(f"{facts['model']} is being watched: the decline is not certain yet.")


def _undecided(facts: Facts, observed: Sequence[Observation]) -> Step:
    """Labels, where studies wait for them."""
    if not facts.get("unlabelled"):
        return Say(f"Too few cases to judge {facts['model']}, and no scored study waits for a label.")
    if _done(observed, "order_label_request") is None:
        reason = _because(facts, f"{facts['unlabelled']} scored studies have no label.")
        return Act("order_label_request", {"model": facts["model"], "reason": reason})
    return Say(f"Too few labelled cases to judge {facts['model']}; more labels are asked for.")


def _degraded(facts: Facts, observed: Sequence[Observation]) -> Step:
    """A report always; then, unless new weights would not help, the next rung of the ladder."""
    diagnosis = Diagnosis(facts["diagnosis"])
    advice = ADVICE.get(diagnosis)
    if _done(observed, "order_report") is None:
        return Act("order_report", _report(facts, advice))
    if advice is not None:
        return Say(
            f"{facts['model']} is degraded, cause: {diagnosis}. New weights would not help; a person has to {WORDS[advice]}."
        )
    return _repair(facts, observed)


def _report(facts: Facts, advice: Remedy | None) -> Facts:
    what = f"Do not fine-tune: {WORDS[advice]}." if advice else "A remedy is being considered."
    arguments = {"model": facts["model"], "reason": _because(facts, what)}
    return arguments | ({"advice": str(advice)} if advice else {})


def _repair(facts: Facts, observed: Sequence[Observation]) -> Step:
    seen = _done(observed, "remedy_options")
    if seen is None:
        return Act("remedy_options", {"model": facts["model"]})
    options = RemedyOptions.model_validate_json(seen.content)
    if options.active_remedy is not None:
        return Say(f"{facts['model']} is degraded; a remedy is under way already ({options.active_remedy}).")
    return _labels(facts, options, observed) if options.suggestion is None else _remedy(facts, options, observed)


def _labels(facts: Facts, options: RemedyOptions, observed: Sequence[Observation]) -> Step:
    if _done(observed, "order_label_request") is None:
        reason = _because(facts, f"The gate turned down {options.rejected_challengers} repairs; more labelled cases are needed.")
        return Act("order_label_request", {"model": facts["model"], "reason": reason})
    return Say(f"{facts['model']} is degraded and the ladder of remedies is used up; more labels are asked for.")


def _remedy(facts: Facts, options: RemedyOptions, observed: Sequence[Observation]) -> Step:
    rung = Remedy(str(options.suggestion))
    if _done(observed, "order_remedy") is None:
        why = f"Diagnosis {facts['diagnosis']}; {options.tune_cases} labelled cases to train on. Remedy: {WORDS[rung]}."
        return Act("order_remedy", {"model": facts["model"], "remedy": str(rung), "reason": _because(facts, why)})
    return Say(f"{facts['model']} is degraded, cause: {facts['diagnosis']}. Proposed: {WORDS[rung]}, and a report.")


def _because(facts: Facts, what: str) -> str:
    return f"{facts.get('summary', '')} {what}".strip()[-800:]


def _done(observed: Sequence[Observation], tool: str) -> Observation | None:
    return next((item for item in observed if item.tool == tool), None)


_BY_STATUS: Final[dict[Status, Callable[[Facts, Sequence[Observation]], Step]]] = {
    Status.HEALTHY: _healthy,
    Status.WATCH: _watch,
    Status.UNDECIDED: _undecided,
    Status.DEGRADED: _degraded,
}
