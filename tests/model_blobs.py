"""Images with a bright half on the left or on the right, and a small network that learns to tell them apart."""

import torch

from models.augmentation import AugmentationSettings
from models.data import TensorSet
from models.spec import ModelSpec, PreprocessingSpec
from models.training import TrainingSettings

SPEC = ModelSpec(
    name="blobs",
    task="place",
    classes=("left", "right"),
    options={"width": 4, "dropout": 0.0},
    preprocessing=PreprocessingSpec(size=(32, 32)),
    seed=1,
)
QUICK = TrainingSettings(
    epochs=2, batch_size=16, device="cpu", precision="float32", augmentation=AugmentationSettings.off(), warmup_share=0.0
)


def blobs(count: int, seed: int, *, bright: float = 1.5, noise: float = 0.3, swapped: bool = False) -> TensorSet:
    """Labels take turns; `swapped` calls the halves the other way round, so that new labels contradict old ones."""
    generator = torch.Generator().manual_seed(seed)
    labels = tuple(index % 2 for index in range(count))
    studies = []
    for label in labels:
        image = noise * torch.randn(1, 1, 32, 32, generator=generator)
        image[..., slice(0, 16) if label == 0 else slice(16, 32)] += bright
        studies.append(image)
    names = tuple(f"{seed}-{index}" for index in range(count))
    return TensorSet(tuple(studies), tuple(1 - label for label in labels) if swapped else labels, names, names)
