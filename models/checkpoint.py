"""A training run's state after each epoch, from which a killed run goes on exactly. Safetensors and JSON, never pickle."""

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.errors import UnusableCheckpoint

_WEIGHTS, _BEST, _OPTIMIZER, _STATE = "weights.safetensors", "best.safetensors", "optimizer.safetensors", "state.json"
_AVERAGE = "average.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is kept: weights, the best weights so far, the optimiser's tensors, a JSON state, and the weights' average if any."""

    weights: dict[str, torch.Tensor]
    best: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any]
    average: dict[str, torch.Tensor] = field(default_factory=dict)


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a module's weights and buffers on the CPU."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state as `PARAMETER.NAME` tensors, in the plain layout, which the files take."""
    state: Mapping[int, Mapping[str, torch.Tensor]] = optimizer.state_dict()["state"]
    named = {f"{index}.{name}": tensor for index, each in state.items() for name, tensor in each.items()}
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in named.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put `optimizer_tensors` back into an optimiser over the same parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        like = parameters[int(index)]
        # In its parameter's layout, as it was: a step in another one would round otherwise.
        laid_out = torch.empty_like(like, dtype=tensor.dtype, device="cpu").copy_(tensor) if tensor.shape == like.shape else tensor
        state.setdefault(int(index), {})[key] = laid_out
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_checkpoint(folder: Path, epoch: int, checkpoint: Checkpoint) -> None:
    """Write the checkpoint of an epoch; it appears whole or not at all. Earlier ones are removed after it is durable."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{uuid.uuid4().hex}"
    draft.mkdir()
    save_file(checkpoint.weights, draft / _WEIGHTS)
    save_file(checkpoint.best, draft / _BEST)
    save_file(checkpoint.optimizer, draft / _OPTIMIZER)
    save_file(checkpoint.average, draft / _AVERAGE)
    (draft / _STATE).write_text(json.dumps(checkpoint.state), encoding="utf-8")
    for path in (*draft.iterdir(), draft):
        _sync(path)
    target = _folder_of(folder, epoch)
    # A worker that lost its lease may have written the same epoch; both hold the same state.
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    _sync(folder)
    for stale in folder.iterdir():
        if stale != target and stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)


def load_checkpoint(folder: Path, fingerprint: str) -> Checkpoint | None:
    """The newest checkpoint, None when there is none. Raises UnusableCheckpoint for one of another run or a damaged one."""
    found = sorted(folder.glob("epoch-*"))
    if not found:
        return None
    try:
        state = json.loads((found[-1] / _STATE).read_text(encoding="utf-8"))
        weights, best, optimizer, average = (load_file(found[-1] / name) for name in (_WEIGHTS, _BEST, _OPTIMIZER, _AVERAGE))
    except Exception as error:
        raise UnusableCheckpoint(f"the checkpoint {found[-1].name} is damaged ({type(error).__name__})") from error
    if state.get("fingerprint") != fingerprint:
        raise UnusableCheckpoint(f"the checkpoint {found[-1].name} belongs to another run: its data or settings differ")
    return Checkpoint(weights, best, optimizer, state, average)


def _folder_of(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:05d}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
