"""Probabilities of studies: all images of all studies through as few forward passes as possible."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle import LoadedModel
from models.embedding import features_of
from models.errors import UnsuitableStudy
from models.spec import ModelSpec

Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]


def choose_device(wanted: str = "auto") -> torch.device:
    """The device of a setting: `auto` is a GPU where there is one, the CPU otherwise."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted)


@dataclass(frozen=True, slots=True)
class Examined:
    """What a network says of one study: class probabilities, and its penultimate features [at most 64] (`models.embedding`)."""

    probabilities: dict[str, float]
    embedding: NDArray[np.float32]


class Predictor:
    """Scores prepared studies with one loaded model. Not for use from several threads at once.

    `precision` auto is bfloat16 on a GPU that computes it and float32 elsewhere.
    """

    def __init__(
        self, loaded: LoadedModel, device: str | torch.device = "auto", precision: Precision = "auto", batch_size: int = 32
    ) -> None:
        self.spec: ModelSpec = loaded.spec
        self.device = choose_device(device) if isinstance(device, str) else device
        self.batch_size = batch_size
        bf16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported() if precision == "auto" else precision == "bfloat16"
        self._autocast = bf16
        self._format = torch.channels_last if self.spec.preprocessing.spatial_dims == 2 else torch.channels_last_3d
        self._module = loaded.module.to(self.device, memory_format=self._format).eval()  # type: ignore[call-overload]
        self._offsets = torch.tensor(self.spec.calibration.offsets or (0.0,) * len(self.spec.classes))

    def predict(self, studies: Sequence[torch.Tensor]) -> list[dict[str, float]]:
        """Class probabilities per study; its images' probabilities are averaged.

        Each study is [k, C, (D,) H, W] with k >= 1 as `models.preprocessing` makes it. Raises UnsuitableStudy for
        another shape and for a network that gives values that are not finite.
        """
        return [each.probabilities for each in self.examine(studies)]

    def examine(self, studies: Sequence[torch.Tensor]) -> list[Examined]:
        """As `predict`, with the embedding of each study: the mean of its images'."""
        if not studies:
            return []
        self._check(studies)
        with features_of(self._module) as caught:
            probabilities = self.probabilities(studies[0] if len(studies) == 1 else torch.cat(list(studies)))
        counts = [len(study) for study in studies]
        parts = torch.split(probabilities, counts)
        embeddings = np.split(caught.embeddings(), np.cumsum(counts)[:-1])
        return [
            Examined(dict(zip(self.spec.classes, part.mean(dim=0).tolist(), strict=True)), rows.mean(axis=0))
            for part, rows in zip(parts, embeddings, strict=True)
        ]

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """Calibrated probabilities [n, classes] in float64 on the CPU, of images [n, C, (D,) H, W]."""
        logits = self.logits(images).double()
        if not bool(torch.isfinite(logits).all()):
            raise UnsuitableStudy("the network gave values that are not finite")
        return torch.softmax(logits / self.spec.calibration.temperature + self._offsets, dim=1)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Raw outputs [n, classes] in float32 on the CPU."""
        with torch.inference_mode():
            return torch.cat([self._forward(batch) for batch in torch.split(images, self.batch_size)]).cpu()

    def _forward(self, batch: torch.Tensor) -> torch.Tensor:
        placed = batch.to(self.device, non_blocking=True).contiguous(memory_format=self._format)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            outputs: torch.Tensor = self._module(placed)
        return outputs.float()

    def _check(self, studies: Iterable[torch.Tensor]) -> None:
        preprocessing = self.spec.preprocessing
        expected = (preprocessing.channels, *preprocessing.size)
        for study in studies:
            if len(study) == 0 or tuple(study.shape[1:]) != expected:
                raise UnsuitableStudy(f"prepared images are {tuple(study.shape)}, the model takes [k, {expected}]")


def predicted_class(probabilities: Mapping[str, float]) -> str:
    """The most probable class; of equal ones the first in the model's order."""
    return max(probabilities, key=lambda name: probabilities[name])
