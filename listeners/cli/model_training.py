"""Commands that make versions: training from labelled data, and further classes for a version that serves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import Progress

from listeners.cli.context import console, open_context
from listeners.cli.new_version import accept_asked, tell
from schemas.vocabulary import Modality
from services.runtime.errors import InvalidInput
from services.runtime.login import login
from services.runtime.service import Context

if TYPE_CHECKING:
    from listeners.training import TrainingRequest
    from models.training import EpochRecord

Manifest = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, help="CSV with columns path,label,patient,split; DICOM files or folders")
]
Epochs = Annotated[int, typer.Option(min=1)]
Seed = Annotated[int, typer.Option(min=0)]
Config = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, help="YAML or JSON with everything else that can be set (see docs/examples/training.yaml)"
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(help="Start weights: PATH, package:NAME or package:NAME/FILE, hub:NAME of torchvision, or an https address"),
]
Hash = Annotated[str | None, typer.Option("--sha256", help="SHA-256 of the start weights; an address needs it")]
Devices = Annotated[
    int | None, typer.Option(min=1, help="GPUs that share each batch, or processes where there is none  [default: 1]")
]


def train(
    manifest: Manifest,
    name: Annotated[str, typer.Option(help="Name of the model: lower-case letters, digits, . _ -")],
    task: Annotated[str, typer.Option(help="Task that the labels belong to")],
    modality: Annotated[list[Modality], typer.Option(help="Modality the model scores; may be given several times")],
    body_part: Annotated[list[str], typer.Option(help="BodyPartExamined it scores; none: any")] = [],  # noqa: B006 - typer copies it
    description: Annotated[str | None, typer.Option(help="Only series whose description matches this regular expression")] = None,
    network: Annotated[
        str, typer.Option(help="small, resnet50, inception_v3, efficientnet_b0, efficientnet_v2_s, vgg16, densenet121 …")
    ] = "small",
    size: Annotated[int | None, typer.Option(min=16, max=1024, help="Edge of the image in pixels  [default: 96]")] = None,
    depth: Annotated[
        int | None,
        typer.Option(min=4, max=512, help="Slices of a volume: a 3D network takes whole series"),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="At most so many; ends early  [default: 12]")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="[default: 0]")] = None,
    weights: Weights = None,
    sha256: Hash = None,
    devices: Devices = None,
    config: Config = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Let it serve even if its baseline is at chance level")] = False,
) -> None:
    """Train a model on a labelled data set, baseline it on the test split and register it.

    Where no version of that name serves, the new one does; otherwise it is a candidate for `reclaim models promote`. A training
    that was ended, by whatever, goes on after its last epoch when the same command is given again.

    Example: reclaim models train data/manifest.csv --name lung --task pneumonia --modality DX --epochs 8
    """
    from listeners.training import TrainingRequest
    from listeners.training_file import TrainingFile, read_training_file

    modalities, body_parts = tuple(each.value for each in modality), tuple(body_part)
    chosen = (network, size, epochs, seed, weights, sha256, devices, depth)
    file = read_training_file(config) if config is not None else TrainingFile()
    request = TrainingRequest(manifest, name, task, modalities, body_parts, description, *chosen, file=file)
    _train(open_context(), request, yes=yes)


def _train(context: Context, request: "TrainingRequest", *, yes: bool) -> None:
    from listeners.training import train_and_register

    with _progress(request.wanted_epochs) as (progress, on_epoch):
        version = train_and_register(context, request, on_epoch, accept_asked(yes=yes, before=progress.stop), console.print)
    tell(context, version)


def extend(
    model: Annotated[str, typer.Argument(help="Model whose serving version is to know more classes")],
    manifest: Manifest,
    classes: Annotated[
        list[str], typer.Option(help="New class; may be given several times. None: every label that the model lacks")
    ] = [],  # noqa: B006 - typer copies it
    epochs: Epochs = 200,
    seed: Seed = 0,
) -> None:
    """Teach the serving version further classes and register the result as a candidate.

    The old classes' logits stay as they are. The manifest shows every class, old and new, in every split. The candidate serves
    once it has passed `reclaim models promote`; labels of the new classes are taken from now on.

    Example: reclaim models extend brain data/manifest.csv --classes abscess
    """
    from listeners.extension import ExtensionRequest, extend_and_register

    context, request = open_context(), ExtensionRequest(manifest, model, tuple(classes), epochs, seed, actor=f"user:{login()}")
    with _progress(epochs) as (_, on_epoch):
        version = extend_and_register(context, request, on_epoch)
    least = context.settings.remediation.min_class_cases
    knows = f"{model} version {version.version} knows {', '.join(version.classes)}"
    console.print(f"{knows}. The gate judges a new class from {least} labelled cases of its own patients on.", soft_wrap=True)
    tell(context, version)


def split(
    manifest: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="CSV with columns path,label,patient")],
    output: Annotated[Path, typer.Argument(help="File to write: the same rows with a column split")],
    valid: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share that training stops early on")] = 0.15,
    test: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share that becomes the baseline")] = 0.25,
    seed: Seed = 0,
) -> None:
    """Deal the rows of a manifest to train, valid and test: no patient to two of them, and every label to each.

    Example: reclaim models split data/labels.csv data/manifest.csv --test 0.3
    """
    from listeners.splitting import split_manifest

    if valid + test >= 1:
        raise InvalidInput("nothing is left to train on: the shares of valid and test have to be less than 1 together")
    dealt = split_manifest(manifest, output, (1 - valid - test, valid, test), seed)
    for name, counts in dealt.items():
        console.print(
            f"{name:>5}: {counts.total()} rows ({', '.join(f'{escape(label)} {counts[label]}' for label in sorted(counts))})"
        )
    console.print(f"written to {output}; next: reclaim models train {output} --help", soft_wrap=True)


@contextmanager
def _progress(epochs: int) -> Iterator[tuple[Progress, Callable[["EpochRecord"], None]]]:
    """A bar, and what moves it."""
    with Progress(console=console) as progress:
        bar = progress.add_task("reading images", total=epochs)

        def on_epoch(row: "EpochRecord") -> None:
            words = f"training  loss {row.valid_loss:.3f}  macro recall {row.macro_recall:.3f}"
            progress.update(bar, completed=row.epoch, description=words)

        yield progress, on_epoch
        progress.update(bar, completed=epochs, description="trained")
