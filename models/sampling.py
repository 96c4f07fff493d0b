"""Which images make up each training batch: a pure function of the labels, the settings and (seed, epoch)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch

from models.data import TensorSet

Balance: TypeAlias = Literal["sampler", "weights", "none"]


@dataclass(frozen=True, slots=True)
class Examples:
    """Every image of a set as its own training example; `images[i]` is [C, (D,) H, W] and shares the set's memory."""

    images: tuple[torch.Tensor, ...]
    labels: torch.Tensor

    @classmethod
    def of(cls, tensors: TensorSet) -> "Examples":
        """Examples in the order of the set, each image with its study's label."""
        images = tuple(image for study in tensors.studies for image in study)
        labels = [label for study, label in zip(tensors.studies, tensors.labels, strict=True) for _ in study]
        return cls(images, torch.tensor(labels, dtype=torch.long))


def seeded(seed: int, *purpose: int) -> torch.Generator:
    """A CPU generator for one purpose of one run; unlike seeds that are added, these never collide."""
    state = np.random.SeedSequence([seed, *purpose]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & 0x7FFF_FFFF_FFFF_FFFF)


def plan_epoch(
    labels: torch.Tensor,
    old_labels: torch.Tensor,
    batch_size: int,
    rehearsal_share: float,
    balance: Balance,
    generator: torch.Generator,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of an epoch as (indices of new examples, indices of old ones); every batch is full.

    An epoch draws as many new examples as there are; `rehearsal_share` of each batch comes from the old ones, if any.
    """
    old_count = min(round(batch_size * rehearsal_share), batch_size - 1) if len(old_labels) else 0
    new_count = batch_size - old_count
    steps = max(1, -(-len(labels) // new_count))
    new = _draw(labels, steps * new_count, balance, generator).reshape(steps, new_count)
    old = _draw(old_labels, steps * old_count, balance, generator).reshape(steps, old_count)
    return [(new[step], old[step]) for step in range(steps)]


def class_weights(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Weights inverse to the classes' frequencies, averaging one over the examples; zero for an absent class."""
    counts = torch.bincount(labels, minlength=classes).float()
    present = counts > 0
    weights = torch.zeros(classes)
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights


def _draw(labels: torch.Tensor, wanted: int, balance: Balance, generator: torch.Generator) -> torch.Tensor:
    if wanted == 0:
        return labels[:0]
    if balance == "sampler":
        weights = class_weights(labels, int(labels.max()) + 1)[labels]
        return torch.multinomial(weights, wanted, replacement=True, generator=generator)
    rounds = -(-wanted // len(labels))
    return torch.cat([torch.randperm(len(labels), generator=generator) for _ in range(rounds)])[:wanted]


def gather(examples: Examples, indices: Sequence[int] | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [B, C, (D,) H, W] and labels [B]."""
    places = indices.tolist() if isinstance(indices, torch.Tensor) else list(indices)
    return torch.stack([examples.images[place] for place in places]), examples.labels[places]
