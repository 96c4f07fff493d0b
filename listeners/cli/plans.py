"""Commands about change control plans."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from listeners.cli.context import console
from services.runtime.errors import InvalidInput

app = typer.Typer(help="What may change in a model without a new approval (docs/models.md).", no_args_is_help=True)


@app.command()
def check(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="Plan in YAML or JSON; see docs/examples/change-plan.yaml")
    ],
) -> None:
    """Read a change control plan, and say what it covers or everything that is wrong with it.

    Example: reclaim models plan check docs/examples/change-plan.yaml
    """
    from services.runtime.change_plans import read_plan, require_in_force

    read = read_plan(file)
    plan, acceptance = read.plan, read.plan.protocol.acceptance
    table = Table("clause", "covers", "limits of an order")
    for each in plan.modifications:
        covers = [*each.remedies, *(["versions that a person brings"] if each.owner_versions else [])]
        limits = [f"{name} {bounds.least:g} to {bounds.most:g}" for name, bounds in each.settings.items()]
        table.add_row(each.id, escape(", ".join(covers)), escape(", ".join(limits)))
    console.print(table)
    needed = f"at least {acceptance.min_gate_cases} cases of the gate and {plan.protocol.min_tune_cases} to learn from"
    strict = f"level {acceptance.gate_alpha:g}, margin {acceptance.margin:g}"
    console.print(f"{acceptance.id}: {strict}, {needed}, at most {acceptance.max_latency_ratio:g} times as slow", soft_wrap=True)
    until = f" (until {plan.valid_until})" if plan.valid_until else ""
    where = f"to put it in force, keep it as plans/{plan.model}{file.suffix} in the state folder"
    try:
        require_in_force(read, datetime.now(UTC).date())
    except InvalidInput as error:
        console.print(f"[bold yellow]Not today:[/] {escape(error.reason)}", soft_wrap=True)
    console.print(f"{plan.model}: {read.citation()} of {plan.approved_on}{until} is valid; {where}", soft_wrap=True)
