"""Commands about models and their versions."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from listeners.cli.context import console, open_context
from schemas.vocabulary import Modality
from services.runtime import registry

app = typer.Typer(help="Models, their versions, and which one serves.", no_args_is_help=True)


@app.command("list")
def list_models() -> None:
    """All versions of all models."""
    table = Table("model", "version", "state", "task", "classes", "origin", "made")
    context = open_context()
    with context.database.read() as session:
        for model in registry.models(session):
            for version in registry.versions(session, model.name):
                state = version.state if model.serving or version.state != "champion" else "champion (stopped)"
                table.add_row(
                    model.name,
                    str(version.version),
                    state,
                    model.task,
                    ", ".join(model.classes),
                    version.origin,
                    f"{version.created_at:%F %R}",
                )
    console.print(table)


@app.command()
def train(
    manifest: Annotated[Path, typer.Argument(help="CSV with columns path,label,patient,split; DICOM files or folders")],
    name: Annotated[str, typer.Option(help="Name of the model")],
    task: Annotated[str, typer.Option(help="Task that the labels belong to")],
    modality: Annotated[list[Modality], typer.Option(help="Modality the model scores; may be given several times")],
    body_part: Annotated[list[str], typer.Option(help="BodyPartExamined it scores; none: any")] = [],  # noqa: B006 - typer copies it
    description: Annotated[str | None, typer.Option(help="Only series whose description matches this regular expression")] = None,
    network: Annotated[
        str, typer.Option(help="small, resnet50, inception_v3, efficientnet_b0, efficientnet_v2_s, vgg16, densenet121 …")
    ] = "small",
    size: Annotated[int, typer.Option(min=16, max=1024, help="Edge of the image in pixels")] = 96,
    epochs: Annotated[int, typer.Option(min=1)] = 12,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train a model on a labelled data set, baseline it on the test split and register it."""
    from listeners.training import TrainingRequest, train_and_register
    from models.training import EpochRecord

    request = TrainingRequest(
        manifest=manifest,
        name=name,
        task=task,
        modalities=tuple(each.value for each in modality),
        body_parts=tuple(body_part),
        description=description,
        network=network,
        size=size,
        epochs=epochs,
        seed=seed,
    )
    with Progress(console=console) as progress:
        bar = progress.add_task("training", total=epochs)

        def show(row: EpochRecord) -> None:
            words = f"training  loss {row.valid_loss:.3f}  macro recall {row.macro_recall:.3f}"
            progress.update(bar, completed=row.epoch, description=words)

        version = train_and_register(open_context(), request, show)
    console.print(f"registered {name} version {version}")


@app.command()
def register(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle (see docs/models.md)")],
    dataset: Annotated[Path, typer.Option(help="Manifest of the development data; its split `test` becomes the baseline")],
) -> None:
    """Register a finished bundle as a version; the first version of a model serves at once."""
    from services.runtime.registration import register_bundle

    version = register_bundle(open_context(), bundle, dataset, actor="user:cli")
    console.print(f"registered {version.model} version {version.version} ({version.state})")


@app.command()
def rollback(name: Annotated[str, typer.Argument(help="Model")]) -> None:
    """Bring the last champion back, at once."""
    from getpass import getuser

    from schemas.events import MaintenancePromotion
    from schemas.topics import PROMOTION
    from schemas.vocabulary import Verdict
    from services.remediation.repository import lock_known_model

    context, actor = open_context(), f"user:{getuser()}"
    with context.database.transaction() as tx:
        lock_known_model(tx.session, name)
        taken_out, serves = registry.roll_back(tx, name, actor=actor)
        event = MaintenancePromotion(
            model=name,
            challenger=serves,
            champion_before=taken_out,
            champion_after=serves,
            verdict=Verdict.PROMOTE,
            reasons=("Rolled back at the command line.",),
            actor=actor,
            origin="rollback",
        )
        tx.emit(PROMOTION, event)
    console.print(f"{name}: version {serves} serves again, version {taken_out} is archived")


@app.command()
def stop(name: Annotated[str, typer.Argument(help="Model")]) -> None:
    """Stop scoring with this model."""
    _set_serving(name, serving=False)


@app.command()
def resume(name: Annotated[str, typer.Argument(help="Model")]) -> None:
    """Score with this model again."""
    _set_serving(name, serving=True)


def _set_serving(name: str, *, serving: bool) -> None:
    context = open_context()
    with context.database.transaction() as tx:
        registry.set_serving(tx, name, serving=serving, actor="user:cli")
    console.print(f"{name}: {'serving' if serving else 'stopped'}")
