"""BatchNorm statistics re-estimated on unlabelled images, shrunk towards the old ones (Schneider et al. 2020)."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.errors import TrainingFailed


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean and variance of every BatchNorm layer by the layer's name, and from how many images."""

    layers: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    images: int


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """The layers that normalise by running statistics, by name."""
    named = ((name, each) for name, each in module.named_modules() if isinstance(each, _BatchNorm))
    return {name: each for name, each in named if each.running_mean is not None}


def estimate_statistics(
    module: nn.Module, images: Sequence[torch.Tensor], device: torch.device, batch_size: int = 32
) -> Statistics:
    """Statistics of images [C, (D,) H, W] passed through a copy of `module` whose BatchNorm normalises by each batch.

    Raises TrainingFailed without BatchNorm layers, with fewer than two images, or for values that are not finite.
    """
    if len(images) < 2:
        raise TrainingFailed("statistics cannot be estimated from fewer than two images")
    probe = copy.deepcopy(module).to(device).eval()
    layers = batch_norms(probe)
    if not layers:
        raise TrainingFailed("the network has no BatchNorm layers, so there are no statistics to adapt")
    for layer in layers.values():
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    count = max(1, len(images) // batch_size)
    # Batches of nearly equal size: every batch counts alike in the cumulative mean, and none has a single image.
    parts = torch.tensor_split(torch.arange(len(images)), count)
    with torch.no_grad():
        for part in parts:
            probe(torch.stack([images[int(place)] for place in part]).to(device))
    found = {name: (_copied(layer.running_mean), _copied(layer.running_var)) for name, layer in layers.items()}
    if not all(bool(torch.isfinite(each).all()) for pair in found.values() for each in pair):
        raise TrainingFailed("the statistics of the recent images are not finite")
    return Statistics(found, len(images))


def with_statistics(module: nn.Module, statistics: Statistics, share: float) -> nn.Module:
    """A copy of `module` whose running statistics are `share` of the new and the rest of the old; nothing else changes."""
    adapted = copy.deepcopy(module)
    for name, layer in batch_norms(adapted).items():
        mean, variance = statistics.layers[name]
        for own, new in ((layer.running_mean, mean), (layer.running_var, variance)):
            assert own is not None
            own.lerp_(new.to(own), share)
    return adapted


def _copied(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor.detach().cpu().clone()
