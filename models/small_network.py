"""A small residual-free CNN with BatchNorm that learns a grey-image task in seconds on a CPU, in 2D or 3D."""

from typing import Any

import torch
from torch import nn


class SmallNetwork(nn.Module):
    """Four stages of two convolutions, the resolution halved before each, global average, dropout, one linear layer.

    `width` is the number of channels of the first stage, doubled in each later one. Input [B, channels, (D,) H, W] with
    sides of at least 16; output logits [B, classes].
    """

    def __init__(self, classes: int, channels: int = 1, spatial_dims: int = 2, *, width: int = 16, dropout: float = 0.2) -> None:
        super().__init__()
        widths = [width, width * 2, width * 4, width * 8]
        inputs = [channels, *widths[:-1]]
        stages = [_stage(before, after, spatial_dims) for before, after in zip(inputs, widths, strict=True)]
        self.features = nn.Sequential(*stages)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, classes]."""
        pooled = self.features(images).flatten(2).mean(dim=2)
        logits: torch.Tensor = self.head(self.dropout(pooled))
        return logits


def _stage(before: int, after: int, spatial_dims: int) -> nn.Sequential:
    convolution: Any = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
    normalisation: Any = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[spatial_dims]
    return nn.Sequential(
        convolution(before, after, 3, stride=2, padding=1, bias=False),
        normalisation(after),
        nn.ReLU(inplace=True),
        convolution(after, after, 3, padding=1, bias=False),
        normalisation(after),
        nn.ReLU(inplace=True),
    )
