"""The command `reclaim status`."""

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Column, Table

from listeners.cli.context import console
from listeners.cli.measures import age, ago
from schemas.settings import load_settings
from services.runtime.clock import SystemClock
from services.runtime.presence import HOW_TO_START

if TYPE_CHECKING:
    from agents.overview.facts import Consumer, ModelState, Overview, Work
    from listeners.cli.overview import Listener, Status

Line = tuple[str, str]
STYLES = {"healthy": "green", "watch": "yellow", "degraded": "red", "undecided": "dim"}


def status(as_json: Annotated[bool, typer.Option("--json", help="For a program: everything, as one JSON object")] = False) -> None:
    """How everything stands, on one screen: service, studies, models, missing labels, orders, consumers, dead letters, disk.

    Reads only; nothing need run. What is at fault and what to do about it says `reclaim doctor`.

    Example: reclaim status; reclaim status --json
    """
    from listeners.cli.overview import status_of

    found = status_of(load_settings(), SystemClock())
    if as_json:
        console.print_json(found.model_dump_json())
        return
    table = Table(
        Column("", no_wrap=True, style="bold"), Column("", overflow="fold"), show_header=False, box=None, padding=(0, 2, 0, 0)
    )
    for name, text in lines(found):
        table.add_row(escape(name), text)
    console.print(table)


def lines(found: "Status") -> Iterator[Line]:
    """What to print, as (heading, text in Rich's markup)."""
    yield "state", f"{escape(found.state_dir)}, {found.at:%F %R} UTC"
    yield "service", _service(found)
    yield "DICOM", f"port {found.listener.port}: {_listener(found.listener)}"
    if found.disk is not None:
        text = f"{decimal(found.disk.free_bytes)} free; below {decimal(found.disk.watermark_bytes)} C-STORE is refused"
        yield "disk", f"[red]{text}[/]" if found.disk.low else text
    if found.overview is None:
        yield "database", escape(found.fault)
        return
    yield from _contents(found.overview)


def _service(found: "Status") -> str:
    down = f"; [red]down: {escape(', '.join(found.service.down))}[/]" if found.service.down else ""
    if refused := escape(", ".join(found.service.misconfigured)):
        down += f"; [red]{refused}: does not start with its settings[/], which its last lines name: then start `reclaim up` again"
    if found.service.starting:
        return _yellow(f"`reclaim up` runs since {found.service.since:%F %R} UTC, and its services are starting") + down
    if not found.service.at_work:
        return _yellow(f"not running: {HOW_TO_START}")
    since = f" since {found.service.since:%F %R} UTC" if found.service.since else ""
    return f"runs{since}{down}"


def _listener(found: "Listener") -> str:
    if found.foreign:
        return "[red]another program answers there, and has what is sent to it[/]: stop it, or set RECLAIM_DICOM_PORT"
    return "answers" if found.up else _yellow("nobody listens on this machine")


def _contents(seen: "Overview") -> Iterator[Line]:
    yield "studies", _studies(seen)
    if not seen.models:
        yield "models", "none is registered: `reclaim models train --help`"
    for model in seen.models:
        for number, sentence in enumerate(_model(model, seen.at)):
            yield "" if number else f"model {model.name}", sentence
    for number, order in enumerate(seen.work):
        yield "" if number else "orders", _order(order, seen.at)
    if not seen.work:
        yield "orders", "none is open"
    for number, sentence in enumerate(_consumers(seen)):
        yield "" if number else "consumers", sentence
    if seen.outgoing.oldest is not None:
        waited = age((seen.at - seen.outgoing.oldest).total_seconds())
        yield "outbox", f"{seen.outgoing.waiting} events wait for the bus, the oldest for {waited}"
    yield "dead letters", _letters(seen)


def _studies(seen: "Overview") -> str:
    found = seen.studies
    if found.last_received_at is None:
        return "none has come yet"
    last = f"the last {ago(seen.at, found.last_received_at)}"
    return f"{found.received} received, {last}; {found.last_day} in the last 24 hours, {found.open} not complete yet"


def _model(model: "ModelState", now: datetime) -> Iterator[str]:
    """The version with its status; what the next evaluation lacks; what waits at the gate; the early warning."""
    if model.champion is None:
        yield "no version serves"
        return
    serves = f"version {model.champion} serves" if model.serving else _yellow(f"version {model.champion} is stopped")
    yield f"{serves}, {_status(model)}"
    yield _outlook(model, now)
    if model.challenger is not None:
        waits = f"version {model.challenger} waits for the gate"
        yield f"{waits} with {model.gate_cases} of {model.gate_cases_needed} cases" if model.gate_cases_needed else waits
    if model.warning is not None:
        yield _yellow(f"early warning {model.warning.at:%F}: ") + escape(model.warning.summary)


def _status(model: "ModelState") -> str:
    if not model.status or model.since is None or model.evaluated_at is None:
        return "not evaluated yet"
    cause = f" ({model.diagnosis})" if model.diagnosis not in {"none", ""} else ""
    judged = f"evaluated {model.evaluated_at:%F} on {model.judged_cases} cases"
    return f"[{STYLES[model.status]}]{model.status}[/]{cause} since {model.since:%F}, {judged}"


def _outlook(model: "ModelState", now: datetime) -> str:
    from agents.overview.wording import missing

    scored = f"last study scored {ago(now, model.last_scored_at)}" if model.last_scored_at else "no study scored yet"
    return f"{missing(model)}; {scored}"


def _order(order: "Work", now: datetime) -> str:
    what = f"{order.kind} {order.remedy}".strip().replace("_", " ")
    text = f"{order.order_id}: {what} of {order.model}, by {order.actor} {ago(now, order.since)}"
    if order.state == "awaiting_approval":
        return f'{escape(text)}; {_yellow("waits for approval")}: reclaim chat "approve {order.order_id}"'
    far = f", epoch {order.epoch} of {order.epochs}" if order.epoch is not None and order.epochs is not None else ""
    told = f" ({order.message})" if order.message and not order.message.startswith("epoch ") else ""
    return escape(f"{text}; {(order.job or order.state).replace('_', ' ')}{far}{told}")


def _consumers(seen: "Overview") -> Iterator[str]:
    """Those with something before them, each in a line, then the others with when they last dealt with an event."""
    for each in seen.consumers:
        if each.waiting:
            yield _yellow(_behind(each, seen.at))
    idle = ", ".join(f"{each.name} ({_active(each, seen.at)})" for each in seen.consumers if not each.waiting)
    if idle:
        yield f"nothing waits for {idle}"


def _behind(consumer: "Consumer", now: datetime) -> str:
    number = f"at least {consumer.waiting}" if consumer.at_least else str(consumer.waiting)
    since = age((now - consumer.oldest_waiting).total_seconds()) if consumer.oldest_waiting else "0 s"
    return f"{consumer.name} is {number} event{'s' if consumer.waiting > 1 else ''} behind, by {since}; {_active(consumer, now)}"


def _active(consumer: "Consumer", now: datetime) -> str:
    return f"active {ago(now, consumer.last_active_at)}" if consumer.last_active_at else "no event yet"


def _letters(seen: "Overview") -> str:
    found = seen.letters
    if not found.waiting or found.newest_at is None:
        return "none waits"
    whose = ", ".join(f"{count} of {name}" for name, count in found.by_consumer.items())
    return f"[red]{found.waiting}[/]: {escape(whose)}, the newest {ago(seen.at, found.newest_at)}: `reclaim dead-letters list`"


def _yellow(text: str) -> str:
    return f"[yellow]{escape(text)}[/]"
