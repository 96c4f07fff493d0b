"""The loss of one batch: classification, and the penalties against forgetting."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from models.forgetting import Anchor
from models.training_settings import TrainingSettings


@dataclass(frozen=True, slots=True)
class Objective:
    """What a training minimises. `weights` [classes] weigh the classes, None for all alike."""

    settings: TrainingSettings
    anchor: Anchor
    weights: torch.Tensor | None = None

    def classification(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy, or focal loss where gamma is above zero: (1 - p)^gamma times it (Lin et al. 2017)."""
        smoothing, gamma = self.settings.label_smoothing, self.settings.focal_gamma
        if gamma == 0:
            return functional.cross_entropy(logits, labels, weight=self.weights, label_smoothing=smoothing)
        each = functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        right = torch.softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]
        scale = torch.ones_like(each) if self.weights is None else self.weights[labels]
        return ((1 - right) ** gamma * each * scale).sum() / scale.sum()

    def penalty(self, images: torch.Tensor, logits: torch.Tensor, old: int) -> torch.Tensor | None:
        """The penalties' sum, None without any. The last `old` of the images are old cases."""
        settings, parts = self.settings, list[torch.Tensor]()
        if settings.l2sp:
            parts.append(settings.l2sp / 2 * self.anchor.distance())
        if settings.ewc:
            parts.append(settings.ewc / 2 * self.anchor.weighted_distance())
        if settings.distillation:
            start = len(images) - old if old else 0
            parts.append(settings.distillation * self.anchor.disagreement(images[start:], logits[start:]))
        return torch.stack(parts).sum() if parts else None
