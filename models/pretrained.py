"""Start weights by reference: a local file, one inside an installed package, a hub's name, or an address; known by their SHA-256.

Safetensors, or a torch file read with `weights_only`, so that nothing in it is executed. Nothing is downloaded unless a
reference of kind `hub` or `address` is asked for; what came is kept under its hash and never fetched twice. What comes over a
network must be named by a hash beforehand: an address by the caller, a hub's file by the digits that the installed
torchvision knows. For a file on this machine the hash may be left out; then it is found out, to be recorded.
"""

import hashlib
import os
import re
import shutil
import urllib.request
import uuid
from http.client import HTTPException
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, TypeAlias
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

import torch
from pydantic import Field, ValidationError
from safetensors.torch import load_file

from models.errors import BrokenBundle
from models.spec import Spec

SHA256 = r"^[0-9a-f]{64}$"
TIMEOUT_S = 60.0
SUFFIXES = (".safetensors", ".pth", ".pt")
PACKAGE, HUB = "package:", "hub:"
WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts keep the weights."""


class LocalWeights(Spec):
    """A file on this machine."""

    kind: Literal["local"] = "local"
    path: Path
    sha256: str | None = Field(None, pattern=SHA256)


class PackagedWeights(Spec):
    """A file inside an installed Python package; without a name the only weights file in it."""

    kind: Literal["package"] = "package"
    package: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$")
    file: str = ""
    sha256: str | None = Field(None, pattern=SHA256)


class HubWeights(Spec):
    """Weights that torchvision offers, by its own name for them, such as ResNet50_Weights.IMAGENET1K_V2."""

    kind: Literal["hub"] = "hub"
    name: str = Field(pattern=r"^[A-Za-z0-9_]+\.[A-Za-z0-9_]+$")
    sha256: str | None = Field(None, pattern=SHA256)


class WeightsAtAddress(Spec):
    """A file that a hub or a hospital's own server offers over HTTPS."""

    kind: Literal["address"] = "address"
    url: str = Field(pattern=r"^https://")
    sha256: str = Field(pattern=SHA256)


AnyWeights: TypeAlias = LocalWeights | PackagedWeights | HubWeights | WeightsAtAddress
Weights = Annotated[AnyWeights, Field(discriminator="kind")]


def weights_of(reference: str, sha256: str | None = None) -> AnyWeights:
    """What a person's words name: PATH, package:NAME, package:NAME/FILE, hub:NAME, or an https address.

    Raises BrokenBundle for words that name nothing of that kind, and for an address without a hash.
    """
    known = {"sha256": sha256.lower()} if sha256 else {}
    try:
        if reference.startswith(PACKAGE):
            package, _, file = reference.removeprefix(PACKAGE).partition("/")
            return PackagedWeights(package=package, file=file, **known)
        if reference.startswith(HUB):
            return HubWeights(name=reference.removeprefix(HUB), **known)
        if "://" in reference:
            return WeightsAtAddress.model_validate({"url": reference} | known)
        return LocalWeights(path=Path(reference), **known)
    except ValidationError as error:
        raise BrokenBundle(f"the start weights {reference!r} are not named rightly: {_faults(error)}") from None


def find_weights(weights: AnyWeights, cache: Path) -> Path:
    """The verified file. `cache` keeps what was downloaded. Raises BrokenBundle for a missing file or another hash."""
    if isinstance(weights, WeightsAtAddress):
        path = _fetched(weights.url, weights.sha256, cache)
    elif isinstance(weights, HubWeights):
        path = _from_hub(weights, cache)
    elif isinstance(weights, PackagedWeights):
        path = _packaged(weights)
    else:
        path = weights.path
    if not path.is_file():
        raise BrokenBundle(f"the start weights {path.name} do not exist")
    found = digest(path)
    if weights.sha256 is not None and found != weights.sha256:
        raise BrokenBundle(
            f"the start weights {path.name} are not those that were named: their SHA-256 differs, it is {found} instead of "
            f"{weights.sha256}"
        )
    return path


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _faults(error: ValidationError) -> str:
    where = {"url": "an address has to begin with https://", "sha256": "give their SHA-256, 64 hexadecimal digits"}
    places = [str(item["loc"][-1]) for item in error.errors()]
    return "; ".join(dict.fromkeys(where.get(place, f"{place} is not valid") for place in places))


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
    if not weights.file:
        return _only_file(weights.package, root)
    path = root / weights.file
    if not path.resolve().is_relative_to(root.resolve()):
        raise BrokenBundle("the start weights' file leaves its package")
    return path


def _only_file(package: str, root: Path) -> Path:
    found = sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES)
    if len(found) != 1:
        listed = ", ".join(str(path.relative_to(root)) for path in found[:5]) or "none"
        raise BrokenBundle(f"name the file as package:{package}/FILE: the package holds {len(found)} weights files ({listed})")
    return found[0]


def _from_hub(weights: HubWeights, cache: Path) -> Path:
    """A file of torchvision's carries the first digits of its hash in its name, for which the installed package vouches."""
    # Imported here because it costs two seconds that a process without such weights need not pay.
    from torchvision.models import get_weight  # noqa: PLC0415

    try:
        url = str(get_weight(weights.name).url)
    except (ValueError, AttributeError, KeyError) as error:
        raise BrokenBundle(f"the installed torchvision offers no weights {weights.name!r}") from error
    known = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", url)
    expected = weights.sha256 or (known.group(1) if known else None)
    if expected is None:
        raise BrokenBundle(f"the hub names no hash of {weights.name}; give their SHA-256")
    return _fetched(url, expected, cache)


def _fetched(url: str, sha256: str, cache: Path) -> Path:
    """The file at an address, whose hash begins with `sha256`."""
    name = Path(urlsplit(url).path).name
    target = cache / f"{sha256[:16]}-{name}"
    if target.is_file() and digest(target).startswith(sha256):
        return target
    cache.mkdir(parents=True, exist_ok=True)
    draft = cache / f".{uuid.uuid4().hex}"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, draft.open("wb") as file:  # noqa: S310 - https by its type
            shutil.copyfileobj(answer, file)
            file.flush()
            os.fsync(file.fileno())
        if not digest(draft).startswith(sha256):
            raise BrokenBundle(f"what came from the address of {name} is not what was named: its SHA-256 differs")
        draft.rename(target)
    except (OSError, HTTPException) as error:
        raise BrokenBundle(
            f"the start weights {name} could not be fetched ({_why(error)}): is there a way from this machine to "
            f"{urlsplit(url).hostname}? Otherwise fetch them elsewhere and name the file"
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    return target


def _why(error: OSError | HTTPException) -> str:
    if isinstance(error, HTTPError):
        return f"the server answers {error.code} {error.reason}"
    reason = error.reason if isinstance(error, URLError) else error
    return f"{type(reason).__name__}: {reason}"[:200] if isinstance(reason, Exception) else str(reason)[:200]
