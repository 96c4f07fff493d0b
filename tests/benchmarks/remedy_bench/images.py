"""Labelled image sets as tensors, split by the published protocol, and changes of known kind and strength."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from models.data import TensorSet
from models.spec import ModelSpec, PreprocessingSpec

SETS = {
    "brain_mri_nickparvar": ("MR", "HEAD"),
    "ct_sars_cov_2": ("CT", "CHEST"),
    "cxr_pneumonia_kermany": ("DX", "CHEST"),
}
REAL = {"brain_mri_nickparvar": "brain_mri_sartaj_external", "cxr_pneumonia_kermany": "cxr_nih_1000"}
"""The other hospital that the material offers, per set. NIH's classes are normal and abnormal: abnormal stands for pneumonia."""
Images = np.ndarray
Change = Callable[[Images, np.random.Generator, float], Images]


@dataclass(frozen=True)
class Pool:
    """Shades in [0, 1] as [N, H, W] float32, and labels [N]."""

    images: Images
    labels: np.ndarray

    def take(self, places: np.ndarray) -> "Pool":
        return Pool(self.images[places], self.labels[places])

    def joined(self, other: "Pool") -> "Pool":
        return Pool(np.concatenate([self.images, other.images]), np.concatenate([self.labels, other.labels]))

    def tensors(self, name: str) -> TensorSet:
        """Normalised as `models.spec` says by default; every image is a study of its own patient."""
        ready = (torch.from_numpy(self.images.astype(np.float32)) - 0.5) / 0.25
        names = tuple(f"{name}-{number}" for number in range(len(self.labels)))
        return TensorSet(tuple(ready[:, None, None].unbind(0)), tuple(int(label) for label in self.labels), names, names)


@dataclass(frozen=True)
class Protocol:
    """ReclAIm's 60 / 20 / 20: development (itself train, valid, test), inference and fine-tuning part."""

    train: Pool
    valid: Pool
    test: Pool
    inference: Pool
    finetune: Pool


def old_cases(sets: Protocol) -> Pool:
    """Cases as they were before any change that taught nobody: the test part, and the inference part unchanged.

    Without the latter a point of a class's recall could not be measured.
    """
    return sets.test.joined(sets.inference)


def load(folder: Path, name: str, size: int, most: int, seed: int, start: int = 0) -> tuple[Pool, list[str]]:
    """At most `most` images of a set, from the `start`-th in random order on, resized with antialiasing, and its classes' names."""
    with np.load(folder / name / f"{name}.npz", allow_pickle=False) as stored:
        images, labels, classes = stored["images"], stored["labels"], [str(each) for each in stored["class_names"]]
    chosen = np.sort(np.random.default_rng(seed).permutation(len(labels))[start : start + most])
    shades = torch.from_numpy(images[chosen].astype(np.float32) / 255)[:, None]
    shades = functional.interpolate(shades, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return Pool(shades[:, 0].clamp(0, 1).numpy(), labels[chosen].astype(np.int64)), classes


def split(pool: Pool, seed: int) -> Protocol:
    """60 / 20 / 20 at random; of the development part 70 / 10 / 20 for training, validation and test."""
    order = np.random.default_rng([seed, 1]).permutation(len(pool.labels))
    cuts = (np.cumsum([0.42, 0.06, 0.12, 0.2]) * len(order)).astype(int)
    return Protocol(*(pool.take(part) for part in np.split(order, cuts)))


def spec_of(name: str, classes: list[str], network: str, size: int) -> ModelSpec:
    """A model of one set."""
    modality, body_part = SETS[name]
    return ModelSpec(
        name=f"{name[:40].replace('_', '-')}",
        task="benchmark",
        classes=tuple(classes),
        network=network,
        modality=modality,
        body_part=body_part,
        preprocessing=PreprocessingSpec(size=(size, size)),
        seed=1,
    )


def _each(change: Callable[[Images, np.random.Generator, float], Images]) -> Change:
    return lambda images, random, strength: np.stack([change(image, random, strength) for image in images])


def _resolution(images: Images, _: np.random.Generator, strength: float) -> Images:
    side = images.shape[-1]
    small = max(4, round(side / strength))
    tensor = functional.interpolate(torch.from_numpy(images)[:, None], size=(small, small), mode="area")
    return functional.interpolate(tensor, size=(side, side), mode="bilinear", align_corners=False)[:, 0].numpy()


def _crop(images: Images, _: np.random.Generator, strength: float) -> Images:
    side = images.shape[-1]
    edge = round(side * strength / 2)
    tensor = torch.from_numpy(images[:, edge : side - edge, edge : side - edge].copy())[:, None]
    return functional.interpolate(tensor, size=(side, side), mode="bilinear", align_corners=False)[:, 0].numpy()


CHANGES: dict[str, tuple[Change, tuple[float, float, float]]] = {
    "blur": (_each(lambda image, _, sigma: gaussian_filter(image, sigma)), (0.8, 1.5, 2.5)),
    "noise": (lambda images, random, sd: images + random.normal(0, sd, images.shape), (0.05, 0.12, 0.25)),
    "gamma": (lambda images, _, power: np.clip(images, 0, 1) ** power, (1.5, 2.2, 3.5)),
    "contrast": (lambda images, _, factor: 0.5 + factor * (images - 0.5), (0.7, 0.45, 0.25)),
    "resolution": (_resolution, (1.6, 2.5, 4.0)),
    "window": (lambda images, _, lift: (images - lift) / (1 - 2 * lift), (0.1, 0.2, 0.3)),
    "inversion": (
        lambda images, random, share: np.where(random.random(len(images))[:, None, None] < share, 1 - images, images),
        (0.3, 0.6, 1.0),
    ),
    "crop": (_crop, (0.15, 0.3, 0.45)),
}
"""Changes of the images, with three strengths each (in the units of the change)."""
MIXES = ("prevalence", "label_noise")
"""Changes of the patients or of the labels; their strengths are shares."""
SHARES = (0.15, 0.3, 0.45)


def shifted(pool: Pool, name: str, strength: int, seed: int) -> Pool:
    """The pool after a change: images, or the mix of classes, or some of the labels (drawn anew at random)."""
    random = np.random.default_rng([seed, strength, len(pool.labels)])
    if name == "prevalence":
        keep = (pool.labels == 0) | (random.random(len(pool.labels)) < 1 - 2 * SHARES[strength])
        return pool.take(np.flatnonzero(keep))
    if name == "label_noise":
        wrong = random.random(len(pool.labels)) < SHARES[strength]
        return Pool(pool.images, np.where(wrong, random.integers(0, pool.labels.max() + 1, len(pool.labels)), pool.labels))
    change, strengths = CHANGES[name]
    return Pool(np.clip(change(pool.images, random, strengths[strength]), 0, 1).astype(np.float32), pool.labels)
