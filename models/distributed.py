"""Training in several processes that `torchrun` started: one process a GPU, each with its share of every batch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from models.errors import TrainingFailed

Value = TypeVar("Value")


@contextmanager
def process_group() -> Iterator[int]:
    """Join the group that torchrun's environment names and leave it at the end; gives this process's rank, 0 without torchrun."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield distributed.get_rank()
    finally:
        distributed.destroy_process_group()


def world() -> tuple[int, int]:
    """Rank of the process and the number of processes; (0, 1) outside a group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def own_device(device: torch.device) -> torch.device:
    """The process's own GPU where the wanted device is a GPU and several processes share the work."""
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" and world()[1] > 1 else device


def shared(module: nn.Module, device: torch.device) -> nn.Module:
    """The network as it is to be called in training: with gradients averaged over the processes where there are several."""
    if world()[1] == 1:
        return module
    return DistributedDataParallel(module, device_ids=[device.index] if device.type == "cuda" else None)


def agree_on_buffers(module: nn.Module) -> None:
    """Give every process the first one's BatchNorm statistics; its own saw other images in the last step."""
    if world()[1] > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, src=0)


def share(indices: torch.Tensor) -> torch.Tensor:
    """The part of a batch that falls to the process."""
    rank, size = world()
    return indices[rank::size]


def check_batch(batch_size: int, processes: int | None = None) -> None:
    """Raise TrainingFailed where the batch cannot be dealt evenly with two examples at least for each process."""
    size = processes or world()[1]
    if batch_size % size or batch_size // size < 2:
        raise TrainingFailed(
            f"a batch of {batch_size} cannot be dealt to {size} processes; choose a multiple of {size}, at least {2 * size}"
        )


def from_first(value: Value) -> Value:
    """The value that the first process holds, in every process: decisions are taken once."""
    if world()[1] == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def wait_for_all() -> None:
    """Return when every process has come here."""
    if world()[1] > 1:
        distributed.barrier()
