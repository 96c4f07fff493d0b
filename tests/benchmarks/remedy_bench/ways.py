"""The ways of repair that the tables compare, each from the same champion on the same cases, with what it costs."""

import re
import time
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
import torch
from remedy_bench import peer
from remedy_bench.images import Pool, Protocol
from remedy_bench.meter import Meter
from torch import nn

from agents.ladder import next_rung
from models.bundle import BundleInfo, LoadedModel, network_of
from models.data import split_by_patient
from models.logits import StudyLogits, study_logits
from models.remedies import STRATEGIES, RepairData, RepairSettings, repair, together
from models.spec import ModelSpec
from models.training import TrainingSettings, train
from schemas.settings import RemediationSettings
from schemas.vocabulary import Diagnosis, Remedy, Verdict
from services.remediation.gate import Judgement, PairedCase, Rules, judge
from services.remediation.options import SHARE_OF_FIRST
from services.remediation.promise import SCREENED, unpromising

_ANSWERS: WeakKeyDictionary[nn.Module, dict[int, tuple[Pool, StudyLogits]]] = WeakKeyDictionary()
"""What networks, which nobody changes once they are made, said of pools; the pool is kept so that its number stays its own."""


@dataclass(frozen=True)
class Effort:
    """How long is trained."""

    epochs: int
    tune_epochs: int
    batch: int = 32
    seed: int = 0
    device: str = "auto"
    rate: float = 2e-3

    def training(self, **changes: float) -> TrainingSettings:
        """Settings of a training from the start."""
        rates = {"head_learning_rate": self.rate, "body_learning_rate": self.rate}
        return TrainingSettings(
            epochs=self.epochs, batch_size=self.batch, seed=self.seed, device=self.device, patience=self.epochs, **rates | changes
        )

    def repairing(self, *, search: bool = True) -> RepairSettings:
        """Settings of a repair: the service's defaults but for the number of epochs."""
        training = TrainingSettings(
            epochs=self.tune_epochs,
            batch_size=16,
            head_learning_rate=1e-3,
            body_learning_rate=SHARE_OF_FIRST * self.rate,
            patience=self.tune_epochs,
            seed=self.seed,
            device=self.device,
            precision="float32",
        )
        return RepairSettings(training=training, search=search)


@dataclass(frozen=True)
class Repair:
    """A repaired model: how it answers, what it took (seconds, and the networks' operations), and what it chose."""

    name: str
    model: LoadedModel
    seconds: float
    operations: float
    note: str = ""
    unchanged: bool = False


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
    with Meter() as meter:
        module = peer.fine_tune(champion.module, champion.spec, tune.tensors("tune"), effort.seed, penalty=penalty)
    name = "peer recipe" + (f", penalty {penalty:g}" if penalty else "")
    return Repair(name, replace(champion, module=module), time.perf_counter() - started, meter.operations)


def by_rung(remedy: Remedy, champion: LoadedModel, sets: Protocol, tune: Pool, effort: Effort) -> Repair:
    """One rung."""
    started = time.perf_counter()
    with Meter() as meter:
        made = repair(
            remedy, champion, replace(material(sets, tune, effort.seed), usual=usual(champion, sets.test)), effort.repairing()
        )
    choice = made.record.get("penalties", {}).get("chosen", "") if remedy in STRATEGIES else ""
    share = made.record.get("interpolation", made.record.get("statistics", {})).get("share")
    note = ", ".join(filter(None, [choice, f"share {share:g}" if share is not None else "", "unchanged" if made.unchanged else ""]))
    model = replace(champion, module=made.module.cpu(), spec=made.spec)
    return Repair(str(remedy), model, time.perf_counter() - started, meter.operations, note, made.unchanged)


@dataclass
class Labels:
    """The gate's labelled cases, and those whose labels can still be had; how often they have judged."""

    gate: Pool
    reserve: Pool
    looks: int = 0

    def ask(self, needed: int) -> bool:
        """Label as many cases as it takes for `needed` in all; False where there are none left to label."""
        more = min(needed - len(self.gate.labels), len(self.reserve.labels))
        if more <= 0:
            return False
        places = np.arange(len(self.reserve.labels))
        self.gate, self.reserve = self.gate.joined(self.reserve.take(places[:more])), self.reserve.take(places[more:])
        return True


def by_ladder(
    rungs: list[Repair], champion: LoadedModel, tune: Pool, gate: Pool, reserve: Pool, old: Pool, diagnosis: Diagnosis
) -> Repair:
    """What the deployed ladder does after this diagnosis: the first rung that promises enough and passes the gate.

    The costs of all rungs that were tried until then are its own; the champion stays where none passes. The agents' choice of
    the next rung, the screening of cheap rungs and the gate are the deployed ones. A challenger for which the gate asks for
    labels waits until so many cases of `reserve` are labelled, or for ever where they do not suffice. Scoring for the gate,
    which any rung needs, is not counted.
    """
    tried = {Remedy(each.name): each for each in rungs}
    done, spent, steps, labels = list[Remedy](), (0.0, 0.0), list[str](), Labels(gate, reserve)
    verdict, few = Verdict.REJECT, RemediationSettings().min_tune_cases
    made = None
    while verdict == Verdict.REJECT and (rung := next_rung(len(tune.labels), few, done, diagnosis, tuple(tried))) is not None:
        made = tried[rung]
        done.append(rung)
        spent = spent[0] + made.seconds, spent[1] + made.operations
        steps.append(str(rung))
        if not made.unchanged and promising(champion, made, rung, tune, labels.gate, old, labels.looks):
            verdict = settled(champion, made.model, labels, old)
    passed = made is not None and verdict == Verdict.PROMOTE
    ends = {Verdict.PROMOTE: "passed", Verdict.REJECT: "none passed", Verdict.NEED_LABELS: "waits for labels"}
    waited = f" (with {len(labels.gate.labels)} gate cases)" if len(labels.gate.labels) > len(gate.labels) else ""
    return Repair("ladder", made.model if made and passed else champion, *spent, " → ".join([*steps, ends[verdict]]) + waited)


def settled(champion: LoadedModel, challenger: LoadedModel, labels: Labels, old: Pool) -> Verdict:
    """The gate's verdict, after the labels that it asks for, as far as they can be had."""
    while True:
        judgement = judged(champion, challenger, labels.gate, old, labels.looks)
        labels.looks += 1
        if judgement.verdict != Verdict.NEED_LABELS or not labels.ask(judgement.needed_cases):
            return judgement.verdict


def promising(champion: LoadedModel, made: Repair, rung: Remedy, tune: Pool, gate: Pool, old: Pool, looks: int) -> bool:
    """Whether a cheap rung is put to the gate, as remediation decides it."""
    if rung not in SCREENED:
        return True
    taught = paired(champion, made.model, tune)
    return unpromising(taught, usual(champion, old), len(gate.labels), champion.spec.classes, Rules(draws=300, looks=looks)) is None


def usual(champion: LoadedModel, old: Pool) -> dict[str, float]:
    """The recalls of the classes before the decline."""
    return {name: float(recall) for name, recall in zip(champion.spec.classes, by_class(champion, old), strict=True)}


def judged(champion: LoadedModel, challenger: LoadedModel, gate: Pool, old: Pool, looks: int) -> Judgement:
    """The gate's verdict."""
    sides = [paired(champion, challenger, pool) for pool in (gate, old)]
    return judge(sides[0], sides[1], champion.spec.classes, Rules(draws=300, looks=looks))


def objections(judgement: Judgement) -> str:
    """Why the gate turns a challenger down, in few words: losses as seen and their upper bounds, in points."""
    if judgement.verdict == Verdict.PROMOTE:
        return ""
    losses = (
        re.match(r"On the (\w+) it may lose too much, (?:class )?(.+): (-?[\d.]+)% recall, up to ([\d.]+)%", each)
        for each in judgement.reasons
    )
    words = [f"{found[1]}, {found[2]} lost {found[3]}, up to {found[4]}" for found in losses if found]
    words += ["calibration" for each in judgement.reasons if each.startswith("Its probabilities are less trustworthy")]
    words += ["gain not shown" for each in judgement.reasons if each.startswith("Not shown to be better")]
    return "; ".join(words)


def paired(champion: LoadedModel, challenger: LoadedModel, pool: Pool) -> list[PairedCase]:
    """A pool's cases as both versions score them; every image is a patient of its own."""
    before, after = (probabilities(each, pool) for each in (champion, challenger))
    classes = champion.spec.classes
    return [
        PairedCase(
            str(place),
            str(place),
            classes[pool.labels[place]],
            *(dict(zip(classes, map(float, row[place]), strict=True)) for row in (before, after)),
        )
        for place in range(len(pool.labels))
    ]


@dataclass(frozen=True)
class Loss:
    """What a class lost of its recall on the old cases, in points, and its standard error (paired)."""

    points: float
    error: float


def forgotten(champion: LoadedModel, challenger: LoadedModel, old: Pool) -> list[Loss]:
    """Each class's loss on the same old cases."""
    change = right(champion, old).astype(float) - right(challenger, old)
    own = [change[old.labels == label] for label in range(len(champion.spec.classes))]
    return [Loss(100 * float(each.mean()), 100 * float(each.std()) / len(each) ** 0.5) for each in own]


def right(model: LoadedModel, pool: Pool) -> np.ndarray:
    """Which cases are read rightly."""
    return np.asarray(probabilities(model, pool).argmax(1) == pool.labels)


def scores(model: LoadedModel, pool: Pool) -> StudyLogits:
    """The network's outputs on a pool."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return study_logits(model.module.to(device), pool.tensors("pool"), device)


def probabilities(model: LoadedModel, pool: Pool) -> np.ndarray:
    """Calibrated probabilities as serving computes them; a network answers a pool once."""
    answers = _ANSWERS.setdefault(model.module, {})
    if id(pool) not in answers:
        answers[id(pool)] = pool, scores(model, pool)
    return answers[id(pool)][1].probabilities(model.spec.calibration)


def recall(model: LoadedModel, pool: Pool) -> tuple[float, float, float]:
    """Mean recall of the classes with its 95 % bootstrap interval."""
    known = right(model, pool)
    random = np.random.default_rng(0)
    draws = []
    for _ in range(300):
        chosen = random.integers(0, len(known), len(known))
        draws.append(_macro(known[chosen], pool.labels[chosen]))
    low, high = np.quantile(draws, [0.025, 0.975])
    return _macro(known, pool.labels), float(low), float(high)


def by_class(model: LoadedModel, pool: Pool) -> np.ndarray:
    """Recall of each class."""
    known = right(model, pool)
    return np.array([known[pool.labels == label].mean() for label in range(len(model.spec.classes))])


def _macro(right: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def points(found: tuple[float, float, float]) -> str:
    """`81.2 [77.0, 85.1]`."""
    return f"{100 * found[0]:.1f} [{100 * found[1]:.1f}, {100 * found[2]:.1f}]"
