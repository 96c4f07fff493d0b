"""The report on a rollback: no gate was asked, because the version that comes back has served before."""

from schemas.events import MaintenancePromotion
from services.reporting import committee, common
from services.reporting.facts import Facts, Rules
from services.reporting.modifications import change_control
from services.reporting.page import KeyFigure, Page, Part, Section
from services.reporting.wording import on

ORIGIN = "rollback"
_WATCH = "Watch its next evaluations: what spoke against it before may still hold."
_WATCH = "Watch its next evaluations: what spoke against it before may still hold."


def rollback_page(facts: Facts, promotion: MaintenancePromotion, report_id: str, rules: Rules) -> Page:
    """Build the page from the event of a rollback; `champion_before` is 0 where no version served."""
    model, back, out = promotion.model, promotion.champion_after, promotion.champion_before
    instead = f" in place of version {out}" if out else ""
    own = [each for each in facts.history if each.version == back]
    last = f"Its last evaluated batch, {on(own[-1].evaluated_at)}: {own[-1].summary}" if own else "It has no evaluated batch."
    happened = f"Version {back} serves again{instead}, from the next study on."
    undo = f"`reclaim models rollback {model} --to {out}` undoes it." if out else "No version served before it."
    return Page(
        report_id=report_id,
        kind="remedy",
        status=own[-1].status if own else "undecided",
        status_word="Rolled back",
        title=f"{model}: version {back} serves again",
        summary=f"{promotion.actor} brought version {back} of {model} back{instead}. It has served before, so no gate was asked.",
        model=model,
        task=facts.task,
        version=facts.version,
        as_of=facts.cause.as_of,
        key_figures=[KeyFigure("Serves now", f"version {back}", f"before: version {out}" if out else "before: none")],
        parts=[
            Part(
                "In short",
                (
                    Section("What happened", (happened,), promotion.reasons),
                    Section("What is known of it", (last,)),
                    Section("What to do now", points=(_WATCH, undo)),
                    *common.history(facts),
                ),
            ),
            committee.post_market(facts, rules),
            change_control(facts, rules),
            committee.records(facts, rules, rows=(("Decided by", promotion.actor),)),
        ],
        data=common.data_of(facts) | {"promotion": promotion.model_dump(mode="json")},
        tone="watch",
    )
