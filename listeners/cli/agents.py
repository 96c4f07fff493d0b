"""Commands about the agents: what they ran for, what they thought, did and saw."""

import contextlib
import json
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from listeners.cli.context import console, nearest, open_context, show
from schemas.agent_runs import AgentRun
from schemas.tables import Order
from services.runtime.errors import InvalidInput

app = typer.Typer(help="What the agents did, step by step.", no_args_is_help=True)
SEARCHED = 200
SHOWN = 16
SAME = 500
"""Characters by which a last thought is known as the answer; a thought is kept cut short."""
HANDOFF = "handoff"


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
    as_json: Annotated[bool, typer.Option("--json", help="The whole record as it is kept")] = False,
) -> None:
    """One run for a person: what was asked, each thought, each tool with what it was given and answered, what came of it.

    Example: reclaim agents trace ord-1a2b3c4d5e6f
    """
    row, orders = _found(run)
    if as_json:
        typer.echo(json.dumps(row.model_dump(mode="json"), indent=2, ensure_ascii=False))
        return
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
            _tell(name, escape(value))
    for number, step in enumerate((step for step in row.steps if _is_told(step, row)), 1):
        _print_step(number, step)
    for number, name in enumerate(row.order_ids or ["none"]):
        _tell("" if number else "orders", escape(_order(name, orders.get(name))))
    _tell("answer", escape(row.reply) or "nothing")


def _tell(heading: str, text: str) -> None:
    """One line with its heading; further lines of the text stand under the first."""
    console.print(f"[bold]{heading:>8}[/]  " + text.replace("\n", f"\n{'':10}"), soft_wrap=True)


def _found(name: str) -> tuple[AgentRun, dict[str, Order]]:
    """The run of this name, with the orders that came of it."""
    from agents import repository

    with open_context().database.read() as session:
        of_order = repository.run_of_order(session, name) if name.startswith("ord-") else None
        rows = [of_order] if of_order is not None else list(repository.run_like(session, name))
        known = [] if rows else [row.run_id for row in repository.runs(session, SEARCHED)]
        made = [session.get(Order, order) for order in rows[0].order_ids] if rows else []
    if len(rows) > 1:
        raise InvalidInput(f"{name!r} is the beginning of several runs: {', '.join(row.run_id for row in rows)}")
    if not rows:
        raise InvalidInput(f"there is no run {name!r}{nearest(name, known)}")
    return rows[0], {order.order_id: order for order in made if order is not None}


def _order(name: str, row: Order | None) -> str:
    if row is None:
        return name
    what = f"{row.kind} {row.remedy or ''}".strip().replace("_", " ")
    told = f": {row.explanation}" if row.explanation else ""
    return f"{name}, {what} of {row.model}, {row.state.replace('_', ' ')} now{told}"


def _print_step(number: int, step: dict[str, Any]) -> None:
    who = f" [dim]({escape(str(step['agent']))})[/]" if step.get("agent") else ""
    given = step.get("arguments") or {}
    if step.get("think"):
        _tell(str(number), f"thinks{who}: {escape(str(step['think']))}")
    if step.get("act") == HANDOFF and not step.get("error"):
        _tell(str(number), f"hands over to {escape(str(given.get('to_agent', '')))}")
    elif step.get("act"):
        listed = ", ".join(f"{name}={value}" for name, value in given.items())
        _tell(str(number), f"acts{who}: {escape(str(step['act']))}({escape(listed)})")
        verb = "[red]fails[/]" if step.get("error") else "observes"
        _tell("", f"{verb}: {escape(_in_words(str(step['act']), str(step.get('observe', ''))))}")
    if step.get("fallback"):
        _tell(str(number), f"the language model did not deliver: {escape(str(step['fallback']))}")


def _in_words(tool: str, observed: str) -> str:
    """A tool's answer as the agents would say it; as it stands where it is not one of ours, or was too long to be kept."""
    from agents.runner import OBSERVED
    from agents.tools.answers import Recorded
    from agents.tools.catalogue import BY_NAME

    with contextlib.suppress(KeyError, ValueError):
        answer = BY_NAME[tool].answers.model_validate_json(observed)
        return f"recorded ({answer.recorded}); the guardrails decide" if isinstance(answer, Recorded) else answer.say()
    return observed + (" …" if len(observed) >= OBSERVED else "")


def _is_told(step: dict[str, Any], row: AgentRun) -> bool:
    """The first step only says for what, and the last thought is the answer."""
    thought = str(step.get("think") or "")
    return not _is_head(step) and not (thought and step is row.steps[-1] and row.reply.startswith(thought[:SAME]))


def _is_head(step: dict[str, Any]) -> bool:
    """The first step says who asked, or which event it was."""
    return ("user" in step and "role" in step) or "event" in step


def _cause(row: AgentRun) -> str:
    head = row.steps[0] if row.steps else {}
    if "user" in head:
        return f"{head['user']} ({head.get('role', '')})"
    return str(head.get("event") or "an evaluation or a verdict")


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
    return line if len(line) <= 76 else f"{line[:74]} …"
