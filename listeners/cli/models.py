"""Commands about models and their versions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from listeners.cli import model_training, plans
from listeners.cli.context import ask_leave, console, open_context, show
from listeners.cli.new_version import accept_asked, tell
from schemas.vocabulary import Status, VersionState
from services.runtime import registry
from services.runtime.errors import InvalidInput
from services.runtime.login import login
from services.runtime.service import Context

if TYPE_CHECKING:
    from services.runtime.registration import Accept

app = typer.Typer(help="Models, their versions, and which one serves.", no_args_is_help=True)
app.add_typer(plans.app, name="plan")
app.command()(model_training.split)
app.command()(model_training.train)
app.command()(model_training.extend)
Name = Annotated[str, typer.Argument(help="Model, as `reclaim models list` prints it")]
Reason = Annotated[str, typer.Option(help="Why, for the audit record")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")]


@app.command("list")
def list_models() -> None:
    """All versions of all models.

    Example: reclaim models list
    """
    table = Table("model", "version", "state", "task", "made", "classes", "origin")
    context = open_context()
    with context.database.read() as session:
        for model in registry.models(session):
            for version in registry.versions(session, model.name):
                state = version.state if model.serving or version.state != VersionState.CHAMPION else "champion (stopped)"
                classes, made = ", ".join(version.classes or model.classes), f"{version.created_at:%F %R}"
                cells = (model.name, str(version.version), state, model.task, made, classes, version.origin)
                table.add_row(*map(escape, cells))
    show(table, "No model is registered. Begin with `reclaim models train --help`, or see `reclaim demo`.", prose=2)


@app.command("show")
def show_version(
    name: Name, version: Annotated[int | None, typer.Argument(min=1, help="Left out: the one that serves, else the newest")] = None
) -> None:
    """What a version is, where it comes from, and what the gate said of it.

    Example: reclaim models show lung; reclaim models show lung 2
    """
    from listeners.cli.model_details import details

    table = Table("", Column("", overflow="fold"), show_header=False, box=None)
    for what, found in details(open_context(), name, version):
        table.add_row(what, escape(found))
    show(table, "")


@app.command()
def register(
    bundle: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of a bundle (see docs/models.md)")],
    dataset: Annotated[
        Path,
        typer.Option(exists=True, dir_okay=False, help="Manifest of the development data; its split `test` becomes the baseline"),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Let it serve even if its baseline is at chance level")] = False,
) -> None:
    """Register a finished bundle as a version.

    Where no version of the model serves, the new one does; otherwise it is a candidate for `reclaim models promote`.

    Example: reclaim models register head-ct-bundle --dataset data/manifest.csv
    """
    from services.runtime.registration import register_bundle

    context = open_context()
    tell(context, register_bundle(context, bundle, dataset, actor=f"user:{login()}", accept=accept_asked(yes=yes)))


@app.command()
def promote(
    name: Name,
    version: Annotated[int, typer.Argument(min=1, help="Candidate that shall serve")],
    reason: Reason,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Where none serves: even if its baseline is at chance level")] = False,
) -> None:
    """Have a candidate judged by the gate, and let it serve if it passes.

    While a version serves, both score the gate's patients and the old test set, as after a repair. Where none serves, the
    candidate passes by its own baseline. Nothing serves without either.

    Example: reclaim models promote lung 3 --reason "trained on both scanners"
    """
    context, actor = open_context(), f"user:{login()}"
    with context.database.read() as session:
        champion = registry.model(session, name).champion
        state = registry.version(session, name, version).state
    if state == VersionState.CHAMPION:
        raise InvalidInput(f"version {version} of {name!r} serves already")
    if state == VersionState.ARCHIVED:
        raise InvalidInput(f"version {version} of {name!r} has served before: reclaim models rollback {name} --to {version}")
    if champion is None:
        _begin(context, name, version, actor, reason, accept_asked(yes=yes))
    else:
        _judge(context, name, version, actor, reason)


def _begin(context: Context, name: str, version: int, actor: str, reason: str, accept: "Accept") -> None:
    from services.runtime.chance import standing
    from services.runtime.registration import require_leave_to_begin

    require_leave_to_begin(context, name)
    with context.database.read() as session:
        found = standing(registry.baseline(session, name, version), registry.classes_of(session, name, version))
    if found.at_chance and not accept(found):
        console.print(f"{name}: version {version} does not serve")
        raise typer.Exit(1)
    with context.database.transaction() as tx:
        registry.lock_model(tx.session, name)
        registry.begin_serving(tx, name, version, actor=actor, reason=reason, baseline=found.text, at_chance=found.at_chance)
    why = "on your word, against its baseline" if found.at_chance else f"it passed by its baseline: {found.text}"
    console.print(f"{name}: version {version} serves; {why}", soft_wrap=True)


def _judge(context: Context, name: str, version: int, actor: str, reason: str) -> None:
    from schemas.vocabulary import Verdict
    from services.remediation.admission import admit

    with console.status("asking the gate …"):
        judged = admit(context, name, version, actor=actor, reason=reason, tell=console.print)
    outcome = {
        Verdict.PROMOTE: f"version {version} passed the gate and serves; `reclaim models rollback {name}` undoes it",
        Verdict.REJECT: f"version {version} did not pass the gate and is rejected; version {judged.champion} goes on serving",
        Verdict.NEED_LABELS: f"about {judged.labels} more labels are asked for; version {version} stays a candidate until you have "
        f"it judged again, {judged.champion} goes on serving",
    }[judged.judgement.verdict]
    console.print(f"{name}: {outcome}", soft_wrap=True)
    for sentence in judged.judgement.reasons:
        console.print(f"- {escape(sentence)}", soft_wrap=True)
    raise typer.Exit(0 if judged.judgement.verdict == Verdict.PROMOTE else 1)


@app.command()
def retire(
    name: Name,
    version: Annotated[int | None, typer.Option(min=1, help="Only this version; left out: the whole model")] = None,
    reason: Reason = "",
    yes: Yes = False,
) -> None:
    """Take a version, or a whole model, out of service for good. Its cases, reports, weights and audit record stay.

    Afterwards `reclaim models train` or `register` under the same name makes a new version that serves.

    Example: reclaim models retire lung --reason "trained on the wrong labels"
    """
    context = open_context()
    with context.database.read() as session:
        champion = registry.model(session, name).champion
        serves = champion is not None and version in (None, champion)
    what = f"version {version} of {name}" if version else f"{name} with all its versions"
    after = "nothing scores its studies then" if serves else "the serving version is not touched"
    ask_leave(f"Retire {what}? It cannot come back; {after}.", yes=yes)
    with context.database.transaction() as tx:
        registry.lock_model(tx.session, name)
        gone = registry.retire(tx, name, version, actor=f"user:{login()}", reason=reason)
        left = registry.served_versions(tx.session, name)
    console.print(f"{name}: retired version {', '.join(map(str, gone))}")
    if serves:
        back = f", or bring one back: reclaim models rollback {name} --to {left[0]}" if left else ""
        console.print(f"No version of {name} serves now. The next one you train or register will{back}", soft_wrap=True)


@app.command()
def rollback(
    name: Name,
    to: Annotated[int | None, typer.Option(min=1, help="Version that has served before; left out: the last champion")] = None,
    reason: Reason = "",
) -> None:
    """Bring the last champion back, or any version that has served, at once.

    Example: reclaim models rollback lung; reclaim models rollback lung --to 2 --reason "the new one misses nodules"
    """
    from agents.repository import latest
    from schemas.events import MaintenancePromotion
    from schemas.topics import PROMOTION
    from schemas.vocabulary import Verdict

    context, actor = open_context(), f"user:{login()}"
    with context.database.transaction() as tx:
        registry.lock_model(tx.session, name)
        taken_out, serves = registry.roll_back(tx, name, to, actor=actor, reason=reason)
        judged = latest(tx.session, name, serves)
        event = MaintenancePromotion(
            model=name,
            challenger=serves,
            champion_before=taken_out or 0,
            champion_after=serves,
            verdict=Verdict.PROMOTE,
            reasons=("Rolled back at the command line.", *([reason] if reason else [])),
            actor=actor,
            origin="rollback",
        )
        tx.emit(PROMOTION, event)
    gone = f", version {taken_out} is archived (`--to {taken_out}` brings it back)" if taken_out else ""
    console.print(f"{name}: version {serves} serves again{gone}", soft_wrap=True)
    if judged is not None and judged.status == Status.DEGRADED:
        seen = f"Its last evaluation, of {judged.evaluated_at:%F}, found it degraded."
        console.print(f"[yellow]{seen}[/] {escape(judged.summary)}", soft_wrap=True)


@app.command()
def stop(name: Name) -> None:
    """Stop scoring with this model; `resume` goes on.

    Example: reclaim models stop lung
    """
    _set_serving(name, serving=False)


@app.command()
def resume(name: Name) -> None:
    """Score with this model again.

    Example: reclaim models resume lung
    """
    _set_serving(name, serving=True)


def _set_serving(name: str, *, serving: bool) -> None:
    context = open_context()
    with context.database.transaction() as tx:
        registry.set_serving(tx, name, serving=serving, actor=f"user:{login()}")
        champion = registry.model(tx.session, name).champion
    none = "" if champion or not serving else "; but no version of it serves: train, register or promote one"
    console.print(f"{name}: {'serving' if serving else 'stopped'}{none}")
