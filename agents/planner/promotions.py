"""What the gate's verdict on a repair leads to: nothing, the next rung, or labels (docs/agents.md)."""

from collections.abc import Callable, Sequence
from typing import Final

from agents.planner.evaluations import Facts, done, repair
from agents.planner.transcript import Act, Observation, Say, Step
from agents.wording import advice, advice_for
from schemas.vocabulary import Status, Verdict
from services.runtime.words import small


def next_step(facts: Facts, observed: Sequence[Observation]) -> Step:
    """The next tool for this verdict, or the closing words."""
    if facts.get("origin") == "rollback":
        return Say(f"Version {facts['version']} of {facts['model']} serves again after a rollback; nothing to do.")
    if not facts.get("in_service", True):
        return Say(
            f"{facts['model']} is served by another version meanwhile; the verdict on version {facts['challenger']} is noted."
        )
    return _BY_VERDICT[Verdict(facts["verdict"])](facts, observed)


def _promoted(facts: Facts, _observed: Sequence[Observation]) -> Step:
    return Say(f"Version {facts['challenger']} of {facts['model']} passed the gate and serves; nothing to do.")


def _rejected(facts: Facts, observed: Sequence[Observation]) -> Step:
    """The next rung, as long as the model is degraded and new weights may help."""
    noted = f"The gate turned version {facts['challenger']} of {facts['model']} down."
    if facts.get("status") != Status.DEGRADED:
        return Say(f"{noted} The model is not degraded; nothing to do.")
    if small(facts.get("evidence", {})):
        return Say(f"{noted} The model is degraded, probably by less than 3 points; another repair is for a person to order.")
    remedy = advice_for(facts["diagnosis"])
    return Say(f"{noted} Now {advice(remedy)}.") if remedy else repair(facts, observed)


def _lacks_labels(facts: Facts, observed: Sequence[Observation]) -> Step:
    if facts.get("open_label_request"):
        return Say(
            f"The gate needs more labelled cases to judge version {facts['challenger']} of {facts['model']}; they are asked for "
            f"already ({facts['open_label_request']})."
        )
    if done(observed, "order_label_request") is None:
        reason = (
            f"The gate could not judge the repair of {facts['model']} (version {facts['challenger']}) for want of labelled cases."
        )
        return Act("order_label_request", {"model": facts["model"], "reason": reason})
    return Say(f"The gate needs more labelled cases to judge version {facts['challenger']} of {facts['model']}.")


_BY_VERDICT: Final[dict[Verdict, Callable[[Facts, Sequence[Observation]], Step]]] = {
    Verdict.PROMOTE: _promoted,
    Verdict.REJECT: _rejected,
    Verdict.NEED_LABELS: _lacks_labels,
}
