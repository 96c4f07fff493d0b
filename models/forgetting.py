"""What keeps a network from forgetting while it learns: pulls towards its start, its own former answers, an average of weights.

L2-SP: Li, Grandvalet & Davoine 2018. EWC: Kirkpatrick et al. 2017. Distillation: Li & Hoiem 2016, on old cases where there
are any. Rehearsal is in `models.sampling` and `models.reservoir`, interpolation of weights in `models.interpolation`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional

from models.sampling import Examples, seeded

TEMPERATURE = 2.0
FISHER_CASES = 128
_FISHER = 3


@dataclass
class Anchor:
    """The start of a training: trainable parameters with where they were, how much each matters, and the starting network."""

    pairs: list[tuple[nn.Parameter, torch.Tensor]]
    importance: list[torch.Tensor] = field(default_factory=list)
    teacher: nn.Module | None = None

    def distance(self) -> torch.Tensor:
        """Sum of squared distances (L2-SP)."""
        return torch.stack([(parameter - start).square().sum() for parameter, start in self.pairs]).sum()

    def weighted_distance(self) -> torch.Tensor:
        """Sum of squared distances, each by its parameter's importance (EWC)."""
        weighed = zip(self.pairs, self.importance, strict=True)
        return torch.stack([(weight * (parameter - start).square()).sum() for (parameter, start), weight in weighed]).sum()

    def disagreement(self, images: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Divergence of the answers `logits` [B, classes] from the starting network's, on the classes that it knew."""
        assert self.teacher is not None
        with torch.no_grad():
            former = self.teacher(images).float()
        own = functional.log_softmax(logits[:, : former.shape[1]] / TEMPERATURE, dim=1)
        wanted = functional.log_softmax(former / TEMPERATURE, dim=1)
        return TEMPERATURE**2 * functional.kl_div(own, wanted, reduction="batchmean", log_target=True)


def anchor_of(module: nn.Module) -> Anchor:
    """The trainable parameters as they are now."""
    return Anchor([(parameter, parameter.detach().clone()) for parameter in module.parameters() if parameter.requires_grad])


def frozen_copy(module: nn.Module) -> nn.Module:
    """The network as it is now, in evaluation mode, without gradients."""
    return copy.deepcopy(module).requires_grad_(requires_grad=False).eval()


def importance(
    module: nn.Module, parameters: Sequence[nn.Parameter], old: Examples, device: torch.device, seed: int
) -> list[torch.Tensor]:
    """Diagonal of the empirical Fisher information on at most 128 old examples, scaled to a mean of one over all weights.

    With that scale one weight of the penalty means the same for networks of any size, and the same as L2-SP's in the mean.
    """
    module.eval()
    chosen = torch.randperm(len(old.labels), generator=seeded(seed, _FISHER))[:FISHER_CASES].tolist()
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for place in chosen:
        logits = module(old.images[place][None].to(device)).float()
        loss = functional.cross_entropy(logits, old.labels[place : place + 1].to(device))
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        for total, grad in zip(sums, grads, strict=True):
            if grad is not None:
                total.add_(grad.square())
    mean = sum(float(total.sum()) for total in sums) / max(1, sum(total.numel() for total in sums))
    return [total / mean if mean > 0 else torch.ones_like(total) for total in sums]


@dataclass
class MovingAverage:
    """Exponential moving average of a network's weights and buffers; younger than its horizon it averages evenly."""

    decay: float
    values: dict[str, torch.Tensor]
    steps: int = 0

    def update(self, module: nn.Module) -> None:
        """Take in the weights after a step of the optimiser."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 9))
        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                own = self.values[name]
                if own.is_floating_point():
                    own.lerp_(tensor.to(own), 1 - decay)
                else:
                    own.copy_(tensor)


def averaging(module: nn.Module, decay: float) -> MovingAverage | None:
    """An average that starts at the present weights; None for no decay."""
    return MovingAverage(decay, {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}) if decay else None
