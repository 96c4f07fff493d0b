"""From the words of a request to its tool's arguments. Pure."""

import re
from collections.abc import Sequence
from typing import Any, Final

from agents.planner import dates, grammar

DATED: Final = frozenset({"metric_history", "list_evaluations", "list_orders", "list_reports", "replay_evaluation"})
"""Tools that take days."""


def slots_of(tool: str, text: str, model: str) -> dict[str, Any]:
    """The arguments that a clause's folded text names for a tool, with the model where there is one."""
    named = {"model": model} if model and tool not in {"help", "list_models"} else {}
    days = dates.slots(text) if tool in DATED else {}
    return named | days | _SLOTS.get(tool, _no_slots)(text)


def _no_slots(_text: str) -> dict[str, Any]:
    return {}


def remedy_slots(text: str) -> dict[str, Any]:
    """Strategy and numbers of a repair."""
    strategy = next((name for name, pattern in grammar.STRATEGIES.items() if pattern.search(text)), None)
    slots: dict[str, Any] = {"remedy": strategy} if strategy else {}
    slots |= {name: int(value) for name, patterns in grammar.INTEGER_SLOTS.items() if (value := _first(patterns, text))}
    slots |= {name: float(value) for name, patterns in grammar.NUMBER_SLOTS.items() if (value := _first(patterns, text))}
    share = slots.get("rehearsal_share", 0.0)
    return slots | ({"rehearsal_share": share / 100} if share > 1 and "%" in text else {})


def _first(patterns: Sequence[re.Pattern[str]], text: str) -> str | None:
    return next((match.group(1) for pattern in patterns if (match := pattern.search(text))), None)


def _case_slots(text: str) -> dict[str, Any]:
    cases = _first(grammar.CASES, text)
    return {"cases": int(cases)} if cases else _count_slots(text)


def _replay_slots(text: str) -> dict[str, Any]:
    cases, versions = _first(grammar.CASES, text), [number for pair in grammar.VERSION.findall(text) for number in pair if number]
    rule = next((name for name, pattern in grammar.RULES.items() if pattern.search(text)), None)
    slots: dict[str, Any] = {"facets": facets} if (facets := _facets(text)) else {}
    slots |= {"cases": int(cases)} if cases else {}
    slots |= {"rule": rule} if rule else {}
    return slots | ({"version": int(versions[0])} if versions else {})


def _facets(text: str) -> list[str]:
    """`NAME=VALUE` for the groups that a text names; the tool finds the spelling of name and value."""
    written = [f"{name}={value}" for name, value in grammar.FACET.findall(text) if name not in {"rate", "size", "share", "epochs"}]
    if written:
        return written
    found = ((pattern.search(text), facet) for pattern, facet in grammar.GROUPS)
    return [facet.format(*match.groups()) for match, facet in found if match]


def _count_slots(text: str) -> dict[str, Any]:
    count = _first(grammar.COUNT, text)
    one = {"last": 1} if grammar.ONE.search(text) else {}
    return {"last": int(count)} if count else one


def _order_list_slots(text: str) -> dict[str, Any]:
    return _count_slots(text) | ({"waiting": True} if grammar.WAITING.search(text) else {})


def _version_slots(text: str) -> dict[str, Any]:
    found = [int(number) for pair in grammar.VERSION.findall(text) for number in pair if number]
    pair = grammar.BARE_PAIR.search(text) if not found else None
    found = [int(number) for number in pair.groups()] if pair else found
    return dict(zip(("first", "second"), found, strict=False))


def _rollback_slots(text: str) -> dict[str, Any]:
    found = [int(number) for pair in grammar.VERSION.findall(text) for number in pair if number]
    found = found or [int(number) for number in grammar.BARE_VERSION.findall(text)]
    return {"to_version": found[-1]} if found else {}


def _label_slots(text: str) -> dict[str, Any]:
    count = _first(grammar.LABELS, text)
    return {"cases": int(count)} if count else {}


def _id_slots(text: str) -> dict[str, Any]:
    found = grammar.ORDER_ID.search(text)
    return {"order_id": found.group()} if found else {}


_SLOTS: Final = {
    "order_remedy": remedy_slots,
    "metric_history": _case_slots,
    "replay_evaluation": _replay_slots,
    "list_evaluations": _count_slots,
    "list_reports": _count_slots,
    "list_orders": _order_list_slots,
    "compare_versions": _version_slots,
    "order_label_request": _label_slots,
    "order_rollback": _rollback_slots,
    "approve_order": _id_slots,
    "reject_order": _id_slots,
}
