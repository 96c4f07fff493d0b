"""A bounded choice of old cases for rehearsal: even over the classes, and far apart from one another within each.

Greedy k-centre (Gonzalez 1985) on any vectors of the cases: each next case is the one farthest from those chosen.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from models.data import TensorSet
from models.features import head_inputs
from models.logits import Floats, Integers


def choose_reservoir(vectors: Floats, labels: Sequence[int], most: int, seed: int) -> list[int]:
    """Places of at most `most` cases, in order. Half of each class's places go to the farthest, half are drawn by `seed`.

    Farthest-first alone would keep outliers and little of what is usual.
    """
    known = np.asarray(labels, dtype=np.int64)
    if len(known) <= most:
        return list(range(len(known)))
    random = np.random.default_rng(seed)
    chosen: list[int] = []
    for label, places in _quotas(known, most).items():
        own = np.flatnonzero(known == label)
        far = own[_farthest(vectors[own], (places + 1) // 2)]
        rest = np.setdiff1d(own, far)
        chosen += [int(place) for place in far]
        chosen += [int(place) for place in random.choice(rest, size=min(places - len(far), len(rest)), replace=False)]
    return sorted(chosen)


def _quotas(labels: Integers, most: int) -> dict[int, int]:
    """Places for each class: as even as the classes' numbers allow, and `most` in sum."""
    counts = {int(label): int(count) for label, count in zip(*np.unique(labels, return_counts=True), strict=True)}
    quotas = dict.fromkeys(counts, 0)
    for _ in range(most):
        open_classes = [label for label in counts if quotas[label] < counts[label]]
        quotas[min(open_classes, key=lambda label: (quotas[label], label))] += 1
    return quotas


def _farthest(vectors: Floats, wanted: int) -> Integers:
    """Places of a greedy k-centre choice that begins with the vector nearest the mean."""
    if wanted == 0:
        return np.zeros(0, dtype=np.int64)
    first = int(np.square(vectors - vectors.mean(axis=0)).sum(axis=1).argmin())
    chosen = [first]
    distance = np.square(vectors - vectors[first]).sum(axis=1)
    while len(chosen) < min(wanted, len(vectors)):
        distance[chosen] = -1.0
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.square(vectors - vectors[chosen[-1]]).sum(axis=1))
    return np.asarray(chosen, dtype=np.int64)


def vectors_of(module: nn.Module, tensors: TensorSet, device: torch.device, batch_size: int = 64) -> Floats:
    """What the head of the network sees of each study [studies, features], its images averaged; for `choose_reservoir`."""
    seen = head_inputs(module, tensors, device, batch_size)
    return np.stack([study.flatten(1).double().mean(dim=0).numpy() for study in seen.studies])
