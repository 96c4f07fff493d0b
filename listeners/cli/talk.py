"""The console chat."""

from typing import Annotated

import typer

from listeners.cli.context import console, open_context
from services.runtime.presence import HOW_TO_START, is_at_work


def chat(
    text: Annotated[str | None, typer.Argument(help="What to ask; nothing: a conversation")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for the answer")] = 60.0,
) -> None:
    """Ask in plain language: "how is the brain model doing?", "write a report", "fine-tune it with 10 epochs".

    Example: reclaim chat "which orders are waiting?"; without a question it is a conversation.
    """
    from listeners.chat.console import converse, say

    context = open_context()
    if not is_at_work(context.database):
        console.print(f"[red]error:[/] the service is not running, so nobody would answer: {HOW_TO_START}")
        raise typer.Exit(75)
    raise typer.Exit(say(context, text, timeout) if text else converse(context, timeout))
