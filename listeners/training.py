"""Training a first version from a manifest and registering it: behind `reclaim models train` and the demonstration."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from listeners.training_file import TrainingFile, faults_of
from listeners.training_progress import Progress
from models.bundle import network_of, save_bundle
from models.data import LabelledStudy, TensorSet, load_tensors, read_manifest
from models.errors import UnusableCheckpoint
from models.launch import train
from models.networks import load_pretrained, network_names
from models.pretrained import digest, find_weights, weights_of
from models.spec import ModelSpec, PreprocessingSpec, SelectionRule
from models.training import EpochRecord, TrainingResult, TrainingSettings
from schemas.tables import ModelVersion
from services.runtime import registry
from services.runtime.errors import InvalidInput
from services.runtime.login import login
from services.runtime.registration import Accept, refuse, register_bundle, require_leave_to_begin
from services.runtime.service import Context

SPLITS = ("train", "valid", "test")
CACHE = "weights"
"""Where in the state folder downloaded start weights are kept."""
START = "start_weights"
"""Where a bundle's training record keeps what its network began with."""
EDGE, EPOCHS = 96, 12
"""Pixels and epochs where nobody says another."""


@dataclass(frozen=True)
class StartWeights:
    """What a network began with: the reference as it was given, the file's hash, how many of its tensors were taken.

    A head is never taken: its outputs mean other classes, or the same ones in another order.
    """

    source: str
    sha256: str
    tensors: int


@dataclass(frozen=True)
class TrainingRequest:
    """What to train: data, the model's name and task, which studies it shall score, network, image size, length, seed.

    What is None here is what `file` says, or the default.
    """

    manifest: Path
    name: str
    task: str
    modalities: tuple[str, ...]
    body_parts: tuple[str, ...] = ()
    description: str | None = None
    network: str = "small"
    size: int | None = None
    epochs: int | None = None
    seed: int | None = None
    weights: str | None = None
    """Start weights: PATH, package:NAME, hub:NAME or an https address; `sha256` is what they have to be."""
    sha256: str | None = None
    devices: int | None = None
    """GPUs, or processes on a CPU, that the training is shared by."""
    depth: int | None = None
    """Slices of the volumes that the network takes; None: it takes images."""
    file: TrainingFile = field(default_factory=TrainingFile)

    @property
    def wanted_epochs(self) -> int:
        """At most so many, for whoever shows how far it is."""
        written = self.file.training.get("epochs", EPOCHS)
        return self.epochs or (written if isinstance(written, int) else EPOCHS)


def train_and_register(
    context: Context,
    request: TrainingRequest,
    on_epoch: Callable[[EpochRecord], None],
    accept: Accept = refuse,
    tell: Callable[[str], None] = lambda _: None,
) -> ModelVersion:
    """Train on split train, stop early on split valid, baseline on split test; returns the registered version.

    `accept` as in `register_bundle`. With start weights the body learns ten times as slowly as without, unless the request says
    how. Each epoch is announced on the bus; a training that was ended goes on after its last epoch when the same is asked again.
    Raises InvalidInput when a split is missing or the name is taken for another task, InvalidDataset for a faulty manifest or
    unreadable image, BrokenBundle for start weights that cannot be had or do not fit, TrainingFailed.
    """
    settings = _require_sense(request)
    require_leave_to_begin(context, request.name)
    studies = read_manifest(request.manifest)
    require_splits(studies, request.manifest)
    spec = _spec(request, settings, _classes(context, request, studies))
    module, started = network_of(spec), None
    require_takes_images(module, spec)
    if request.weights is not None:
        started = start_from(module, request.weights, request.sha256, context.settings.state_dir / CACHE)
    facts = (spec.model_dump_json(), settings.model_dump_json(exclude={"devices"}), digest(request.manifest), repr(started))
    with Progress.of(context, spec.name, settings.epochs, facts) as progress:
        sets = [tensors_of(studies, split, spec) for split in SPLITS[:2]]
        result = _trained(progress, module, spec, sets, settings, progress.told(on_epoch), tell)
        record = record_of(request.manifest, settings, result) | ({START: asdict(started)} if started is not None else {})
        rule = SelectionRule(modalities=request.modalities, body_parts=request.body_parts, description_regex=request.description)
        with TemporaryDirectory() as draft:
            folder = Path(draft) / "bundle"
            save_bundle(folder, spec, module, record, now=context.clock.now())
            version = register_bundle(context, folder, request.manifest, actor=f"user:{login()}", selection=rule, accept=accept)
        progress.succeeded(version.version)
    return version


def _trained(
    progress: Progress,
    module: nn.Module,
    spec: ModelSpec,
    sets: list[TensorSet],
    settings: TrainingSettings,
    on_epoch: Callable[[EpochRecord], None],
    tell: Callable[[str], None],
) -> TrainingResult:
    """Train from the last checkpoint, where there is one that can be used."""
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    if (epoch := progress.epochs_done()) > 0:
        tell(f"This training was ended after epoch {epoch} of {settings.epochs}; it goes on from there.")
    try:
        return train(module, spec, sets[0], sets[1], settings, on_epoch=on_epoch, checkpoint_dir=progress.folder)
    except UnusableCheckpoint as reason:
        tell(f"{reason.reason}; the training begins anew.")
        shutil.rmtree(progress.folder)
        module.load_state_dict(before)
        return train(module, spec, sets[0], sets[1], settings, on_epoch=on_epoch, checkpoint_dir=progress.folder)


def require_takes_images(module: nn.Module, spec: ModelSpec) -> None:
    """InvalidInput where the network cannot take images of the specification's size, found out on a black one."""
    preprocessing = spec.preprocessing
    try:
        with torch.inference_mode():
            module.eval()(torch.zeros(1, preprocessing.channels, *preprocessing.size))
    except (RuntimeError, ValueError):
        size = " x ".join(map(str, preprocessing.size))
        raise InvalidInput(f"the network {spec.network!r} does not take images of {size} pixels: choose a larger size") from None


def start_from(module: nn.Module, reference: str, sha256: str | None, cache: Path) -> StartWeights:
    """Give a network's body the weights that a reference names. Raises BrokenBundle where they are not found or do not fit."""
    path = find_weights(weights_of(reference, sha256), cache)
    return StartWeights(reference, digest(path), len(load_pretrained(module, path)))


def record_of(manifest: Path, settings: TrainingSettings, result: TrainingResult) -> dict[str, Any]:
    """How a version came about, for its bundle."""
    return {
        "settings": settings.model_dump(mode="json"),
        "history": [row.model_dump() for row in result.history],
        "best_epoch": result.best_epoch,
        "manifest_sha256": digest(manifest),
    }


def _classes(context: Context, request: TrainingRequest, studies: list[LabelledStudy]) -> tuple[str, ...]:
    """The model's classes where it has some, and behind them what labels there are besides; before the work, not after it."""
    labels = sorted({study.label for study in studies})
    if len(labels) < 2:
        raise InvalidInput(f"{request.manifest.name} has one label only, {labels[0]!r}; a classifier needs two or more")
    with context.database.read() as session:
        known = registry.known_classes(session, request.name, request.task)
        classes = (*(name for name in known if name in labels), *(name for name in labels if name not in known))
        registry.require_same(session, request.name, request.task, classes)
    return classes


def _require_sense(request: TrainingRequest) -> TrainingSettings:
    """How to train. Raises InvalidInput for what no manifest could make right, before anything is read."""
    if request.network not in network_names():
        raise InvalidInput(f"there is no network {request.network!r}; known are {', '.join(network_names())}")
    try:
        settings = _settings(request)
    except ValidationError as error:
        raise InvalidInput(f"these settings of a training cannot be used: {faults_of(error)}") from None
    try:
        _spec(request, settings, ("a", "b"))
        SelectionRule(modalities=request.modalities, body_parts=request.body_parts, description_regex=request.description)
    except ValidationError as error:
        rules = "name and task are lower-case letters, digits, . _ -"
        raise InvalidInput(f"this cannot be a model: {faults_of(error)}; {rules}") from None
    return settings


def _settings(request: TrainingRequest) -> TrainingSettings:
    """The request's words, else the file's, else the defaults; start weights are learnt from carefully."""
    asked = {"epochs": request.epochs, "seed": request.seed, "devices": request.devices}
    written = request.file.training
    if request.weights is not None and "body_learning_rate" not in written:
        written = written | {"body_learning_rate": TrainingSettings().body_learning_rate / 10}
    said = {name: value for name, value in asked.items() if value is not None}
    return TrainingSettings.model_validate({"epochs": EPOCHS} | written | said)


def require_splits(studies: list[LabelledStudy], manifest: Path) -> None:
    """InvalidInput where the manifest lacks a split."""
    missing = [split for split in SPLITS if not any(study.split == split for study in studies)]
    if missing:
        raise InvalidInput(f"{manifest.name} has no rows with split {', '.join(missing)}; needed are {', '.join(SPLITS)}")


def _spec(request: TrainingRequest, settings: TrainingSettings, classes: tuple[str, ...]) -> ModelSpec:
    return ModelSpec(
        name=request.name,
        task=request.task,
        classes=classes,
        network=request.network,
        options=request.file.options,
        preprocessing=_preprocessing(request),
        modality=request.modalities[0] if len(request.modalities) == 1 else "",
        body_part=request.body_parts[0] if len(request.body_parts) == 1 else "",
        seed=settings.seed,
    )


def _preprocessing(request: TrainingRequest) -> PreprocessingSpec:
    """The file's words, with the size that the request names; images of `EDGE` pixels where nobody names one."""
    written = dict(request.file.preprocessing)
    if request.size is not None or request.depth is not None or "size" not in written:
        edge = request.size or EDGE
        written["size"] = (edge, edge) if request.depth is None else (request.depth, edge, edge)
    return PreprocessingSpec.model_validate(written)


def tensors_of(studies: list[LabelledStudy], split: str, spec: ModelSpec) -> TensorSet:
    """One split's studies, prepared. Raises InvalidDataset."""
    chosen = [study for study in studies if study.split == split]
    return load_tensors(chosen, spec.classes, spec.preprocessing)
