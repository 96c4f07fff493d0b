"""The guardrails: a pure function that decides what becomes of a proposal, whatever a model or a person said.

Rules are a table; the first that objects decides. Every refusal explains itself to the person who reads it.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from agents.ladder import ADVICE, EXECUTABLE, above
from agents.names import nearest
from agents.proposals import Proposal
from agents.roles import AGENT_KINDS, APPROVERS, FOUR_EYES, ROLE_KINDS
from agents.wording import ORDERS
from schemas.settings import Settings
from schemas.vocabulary import Diagnosis, OrderKind, Remedy, Status, UserRole
from services.remediation.plan import labels_for
from services.runtime.words import TO_DO

LABELS_ONCE_IN: Final = timedelta(days=7)
"""The agents do not ask again for labels of a model while a request younger than this is unanswered."""

RANGES: Final[dict[str, tuple[float, float]]] = {
    "epochs": (1, 200),
    "batch_size": (1, 512),
    "head_learning_rate": (1e-7, 1.0),
    "body_learning_rate": (1e-8, 1.0),
    "rehearsal_share": (0.0, 0.95),
    "seed": (0, 2**31 - 1),
}
"""Settings a remedy may carry, with the values that make sense (both ends included)."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Actor(_Frozen):
    """Who orders. An agent has no role and is bound to its cause's model; `asked`: the person's own words ask for it."""

    name: str
    role: UserRole | None = None
    cause_model: str | None = None
    asked: bool = True
    approved: bool = False


class Situation(_Frozen):
    """What a monitoring report is about: a version, its status and what kind of change explains it."""

    version: int
    status: Status
    diagnosis: Diagnosis


class Facts(_Frozen):
    """What the database says about the model, read in the same transaction that writes the order.

    `served` are the versions that may come back, `situation` is that of the evaluation behind the proposal, `reported` that
    of the agents' last report. Cases count as a repair uses them: `since` the decline began. `last_remedy_rejected`: the
    gate turned the last remedy of this decline down. `told_that_used_up`: the label request that said that no rung is left.
    `small_fall`: the latest evaluation found a fall that is likelier than not smaller than 3 points.
    """

    now: AwareDatetime
    models: tuple[str, ...] = ()
    versions: tuple[int, ...] = ()
    champion: int | None = None
    champion_before: int | None = None
    served: tuple[int, ...] = ()
    serving: bool = True
    status: Status | None = None
    diagnosis: Diagnosis = Diagnosis.NONE
    small_fall: bool = False
    situation: Situation | None = None
    reported: Situation | None = None
    reported_at: AwareDatetime | None = None
    since: AwareDatetime | None = None
    tune_cases: int = 0
    gate_cases: int = 0
    gate_cases_needed: int = 0
    active_remedy: str | None = None
    last_remedy: Remedy | None = None
    last_remedy_rejected: bool = False
    last_remedy_at: AwareDatetime | None = None
    remedies_last_day: int = 0
    open_label_request: str | None = None
    told_that_used_up: str | None = None
    outside_plan: str = ""


class Limits(_Frozen):
    """The site's policy."""

    approve_remedies: bool = False
    four_eyes: bool = False
    cool_down_s: float = 3600.0
    max_remedies_per_day: int = 4
    min_tune_cases: int = 40
    min_gate_cases: int = 30
    report_interval_s: float = 7 * 86_400.0
    routine_reports: bool = False
    tune_share: float = 0.35
    gate_share: float = 0.25

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        """The limits that the settings state."""
        policy, remediation, join = settings.policy, settings.remediation, settings.join
        return cls(
            approve_remedies=policy.approve_remedies,
            four_eyes=policy.four_eyes,
            cool_down_s=policy.cool_down_s,
            max_remedies_per_day=policy.max_remedies_per_day,
            min_tune_cases=remediation.min_tune_cases,
            min_gate_cases=remediation.min_gate_cases,
            report_interval_s=policy.report_interval_s,
            routine_reports=settings.reports.weekly,
            tune_share=join.tune_share,
            gate_share=join.gate_share,
        )


class Accepted(_Frozen):
    """The order may go out."""

    verdict: Literal["accepted"] = "accepted"
    reason: str = ""


class NeedsApproval(_Frozen):
    """The order waits for a person."""

    verdict: Literal["needs_approval"] = "needs_approval"
    reason: str


class Refused(_Frozen):
    """The order does not go out; `instead` is what is ordered in its place."""

    verdict: Literal["refused"] = "refused"
    reason: str
    instead: Proposal | None = None


Verdict = Accepted | NeedsApproval | Refused
Rule = Callable[[Proposal, Actor, Facts, Limits], Verdict | None]


def check(proposal: Proposal, actor: Actor, facts: Facts, limits: Limits) -> Verdict:
    """Decide on a proposal: the first rule that objects wins, otherwise it is accepted."""
    for rule in RULES:
        verdict = rule(proposal, actor, facts, limits)
        if verdict is not None:
            return verdict
    return Accepted()


def _known_model(proposal: Proposal, _actor: Actor, facts: Facts, _limits: Limits) -> Verdict | None:
    if proposal.model in facts.models:
        return None
    close = nearest(proposal.model, facts.models)
    hint = f"; did you mean {' or '.join(close)}?" if close else f"; registered: {', '.join(facts.models) or 'none'}"
    return Refused(reason=f"There is no model {proposal.model!r}{hint}")


def _known_version(proposal: Proposal, _actor: Actor, facts: Facts, _limits: Limits) -> Verdict | None:
    if facts.champion is None:
        return Refused(reason=f"{proposal.model} has no version in service yet.")
    if proposal.version is not None and proposal.version not in facts.versions:
        listed = ", ".join(map(str, facts.versions))
        return Refused(reason=f"{proposal.model} has no version {proposal.version}; known versions: {listed}.")
    return None


def _may_order(proposal: Proposal, actor: Actor, _facts: Facts, _limits: Limits) -> Verdict | None:
    if actor.role is not None:
        return _person_may(proposal.kind, actor.role)
    if proposal.kind not in AGENT_KINDS:
        return Refused(reason=f"The agents may not order {ORDERS[proposal.kind]}; a person has to.")
    if actor.cause_model is not None and proposal.model != actor.cause_model:
        return Refused(reason=f"This was about {actor.cause_model}; it cannot cause an order for {proposal.model}.")
    return None


def _person_may(kind: OrderKind, role: UserRole) -> Verdict | None:
    if kind in ROLE_KINDS[role]:
        return None
    needed = next(name for name in UserRole if kind in ROLE_KINDS[name])
    return Refused(reason=f"Your role {role} may not order {ORDERS[kind]}; this needs the role {needed}.")


def _rung_exists(proposal: Proposal, _actor: Actor, _facts: Facts, _limits: Limits) -> Verdict | None:
    if proposal.kind != OrderKind.REMEDY or proposal.remedy in EXECUTABLE:
        return None
    named = TO_DO.get(proposal.remedy, str(proposal.remedy)) if proposal.remedy else "an unnamed remedy"
    return Refused(reason=f"The service cannot carry out this remedy ({named}); it can do: {', '.join(EXECUTABLE)}.")


def _within_plan(_proposal: Proposal, _actor: Actor, facts: Facts, _limits: Limits) -> Verdict | None:
    """No order outside the model's change control plan, whoever gives it."""
    return Refused(reason=f"{facts.outside_plan[:1].upper()}{facts.outside_plan[1:]}.") if facts.outside_plan else None


def _settings_in_range(proposal: Proposal, _actor: Actor, _facts: Facts, _limits: Limits) -> Verdict | None:
    if proposal.kind != OrderKind.REMEDY:
        return None
    for name, value in proposal.settings.items():
        if name not in RANGES:
            return Refused(reason=f"A remedy has no setting {plain_name(name)}; it has: {', '.join(RANGES)}.")
        low, high = RANGES[name]
        if isinstance(value, (str, bool)) or not low <= value <= high:
            return Refused(reason=f"{name} must lie between {low:g} and {high:g}.")
    return None


def plain_name(name: str) -> str:
    """A setting's name that is safe to repeat to a person."""
    return repr(name[:40])


def _status_supports(proposal: Proposal, actor: Actor, facts: Facts, _limits: Limits) -> Verdict | None:
    return _STATUS_RULES[proposal.kind](proposal, actor, facts)


def _no_objection(_proposal: Proposal, _actor: Actor, _facts: Facts) -> Verdict | None:
    return None


def _remedy_supported(proposal: Proposal, actor: Actor, facts: Facts) -> Verdict | None:
    if proposal.version not in (None, facts.champion):
        return Refused(reason=f"Only the version in service (version {facts.champion}) can be repaired, not {proposal.version}.")
    if actor.role in APPROVERS:
        return None
    advice = ADVICE.get(facts.diagnosis)
    if advice is not None:
        return Refused(reason=f"The diagnosis is {facts.diagnosis}: new weights would not help; a person has to {TO_DO[advice]}.")
    if facts.status == Status.DEGRADED:
        small = f"The fall of {proposal.model} is likelier than not smaller than 3 points: a repair is for a person to order."
        return Refused(reason=small) if facts.small_fall else None
    status = facts.status or "not evaluated yet"
    return Refused(reason=f"The latest evaluation of {proposal.model} is {status}, not degraded; a remedy is not justified.")


def _rollback_supported(proposal: Proposal, _actor: Actor, facts: Facts) -> Verdict | None:
    """The last champion comes back, or any version that has served, when it is named."""
    named, choice = proposal.settings.get("to_version"), ", ".join(map(str, facts.served))
    if named == facts.champion:
        return Refused(reason=f"Version {named} of {proposal.model} serves already.")
    if named in facts.served or (named is None and facts.champion_before is not None):
        return None
    may = f" Versions that may come back: {choice}." if choice else ""
    if named is None:
        return Refused(reason=f"{proposal.model} has no earlier champion to go back to.{may}")
    return Refused(reason=f"Version {named} of {proposal.model} has not served before, so a rollback cannot go to it.{may}")


def _stop_supported(proposal: Proposal, _actor: Actor, facts: Facts) -> Verdict | None:
    return None if facts.serving else Refused(reason=f"{proposal.model} does not serve already; there is nothing to stop.")


def _resume_supported(proposal: Proposal, _actor: Actor, facts: Facts) -> Verdict | None:
    return Refused(reason=f"{proposal.model} serves already; there is nothing to resume.") if facts.serving else None


_STATUS_RULES: Final[dict[OrderKind, Callable[[Proposal, Actor, Facts], Verdict | None]]] = {
    OrderKind.REPORT: _no_objection,
    OrderKind.LABEL_REQUEST: _no_objection,
    OrderKind.REMEDY: _remedy_supported,
    OrderKind.ROLLBACK: _rollback_supported,
    OrderKind.STOP_SERVING: _stop_supported,
    OrderKind.RESUME_SERVING: _resume_supported,
}


def _news(proposal: Proposal, actor: Actor, facts: Facts, limits: Limits) -> Verdict | None:
    """The agents report a change at once; people order reports as they like.

    An unchanged situation is told by the routine report, or once per interval where the site has none.
    """
    if proposal.kind != OrderKind.REPORT or actor.role is not None or facts.reported_at is None:
        return None
    due = facts.reported_at + timedelta(seconds=limits.report_interval_s)
    unchanged = facts.situation is not None and facts.situation == facts.reported
    if facts.situation is None or not unchanged or (facts.now >= due and not limits.routine_reports):
        return None
    next_one = "with the weekly routine" if limits.routine_reports else f"from {due:%Y-%m-%d} on"
    return Refused(
        reason=f"Nothing has changed since the report of {facts.reported_at:%Y-%m-%d %H:%M} UTC ({facts.situation.status}). "
        f"The next one comes with a new status or diagnosis, or {next_one}; a person can order one at any time."
    )


def _one_at_a_time(proposal: Proposal, _actor: Actor, facts: Facts, _limits: Limits) -> Verdict | None:
    if proposal.kind != OrderKind.REMEDY or facts.active_remedy is None:
        return None
    return Refused(reason=f"A remedy of {proposal.model} is under way or waits for approval already ({facts.active_remedy}).")


def _cool_down(proposal: Proposal, _actor: Actor, facts: Facts, limits: Limits) -> Verdict | None:
    """The next rung after the gate's no is one and the same repair: it waits for no cool-down, only for the day's budget."""
    if proposal.kind != OrderKind.REMEDY or facts.last_remedy_at is None:
        return None
    if facts.last_remedy_rejected and above(proposal.remedy, facts.last_remedy):
        return None
    free_at: datetime = facts.last_remedy_at + timedelta(seconds=limits.cool_down_s)
    if facts.now >= free_at:
        return None
    return Refused(
        reason=f"The last remedy of {proposal.model} is too recent; the next may be ordered from {free_at:%Y-%m-%d %H:%M} UTC."
    )


def _budget(proposal: Proposal, _actor: Actor, facts: Facts, limits: Limits) -> Verdict | None:
    if proposal.kind != OrderKind.REMEDY or facts.remedies_last_day < limits.max_remedies_per_day:
        return None
    return Refused(
        reason=f"{proposal.model} had {facts.remedies_last_day} remedies within a day; the limit is {limits.max_remedies_per_day}."
    )


class Shortfall(_Frozen):
    """Labelled cases that a repair lacks to learn from and to be judged on, and the labelled studies that must arrive for them."""

    tune: int
    gate: int
    studies: int


def shortfall(facts: Facts, limits: Limits, *, by_agent: bool) -> Shortfall:
    """What is missing. Only a share of the patients falls into either role, so more studies must arrive than cases are missing.

    A challenger that waits for a larger gate sets the number for the agents; a person may try another repair before.
    """
    needed = max(limits.min_gate_cases, facts.gate_cases_needed if by_agent else 0)
    tune, gate = max(0, limits.min_tune_cases - facts.tune_cases), max(0, needed - facts.gate_cases)
    return Shortfall(tune=tune, gate=gate, studies=max(labels_for(tune, limits.tune_share), labels_for(gate, limits.gate_share)))


def _enough_cases(proposal: Proposal, actor: Actor, facts: Facts, limits: Limits) -> Verdict | None:
    if proposal.kind != OrderKind.REMEDY:
        return None
    lack = shortfall(facts, limits, by_agent=actor.role is None)
    if lack.studies == 0:
        return None
    began = f" since the decline began ({facts.since:%Y-%m-%d})" if facts.since else ""
    reason = (
        f"Too few labelled cases for a remedy of {proposal.model}: {facts.tune_cases} to learn from ({lack.tune} too few) and "
        f"{facts.gate_cases} to judge with ({lack.gate} too few){began}. About {lack.studies} more labelled studies must arrive, "
        f"because {limits.tune_share:.0%} of the patients are there to learn from and {limits.gate_share:.0%} to judge with."
    )
    needed = {"cases": lack.studies, "tune_cases": lack.tune, "gate_cases": lack.gate}
    instead = Proposal(kind=OrderKind.LABEL_REQUEST, model=proposal.model, version=facts.champion, settings=needed, reason=reason)
    return Refused(reason=reason, instead=instead.model_copy(update={"evaluation_id": proposal.evaluation_id}))


def _labels_once(proposal: Proposal, actor: Actor, facts: Facts, _limits: Limits) -> Verdict | None:
    """Once a week at most; and once only where no rung is left, until there is something new to try."""
    if proposal.kind != OrderKind.LABEL_REQUEST or actor.role is not None:
        return None
    if facts.told_that_used_up is not None:
        what = f"That no repair of {proposal.model} is left was told already ({facts.told_that_used_up})"
        return Refused(reason=f"{what}; the agents wait for new labels or a person's order.")
    if facts.open_label_request is None:
        return None
    return Refused(reason=f"Labels for {proposal.model} have been asked for already ({facts.open_label_request}).")


def _approval(proposal: Proposal, actor: Actor, _facts: Facts, limits: Limits) -> Verdict | None:
    if actor.approved:
        return None
    if not actor.asked:
        return NeedsApproval(reason="Your words did not clearly ask for this, so it waits for a clear yes.")
    if proposal.kind in FOUR_EYES and actor.role is not None and limits.four_eyes:
        return NeedsApproval(reason="This site lets nobody order this alone: a second person with the role has to approve it.")
    if proposal.kind == OrderKind.REMEDY and actor.role is None and limits.approve_remedies:
        return NeedsApproval(reason="This site lets no remedy start without a person with the role ml_owner.")
    return None


RULES: Final[tuple[Rule, ...]] = (
    _known_model,
    _known_version,
    _may_order,
    _rung_exists,
    _settings_in_range,
    _within_plan,
    _status_supports,
    _news,
    _one_at_a_time,
    _cool_down,
    _budget,
    _enough_cases,
    _labels_once,
    _approval,
)
"""In the order in which they speak; each sees only facts that the rules before it have made sure of."""
