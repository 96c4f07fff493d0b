"""A version of a model that knows further classes, from a manifest that shows old and new ones: behind `reclaim models extend`."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from listeners.training import SPLITS, record_of, require_splits, tensors_of
from models.bundle import LoadedModel, load_bundle, save_bundle
from models.data import LabelledStudy, read_manifest
from models.extension import learn_classes
from models.remedies import REFERENCE
from models.spec import SelectionRule
from models.training_settings import EpochRecord, TrainingSettings
from schemas.tables import ModelVersion
from services.runtime import registry
from services.runtime.errors import InvalidInput
from services.runtime.registration import register_bundle
from services.runtime.service import Context

RATE = 2e-2
"""Learning rate of the new rows: they begin at zero, and nothing else moves."""

PATIENCE = 30


@dataclass(frozen=True)
class ExtensionRequest:
    """Which model is to learn which classes from what. Without `classes`: every label of the manifest that the model lacks."""

    manifest: Path
    model: str
    classes: tuple[str, ...] = ()
    epochs: int = 200
    seed: int = 0
    actor: str = field(kw_only=True)


def extend_and_register(context: Context, request: ExtensionRequest, on_epoch: Callable[[EpochRecord], None]) -> ModelVersion:
    """Teach the serving version's network further classes and enter the result as a candidate.

    Logits of the old classes stay as they are (decision 0023). Raises InvalidInput where no version serves or the manifest
    lacks a class or split, InvalidDataset and BrokenBundle for what they say, TrainingFailed.
    """
    number, champion, rule = _champion(context, request.model)
    studies = read_manifest(request.manifest)
    require_splits(studies, request.manifest)
    added = _added(request, champion.spec.classes, {study.label for study in studies})
    classes = (*champion.spec.classes, *added)
    _require_shown(studies, classes, request.manifest.name)
    wide = champion.spec.model_copy(update={"classes": classes})
    train_set, valid_set = (tensors_of(studies, split, wide) for split in SPLITS[:2])
    settings = TrainingSettings(epochs=request.epochs, head_learning_rate=RATE, seed=request.seed, patience=PATIENCE)
    made = learn_classes(champion, added, train_set, valid_set, settings, on_epoch)
    record = record_of(request.manifest, settings, made.result) | {"parent": champion.info.sha256, "added_classes": list(added)}
    if kept := champion.training.get("choices", {}).get(REFERENCE):
        record["choices"] = {REFERENCE: kept}
    with TemporaryDirectory() as draft:
        folder = Path(draft) / "bundle"
        save_bundle(folder, made.spec, made.module, record, now=context.clock.now())
        return register_bundle(context, folder, request.manifest, actor=request.actor, selection=rule, parent=number)


def _champion(context: Context, model: str) -> tuple[int, LoadedModel, SelectionRule]:
    with context.database.read() as session:
        owner = registry.model(session, model)
        if owner.champion is None:
            raise InvalidInput(f"no version of {model!r} serves, so there is none to add classes to: train one that knows them all")
        row = registry.version(session, model, owner.champion)
        loaded = load_bundle(context.settings.models_dir / row.bundle)
        return row.version, loaded, SelectionRule.model_validate(owner.selection)


def _added(request: ExtensionRequest, known: Sequence[str], labels: Collection[str]) -> tuple[str, ...]:
    added = request.classes or tuple(sorted(set(labels) - set(known)))
    there = [name for name in added if name in known]
    if there or not added:
        what = f"it knows {', '.join(there)} already" if there else f"{request.manifest.name} shows no class that it lacks"
        raise InvalidInput(f"{request.model!r} cannot be given these classes: {what}; it knows {', '.join(known)}")
    foreign = sorted(set(labels) - set(known) - set(added))
    if foreign:
        raise InvalidInput(f"{request.manifest.name} has labels that are neither old nor added classes: {', '.join(foreign)}")
    return added


def _require_shown(studies: Sequence[LabelledStudy], classes: Sequence[str], manifest: str) -> None:
    """Without old cases a new class would be called everywhere, and later repairs would have no old ones to rehearse."""
    shown = {(study.split, study.label) for study in studies}
    missing = [f"{name} in split {split}" for name in classes for split in SPLITS if (split, name) not in shown]
    if missing:
        raise InvalidInput(f"{manifest} has to show every class, old and new, in every split; it lacks {', '.join(missing)}")
