"""Which of several repairs is best on held-out old and new cases: one cost for every choice that a run makes by itself."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from models.data import TensorSet
from models.logits import balanced_loss, class_recalls, macro_recall, study_logits
from models.spec import Calibration

TOLERANCE = 0.01
"""Loss of a class's recall on the held-out old cases that costs nothing."""
PRICE = 5.0
"""Nats that one whole recall of an old class, lost beyond the tolerance, costs."""


@dataclass(frozen=True, slots=True)
class Merit:
    """Numbers of one candidate; the least `cost` is best. Losses are class-balanced negative log likelihoods."""

    cost: float
    new_loss: float
    new_recall: float
    old_loss: float
    old_recall: float
    worst_old_class: float
    """Largest loss of a class's recall on the old cases against the champion; negative where every class gained."""

    def rounded(self) -> dict[str, Any]:
        """The numbers for a run's record."""
        return {name: round(value, 5) for name, value in asdict(self).items()}


class Jury:
    """Held-out new and old cases, and the recalls that the old classes should keep. Either set may be empty, not both.

    They are the champion's on these cases, or those of `reference` where they are higher: what an earlier version knew.
    """

    def __init__(
        self,
        champion: nn.Module,
        calibration: Calibration,
        new: TensorSet,
        old: TensorSet,
        device: torch.device,
        reference: Mapping[int, float] | None = None,
    ) -> None:
        self._new, self._old, self._device = new, old, device
        self._calibration = calibration
        champion.to(device)
        own = class_recalls(self._scores(champion, old, calibration), self._labels(old)) if len(old) else {}
        self.reference = {label: max(recall, (reference or {}).get(label, 0.0)) for label, recall in own.items()}

    def judge(self, module: nn.Module, calibration: Calibration | None = None) -> Merit:
        """Score a candidate, with the champion's calibration where none is given. Leaves it on the jury's device."""
        chosen = calibration or self._calibration
        module.to(self._device)
        new_loss, new_recall, _ = self._measured(module, self._new, chosen)
        old_loss, old_recall, after = self._measured(module, self._old, chosen)
        lost = [kept - after[label] for label, kept in self.reference.items()]
        price = PRICE * sum(max(0.0, each - TOLERANCE) for each in lost)
        return Merit(new_loss + old_loss + price, new_loss, new_recall, old_loss, old_recall, max(lost, default=0.0))

    def _measured(self, module: nn.Module, tensors: TensorSet, calibration: Calibration) -> tuple[float, float, dict[int, float]]:
        if not len(tensors):
            return 0.0, 0.0, {}
        scores, labels = self._scores(module, tensors, calibration), self._labels(tensors)
        return balanced_loss(scores, labels), macro_recall(scores, labels), class_recalls(scores, labels)

    def _scores(self, module: nn.Module, tensors: TensorSet, calibration: Calibration) -> Any:
        return study_logits(module, tensors, self._device).probabilities(calibration)

    def _labels(self, tensors: TensorSet) -> Any:
        return torch.tensor(tensors.labels).numpy()
