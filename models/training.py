"""Training and fine-tuning: one plain loop whose result is a function of data, settings and seed (promise 9).

On a CPU with the same number of threads two runs give the same numbers, and a run that was killed and resumed gives the
numbers of one that was not. Every random choice comes from (seed, epoch), so a checkpoint needs no generator state.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, Unpack

import torch
from torch import nn

from models import distributed
from models.augmentation import AugmentationSettings, augment
from models.checkpoint import Checkpoint, load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint, snapshot
from models.data import TensorSet
from models.errors import TrainingFailed
from models.forgetting import Anchor, MovingAverage, anchor_of, averaging, frozen_copy, importance
from models.freezing import open_gradually, train_mode
from models.networks import body_parameters, head_parameters
from models.objective import Objective
from models.predictor import choose_device
from models.sampling import Examples, class_weights, gather, plan_epoch, seeded
from models.schedules import rate_factor
from models.spec import ModelSpec
from models.training_settings import EpochRecord, StopReason, TrainingSettings, merit
from models.validation import validate

__all__ = ["EpochRecord", "StopReason", "Ties", "TrainingResult", "TrainingSettings", "train"]

_PLAN, _CHANGES, _DROPOUT = 0, 1, 2


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
    mixed: torch.dtype | None
    layout: torch.memory_format
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    objective: Objective
    average: MovingAverage | None
    changes: AugmentationSettings
    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = -1
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    def autocast(self) -> torch.autocast:
        """The precision of the forward pass."""
        return torch.autocast(self.device.type, dtype=self.mixed or torch.bfloat16, enabled=self.mixed is not None)


class Ties(TypedDict, total=False):
    """What a training may be tied to. A run that finds its own checkpoint goes on after it; before each batch it asks to stop.

    `on_epoch` hears of each epoch at least once: of that of the checkpoint again, because the process may have ended in between.
    """

    rehearsal: TensorSet | None
    on_epoch: Callable[[EpochRecord], None] | None
    checkpoint_dir: Path | None
    should_stop: Callable[[], bool] | None


def train(
    module: nn.Module,
    spec: ModelSpec,
    train_set: TensorSet,
    valid_set: TensorSet,
    settings: TrainingSettings,
    **ties: Unpack[Ties],
) -> TrainingResult:
    """Train `module` in place; at the end it holds the weights of the best validated epoch, in evaluation mode.

    Parameters that do not require gradients stay, with their BatchNorm statistics. In a process group (`models.distributed`)
    every process calls this with the same arguments; the first one validates, reports and keeps checkpoints. Raises
    TrainingFailed for empty sets, a checkpoint of another run, or a loss that is not finite.
    """
    rehearsal, checkpoint_dir = ties.get("rehearsal"), ties.get("checkpoint_dir")
    run = _prepare(module, spec, train_set, valid_set, settings, rehearsal)
    fingerprint = _fingerprint(run, train_set, valid_set, rehearsal)
    stop, on_epoch = ties.get("should_stop") or (lambda: False), ties.get("on_epoch")
    report = on_epoch if on_epoch is not None and distributed.world()[0] == 0 else lambda _: None
    with _repeatable():
        _resume(run, checkpoint_dir, fingerprint)
        if run.history:
            report(run.history[-1])
        elif settings.compare_start:
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
        if folder is not None and distributed.world()[0] == 0:
            _save(run, folder, epoch, fingerprint)
        distributed.wait_for_all()
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
    distributed.check_batch(settings.batch_size)
    device = distributed.own_device(choose_device(settings.device))
    mixed, layout = _mixed(settings, device), _layout(settings, spec, device)
    module.to(device, memory_format=layout)  # type: ignore[call-overload]
    new = Examples.of(train_set)
    old = Examples.of(rehearsal) if rehearsal is not None else Examples((), new.labels[:0])
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise TrainingFailed("every parameter is frozen; nothing can be trained")
    changes = settings.augmentation or AugmentationSettings.for_study(spec.modality, spec.body_part)
    weights = class_weights(torch.cat([new.labels, old.labels]), len(spec.classes)).to(device)
    return _Run(
        module=module,
        spec=spec,
        settings=settings,
        new=new,
        old=old,
        valid=valid_set,
        device=device,
        mixed=mixed,
        layout=layout,
        optimizer=_optimizer(module, settings, fused=mixed != torch.float16),
        scaler=torch.amp.GradScaler(device.type, enabled=mixed == torch.float16),
        objective=Objective(settings, _anchor(module, settings, old, device), weights if settings.balance == "weights" else None),
        average=averaging(module, settings.average),
        changes=changes,
    )


def _mixed(settings: TrainingSettings, device: torch.device) -> torch.dtype | None:
    """The lower precision of the forward pass, None for float32 throughout."""
    if settings.precision == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[settings.precision]


def _layout(settings: TrainingSettings, spec: ModelSpec, device: torch.device) -> torch.memory_format:
    wanted = device.type == "cuda" if settings.channels_last is None else settings.channels_last
    if not wanted:
        return torch.contiguous_format
    return torch.channels_last if spec.preprocessing.spatial_dims == 2 else torch.channels_last_3d


def _optimizer(module: nn.Module, settings: TrainingSettings, *, fused: bool) -> torch.optim.Optimizer:
    """AdamW in two groups. `fused`: all tensors in one kernel; not with a gradient scaler, which would have to be told."""
    rated = ((head_parameters(module), settings.head_learning_rate), (body_parameters(module), settings.body_learning_rate))
    groups = [
        {"params": [each for each in parameters if each.requires_grad], "lr": rate, "peak": rate} for parameters, rate in rated
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=settings.weight_decay, fused=fused)


def _anchor(module: nn.Module, settings: TrainingSettings, old: Examples, device: torch.device) -> Anchor:
    """What the penalties compare with: the network before the first step, also in a run that is resumed."""
    anchor = anchor_of(module)
    if settings.ewc:
        if not len(old.labels):
            raise TrainingFailed("EWC needs old cases: without them nobody knows which weights matter for them")
        anchor.importance = importance(module, [parameter for parameter, _ in anchor.pairs], old, device, settings.seed)
    if settings.distillation:
        anchor.teacher = frozen_copy(module)
    return anchor


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
    # Each process changes its own images in its own way; alone, the numbers are those of (seed, epoch).
    rank = (distributed.world()[0],) if distributed.world()[0] else ()
    changes = seeded(settings.seed, epoch, _CHANGES, *rank)
    torch.manual_seed(seeded(settings.seed, epoch, _DROPOUT, *rank).initial_seed())
    if settings.unfreezing == "gradual":
        open_gradually(run.module, epoch, settings.epochs)
    network = distributed.shared(run.module, run.device)
    train_mode(run.module)
    losses = []
    for step, (new, old) in enumerate(plan):
        if distributed.from_first(stop()):
            return None
        _set_learning_rates(run, (epoch - 1) * len(plan) + step, settings.epochs * len(plan))
        losses.append(_step(run, network, _batch(run, distributed.share(new), distributed.share(old)), changes))
    distributed.agree_on_buffers(run.module)
    loss = distributed.from_first(float(torch.stack(losses).mean()))
    if not math.isfinite(loss):
        raise TrainingFailed(f"the loss of epoch {epoch} is not finite; lower the learning rates")
    return loss


def _batch(run: _Run, new: torch.Tensor, old: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, labels, and which of them are old cases, mixed so that every part of the batch has its share of them."""
    images, labels = gather(run.new, new)
    is_old = torch.zeros(len(new), dtype=torch.bool)
    if not len(old):
        return images, labels, is_old
    old_images, old_labels = gather(run.old, old)
    return (
        torch.cat([images, old_images]),
        torch.cat([labels, old_labels]),
        torch.cat([is_old, torch.ones(len(old), dtype=torch.bool)]),
    )


def _step(
    run: _Run, network: nn.Module, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor], changes: torch.Generator
) -> torch.Tensor:
    """One optimiser step over all parts of a batch; gives the loss without the penalties, still on the device."""
    images, labels = batch[0].to(run.device, non_blocking=True), batch[1].to(run.device, non_blocking=True)
    images = augment(images, run.changes, run.spec.preprocessing, changes).contiguous(memory_format=run.layout)
    run.optimizer.zero_grad(set_to_none=True)
    parts = run.settings.accumulation
    losses = []
    for part in range(min(parts, len(labels))):
        chosen = slice(part, None, parts)
        loss, total = _losses(run, network, images[chosen], labels[chosen], batch[2][chosen])
        weight = len(labels[chosen]) / len(labels)
        run.scaler.scale(total * weight).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach() * weight)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    if run.average is not None:
        run.average.update(run.module)
    return torch.stack(losses).sum()


def _losses(
    run: _Run, network: nn.Module, images: torch.Tensor, labels: torch.Tensor, is_old: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of classification, and the same with the penalties. Old cases stand last."""
    with run.autocast():
        logits = network(images).float()
        penalty = run.objective.penalty(images, logits, int(is_old.sum()))
    loss = run.objective.classification(logits, labels)
    return loss, loss if penalty is None else loss + penalty


def _set_learning_rates(run: _Run, step: int, steps: int) -> None:
    factor = rate_factor(run.settings, step, steps, run.history)
    for group in run.optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def _record(run: _Run, epoch: int, train_loss: float | None, started: float) -> EpochRecord:
    """Validate the weights as they are, or their moving average, and keep them where they are the best so far."""
    kept = snapshot(run.module) if run.average is not None else None
    if run.average is not None:
        run.module.load_state_dict(run.average.values)
    record = distributed.from_first(_validated(run, epoch, train_loss, started) if distributed.world()[0] == 0 else None)
    assert record is not None
    if not run.history or merit(record, run.settings) > max(merit(each, run.settings) for each in run.history):
        run.best_epoch, run.best = epoch, snapshot(run.module)
    if kept is not None:
        run.module.load_state_dict(kept)
    run.history.append(record)
    return record


def _validated(run: _Run, epoch: int, train_loss: float | None, started: float) -> EpochRecord:
    first = run.settings.valid_first
    loss, accuracy, recall = validate(run.module, run.valid, run.device, batch_size=64, mixed=run.mixed, first=first)
    return EpochRecord(
        epoch=epoch,
        train_loss=train_loss,
        valid_loss=loss,
        accuracy=accuracy,
        macro_recall=recall,
        seconds=time.monotonic() - started,
    )


def _resume(run: _Run, folder: Path | None, fingerprint: str) -> None:
    found = load_checkpoint(folder, fingerprint) if folder is not None else None
    if found is None:
        return
    run.module.load_state_dict(found.weights)
    restore_optimizer(run.optimizer, found.optimizer)
    if run.average is not None:
        run.average.steps = int(found.state["average_steps"])
        for name, tensor in found.average.items():
            run.average.values[name].copy_(tensor)
    run.scaler.load_state_dict(found.state["scaler"])
    run.best, run.best_epoch = found.best, int(found.state["best_epoch"])
    run.history = [EpochRecord.model_validate(each) for each in found.state["history"]]


def _save(run: _Run, folder: Path, epoch: int, fingerprint: str) -> None:
    history = [each.model_dump() for each in run.history]
    average = {name: tensor.cpu().contiguous() for name, tensor in run.average.values.items()} if run.average else {}
    state = {
        "fingerprint": fingerprint,
        "best_epoch": run.best_epoch,
        "history": history,
        "scaler": run.scaler.state_dict(),
        "average_steps": run.average.steps if run.average else 0,
    }
    save_checkpoint(folder, epoch, Checkpoint(snapshot(run.module), run.best, optimizer_tensors(run.optimizer), state, average))


def _fingerprint(run: _Run, *sets: TensorSet | None) -> str:
    """What must be equal for a checkpoint to belong to this run: specification, settings, data, and what is trainable."""
    trainable = [name for name, parameter in run.module.named_parameters() if parameter.requires_grad]
    keys = [[list(each.keys), list(each.labels)] if each is not None else [] for each in sets]
    # A run may go on on another machine, with more or fewer devices.
    settings = run.settings.model_dump(mode="json", exclude={"devices"})
    facts = [run.spec.model_dump(mode="json"), settings, keys, trainable]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@contextmanager
def _repeatable() -> Iterator[None]:
    """Deterministic cuDNN, and the process's random state as it was afterwards."""
    cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    with torch.random.fork_rng(), cudnn:
        yield
