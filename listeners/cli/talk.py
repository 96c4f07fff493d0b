"""The console chat."""

from typing import Annotated

import typer

from listeners.cli.context import open_context


def chat(
    text: Annotated[str | None, typer.Argument(help="What to ask; nothing: a conversation")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for the answer")] = 60.0,
) -> None:
    """Ask in plain language: "how is the brain model doing?", "write a report", "fine-tune it with 10 epochs"."""
    from listeners.chat.console import converse, say

    context = open_context()
    raise typer.Exit(say(context, text, timeout) if text else converse(context, timeout))
