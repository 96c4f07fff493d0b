"""The rungs of the ladder that change a model, each from the champion and labelled cases to a challenger and its record.

No bus and no database: the remediation service and the benchmarks call the same function. Every choice that a run makes by
itself (a share, a weight, an interpolation) is made on held-out new and old cases by `models.selection`, and is recorded.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import Field
from torch import nn

from models.adaptation import batch_norms, estimate_statistics, with_statistics
from models.boundary import Held, hold
from models.bundle import LoadedModel
from models.calibration import Recalibration, recalibrate, rethreshold
from models.data import TensorSet
from models.errors import TrainingFailed, UnusableCheckpoint
from models.finetuning import FineTuned, finetune
from models.freezing import Strategy
from models.interpolation import between
from models.logits import study_logits
from models.new_kind import harmonise_new
from models.predictor import choose_device
from models.reservoir import choose_reservoir, vectors_of
from models.sampling import seeded
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
EXECUTABLE: Final = (Remedy.RETHRESHOLD, Remedy.RECALIBRATE, Remedy.HARMONISE, Remedy.ADAPT_STATISTICS, *STRATEGIES)
"""Everything that can be carried out, cheapest first."""
UNLABELLED: Final = (Remedy.RECALIBRATE, Remedy.HARMONISE, Remedy.ADAPT_STATISTICS)
"""Rungs that learn from recent studies without labels too."""
REFERENCE: Final = "reference"
"""Where a record keeps the recalls of old classes that later repairs are held to, so that losses do not add up unseen."""
STATISTICS_SHARES: Final = (0.0, 0.5, 1.0)
"""Shares of the new statistics that are tried first; then those half-way between the best of them and its neighbours."""
INTERPOLATIONS: Final = (0.25, 0.5, 0.75, 1.0)
SEARCHED: Final[Mapping[str, Mapping[str, float]]] = {
    "distillation": {"distillation": 1.0},
    "l2sp": {"distillation": 1.0, "l2sp": 0.1},
    "ewc": {"distillation": 1.0, "ewc": 0.1},
    "strong l2sp": {"distillation": 1.0, "l2sp": 1.0},
    "strong ewc": {"distillation": 1.0, "ewc": 1.0},
    "rehearsal": {},
}
"""What is added to the ordered settings, one after the other, until no old class is seen to be forgotten."""
PENALTIES: Final = ("distillation", "l2sp", "ewc")
ORDERED: Final = "as ordered"
HELD_ON: Final = 600
"""Most old cases, held-out and rehearsed ones, on which the boundary between the classes is held after a training."""
JUDGING: Final = 128
"""Most new and most old cases that the share of new statistics is chosen on: it is one number."""

KNOWN: Final = 600
"""Most old cases besides the held-out ones that show how known images look."""
VALIDATED: Final = 100
"""Old cases that validate every epoch where the new ones for that are fewer; all of them judge its result."""
_SOME = 5


class RepairSettings(Spec):
    """Numbers of one repair."""

    training: TrainingSettings = Field(default_factory=TrainingSettings)
    search: bool = Field(
        True,
        description="Choose penalty and interpolation on held-out cases; without it the settings stand. Penalties that training "
        "names are not searched for, the interpolation is",
    )
    attempts: int = Field(2, ge=1, le=len(SEARCHED), description="Most trainings of a search; the second only where it is needed")

    def candidates(self) -> list[tuple[str, Mapping[str, float]]]:
        """Trainings of a search, by name: what each changes of the settings."""
        if any(getattr(self.training, name) for name in PENALTIES):
            return [(ORDERED, {})]
        return list(SEARCHED.items())[: self.attempts]

    reservoir: int = Field(2000, ge=1, description="Most old cases for rehearsal")


@dataclass(frozen=True, slots=True)
class RepairData:
    """Studies of a repair, patients disjoint. `recent` have no use of their labels; sets that a rung does not need may be empty.

    `usual` are the recalls of the champion's classes before the decline, which the gate will ask for; those on `old_valid` else.
    """

    new: TensorSet
    new_valid: TensorSet
    old: TensorSet
    old_valid: TensorSet
    recent: TensorSet
    usual: Mapping[str, float] = field(default_factory=dict)


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
    if remedy not in EXECUTABLE:
        raise TrainingFailed(f"the remedy {remedy} changes no model")
    jury = _jury(champion, data.new_valid, data.old_valid, settings)
    if remedy in FITTED:
        made = _fitted(remedy, champion, data, settings, jury)
    elif remedy == Remedy.HARMONISE:
        made = _harmonised(champion, data, settings, jury)
    elif remedy == Remedy.ADAPT_STATISTICS:
        made = _adapted(champion, data, settings)
    else:
        made = _trained(STRATEGIES[remedy], champion, data, settings, hooks or Hooks(), jury)
    reference = {champion.spec.classes[label]: round(recall, 6) for label, recall in jury.reference.items()}
    return replace(made, record=made.record | {REFERENCE: reference})


def _jury(champion: LoadedModel, new: TensorSet, old: TensorSet, settings: RepairSettings) -> Jury:
    """Held-out cases; the old classes shall keep what the champion or an earlier version in its line knew of them."""
    known: Mapping[str, float] = champion.training.get("choices", {}).get(REFERENCE, {})
    classes = champion.spec.classes
    inherited = {classes.index(name): recall for name, recall in known.items() if name in classes}
    device = choose_device(settings.training.device)
    return Jury(champion.module, champion.spec.calibration, new, old, device, inherited)


def _fitted(remedy: Remedy, champion: LoadedModel, data: RepairData, settings: RepairSettings, jury: Jury) -> Repaired:
    device, base = choose_device(settings.training.device), champion.spec.calibration
    module = champion.module.to(device)
    new, old = (study_logits(module, each, device) for each in (together(data.new, data.new_valid), data.old_valid))
    if not len(old):
        raise TrainingFailed("without held-out old cases nobody can say what a threshold or a prior costs them")
    found: Recalibration
    if remedy == Remedy.RECALIBRATE:
        found = recalibrate(base, old, new, study_logits(module, data.recent, device) if len(data.recent) else new)
    else:
        found = rethreshold(base, old, new, reference=jury.reference)
    spec = champion.spec.model_copy(update={"calibration": found.calibration})
    return Repaired(champion.module, spec, {"calibration": found.record}, unchanged=found.calibration == base)


def _harmonised(champion: LoadedModel, data: RepairData, settings: RepairSettings, jury: Jury) -> Repaired:
    device, taught = choose_device(settings.training.device), together(data.new, data.new_valid)
    known = together(data.old_valid, some(data.old, KNOWN, settings.training.seed))
    classes = champion.spec.classes
    usual = {classes.index(name): recall for name, recall in data.usual.items()} or jury.reference
    found = harmonise_new(champion, taught, known, data.recent, device, settings.training.seed, usual)
    return Repaired(found.module, found.spec, {"harmonisation": found.record}, unchanged=found.unchanged)


def _adapted(champion: LoadedModel, data: RepairData, settings: RepairSettings) -> Repaired:
    device = choose_device(settings.training.device)
    told = champion.spec.harmonisation is not None
    if told or not batch_norms(champion.module):
        note = "the network has no BatchNorm layers, so there are no statistics to adapt"
        note = "the network keeps statistics by kinds of images; one more kind is what harmonise adds" if told else note
        return Repaired(champion.module, champion.spec, {"statistics": {"note": note}}, unchanged=True)
    images = [image for study in data.recent.studies for image in study]
    statistics = estimate_statistics(champion.module, images, device)
    taught = some(together(data.new, data.new_valid), JUDGING, settings.training.seed)
    jury = _jury(champion, taught, some(data.old_valid, JUDGING, settings.training.seed), settings)
    tried: dict[float, Merit] = {}

    def best_of(shares: Iterable[float]) -> float:
        tried.update({share: jury.judge(with_statistics(champion.module, statistics, share)) for share in shares})
        return min(tried, key=lambda share: (tried[share].cost, share))

    first = best_of(STATISTICS_SHARES)
    best = best_of(share for share in (first - 0.25, first + 0.25) if 0 < share < 1)
    record = {"share": best, "images": len(images), "candidates": _rounded(tried)}
    return Repaired(with_statistics(champion.module, statistics, best), champion.spec, {"statistics": record}, unchanged=best == 0)


def _trained(
    strategy: Strategy, champion: LoadedModel, data: RepairData, settings: RepairSettings, hooks: Hooks, jury: Jury
) -> Repaired:
    device = choose_device(settings.training.device)
    rehearsal = data.old
    if len(rehearsal) > settings.reservoir:
        vectors = vectors_of(champion.module, rehearsal, device)
        rehearsal = rehearsal.subset(choose_reservoir(vectors, rehearsal.labels, settings.reservoir, settings.training.seed))
    job = _Job(strategy, champion, data, rehearsal, settings, hooks, jury)
    record: dict[str, Any] = {"rehearsal_cases": len(rehearsal)}
    if not settings.search or not len(rehearsal) or not len(data.old_valid):
        tuned = job.train({}, ORDERED, hooks.on_epoch)
        record |= {"penalties": {"chosen": ORDERED}, "interpolation": {"share": 1.0}}
        best = tuned.result.best_epoch
        return Repaired(tuned.module, champion.spec, record, tuned.result.history, best, unchanged=best == 0)
    return _searched(job, record)


@dataclass(frozen=True, slots=True)
class _Job:
    strategy: Strategy
    champion: LoadedModel
    data: RepairData
    rehearsal: TensorSet
    settings: RepairSettings
    hooks: Hooks
    jury: Jury

    def train(self, changes: Mapping[str, float], name: str, on_epoch: Callable[[EpochRecord], None] | None = None) -> FineTuned:
        """One training with penalties; each has its own checkpoints, so that a resumed run finds those that are done.

        Checkpoints that cannot be used, such as those of an earlier version of this software, are put away.
        """
        folder = self.hooks.checkpoint_dir / name.replace(" ", "-") if self.hooks.checkpoint_dir is not None else None
        try:
            tuned = self._tuned(changes, folder, on_epoch)
        except UnusableCheckpoint as reason:
            if folder is None:
                raise
            self.hooks.say(f"{reason.reason}; the training begins anew")
            shutil.rmtree(folder)
            tuned = self._tuned(changes, folder, on_epoch)
        self.hooks.check()
        return tuned

    def _tuned(
        self, changes: Mapping[str, float], folder: Path | None, on_epoch: Callable[[EpochRecord], None] | None
    ) -> FineTuned:
        new_valid, seed = self.data.new_valid, self.settings.training.seed
        return finetune(
            self.champion,
            self.data.new,
            together(new_valid, some(self.data.old_valid, max(len(new_valid), VALIDATED), seed)),
            self.settings.training.model_copy(update={**changes, "valid_first": len(new_valid)}),
            self.strategy,
            rehearsal=self.rehearsal if len(self.rehearsal) else None,
            on_epoch=on_epoch,
            checkpoint_dir=folder,
            should_stop=self.hooks.should_stop,
        )

    def hold(self, module: nn.Module) -> Held:
        """The calibration with which a candidate's boundary lies where the champion's does, on old cases without their labels."""
        training, spec = self.settings.training, self.champion.spec
        old, device = some(together(self.data.old_valid, self.rehearsal), HELD_ON, training.seed), choose_device(training.device)
        before, after = (study_logits(each.to(device), old, device) for each in (self.champion.module, module))
        return hold(before, after, spec.calibration)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One training: what shares of its weights are worth on the held-out cases, the best of them, and where its boundary lies."""

    name: str
    tuned: FineTuned
    shares: Mapping[float, Merit]
    share: float
    module: nn.Module
    merit: Merit
    held: Held | None = None

    @property
    def enough(self) -> bool:
        """No old class is shown to be forgotten, neither by what was chosen nor by more of the new weights."""
        return self.merit.keeps and all(merit.keeps for share, merit in self.shares.items() if share > self.share)

    def record(self) -> dict[str, Any]:
        """The numbers of what was chosen within this attempt."""
        return self.merit.rounded() | {"share": self.share}


def _searched(job: _Job, record: dict[str, Any]) -> Repaired:
    """Train, and try weights between the champion and the result; train anew with a penalty only where old classes would pay."""
    attempts: list[_Attempt] = []
    for name, changes in job.settings.candidates():
        if attempts:
            job.hooks.say(f"old classes would pay for it; training anew with {name}")
        tuned = job.train(changes, name, None if attempts else job.hooks.on_epoch)
        attempts.append(_attempted(job, name, tuned))
        if attempts[-1].enough or tuned.result.best_epoch == 0:
            break
    best = min(attempts, key=lambda each: each.merit.cost)
    spec, epoch = job.champion.spec, best.tuned.result.best_epoch
    record |= {"penalties": {"chosen": best.name, "candidates": {each.name: each.record() for each in attempts}}}
    record |= {"interpolation": {"share": best.share, "candidates": _rounded(best.shares)}}
    if best.held is not None:
        record |= {"boundary": best.held.record}
        spec = spec.model_copy(update={"calibration": best.held.calibration})
    return Repaired(best.module, spec, record, best.tuned.result.history, epoch, unchanged=epoch == 0)


def _attempted(job: _Job, name: str, tuned: FineTuned) -> _Attempt:
    """Choose the share of the new weights (WiSE-FT): of equal ones the largest. Then hold the boundary, unless new cases object."""
    champion = job.champion.module
    if tuned.result.best_epoch == 0:
        merit = job.jury.judge(tuned.module)
        return _Attempt(name, tuned, {1.0: merit}, 1.0, tuned.module, merit)
    shares = {share: job.jury.judge(between(champion, tuned.module, share)) for share in INTERPOLATIONS}
    share = min(shares, key=lambda each: (shares[each].cost, -each))
    module = between(champion, tuned.module, share) if share < 1 else tuned.module
    held = job.hold(module)
    if job.jury.objects(module, held.calibration):
        return _Attempt(name, tuned, shares, share, module, shares[share])
    return _Attempt(name, tuned, shares, share, module, job.jury.judge(module, held.calibration), held)


def _rounded(tried: Mapping[Any, Merit]) -> dict[str, Any]:
    return {str(name): each.rounded() for name, each in tried.items()}


def together(first: TensorSet, second: TensorSet) -> TensorSet:
    """Both sets, one after the other; what is known of their images besides is left out."""
    return TensorSet(
        first.studies + second.studies, first.labels + second.labels, first.patients + second.patients, first.keys + second.keys
    )


def some(tensors: TensorSet, most: int, seed: int) -> TensorSet:
    """At most `most` studies, drawn by the seed; all of them where there are no more."""
    if len(tensors) <= most:
        return tensors
    drawn = torch.randperm(len(tensors), generator=seeded(seed, _SOME))[:most]
    return tensors.subset(sorted(drawn.tolist()))
