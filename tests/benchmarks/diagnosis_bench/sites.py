"""Real images as a site: a model trained on some, a baseline on others, the rest to come in as studies."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.bundle import BundleInfo, LoadedModel, network_of
from models.data import TensorSet
from models.faults import known_changes
from models.frames import Frames
from models.predictor import Predictor, predicted_class
from models.preprocessing import Prepared, prepare
from models.spec import DicomWindow, FixedWindow, ModelSpec, PreprocessingSpec
from models.training import TrainingSettings, train
from services.runtime.signatures import Images

Array = np.ndarray[Any, np.dtype[Any]]
EDGE, TRAINED, VALID, BASELINE, PROBED = 64, 1200, 200, 400, 160
WINDOW = (0.0, 255.0)
CT_LOW, CT_SPAN = -1000.0, 1400.0
"""Shades 0 to 255 of the CT set as Hounsfield units: a lung window."""


@dataclass(frozen=True)
class Site:
    """A model in service: what it was compared with at registration, and a pool of images that are still to come."""

    name: str
    spec: ModelSpec
    predictor: Predictor
    baseline: "Scored"
    probes: dict[str, Images]
    pool: tuple[Array, Array]
    external: tuple[Array, Array] | None
    modality: str


@dataclass(frozen=True)
class Scored:
    """Studies with their truth and what the model says of them."""

    truth: tuple[str, ...]
    predicted: tuple[str, ...]
    probabilities: tuple[dict[str, float], ...]
    images: Images
    findings: tuple[tuple[str, ...], ...]


def load(folder: Path, name: str) -> tuple[Array, Array, tuple[str, ...]]:
    """Images uint8 [n, h, w], labels and class names of a packed set."""
    with np.load(folder / name / f"{name}.npz") as packed:
        classes = tuple(str(each).lower() for each in packed["class_names"])
        return packed["images"], packed["labels"], classes


def make(folder: Path, name: str, modality: str, external: str = "", *, epochs: int, seed: int = 0) -> Site:
    """Train on a part of a set, baseline on another, keep the rest."""
    images, labels, classes = load(folder, name)
    order = np.random.default_rng(seed).permutation(len(images))
    images, labels = images[order], labels[order]
    ends = np.cumsum([TRAINED, VALID, BASELINE])
    parts = [(images[a:b], labels[a:b]) for a, b in zip([0, *ends], [*ends, len(images)], strict=True)]
    ct = modality == "CT"
    intensity: FixedWindow | DicomWindow = FixedWindow(center=CT_LOW + CT_SPAN / 2, width=CT_SPAN) if ct else DicomWindow()
    preprocessing = PreprocessingSpec(size=(EDGE, EDGE), intensity=intensity)
    spec = ModelSpec(name=name, task=name, classes=classes, preprocessing=preprocessing, modality=modality, seed=seed)
    module = network_of(spec)
    sets = [_tensors(part, spec) for part in parts[:2]]
    train(module, spec, *sets, TrainingSettings(epochs=epochs, batch_size=32, device="cpu", seed=seed, patience=epochs))
    predictor = Predictor(LoadedModel(spec, module, torch.device("cpu"), BundleInfo(folder, "", {})), "cpu")
    frames = [frames_of(image, spec) for image in parts[2][0]]
    truth = [classes[label] for label in parts[2][1]]
    other = None
    if external:
        found, wanted, _ = load(folder, external)
        other = (found, wanted)
    return Site(name, spec, predictor, score(predictor, frames, truth), _probes(frames, spec), parts[3], other, modality)


def frames_of(image: Array, spec: ModelSpec) -> Frames:
    """A decoded image as reception would give it: shades with their window, or Hounsfield units."""
    if isinstance(spec.preprocessing.intensity, FixedWindow):
        return Frames.from_array(image.astype(np.float32) / 255 * CT_SPAN + CT_LOW, (CT_LOW, CT_LOW + CT_SPAN))
    return Frames.from_array(image.astype(np.float32), WINDOW)


def score(predictor: Predictor, frames: list[Frames], truth: list[str]) -> Scored:
    """Prepare and score studies with the code that serves."""
    prepared = [prepare(each, predictor.spec.preprocessing) for each in frames]
    examined = [each for start in range(0, len(prepared), 64) for each in _examined(predictor, prepared[start : start + 64])]
    probabilities = tuple(each.probabilities for each in examined)
    images = _images(prepared, np.stack([each.embedding for each in examined]))
    findings = tuple(each.codes for each in prepared)
    return Scored(tuple(truth), tuple(predicted_class(row) for row in probabilities), probabilities, images, findings)


def _examined(predictor: Predictor, prepared: list[Prepared]) -> list[Any]:
    return predictor.examine([each.tensor for each in prepared])


def _images(prepared: list[Prepared], embedding: Array) -> Images:
    signatures = [each.signature for each in prepared if each.signature is not None]
    # Stored as float16: the benchmark sees the same rounding.
    layout = np.stack([each.layout for each in signatures]).astype(np.float16).astype(np.float32)
    kept = embedding.astype(np.float16).astype(np.float32)
    return Images(tuple(map(str, range(len(prepared)))), np.stack([each.quality for each in signatures]), layout, kept)


def _probes(frames: list[Frames], spec: ModelSpec) -> dict[str, Images]:
    changes: dict[str, Callable[[Any], Any]] = dict(known_changes(spec.preprocessing, spec.modality))
    found = {}
    for name, change in changes.items():
        changed = [Frames(tuple(change(frame) for frame in each.frames)) for each in frames[:PROBED]]
        found[name] = _images([prepare(each, spec.preprocessing) for each in changed], np.zeros((PROBED, 0)))
    return found


def _tensors(part: tuple[Array, Array], spec: ModelSpec) -> TensorSet:
    prepared = [prepare(frames_of(image, spec), spec.preprocessing) for image in part[0]]
    keys = tuple(map(str, range(len(prepared))))
    return TensorSet(tuple(each.tensor for each in prepared), tuple(int(label) for label in part[1]), keys, keys)
