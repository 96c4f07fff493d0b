"""The tool that tells what happened to a model: its last decline, what was done about it, how it is now."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlmodel import Session

from agents import repository
from agents.overview.reading import model_state
from agents.overview.wording import missing
from agents.redaction import plain
from agents.tools.answers import Answer, Problem
from agents.tools.arguments import OneModel
from agents.tools.desk import Desk, evaluation_facts, resolve
from agents.tools.read import progress
from agents.tools.story import Explanation, Repair
from schemas.tables import Order, RegisteredModel
from schemas.vocabulary import OrderKind, OrderState, Remedy
from services.runtime import registry
from services.runtime.words import TO_DO, date


def explain_decline(desk: Desk, args: OneModel) -> Answer:
    """What happened to a model and why: its last decline, what was ordered, the gate's verdict, its status now."""
    with desk.database.read() as session:
        name = resolve(session, args.model)
        return name if isinstance(name, Problem) else _story(session, registry.model(session, name), desk)


def _story(session: Session, row: RegisteredModel, desk: Desk) -> Explanation:
    newest = repository.latest(session, row.name, row.champion)
    decline = repository.last_decline(session, row.name)
    noticed = repository.noticed_at(session, row.name, decline.version) if decline else None
    began = noticed or (decline.evaluated_at if decline else None)
    waiting = repository.orders(session, row.name, (OrderState.AWAITING_APPROVAL,), 1)
    repairs = repository.orders_since(session, row.name, OrderKind.REMEDY, began) if began else _last(session, row.name)
    return Explanation(
        model=row.name,
        champion=row.champion,
        serving=row.serving,
        evaluation=evaluation_facts(newest) if newest else None,
        decline=evaluation_facts(decline) if decline else None,
        noticed_on=_day(began) if began else "",
        repairs=tuple(_repair(session, order) for order in repairs),
        waiting=f"{_remedy(waiting[0])} ({waiting[0].order_id})" if waiting and decline else "",
        labels_asked=_labels(repository.orders_since(session, row.name, OrderKind.LABEL_REQUEST, began)),
        labels=missing(model_state(session, desk.settings, row)),
        rolled_back=_rolled_back(repository.orders_since(session, row.name, OrderKind.ROLLBACK, began)),
    )


def _last(session: Session, model: str) -> Sequence[Order]:
    """The one repair that is told of a model which has not declined: a person ordered it."""
    newest = repository.last_remedy(session, model)
    return [] if newest is None else [newest]


def _repair(session: Session, order: Order) -> Repair:
    job = repository.job_of(session, order.order_id)
    result: dict[str, Any] = job.result if job is not None else {}
    numbers = result.get("numbers") or {}
    reasons = result.get("reasons") or [""]
    judged = bool(result.get("judged", True))
    seen = ("gate_cases", "mcnemar_wins", "mcnemar_losses") if judged else ("tune_cases", "tune_wins", "tune_losses")
    cases, wins, losses = (int(({**result, **numbers}).get(name) or 0) for name in seen)
    chance = any(str(reason).startswith("Not shown to") for reason in reasons)
    return Repair(
        ordered_at=_day(order.created_at),
        by=_who(order),
        remedy=_remedy(order),
        state=order.state,
        progress=progress(session, order),
        verdict=str(result.get("verdict") or ""),
        challenger=result.get("challenger"),
        judged=judged,
        gate_cases=cases,
        wins=wins,
        losses=losses,
        objection="that is not enough to rule out chance" if chance else _inside(plain(str(reasons[-1]), 300)),
    )


def _inside(sentence: str) -> str:
    """A sentence as a part of another one."""
    return sentence[:1].lower() + sentence[1:].rstrip(".")


def _labels(requests: Sequence[Order]) -> str:
    if not requests:
        return ""
    newest = requests[-1]
    return f"On {_day(newest.created_at)} about {newest.settings.get('cases', 'some')} more labelled studies were asked for."


def _rolled_back(orders: Sequence[Order]) -> str:
    if not orders:
        return ""
    return f"On {_day(orders[-1].created_at)} {_who(orders[-1])} ordered to go back to the version before."


def _who(order: Order) -> str:
    return "the agents" if order.actor.startswith("agent:") else plain(order.actor.removeprefix("user:"), 60)


def _remedy(order: Order) -> str:
    return TO_DO.get(Remedy(order.remedy), order.remedy) if order.remedy else order.kind.replace("_", " ")


def _day(at: datetime) -> str:
    return date(at.isoformat())
