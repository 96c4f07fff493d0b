"""What the command line says and asks about a version that has just been made."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from listeners.cli.context import console
from schemas.tables import ModelVersion
from schemas.vocabulary import VersionState
from services.runtime import registry
from services.runtime.service import Context

if TYPE_CHECKING:
    from services.runtime.registration import Accept


def tell(context: Context, version: ModelVersion) -> None:
    """What became of a new version, and what to do where it does not serve."""
    from services.runtime.chance import standing

    with context.database.read() as session:
        owner = registry.model(session, version.model)
        found = standing(registry.baseline(session, version.model, version.version), owner.classes)
    console.print(f"registered {version.model} version {version.version} ({version.state})")
    if not found.at_chance:
        console.print(f"On its own test cases: {escape(found.text)}.", soft_wrap=True)
    if version.state == VersionState.CHAMPION:
        stopped = f"{version.model} is stopped: reclaim models resume {version.model}"
        console.print("It serves from the next study on." if owner.serving else stopped, soft_wrap=True)
        return
    promote = f"reclaim models promote {version.model} {version.version} --reason …"
    if owner.champion:
        console.print(f"Version {owner.champion} goes on serving. To have the gate judge this one: {promote}", soft_wrap=True)
        return
    console.print(f"It does not serve, and no other does. Train it anew, or take it as it is: {promote}", soft_wrap=True)
    raise typer.Exit(1)


def accept_asked(*, yes: bool, before: Callable[[], None] = lambda: None) -> "Accept":
    """Warn of a baseline at chance level, and ask whether the version shall serve all the same; without a terminal: no."""
    from services.runtime.chance import Standing

    def accept(found: Standing) -> bool:
        before()
        console.print("[bold red]WARNING: this version is no better than guessing.[/]")
        console.print(f"On its own test cases: {escape(found.text)}.", soft_wrap=True)
        console.print("Check labels, images and split; train longer, or give it more test cases of every class.", soft_wrap=True)
        return yes or (sys.stdin.isatty() and typer.confirm("Let it serve all the same?", default=False))

    return accept
