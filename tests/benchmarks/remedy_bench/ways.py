"""The ways of repair that the tables compare, each from the same champion on the same cases, with its time."""

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from remedy_bench import peer
from remedy_bench.images import Pool, Protocol

from models.bundle import BundleInfo, LoadedModel, network_of
from models.data import split_by_patient
from models.logits import StudyLogits, study_logits
from models.remedies import STRATEGIES, RepairData, RepairSettings, repair, together
from models.spec import ModelSpec
from models.training import TrainingSettings, train
from schemas.vocabulary import Remedy, Verdict
from services.remediation.gate import Judgement, PairedCase, Rules, judge

LADDER = (Remedy.ADAPT_STATISTICS, Remedy.PARTIAL, Remedy.PARAMETER_EFFICIENT, Remedy.FULL)
"""What the agents order for a covariate shift with cases enough (`agents.ladder`)."""


@dataclass(frozen=True)
class Effort:
    """How long is trained."""

    epochs: int
    tune_epochs: int
    batch: int = 32
    seed: int = 0
    device: str = "auto"

    def training(self, **changes: float) -> TrainingSettings:
        """Settings of a training from the start."""
        return TrainingSettings(
            epochs=self.epochs, batch_size=self.batch, seed=self.seed, device=self.device, patience=self.epochs, **changes
        )

    def repairing(self, *, search: bool = True) -> RepairSettings:
        """Settings of a repair: the service's defaults but for the number of epochs."""
        training = TrainingSettings(
            epochs=self.tune_epochs,
            batch_size=16,
            head_learning_rate=1e-3,
            body_learning_rate=1e-4,
            seed=self.seed,
            device=self.device,
            precision="float32",
        )
        return RepairSettings(training=training, search=search)


@dataclass(frozen=True)
class Repair:
    """A repaired model: how it answers, the seconds it took, and what it chose."""

    name: str
    model: LoadedModel
    seconds: float
    note: str = ""


def champion_of(spec: ModelSpec, sets: Protocol, effort: Effort, extra: Pool | None = None) -> LoadedModel:
    """Trained on the development part; with `extra` cases in its training from the start it is the ceiling."""
    train_set = sets.train.tensors("train")
    if extra is not None:
        train_set = together(train_set, extra.tensors("extra"))
    module = network_of(spec)
    train(module, spec, train_set, sets.valid.tensors("valid"), effort.training())
    return LoadedModel(spec, module.cpu(), torch.device("cpu"), BundleInfo(folder=None, sha256="", files={}))  # type: ignore[arg-type]


def material(sets: Protocol, tune: Pool, seed: int) -> RepairData:
    """The remediation service's sets: 20 % of the new cases for validation, old cases from the development part."""
    new = tune.tensors("tune")
    taught, valid = split_by_patient(new.patients, new.labels, (0.8, 0.2), seed)
    return RepairData(new.subset(taught), new.subset(valid), sets.train.tensors("train"), sets.valid.tensors("valid"), new)


def by_recipe(champion: LoadedModel, tune: Pool, effort: Effort, penalty: float = 0.0) -> Repair:
    """ReclAIm's."""
    started = time.perf_counter()
    module = peer.fine_tune(champion.module, champion.spec, tune.tensors("tune"), effort.seed, penalty=penalty)
    name = "peer recipe" + (f", penalty {penalty:g}" if penalty else "")
    return Repair(name, replace(champion, module=module), time.perf_counter() - started)


def by_rung(remedy: Remedy, champion: LoadedModel, sets: Protocol, tune: Pool, effort: Effort) -> Repair:
    """One rung."""
    started = time.perf_counter()
    made = repair(remedy, champion, material(sets, tune, effort.seed), effort.repairing())
    choice = made.record.get("penalties", {}).get("chosen", "") if remedy in STRATEGIES else ""
    share = made.record.get("interpolation", made.record.get("statistics", {})).get("share")
    note = ", ".join(filter(None, [choice, f"share {share:g}" if share is not None else "", "unchanged" if made.unchanged else ""]))
    model = replace(champion, module=made.module.cpu(), spec=made.spec)
    return Repair(str(remedy), model, time.perf_counter() - started, note)


def by_ladder(rungs: list[Repair], champion: LoadedModel, gate: Pool, old: Pool, margin: float) -> Repair:
    """The first rung that passes the gate, and the time of all that were tried until then; the champion where none does."""
    spent = 0.0
    tried = {each.name: each for each in rungs}
    for look, remedy in enumerate(LADDER):
        found = tried[remedy]
        spent += found.seconds
        if judged(champion, found.model, gate, old, margin, look).verdict == Verdict.PROMOTE:
            return Repair("ladder", found.model, spent, str(remedy))
    return Repair("ladder", champion, spent, "none passed")


def judged(champion: LoadedModel, challenger: LoadedModel, gate: Pool, old: Pool, margin: float, looks: int) -> Judgement:
    """The gate's verdict."""
    sides = []
    for pool in (gate, old):
        before, after = (probabilities(each, pool) for each in (champion, challenger))
        classes = champion.spec.classes
        sides.append(
            [
                PairedCase(
                    str(place),
                    str(place),
                    classes[pool.labels[place]],
                    *(dict(zip(classes, map(float, row[place]), strict=True)) for row in (before, after)),
                )
                for place in range(len(pool.labels))
            ]
        )
    return judge(sides[0], sides[1], champion.spec.classes, Rules(margin=margin, draws=300, looks=looks))


def scores(model: LoadedModel, pool: Pool) -> StudyLogits:
    """The network's outputs on a pool."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return study_logits(model.module.to(device), pool.tensors("pool"), device)


def probabilities(model: LoadedModel, pool: Pool) -> np.ndarray:
    """Calibrated probabilities as serving computes them."""
    return scores(model, pool).probabilities(model.spec.calibration)


def recall(model: LoadedModel, pool: Pool) -> tuple[float, float, float]:
    """Mean recall of the classes with its 95 % bootstrap interval."""
    right = probabilities(model, pool).argmax(1) == pool.labels
    random = np.random.default_rng(0)
    draws = []
    for _ in range(300):
        chosen = random.integers(0, len(right), len(right))
        draws.append(_macro(right[chosen], pool.labels[chosen]))
    low, high = np.quantile(draws, [0.025, 0.975])
    return _macro(right, pool.labels), float(low), float(high)


def by_class(model: LoadedModel, pool: Pool) -> np.ndarray:
    """Recall of each class."""
    right = probabilities(model, pool).argmax(1) == pool.labels
    return np.array([right[pool.labels == label].mean() for label in range(len(model.spec.classes))])


def _macro(right: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def points(found: tuple[float, float, float]) -> str:
    """`81.2 [77.0, 85.1]`."""
    return f"{100 * found[0]:.1f} [{100 * found[1]:.1f}, {100 * found[2]:.1f}]"
