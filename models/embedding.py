"""The penultimate features of a network, in at most 64 numbers: what drift in what the model sees is measured on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.networks import head_of

WIDTH: Final = 64
_SEED: Final = 20251017
_LIMIT: Final = 6e4
"""Inside the range of float16, in which embeddings are kept."""


class Caught:
    """The inputs of a network's head during its forward passes."""

    def __init__(self) -> None:
        self._parts: list[torch.Tensor] = []

    def take(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """A forward pre-hook: maps are averaged over their places, whatever their dimensions."""
        features = inputs[0].detach().float()
        self._parts.append((features.flatten(2).mean(dim=2) if features.ndim > 2 else features).cpu())

    def embeddings(self) -> NDArray[np.float32]:
        """One row per image of all passes, [n, at most 64]."""
        return projected(torch.cat(self._parts))


@contextmanager
def features_of(module: nn.Module) -> Iterator[Caught]:
    """Listen to what the classifying layers of `module` are given while the context is open."""
    caught = Caught()
    handle = head_of(module).register_forward_pre_hook(caught.take)
    try:
        yield caught
    finally:
        handle.remove()


def projected(features: torch.Tensor) -> NDArray[np.float32]:
    """Features [n, f] by a fixed random projection to 64 numbers, which keeps distances (Johnson, Lindenstrauss); fewer stay."""
    count = features.shape[1]
    if count > WIDTH:
        generator = torch.Generator().manual_seed(_SEED)
        # Drawn on the CPU from one seed: the same for every version of a network, so that versions can be compared.
        features = features @ (torch.randn(count, WIDTH, generator=generator) / WIDTH**0.5)
    found: NDArray[np.float32] = features.clamp(-_LIMIT, _LIMIT).numpy()
    return found
