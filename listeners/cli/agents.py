"""Commands about the agents: what they ran for, what they thought, did and saw."""

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from listeners.cli.context import console, nearest, open_context, show
from schemas.agent_runs import AgentRun
from services.runtime.errors import InvalidInput

app = typer.Typer(help="What the agents did, step by step.", no_args_is_help=True)
SEARCHED = 200
SHOWN = 16


@app.command("runs")
def list_runs(
    limit: Annotated[int, typer.Option(min=1, help="Newest so many")] = 20,
    thread: Annotated[str, typer.Option(help="Only of this thread of the chat")] = "",
) -> None:
    """The newest runs: for what, decided by what, which orders came of it, and what they cost.

    Example: reclaim agents runs --limit 5
    """
    from agents import repository

    table = Table("run", "when (UTC)", "cause", "planner", "orders", "used", "reply")
    with open_context().database.read() as session:
        for row in repository.runs(session, limit, thread):
            used = ", ".join(part for part in (_time(row), _tokens(row)) if part)
            cells = (row.run_id[:SHOWN], f"{row.created_at:%F %T}", _cause(row), row.planner, ", ".join(row.order_ids), used)
            table.add_row(*map(escape, (*cells, _short(row.reply))))
    show(table, "The agents have not run yet.", prose=1)


@app.command("trace")
def trace_run(
    run: Annotated[str, typer.Argument(help="Id of a run as `runs` prints it (its beginning is enough), or of an order")],
) -> None:
    """One run for a person: what was asked, each thought, each tool with what it was given and answered, what came of it.

    Example: reclaim agents trace ord-1a2b3c4d5e6f
    """
    row = _found(run)
    facts = {
        "run": f"{row.run_id}, {row.created_at:%F %T} UTC",
        "cause": f"{_cause(row)}, event {row.cause}",
        "thread": row.thread,
        "planner": row.planner,
        "used": ", ".join(part for part in (_time(row), _tokens(row), _cost(row)) if part),
        "trace": str(row.usage.get("trace_id", "")),
        "asked": row.text,
    }
    for name, value in facts.items():
        if value:
            console.print(f"[bold]{name:>8}[/]  {escape(value)}", soft_wrap=True)
    for number, step in enumerate((step for step in row.steps if not _is_head(step)), 1):
        _print_step(number, step)
    console.print(f"[bold]{'orders':>8}[/]  {escape(', '.join(row.order_ids) or 'none')}")
    console.print(f"[bold]{'answer':>8}[/]  {escape(row.reply) or 'nothing'}", soft_wrap=True)


def _found(name: str) -> AgentRun:
    from agents import repository

    with open_context().database.read() as session:
        of_order = repository.run_of_order(session, name) if name.startswith("ord-") else None
        rows = [of_order] if of_order is not None else list(repository.run_like(session, name))
        known = [] if rows else [row.run_id for row in repository.runs(session, SEARCHED)]
    if len(rows) > 1:
        raise InvalidInput(f"{name!r} is the beginning of several runs: {', '.join(row.run_id for row in rows)}")
    if not rows:
        raise InvalidInput(f"there is no run {name!r}{nearest(name, known)}")
    return rows[0]


def _print_step(number: int, step: dict[str, Any]) -> None:
    who = f" [dim]({escape(str(step['agent']))})[/]" if step.get("agent") else ""
    if step.get("think"):
        console.print(f"[bold]{number:>8}[/]  thinks{who}: {escape(str(step['think']))}", soft_wrap=True)
    if step.get("act"):
        given = ", ".join(f"{name}={value}" for name, value in (step.get("arguments") or {}).items())
        console.print(f"[bold]{number:>8}[/]  acts{who}: {escape(str(step['act']))}({escape(given)})", soft_wrap=True)
        verb = "[red]fails[/]" if step.get("error") else "observes"
        console.print(f"          {verb}: {escape(str(step.get('observe', '')))}", soft_wrap=True)
    if step.get("fallback"):
        console.print(f"[bold]{number:>8}[/]  the language model did not deliver: {escape(str(step['fallback']))}", soft_wrap=True)


def _is_head(step: dict[str, Any]) -> bool:
    """The first step of a command only says who asked."""
    return "user" in step and "role" in step


def _cause(row: AgentRun) -> str:
    head = row.steps[0] if row.steps else {}
    return f"{head['user']} ({head['role']})" if _is_head(head) else "an evaluation or a verdict"


def _time(row: AgentRun) -> str:
    seconds = row.usage.get("seconds")
    return f"{seconds:.2f} s" if seconds is not None else ""


def _tokens(row: AgentRun) -> str:
    if not row.usage.get("llm_calls"):
        return ""
    return f"{row.usage.get('input_tokens', 0)} in, {row.usage.get('output_tokens', 0)} out"


def _cost(row: AgentRun) -> str:
    return f"cost {row.usage['cost']:.4f}" if row.usage.get("cost") else ""


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:78]} …"
