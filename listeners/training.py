"""Training a first version from a manifest and registering it: behind `reclaim models train` and the demonstration."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError
from torch import nn

from models.bundle import network_of, save_bundle
from models.data import LabelledStudy, TensorSet, load_tensors, read_manifest
from models.launch import train
from models.networks import load_pretrained, network_names
from models.pretrained import digest, find_weights, weights_of
from models.spec import DicomWindow, ModelSpec, PreprocessingSpec, SelectionRule
from models.training import EpochRecord, TrainingResult, TrainingSettings
from schemas.tables import ModelVersion
from services.runtime import registry
from services.runtime.errors import InvalidInput
from services.runtime.registration import Accept, refuse, register_bundle, require_leave_to_begin
from services.runtime.service import Context

SPLITS = ("train", "valid", "test")
CACHE = "weights"
"""Where in the state folder downloaded start weights are kept."""
START = "start_weights"
"""Where a bundle's training record keeps what its network began with."""


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
    """What to train: data, the model's name and task, which studies it shall score, network, image size, length, seed."""

    manifest: Path
    name: str
    task: str
    modalities: tuple[str, ...]
    body_parts: tuple[str, ...] = ()
    description: str | None = None
    network: str = "small"
    size: int = 96
    epochs: int = 12
    seed: int = 0
    weights: str | None = None
    """Start weights: PATH, package:NAME, hub:NAME or an https address; `sha256` is what they have to be."""
    sha256: str | None = None
    devices: int = 1
    """GPUs, or processes on a CPU, that the training is shared by."""


def train_and_register(
    context: Context, request: TrainingRequest, on_epoch: Callable[[EpochRecord], None], accept: Accept = refuse
) -> ModelVersion:
    """Train on split train, stop early on split valid, baseline on split test; returns the registered version.

    `accept` as in `register_bundle`. With start weights the body learns ten times as slowly as without. Raises InvalidInput
    when a split is missing or the name is taken for another task, InvalidDataset for a faulty manifest or unreadable image,
    BrokenBundle for start weights that cannot be had or do not fit, TrainingFailed.
    """
    _require_sense(request)
    require_leave_to_begin(context, request.name)
    studies = read_manifest(request.manifest)
    require_splits(studies, request.manifest)
    spec = _spec(request, _classes(context, request, studies))
    module, started = network_of(spec), None
    if request.weights is not None:
        started = start_from(module, request.weights, request.sha256, context.settings.state_dir / CACHE)
    settings = TrainingSettings(epochs=request.epochs, seed=request.seed, devices=request.devices)
    if started is not None:
        settings = settings.model_copy(update={"body_learning_rate": settings.body_learning_rate / 10})
    train_set, valid_set = (tensors_of(studies, split, spec) for split in SPLITS[:2])
    result = train(module, spec, train_set, valid_set, settings, on_epoch=on_epoch)
    record = record_of(request.manifest, settings, result) | ({START: asdict(started)} if started is not None else {})
    rule = SelectionRule(modalities=request.modalities, body_parts=request.body_parts, description_regex=request.description)
    with TemporaryDirectory() as draft:
        folder = Path(draft) / "bundle"
        save_bundle(folder, spec, module, record, now=context.clock.now())
        return register_bundle(context, folder, request.manifest, actor="user:cli", selection=rule, accept=accept)


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


def _require_sense(request: TrainingRequest) -> None:
    """InvalidInput for what no manifest could make right, before anything is read."""
    if request.network not in network_names():
        raise InvalidInput(f"there is no network {request.network!r}; known are {', '.join(network_names())}")
    try:
        _spec(request, ("a", "b"))
        SelectionRule(modalities=request.modalities, body_parts=request.body_parts, description_regex=request.description)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_input=False))
        raise InvalidInput(f"this cannot be a model: {faults}; name and task are lower-case letters, digits, . _ -") from None


def require_splits(studies: list[LabelledStudy], manifest: Path) -> None:
    """InvalidInput where the manifest lacks a split."""
    missing = [split for split in SPLITS if not any(study.split == split for study in studies)]
    if missing:
        raise InvalidInput(f"{manifest.name} has no rows with split {', '.join(missing)}; needed are {', '.join(SPLITS)}")


def _spec(request: TrainingRequest, classes: tuple[str, ...]) -> ModelSpec:
    return ModelSpec(
        name=request.name,
        task=request.task,
        classes=classes,
        network=request.network,
        preprocessing=PreprocessingSpec(size=(request.size, request.size), intensity=DicomWindow()),
        modality=request.modalities[0] if len(request.modalities) == 1 else "",
        body_part=request.body_parts[0] if len(request.body_parts) == 1 else "",
        seed=request.seed,
    )


def tensors_of(studies: list[LabelledStudy], split: str, spec: ModelSpec) -> TensorSet:
    """One split's studies, prepared. Raises InvalidDataset."""
    chosen = [study for study in studies if study.split == split]
    return load_tensors(chosen, spec.classes, spec.preprocessing)
