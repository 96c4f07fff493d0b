"""How good a network is on validation studies, epoch after epoch."""

from collections.abc import Sequence

import torch
from torch import nn

from models.data import TensorSet
from models.errors import TrainingFailed


def validate(
    module: nn.Module,
    tensors: TensorSet,
    device: torch.device,
    *,
    batch_size: int,
    mixed: torch.dtype | None = None,
    first: int = 0,
) -> tuple[float, float, float]:
    """Class-balanced negative log likelihood, accuracy and macro recall over studies; leaves the module in evaluation mode.

    With `first` each figure is the mean of that of the first so many studies and that of all others.
    """
    module.eval()
    images = [image for study in tensors.studies for image in study]
    with torch.inference_mode(), torch.autocast(device.type, dtype=mixed or torch.bfloat16, enabled=mixed is not None):
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
    groups = [slice(0, first), slice(first, None)] if 0 < first < len(labels) else [slice(None)]
    figures = [_figures(means[group], labels[group]) for group in groups]
    loss, accuracy, recall = (_mean(each) for each in zip(*figures, strict=True))
    return loss, accuracy, recall


def _figures(probabilities: torch.Tensor, labels: torch.Tensor) -> tuple[float, float, float]:
    surprise = -probabilities[torch.arange(len(labels)), labels].clamp_min(1e-12).log()
    right = (probabilities.argmax(dim=1) == labels).double()
    present = [labels == label for label in torch.unique(labels)]
    loss, recall = (_mean([float(each[rows].mean()) for rows in present]) for each in (surprise, right))
    return loss, float(right.mean()), recall


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
