"""Start weights by reference: a local file, a file inside an installed package, or an address; always checked by their SHA-256.

Safetensors, or a torch file read with `weights_only`, so that nothing in it is executed. Nothing is downloaded unless a
reference of kind `address` is asked for; what came is kept under its hash and never fetched twice.
"""

import hashlib
import os
import shutil
import urllib.request
import uuid
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file

from models.errors import BrokenBundle
from models.spec import Spec

SHA256 = r"^[0-9a-f]{64}$"
TIMEOUT_S = 60.0
WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts keep the weights."""


class LocalWeights(Spec):
    """A file on this machine."""

    kind: Literal["local"] = "local"
    path: Path
    sha256: str = Field(pattern=SHA256)


class PackagedWeights(Spec):
    """A file inside an installed Python package."""

    kind: Literal["package"] = "package"
    package: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$")
    file: str = Field(min_length=1)
    sha256: str = Field(pattern=SHA256)


class WeightsAtAddress(Spec):
    """A file that a hub or a hospital's own server offers over HTTPS."""

    kind: Literal["address"] = "address"
    url: str = Field(pattern=r"^https://")
    sha256: str = Field(pattern=SHA256)


Weights = Annotated[LocalWeights | PackagedWeights | WeightsAtAddress, Field(discriminator="kind")]


def find_weights(weights: LocalWeights | PackagedWeights | WeightsAtAddress, cache: Path) -> Path:
    """The verified file. `cache` keeps what was downloaded. Raises BrokenBundle for a missing file or another hash."""
    if isinstance(weights, WeightsAtAddress):
        path = _fetched(weights, cache)
    elif isinstance(weights, PackagedWeights):
        path = _packaged(weights)
    else:
        path = weights.path
    if not path.is_file():
        raise BrokenBundle(f"the start weights {path.name} do not exist")
    if _sha256(path) != weights.sha256:
        raise BrokenBundle(f"the start weights {path.name} are not those that were named: their SHA-256 differs")
    return path


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file or a torch state dict; raises BrokenBundle for anything else, without executing it."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BrokenBundle(f"{path.name} is not a readable safetensors file or state dict ({type(error).__name__})") from error
    for wrapper in WRAPPERS:
        found = found.get(wrapper, found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise BrokenBundle(f"{path.name} holds no state dict")
    # Networks trained on several GPUs have their names behind `module.`
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def _packaged(weights: PackagedWeights) -> Path:
    try:
        root = Path(str(resources.files(weights.package)))
    except (ModuleNotFoundError, TypeError) as error:
        raise BrokenBundle(f"the package {weights.package} with the start weights is not installed") from error
    path = root / weights.file
    if not path.resolve().is_relative_to(root.resolve()):
        raise BrokenBundle("the start weights' file leaves its package")
    return path


def _fetched(weights: WeightsAtAddress, cache: Path) -> Path:
    name = Path(weights.url).name
    target = cache / f"{weights.sha256[:16]}-{name}"
    if target.is_file():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    draft = cache / f".{uuid.uuid4().hex}"
    try:
        with urllib.request.urlopen(weights.url, timeout=TIMEOUT_S) as answer, draft.open("wb") as file:  # noqa: S310 - https by its type
            shutil.copyfileobj(answer, file)
            file.flush()
            os.fsync(file.fileno())
        if _sha256(draft) != weights.sha256:
            raise BrokenBundle(f"what came from the address of {name} is not what was named: its SHA-256 differs")
        draft.rename(target)
    except OSError as error:
        raise BrokenBundle(f"the start weights {name} could not be fetched ({type(error).__name__})") from error
    finally:
        draft.unlink(missing_ok=True)
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
