"""Training and fine-tuning: one plain loop whose result is a function of data, settings and seed (promise 9).

On a CPU with the same number of threads two runs give the same numbers, and a run that was killed and resumed gives the
numbers of one that was not. Every random choice comes from (seed, epoch), so a checkpoint needs no generator state.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from models.augmentation import AugmentationSettings, augment
from models.checkpoint import Checkpoint, load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint, snapshot
from models.data import TensorSet
from models.errors import TrainingFailed
from models.freezing import train_mode
from models.networks import body_parameters, head_parameters
from models.predictor import Precision, choose_device
from models.sampling import Balance, Examples, class_weights, gather, plan_epoch, seeded
from models.spec import ModelSpec, Spec

_PLAN, _CHANGES, _DROPOUT = 0, 1, 2


class TrainingSettings(Spec):
    """How to train. `l2sp` is the weight of the pull towards the starting weights (Li et al. 2018, L2-SP)."""

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(32, ge=2)
    head_learning_rate: float = Field(2e-3, gt=0)
    body_learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    warmup_share: float = Field(0.1, ge=0, lt=1, description="Share of all steps in which the learning rates rise")
    balance: Balance = "sampler"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    monitor: Literal["loss", "macro_recall"] = "loss"
    patience: int = Field(5, ge=1, description="Stop after this many epochs without a better validation")
    rehearsal_share: float = Field(0.5, ge=0, lt=1, description="Share of each batch drawn from old cases, where there are any")
    l2sp: float = Field(0.0, ge=0)
    augmentation: AugmentationSettings | None = Field(None, description="None: what suits the model's modality")
    device: str = "auto"
    precision: Precision = "auto"
    compare_start: bool = Field(False, description="Let the starting weights compete as epoch 0")
    seed: int = Field(0, ge=0)


class EpochRecord(Spec):
    """Numbers of one epoch. Epoch 0 is the model before any training."""

    epoch: int
    train_loss: float | None
    valid_loss: float = Field(description="Negative log likelihood, mean over classes of the mean over their studies")
    accuracy: float
    macro_recall: float = Field(description="Over the classes that the validation set has")
    seconds: float


StopReason: TypeAlias = Literal["epochs", "patience", "request"]


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The history and which epoch's weights the module holds now: those of the best validation."""

    history: tuple[EpochRecord, ...]
    best_epoch: int
    stopped_by: StopReason


@dataclass
class _Run:
    """Everything one run needs, assembled once."""

    module: nn.Module
    spec: ModelSpec
    settings: TrainingSettings
    new: Examples
    old: Examples
    valid: TensorSet
    device: torch.device
    autocast: bool
    optimizer: torch.optim.Optimizer
    anchor: list[tuple[nn.Parameter, torch.Tensor]]
    changes: AugmentationSettings
    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = -1
    best: dict[str, torch.Tensor] = field(default_factory=dict)


def train(
    module: nn.Module,
    spec: ModelSpec,
    train_set: TensorSet,
    valid_set: TensorSet,
    settings: TrainingSettings,
    *,
    rehearsal: TensorSet | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    checkpoint_dir: Path | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainingResult:
    """Train `module` in place; at the end it holds the weights of the best validated epoch, in evaluation mode.

    Parameters that do not require gradients stay, with their BatchNorm statistics. With `checkpoint_dir` a run that finds
    its own checkpoint goes on after it. `should_stop` is asked before each batch. Raises TrainingFailed for empty sets, a
    checkpoint of another run, or a loss that is not finite.
    """
    run = _prepare(module, spec, train_set, valid_set, settings, rehearsal)
    fingerprint = _fingerprint(run, train_set, valid_set, rehearsal)
    stop = should_stop or (lambda: False)
    report = on_epoch or (lambda _: None)
    with _repeatable():
        _resume(run, checkpoint_dir, fingerprint)
        if settings.compare_start and not run.history:
            report(_record(run, 0, None, time.monotonic()))
        reason = _epochs(run, stop, report, checkpoint_dir, fingerprint)
    module.load_state_dict(run.best or snapshot(module))
    module.eval()
    return TrainingResult(tuple(run.history), run.best_epoch, reason)


def _epochs(
    run: _Run, stop: Callable[[], bool], report: Callable[[EpochRecord], None], folder: Path | None, fingerprint: str
) -> StopReason:
    first = run.history[-1].epoch + 1 if run.history else 1
    for epoch in range(first, run.settings.epochs + 1):
        if run.history and run.history[-1].epoch - run.best_epoch >= run.settings.patience:
            return "patience"
        started = time.monotonic()
        loss = _one_epoch(run, epoch, stop)
        if loss is None:
            return "request"
        record = _record(run, epoch, loss, started)
        if folder is not None:
            _save(run, folder, epoch, fingerprint)
        report(record)
    return "epochs"


def _prepare(
    module: nn.Module,
    spec: ModelSpec,
    train_set: TensorSet,
    valid_set: TensorSet,
    settings: TrainingSettings,
    rehearsal: TensorSet | None,
) -> _Run:
    if not len(train_set) or not len(valid_set):
        raise TrainingFailed("training needs at least one training and one validation study")
    device = choose_device(settings.device)
    wanted = settings.precision
    autocast = device.type == "cuda" and torch.cuda.is_bf16_supported() if wanted == "auto" else wanted == "bfloat16"
    module.to(device)
    new = Examples.of(train_set)
    old = Examples.of(rehearsal) if rehearsal is not None else Examples((), new.labels[:0])
    anchor = [(parameter, parameter.detach().clone()) for parameter in module.parameters() if parameter.requires_grad]
    if not anchor:
        raise TrainingFailed("every parameter is frozen; nothing can be trained")
    changes = settings.augmentation or AugmentationSettings.for_study(spec.modality, spec.body_part)
    optimizer = _optimizer(module, settings)
    return _Run(module, spec, settings, new, old, valid_set, device, autocast, optimizer, anchor, changes)


def _optimizer(module: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    rated = ((head_parameters(module), settings.head_learning_rate), (body_parameters(module), settings.body_learning_rate))
    groups = [
        {"params": [each for each in parameters if each.requires_grad], "lr": rate, "peak": rate} for parameters, rate in rated
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=settings.weight_decay)


def _one_epoch(run: _Run, epoch: int, stop: Callable[[], bool]) -> float | None:
    """Mean training loss of the epoch, None when asked to stop."""
    settings = run.settings
    plan = plan_epoch(
        run.new.labels,
        run.old.labels,
        settings.batch_size,
        settings.rehearsal_share,
        settings.balance,
        seeded(settings.seed, epoch, _PLAN),
    )
    changes = seeded(settings.seed, epoch, _CHANGES)
    torch.manual_seed(seeded(settings.seed, epoch, _DROPOUT).initial_seed())
    train_mode(run.module)
    losses = []
    for step, (new, old) in enumerate(plan):
        if stop():
            return None
        _set_learning_rates(run, (epoch - 1) * len(plan) + step, settings.epochs * len(plan))
        losses.append(_step(run, _batch(run, new, old), changes))
    loss = float(torch.stack(losses).mean())
    if not math.isfinite(loss):
        raise TrainingFailed(f"the loss of epoch {epoch} is not finite; lower the learning rates")
    return loss


def _batch(run: _Run, new: torch.Tensor, old: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = gather(run.new, new)
    if not len(old):
        return images, labels
    old_images, old_labels = gather(run.old, old)
    return torch.cat([images, old_images]), torch.cat([labels, old_labels])


def _step(run: _Run, batch: tuple[torch.Tensor, torch.Tensor], changes: torch.Generator) -> torch.Tensor:
    """One optimiser step; gives the loss without the penalty, still on the device."""
    images, labels = batch[0].to(run.device), batch[1].to(run.device)
    images = augment(images, run.changes, run.spec.preprocessing, changes)
    with torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=run.autocast):
        logits = run.module(images)
    loss = functional.cross_entropy(logits.float(), labels, weight=_loss_weights(run), label_smoothing=run.settings.label_smoothing)
    total = loss if run.settings.l2sp == 0 else loss + run.settings.l2sp / 2 * _distance(run)
    run.optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    run.optimizer.step()
    return loss.detach()


def _loss_weights(run: _Run) -> torch.Tensor | None:
    if run.settings.balance != "weights":
        return None
    return class_weights(torch.cat([run.new.labels, run.old.labels]), len(run.spec.classes)).to(run.device)


def _distance(run: _Run) -> torch.Tensor:
    """Squared distance of the trainable parameters from where they started."""
    return torch.stack([(parameter - start).square().sum() for parameter, start in run.anchor]).sum()


def _set_learning_rates(run: _Run, step: int, steps: int) -> None:
    """Linear warm-up, then half a cosine to zero."""
    warm = int(run.settings.warmup_share * steps)
    factor = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))
    for group in run.optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def _record(run: _Run, epoch: int, train_loss: float | None, started: float) -> EpochRecord:
    loss, accuracy, recall = validate(run.module, run.spec, run.valid, run.device, batch_size=64, autocast=run.autocast)
    record = EpochRecord(
        epoch=epoch,
        train_loss=train_loss,
        valid_loss=loss,
        accuracy=accuracy,
        macro_recall=recall,
        seconds=time.monotonic() - started,
    )
    if not run.history or _merit(record, run.settings) > max(_merit(each, run.settings) for each in run.history):
        run.best_epoch, run.best = epoch, snapshot(run.module)
    run.history.append(record)
    return record


def _merit(record: EpochRecord, settings: TrainingSettings) -> tuple[float, float]:
    """Larger is better; the loss breaks ties of the recall."""
    return (-record.valid_loss, 0.0) if settings.monitor == "loss" else (record.macro_recall, -record.valid_loss)


def validate(
    module: nn.Module, spec: ModelSpec, tensors: TensorSet, device: torch.device, *, batch_size: int, autocast: bool = False
) -> tuple[float, float, float]:
    """Class-balanced negative log likelihood, accuracy and macro recall over studies; leaves the module in evaluation mode."""
    module.eval()
    images = [image for study in tensors.studies for image in study]
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        parts = [
            module(torch.stack(images[start : start + batch_size]).to(device)).float().cpu()
            for start in range(0, len(images), batch_size)
        ]
    probabilities = torch.softmax(torch.cat(parts).double(), dim=1)
    if not bool(torch.isfinite(probabilities).all()):
        raise TrainingFailed("the network gives values that are not finite on the validation set")
    counts = [len(study) for study in tensors.studies]
    means = torch.stack([part.mean(dim=0) for part in torch.split(probabilities, counts)])
    labels = torch.tensor(tensors.labels)
    surprise = -means[torch.arange(len(labels)), labels].clamp_min(1e-12).log()
    right = (means.argmax(dim=1) == labels).double()
    present = [labels == index for index in range(len(spec.classes)) if bool((labels == index).any())]
    return (
        _mean([float(surprise[rows].mean()) for rows in present]),
        float(right.mean()),
        _mean([float(right[rows].mean()) for rows in present]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _resume(run: _Run, folder: Path | None, fingerprint: str) -> None:
    found = load_checkpoint(folder, fingerprint) if folder is not None else None
    if found is None:
        return
    run.module.load_state_dict(found.weights)
    restore_optimizer(run.optimizer, found.optimizer)
    run.best, run.best_epoch = found.best, int(found.state["best_epoch"])
    run.history = [EpochRecord.model_validate(each) for each in found.state["history"]]


def _save(run: _Run, folder: Path, epoch: int, fingerprint: str) -> None:
    history = [each.model_dump() for each in run.history]
    state = {"fingerprint": fingerprint, "best_epoch": run.best_epoch, "history": history}
    save_checkpoint(folder, epoch, Checkpoint(snapshot(run.module), run.best, optimizer_tensors(run.optimizer), state))


def _fingerprint(run: _Run, *sets: TensorSet | None) -> str:
    """What must be equal for a checkpoint to belong to this run: specification, settings, data, and what is trainable."""
    trainable = [name for name, parameter in run.module.named_parameters() if parameter.requires_grad]
    keys = [[list(each.keys), list(each.labels)] if each is not None else [] for each in sets]
    facts = [run.spec.model_dump(mode="json"), run.settings.model_dump(mode="json"), keys, trainable]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@contextmanager
def _repeatable() -> Iterator[None]:
    """Deterministic cuDNN, and the process's random state as it was afterwards."""
    cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    with torch.random.fork_rng(), cudnn:
        yield
