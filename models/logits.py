"""A network's raw outputs of labelled studies: what calibration, thresholds and the choice among repairs are worked out on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.data import TensorSet
from models.errors import TrainingFailed
from models.spec import Calibration

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StudyLogits:
    """Logits [images, classes], the study that each image belongs to [images], and the studies' labels [studies]."""

    logits: Floats
    study: Integers
    labels: Integers

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        """Number of the network's outputs."""
        return int(self.logits.shape[1])

    def probabilities(self, calibration: Calibration | None = None) -> Floats:
        """Probabilities [studies, classes] as serving computes them: calibrated for each image, averaged over a study's images."""
        chosen = calibration or Calibration()
        scaled = self.logits / chosen.temperature + (np.asarray(chosen.offsets) if chosen.offsets else 0.0)
        scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        scaled /= scaled.sum(axis=1, keepdims=True)
        sums = np.zeros((len(self), self.classes))
        np.add.at(sums, self.study, scaled)
        return np.asarray(sums / np.bincount(self.study, minlength=len(self))[:, None])


def study_logits(
    module: nn.Module, tensors: TensorSet, device: torch.device, *, batch_size: int = 64, autocast: bool = False
) -> StudyLogits:
    """Score every image of a set; leaves the module in evaluation mode. Raises TrainingFailed for values that are not finite."""
    module.eval()
    images = [image for study in tensors.studies for image in study]
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        parts = [
            module(torch.stack(images[start : start + batch_size]).to(device)).float().cpu()
            for start in range(0, len(images), batch_size)
        ]
    logits = torch.cat(parts).double().numpy() if parts else np.zeros((0, 1))
    if not np.isfinite(logits).all():
        raise TrainingFailed("the network gives values that are not finite on the held-out cases")
    counts = [len(study) for study in tensors.studies]
    return StudyLogits(logits, np.repeat(np.arange(len(counts)), counts), np.asarray(tensors.labels, dtype=np.int64))


def folds_of(patients: Integers, number: int, seed: int) -> Integers:
    """The fold of each study [studies], by chance; those of one patient [studies] share it, so that none is known in another."""
    known, places = np.unique(patients, return_inverse=True)
    return np.asarray(np.random.default_rng(seed).permutation(len(known))[places] % number)


def surprise(probabilities: Floats, labels: Integers) -> Floats:
    """Negative log likelihood of each study in nats."""
    return np.asarray(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, None)))


def log_likelihood_loss(probabilities: Floats, labels: Integers) -> float:
    """Mean negative log likelihood in nats."""
    return float(surprise(probabilities, labels).mean())


def balanced_loss(probabilities: Floats, labels: Integers) -> float:
    """Negative log likelihood, mean over the classes present of the mean over their studies."""
    each = surprise(probabilities, labels)
    return float(np.mean([each[labels == label].mean() for label in np.unique(labels)]))


def class_recalls(probabilities: Floats, labels: Integers) -> dict[int, float]:
    """Recall of every class that is present."""
    right = probabilities.argmax(axis=1) == labels
    return {int(label): float(right[labels == label].mean()) for label in np.unique(labels)}


def macro_recall(probabilities: Floats, labels: Integers) -> float:
    """Mean recall of the classes present."""
    return float(np.mean(list(class_recalls(probabilities, labels).values())))


def joined(parts: Sequence[StudyLogits]) -> StudyLogits:
    """Several sets as one."""
    starts = np.cumsum([0, *(len(part) for part in parts[:-1])])
    study = np.concatenate([part.study + start for part, start in zip(parts, starts, strict=True)])
    return StudyLogits(np.concatenate([part.logits for part in parts]), study, np.concatenate([part.labels for part in parts]))
