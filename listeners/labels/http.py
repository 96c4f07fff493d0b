"""Labels over HTTP: `POST /api/labels` takes one label or a list of them as JSON."""

import asyncio
import json
from typing import Any, Final

from aiohttp import web

from listeners.labels.intake import Fault, Outcome, RawLabel, canonical, take_in
from services.runtime.service import Context

SOURCE: Final = "http"
MAX_LABELS: Final = 10_000


def create_routes(context: Context) -> list[web.RouteDef]:
    """The endpoint's routes. Access control, content type, body limit and errors are the application's (`listeners.http`)."""

    async def post_labels(request: web.Request) -> web.Response:
        labels, unread = _read(await _json(request))
        outcome = await asyncio.to_thread(take_in, context, labels, SOURCE, context.clock.now())
        faults = sorted((*unread, *outcome.faults), key=lambda fault: fault.row)
        return _answer(outcome, faults)

    return [web.post("/api/labels", post_labels)]


async def _json(request: web.Request) -> Any:
    try:
        return json.loads(await request.text())
    except (UnicodeDecodeError, LookupError, RecursionError, json.JSONDecodeError):
        raise web.HTTPBadRequest(text="the body is not JSON") from None


def _read(body: Any) -> tuple[list[RawLabel], list[Fault]]:
    items = body if isinstance(body, list) else [body]
    if not items or len(items) > MAX_LABELS:
        raise web.HTTPUnprocessableEntity(text=f"give between one and {MAX_LABELS} labels")
    read = [_label(number, item) for number, item in enumerate(items)]
    return [item for item in read if isinstance(item, RawLabel)], [item for item in read if isinstance(item, Fault)]


def _label(number: int, item: Any) -> RawLabel | Fault:
    if not isinstance(item, dict):
        return Fault(number, "a label is an object with study (or accession, or study_key), task and label")
    fields: dict[str, str] = {}
    faults: list[str] = []
    for name, value in item.items():
        field = canonical(name)
        if field is None:
            continue
        if field in fields:
            faults.append(f"{field} is given twice")
        elif field == "status" and isinstance(value, bool):
            fields[field] = str(value)
        elif not isinstance(value, str) or any(not char.isprintable() for char in value):
            faults.append(f"{field} is not a printable string")
        else:
            fields[field] = value.strip()
    if faults:
        return Fault(number, "; ".join(faults))
    return RawLabel(number, {name: value for name, value in fields.items() if value})


def _answer(outcome: Outcome, faults: list[Fault]) -> web.Response:
    """202 when any label was good, else 422; `index` counts from 0."""
    good = outcome.accepted + outcome.known
    rejected = [{"index": fault.row, "reason": fault.reason} for fault in faults]
    counts: dict[str, Any] = {"accepted": outcome.accepted, "known": outcome.known, "rejected": rejected}
    if outcome.warnings:
        counts["warnings"] = list(outcome.warnings)
    if good:
        return web.json_response(counts, status=202)
    return web.json_response({"error": "no label could be taken in", **counts}, status=422)
