"""Which of several repairs is best on held-out old and new cases: one cost for every choice that a run makes by itself."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from models.data import TensorSet
from models.logits import Floats, Integers, balanced_loss, class_recalls, macro_recall, study_logits, surprise
from models.spec import Calibration

TOLERANCE = 0.01
"""Loss of a class's recall on the held-out old cases that costs nothing."""
PRICE = 100.0
"""Nats that one whole recall of an old class costs that is shown to be lost beyond the tolerance: a point costs one nat, so
that a candidate that forgets wins only where every other one forgets too."""
DEAR = 0.02
"""Nats that a calibration which serves the old cases may cost each new one."""
SURE = 1.645
"""Standard errors of a one-sided bound of 95 %: with 50 cases of a class one of them is two points, and chance alone moves it."""


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
    forgotten: float = 0.0
    """Recall that old classes are shown (one-sided, 95 %) to lose beyond the tolerance, summed; zero where none is."""

    @property
    def keeps(self) -> bool:
        """Whether no old class is shown to lose more than the tolerance."""
        return self.forgotten == 0

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
        labels = _labels(old)
        scores = self._scores(champion, old, calibration) if len(old) else np.zeros((0, 1))
        own = class_recalls(scores, labels) if len(old) else {}
        self._right = scores.argmax(axis=1) == labels
        self.reference = {label: max(recall, (reference or {}).get(label, 0.0)) for label, recall in own.items()}

    def judge(self, module: nn.Module, calibration: Calibration | None = None) -> Merit:
        """Score a candidate, with the champion's calibration where none is given. Leaves it on the jury's device."""
        chosen = calibration or self._calibration
        module.to(self._device)
        new_loss, new_recall = 0.0, 0.0
        if len(self._new):
            scores, labels = self._scores(module, self._new, chosen), _labels(self._new)
            new_loss, new_recall = balanced_loss(scores, labels), macro_recall(scores, labels)
        if not len(self._old):
            return Merit(new_loss, new_loss, new_recall, 0.0, 0.0, 0.0)
        scores, labels = self._scores(module, self._old, chosen), _labels(self._old)
        old_loss, lost = balanced_loss(scores, labels), self._lost(scores, labels)
        forgotten = sum(max(0.0, loss - SURE * error - TOLERANCE) for loss, error in lost)
        cost = new_loss + old_loss + PRICE * forgotten
        worst = max((loss for loss, _ in lost), default=0.0)
        return Merit(cost, new_loss, new_recall, old_loss, macro_recall(scores, labels), worst, forgotten)

    def objects(self, module: nn.Module, calibration: Calibration) -> bool:
        """Whether new cases are shown (one-sided, 95 %) to lose more than `DEAR` nats by it against the champion's calibration."""
        if len(self._new) < 2:
            return False
        module.to(self._device)
        cases = study_logits(module, self._new, self._device)
        present, other = (surprise(cases.probabilities(each), cases.labels) for each in (self._calibration, calibration))
        dearer = other - present
        return bool(dearer.mean() - SURE * dearer.std(ddof=1) / math.sqrt(len(dearer)) > DEAR)

    def _lost(self, scores: Floats, labels: Integers) -> list[tuple[float, float]]:
        """Each old class's loss of recall and its standard error, from the cases on which candidate and champion differ."""
        after, right = class_recalls(scores, labels), scores.argmax(axis=1) == labels
        return [
            (kept - after[label], _paired_error(self._right[labels == label], right[labels == label]))
            for label, kept in self.reference.items()
        ]

    def _scores(self, module: nn.Module, tensors: TensorSet, calibration: Calibration) -> Floats:
        return study_logits(module, tensors, self._device).probabilities(calibration)


def _labels(tensors: TensorSet) -> Integers:
    return np.asarray(tensors.labels, dtype=np.int64)


def _paired_error(before: np.typing.NDArray[np.bool_], after: np.typing.NDArray[np.bool_]) -> float:
    """Standard error of the change of a share in paired cases (McNemar)."""
    change = after.astype(np.float64) - before
    return math.sqrt(float(np.square(change - change.mean()).sum())) / len(change)
