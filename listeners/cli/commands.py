"""The commands beside those that run services, in the order of the help; each is imported when it is wanted."""

from importlib import import_module
from typing import Final

import typer

COMMANDS: Final = ("status", "send", "reindex", "evaluate", "chat")
GROUPS: Final = ("agents", "archive", "labels", "models", "evaluations", "reports", "orders", "pacs", "dead-letters")
ELSEWHERE: Final = {
    "send": "studies",
    "reindex": "studies",
    "chat": "talk",
    "evaluations": "inspect",
    "dead-letters": "dead_letters",
}
"""Modules that are not named as their command."""


def add_to(app: typer.Typer, wanted: str | None = None) -> None:
    """Make them commands of `app`: the wanted one alone, where it is one of these, so that it starts in half the time."""
    for name in COMMANDS + GROUPS:
        if wanted not in COMMANDS + GROUPS or name == wanted:
            _add(app, name)


def _add(app: typer.Typer, name: str) -> None:
    module = import_module(f"listeners.cli.{ELSEWHERE.get(name, name)}")
    if name in COMMANDS:
        app.command(name)(getattr(module, name))
    else:
        app.add_typer(module.evaluations if name == "evaluations" else module.app, name=name)
