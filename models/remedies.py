"""The rungs of the ladder that change a model, each from the champion and labelled cases to a challenger and its record.

No bus and no database: the remediation service and the benchmarks call the same function. Every choice that a run makes by
itself (a share, a weight, an interpolation) is made on held-out new and old cases by `models.selection`, and is recorded.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from pydantic import Field
from torch import nn

from models.adaptation import batch_norms, estimate_statistics, with_statistics
from models.bundle import LoadedModel
from models.calibration import Recalibration, recalibrate, rethreshold
from models.data import TensorSet
from models.errors import TrainingFailed
from models.finetuning import FineTuned, finetune
from models.freezing import Strategy
from models.interpolation import between
from models.logits import study_logits
from models.predictor import choose_device
from models.reservoir import choose_reservoir, vectors_of
from models.selection import Jury, Merit
from models.spec import ModelSpec, Spec
from models.training_settings import EpochRecord, TrainingSettings
from schemas.vocabulary import Remedy

STRATEGIES: Final[dict[Remedy, Strategy]] = {
    Remedy.HEAD_ONLY: "head_only",
    Remedy.PARTIAL: "partial",
    Remedy.PARAMETER_EFFICIENT: "adapters",
    Remedy.GRADUAL: "gradual",
    Remedy.FULL: "full",
}
"""Rungs that train, and how."""
FITTED: Final = (Remedy.RETHRESHOLD, Remedy.RECALIBRATE)
"""Rungs that leave the weights alone."""
EXECUTABLE: Final = (Remedy.RETHRESHOLD, Remedy.RECALIBRATE, Remedy.ADAPT_STATISTICS, *STRATEGIES)
"""Everything that can be carried out, cheapest first."""
UNLABELLED: Final = (Remedy.RECALIBRATE, Remedy.ADAPT_STATISTICS)
"""Rungs that learn from recent studies without labels too."""
REFERENCE: Final = "reference"
"""Where a record keeps the recalls of old classes that later repairs are held to, so that losses do not add up unseen."""
STATISTICS_SHARES: Final = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
INTERPOLATIONS: Final = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0)
SEARCHED: Final[Mapping[str, Mapping[str, float]]] = {
    "rehearsal": {},
    "distillation": {"distillation": 1.0},
    "l2sp": {"l2sp": 0.1},
    "ewc": {"ewc": 0.1},
}
"""Penalties that a search tries, over the ordered settings."""


class RepairSettings(Spec):
    """Numbers of one repair."""

    training: TrainingSettings = Field(default_factory=TrainingSettings)
    search: bool = Field(True, description="Choose penalty and interpolation on held-out cases; without it the settings stand")
    search_share: float = Field(0.25, gt=0, le=1, description="Epochs of each trial, as a share of the run's")
    reservoir: int = Field(2000, ge=1, description="Most old cases for rehearsal")


@dataclass(frozen=True, slots=True)
class RepairData:
    """Studies of a repair, patients disjoint. `recent` have no use of their labels; sets that a rung does not need may be empty."""

    new: TensorSet
    new_valid: TensorSet
    old: TensorSet
    old_valid: TensorSet
    recent: TensorSet


@dataclass(frozen=True, slots=True)
class Hooks:
    """Ties to whoever runs a repair. `check` may raise to end it; `say` hears of steps that are no epochs."""

    on_epoch: Callable[[EpochRecord], None] = lambda _: None
    say: Callable[[str], None] = lambda _: None
    check: Callable[[], None] = lambda: None
    should_stop: Callable[[], bool] = lambda: False
    checkpoint_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class Repaired:
    """A challenger that is not saved yet. `unchanged`: the rung found nothing better than the champion itself."""

    module: nn.Module
    spec: ModelSpec
    record: dict[str, Any]
    history: tuple[EpochRecord, ...] = ()
    best_epoch: int = 0
    unchanged: bool = field(default=False)


def repair(
    remedy: Remedy, champion: LoadedModel, data: RepairData, settings: RepairSettings, hooks: Hooks | None = None
) -> Repaired:
    """Carry out one rung; the champion is not touched. Raises TrainingFailed, and whatever `hooks.check` raises."""
    if remedy in FITTED:
        made = _fitted(remedy, champion, data, settings)
    elif remedy == Remedy.ADAPT_STATISTICS:
        made = _adapted(champion, data, settings)
    elif remedy in STRATEGIES:
        made = _trained(STRATEGIES[remedy], champion, data, settings, hooks or Hooks())
    else:
        raise TrainingFailed(f"the remedy {remedy} changes no model")
    kept = _jury(champion, data.new_valid, data.old_valid, settings).reference
    reference = {champion.spec.classes[label]: round(recall, 6) for label, recall in kept.items()}
    return replace(made, record=made.record | {REFERENCE: reference})


def _jury(champion: LoadedModel, new: TensorSet, old: TensorSet, settings: RepairSettings) -> Jury:
    """Held-out cases; the old classes shall keep what the champion or an earlier version in its line knew of them."""
    known: Mapping[str, float] = champion.training.get("choices", {}).get(REFERENCE, {})
    classes = champion.spec.classes
    inherited = {classes.index(name): recall for name, recall in known.items() if name in classes}
    device = choose_device(settings.training.device)
    return Jury(champion.module, champion.spec.calibration, new, old, device, inherited)


def _fitted(remedy: Remedy, champion: LoadedModel, data: RepairData, settings: RepairSettings) -> Repaired:
    device, base = choose_device(settings.training.device), champion.spec.calibration
    module = champion.module.to(device)
    new, old = (study_logits(module, each, device) for each in (together(data.new, data.new_valid), data.old_valid))
    if not len(old):
        raise TrainingFailed("without held-out old cases nobody can say what a threshold or a prior costs them")
    found: Recalibration
    if remedy == Remedy.RECALIBRATE:
        found = recalibrate(base, old, new, study_logits(module, data.recent, device) if len(data.recent) else new)
    else:
        found = rethreshold(base, old, new, reference=_jury(champion, data.new_valid, data.old_valid, settings).reference)
    spec = champion.spec.model_copy(update={"calibration": found.calibration})
    return Repaired(champion.module, spec, {"calibration": found.record}, unchanged=found.calibration == base)


def _adapted(champion: LoadedModel, data: RepairData, settings: RepairSettings) -> Repaired:
    device = choose_device(settings.training.device)
    if not batch_norms(champion.module):
        note = "the network has no BatchNorm layers, so there are no statistics to adapt"
        return Repaired(champion.module, champion.spec, {"statistics": {"note": note}}, unchanged=True)
    images = [image for study in data.recent.studies for image in study]
    statistics = estimate_statistics(champion.module, images, device)
    jury = _jury(champion, together(data.new, data.new_valid), data.old_valid, settings)
    tried = {share: jury.judge(with_statistics(champion.module, statistics, share)) for share in STATISTICS_SHARES}
    best = min(tried, key=lambda share: (tried[share].cost, share))
    record = {"share": best, "images": len(images), "candidates": _rounded(tried)}
    return Repaired(with_statistics(champion.module, statistics, best), champion.spec, {"statistics": record}, unchanged=best == 0)


def _trained(strategy: Strategy, champion: LoadedModel, data: RepairData, settings: RepairSettings, hooks: Hooks) -> Repaired:
    device = choose_device(settings.training.device)
    rehearsal = data.old
    if len(rehearsal) > settings.reservoir:
        vectors = vectors_of(champion.module, rehearsal, device)
        rehearsal = rehearsal.subset(choose_reservoir(vectors, rehearsal.labels, settings.reservoir, settings.training.seed))
    job = _Job(strategy, champion, data, rehearsal, settings, hooks)
    record: dict[str, Any] = {"rehearsal_cases": len(rehearsal)}
    chosen, record["penalties"] = _search(job)
    tuned = job.train(chosen, "final", settings.training.epochs, hooks.on_epoch)
    module, record["interpolation"] = _interpolated(job, tuned)
    spec, best = champion.spec, tuned.result.best_epoch
    if settings.search and best and len(data.old_valid):
        spec, record["thresholds"] = _rebalanced(job, module)
    return Repaired(module, spec, record, tuned.result.history, best, unchanged=best == 0)


@dataclass(frozen=True, slots=True)
class _Job:
    strategy: Strategy
    champion: LoadedModel
    data: RepairData
    rehearsal: TensorSet
    settings: RepairSettings
    hooks: Hooks

    def train(
        self, changes: Mapping[str, float], name: str, epochs: int, on_epoch: Callable[[EpochRecord], None] | None = None
    ) -> FineTuned:
        """One training with penalties; each has its own checkpoints, so that a resumed run finds those that are done."""
        training = self.settings.training
        folder = self.hooks.checkpoint_dir
        tuned = finetune(
            self.champion,
            self.data.new,
            together(self.data.new_valid, self.data.old_valid),
            training.model_copy(update={**changes, "epochs": epochs}),
            self.strategy,
            rehearsal=self.rehearsal if len(self.rehearsal) else None,
            on_epoch=on_epoch,
            checkpoint_dir=folder / name if folder is not None else None,
            should_stop=self.hooks.should_stop,
        )
        self.hooks.check()
        return tuned

    def jury(self) -> Jury:
        """The held-out cases of this repair."""
        return _jury(self.champion, self.data.new_valid, self.data.old_valid, self.settings)


def _search(job: _Job) -> tuple[Mapping[str, float], dict[str, Any]]:
    """A short training with each penalty; the one whose result costs least on the held-out cases."""
    settings = job.settings
    if not settings.search or not len(job.rehearsal) or not len(job.data.old_valid):
        return {}, {"chosen": "as ordered"}
    epochs, jury = max(1, math.ceil(settings.training.epochs * settings.search_share)), job.jury()
    tried: dict[str, Merit] = {}
    for name, changes in SEARCHED.items():
        job.hooks.say(f"trial of {name} over {epochs} epochs")
        tried[name] = jury.judge(job.train(changes, f"trial-{name}", epochs).module)
    best = min(tried, key=lambda name: tried[name].cost)
    return SEARCHED[best], {"chosen": best, "epochs": epochs, "candidates": _rounded(tried)}


def _interpolated(job: _Job, tuned: FineTuned) -> tuple[nn.Module, dict[str, Any]]:
    """The share of the new weights that costs least on the held-out cases; without a search the new weights as they are."""
    if not job.settings.search or tuned.result.best_epoch == 0 or not len(job.data.old_valid):
        return tuned.module, {"share": 1.0}
    jury = job.jury()
    tried = {share: jury.judge(between(job.champion.module, tuned.module, share)) for share in INTERPOLATIONS}
    best = min(tried, key=lambda share: (tried[share].cost, -share))
    return between(job.champion.module, tuned.module, best), {"share": best, "candidates": _rounded(tried)}


def _rebalanced(job: _Job, module: nn.Module) -> tuple[ModelSpec, dict[str, Any]]:
    """Offsets that give a class back what new weights have moved to another, where they cost less on the held-out cases."""
    jury, base, device = job.jury(), job.champion.spec.calibration, choose_device(job.settings.training.device)
    taught = together(job.data.new, job.data.new_valid)
    old, new = (study_logits(module.to(device), each, device) for each in (job.data.old_valid, taught))
    found = rethreshold(base, old, new, reference=jury.reference)
    without, with_offsets = jury.judge(module), jury.judge(module, found.calibration)
    taken = with_offsets.cost < without.cost
    spec = job.champion.spec.model_copy(update={"calibration": found.calibration}) if taken else job.champion.spec
    return spec, {"taken": taken, "candidates": _rounded({"none": without, "offsets": with_offsets}), **found.record}


def _rounded(tried: Mapping[Any, Merit]) -> dict[str, Any]:
    return {str(name): each.rounded() for name, each in tried.items()}


def together(first: TensorSet, second: TensorSet) -> TensorSet:
    """Both sets, one after the other; what is known of their images besides is left out."""
    return TensorSet(
        first.studies + second.studies, first.labels + second.labels, first.patients + second.patients, first.keys + second.keys
    )
