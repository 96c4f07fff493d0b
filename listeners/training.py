"""Training a first version from a manifest and registering it: behind `reclaim models train` and the demonstration."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from models.bundle import network_of, save_bundle
from models.data import LabelledStudy, TensorSet, load_tensors, read_manifest
from models.networks import network_names
from models.spec import DicomWindow, ModelSpec, PreprocessingSpec, SelectionRule
from models.training import EpochRecord, TrainingSettings, train
from schemas.tables import ModelVersion
from services.runtime import registry
from services.runtime.errors import InvalidInput
from services.runtime.registration import Accept, refuse, register_bundle
from services.runtime.service import Context

SPLITS = ("train", "valid", "test")


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


def train_and_register(
    context: Context, request: TrainingRequest, on_epoch: Callable[[EpochRecord], None], accept: Accept = refuse
) -> ModelVersion:
    """Train on split train, stop early on split valid, baseline on split test; returns the registered version.

    `accept` as in `register_bundle`. Raises InvalidInput when a split is missing or the name is taken for another task,
    InvalidDataset for a faulty manifest or unreadable image.
    """
    _require_sense(request)
    studies = read_manifest(request.manifest)
    _require_splits(studies, request.manifest)
    classes = tuple(sorted({study.label for study in studies}))
    if len(classes) < 2:
        raise InvalidInput(f"{request.manifest.name} has one label only, {classes[0]!r}; a classifier needs two or more")
    spec = _spec(request, classes)
    with context.database.read() as session:  # before the work, not after it
        registry.require_same(session, spec.name, spec.task, spec.classes)
    settings = TrainingSettings(epochs=request.epochs, seed=request.seed)
    module = network_of(spec)
    train_set, valid_set = (_tensors(studies, split, spec) for split in SPLITS[:2])
    result = train(module, spec, train_set, valid_set, settings, on_epoch=on_epoch)
    record = {"settings": settings.model_dump(mode="json"), "history": [row.model_dump() for row in result.history]}
    rule = SelectionRule(modalities=request.modalities, body_parts=request.body_parts, description_regex=request.description)
    with TemporaryDirectory() as draft:
        folder = Path(draft) / "bundle"
        save_bundle(folder, spec, module, record | {"best_epoch": result.best_epoch}, now=context.clock.now())
        return register_bundle(context, folder, request.manifest, actor="user:cli", selection=rule, accept=accept)


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


def _require_splits(studies: list[LabelledStudy], manifest: Path) -> None:
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


def _tensors(studies: list[LabelledStudy], split: str, spec: ModelSpec) -> TensorSet:
    chosen = [study for study in studies if study.split == split]
    return load_tensors(chosen, spec.classes, spec.preprocessing)
