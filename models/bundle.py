"""A model on disk: a MONAI bundle with safetensors weights and a manifest of hashes. Nothing in it is executed or unpickled.

configs/metadata.json     MONAI's metadata fields, and the model's specification under `reclaim`
configs/inference.json    for monai.bundle.ConfigParser: `network_def` and the preprocessing
models/model.safetensors  weights
docs/README.md            the card
manifest.json             SHA-256 of each file above
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from models.bundle_text import card, inference_config, metadata
from models.errors import BrokenBundle, UnknownNetwork
from models.harmonisation import harmonise
from models.networks import build_network
from models.spec import ModelSpec

WEIGHTS = "models/model.safetensors"
METADATA = "configs/metadata.json"
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class BundleInfo:
    """A written or verified bundle: its folder, the hash of its weights, and the hash of each file."""

    folder: Path
    sha256: str
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A network with its weights in evaluation mode on `device`, its specification and how it was trained."""

    spec: ModelSpec
    module: nn.Module
    device: torch.device
    info: BundleInfo
    training: Mapping[str, Any] = field(default_factory=dict)


def network_of(spec: ModelSpec) -> nn.Module:
    """The untrained network of a specification, initialised from its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        preprocessing = spec.preprocessing
        network = build_network(
            spec.network, len(spec.classes), preprocessing.channels, preprocessing.spatial_dims, **dict(spec.options)
        )
    if spec.harmonisation is not None:
        harmonise(network, spec.harmonisation, preprocessing)
    return network


def save_bundle(
    folder: Path, spec: ModelSpec, module: nn.Module, training: Mapping[str, Any] | None = None, *, now: datetime | None = None
) -> BundleInfo:
    """Write a bundle; it appears whole or not at all. `training` is any JSON record of how the weights came about.

    Raises FileExistsError where `folder` is there already: a version's artefact never changes.
    """
    if folder.exists():
        msg = f"{folder.name} exists; a model version's bundle is never overwritten"
        raise FileExistsError(msg)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        files = _write_draft(draft, spec, module, dict(training or {}), now or datetime.now(UTC))
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    _sync(folder.parent)
    return BundleInfo(folder, files[WEIGHTS], files)


def load_bundle(folder: Path, device: str | torch.device = "cpu") -> LoadedModel:
    """Verify and load a bundle. Raises BrokenBundle for a missing, altered or unknown part."""
    info = verify_bundle(folder)
    document = _json(folder / METADATA)
    spec = _spec(document)
    place = torch.device(device)
    try:
        module = network_of(spec)
        module.load_state_dict(load_file(folder / WEIGHTS))
    except (UnknownNetwork, RuntimeError, OSError, SafetensorError) as error:
        raise BrokenBundle(f"{folder.name}: the weights do not fit network {spec.network!r} ({type(error).__name__})") from error
    return LoadedModel(spec, module.to(place).eval(), place, info, document["reclaim"].get("training", {}))


def read_spec(folder: Path) -> ModelSpec:
    """The specification of a bundle, without verifying its weights."""
    return _spec(_json(folder / METADATA))


def read_training(folder: Path) -> dict[str, Any]:
    """The record of how a bundle's weights came about, empty where it has none. Raises BrokenBundle."""
    return dict(_json(folder / METADATA).get("reclaim", {}).get("training", {}))


def verify_bundle(folder: Path) -> BundleInfo:
    """Compare every file with the manifest's hash. Raises BrokenBundle."""
    listed = _json(folder / MANIFEST).get("sha256")
    if not isinstance(listed, dict) or WEIGHTS not in listed or METADATA not in listed:
        raise BrokenBundle(f"{folder.name}: the manifest does not name {WEIGHTS} and {METADATA}")
    for name, expected in listed.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            raise BrokenBundle(f"{folder.name}: {name} is missing")
        if _hash(path) != expected:
            raise BrokenBundle(f"{folder.name}: {name} was altered after the bundle was written")
    return BundleInfo(folder, listed[WEIGHTS], listed)


def _write_draft(draft: Path, spec: ModelSpec, module: nn.Module, training: dict[str, Any], now: datetime) -> dict[str, str]:
    for part in ("configs", "models", "docs"):
        (draft / part).mkdir(parents=True)
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    save_file(weights, draft / WEIGHTS, metadata={"format": "pt"})
    versions = {name: _version(name) for name in ("monai", "torch", "numpy", "torchvision")}
    _write(draft / METADATA, _dumped(metadata(spec, training, versions, now)))
    _write(draft / "configs/inference.json", _dumped(inference_config(spec)))
    _write(draft / "docs/README.md", card(spec, training))
    files = {str(path.relative_to(draft).as_posix()): _hash(path) for path in sorted(draft.rglob("*")) if path.is_file()}
    _write(draft / MANIFEST, _dumped({"sha256": files}))
    for path in sorted(draft.rglob("*")):
        _sync(path)
    _sync(draft)
    return files


def _spec(document: Mapping[str, Any]) -> ModelSpec:
    try:
        return ModelSpec.model_validate(document["reclaim"]["model"])
    except (KeyError, TypeError, ValidationError) as error:
        raise BrokenBundle(f"the metadata holds no valid model specification ({type(error).__name__})") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BrokenBundle(f"{path.parent.name}/{path.name} cannot be read ({type(error).__name__})") from error
    if not isinstance(document, dict):
        raise BrokenBundle(f"{path.name} is not a JSON object")
    return document


def _dumped(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
