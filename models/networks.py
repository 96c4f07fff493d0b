"""Networks by name, all taking [B, C, (D,) H, W] and giving logits [B, classes], and what of them is head and what is body."""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.errors import BrokenBundle, UnknownNetwork
from models.pretrained import read_weights
from models.small_network import SmallNetwork

Options = Mapping[str, int | float | str | bool]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How a network is built and where its parts are.

    `build(classes, channels, spatial_dims, options)`; `head` is the attribute of the classifying layers, `body` the
    attribute whose children are the blocks in forward order ("" for the module itself). `renamed` gives the name here of a
    tensor in weights that others publish for this network.
    """

    build: Callable[[int, int, int, Options], nn.Module]
    head: str
    body: str
    spatial_dims: tuple[int, ...] = (2,)
    renamed: Callable[[str], str] = str


def build_network(name: str, classes: int, channels: int = 1, spatial_dims: int = 2, **options: float | str | bool) -> nn.Module:
    """An untrained network. Raises UnknownNetwork for an unknown name, option or number of dimensions."""
    architecture = _architecture(name)
    if spatial_dims not in architecture.spatial_dims:
        others = ", ".join(each for each, known in ARCHITECTURES.items() if spatial_dims in known.spatial_dims)
        raise UnknownNetwork(
            f"network {name!r} takes {architecture.spatial_dims} spatial dimensions, not {spatial_dims}, which {others} take"
        )
    try:
        module = architecture.build(classes, channels, spatial_dims, options)
    except TypeError as error:
        raise UnknownNetwork(f"network {name!r} does not take these options: {error}") from error
    module.architecture = name  # type: ignore[assignment]
    return module


def network_names() -> tuple[str, ...]:
    """Every name that `build_network` knows."""
    return tuple(ARCHITECTURES)


def head_name(module: nn.Module) -> str:
    """Name of the classifying layers within a network made by `build_network`."""
    return _architecture_of(module).head


def head_of(module: nn.Module) -> nn.Module:
    """The classifying layers of a network made by `build_network`."""
    return module.get_submodule(head_name(module))


def head_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Parameters of the classifying layers."""
    return list(head_of(module).parameters())


def body_parameters(module: nn.Module) -> list[nn.Parameter]:
    """All parameters that are not the head's."""
    head = {id(parameter) for parameter in head_parameters(module)}
    return [parameter for parameter in module.parameters() if id(parameter) not in head]


def body_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks of the body that hold parameters, in forward order."""
    head = head_of(module)
    children = module.get_submodule(_architecture_of(module).body).children()
    return [block for block in children if block is not head and any(True for _ in block.parameters())]


def load_pretrained(module: nn.Module, path: Path) -> tuple[str, ...]:
    """Take body weights from a local safetensors file or state dict; gives the names that were taken.

    A first convolution for three channels is summed over them for a grey network, which equals repeating the grey image.
    Raises BrokenBundle where the file does not fit the network.
    """
    own, given = module.state_dict(), read_weights(path)
    architecture = _architecture_of(module)
    given = {architecture.renamed(name): tensor for name, tensor in given.items()}
    prefix = architecture.head + "."
    fitted = {
        name: _fitted(name, given[name], value) for name, value in own.items() if name in given and not name.startswith(prefix)
    }
    missing = [name for name in own if name not in fitted and not name.startswith(prefix) and "num_batches" not in name]
    if missing:
        needed = sum(not name.startswith(prefix) for name in own)
        raise BrokenBundle(
            f"{path.name} does not fit the network {module.architecture!r}: it lacks {len(missing)} of its {needed} tensors, first "
            f"{missing[0]}; its own begin with {next(iter(given), 'none')}. Is it of another network?"
        )
    module.load_state_dict({**own, **fitted})
    return tuple(fitted)


def _fitted(name: str, given: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    if given.shape == own.shape:
        return given
    if given.ndim >= 4 and own.shape[1] == 1 and (given.shape[0], *given.shape[2:]) == (own.shape[0], *own.shape[2:]):
        return given.sum(dim=1, keepdim=True)
    raise BrokenBundle(
        f"the start weights do not fit: tensor {name} is {tuple(given.shape)}, the network needs {tuple(own.shape)}; are they of "
        "another size or number of dimensions?"
    )


def _architecture(name: str) -> Architecture:
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    near = difflib.get_close_matches(name, ARCHITECTURES, n=1, cutoff=0.0)
    raise UnknownNetwork(f"unknown network {name!r}; the nearest known one is {near[0]!r}")


def _architecture_of(module: nn.Module) -> Architecture:
    return _architecture(str(getattr(module, "architecture", "")))


def _small(classes: int, channels: int, spatial_dims: int, options: Options) -> nn.Module:
    values: dict[str, Any] = dict(options)
    return SmallNetwork(classes, channels, spatial_dims, **values)


def _torchvision(name: str, **fixed: Any) -> Callable[[int, int, int, Options], nn.Module]:
    def build(classes: int, channels: int, _spatial_dims: int, options: Options) -> nn.Module:
        # Imported here because it costs two seconds that a process without such a network need not pay.
        from torchvision import models as zoo  # noqa: PLC0415

        module: nn.Module = zoo.get_model(name, weights=None, num_classes=classes, **fixed, **options)
        _take_channels(module, channels)
        return module

    return build


def _take_channels(module: nn.Module, channels: int) -> None:
    """Replace the first convolution by one for `channels` channels."""
    name, first = next((name, each) for name, each in module.named_modules() if isinstance(each, nn.Conv2d))
    if first.in_channels == channels:
        return
    stride, padding, bias = first.stride, first.padding, first.bias is not None
    size: Any = first.kernel_size
    adapted = nn.Conv2d(channels, first.out_channels, size, stride, padding, bias=bias)  # type: ignore[arg-type]
    parent, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(parent), attribute, adapted)


def _monai_densenet(classes: int, channels: int, spatial_dims: int, options: Options) -> nn.Module:
    from monai.networks.nets import DenseNet121  # noqa: PLC0415 - several seconds, only where used

    module: nn.Module = DenseNet121(spatial_dims=spatial_dims, in_channels=channels, out_channels=classes, **options)
    return module


def _as_in_monai(name: str) -> str:
    """The name in MONAI of a DenseNet's tensor of torchvision: there the layers of a dense layer have no module of their own."""
    return re.sub(r"(denselayer\d+)\.(norm|conv)", r"\1.layers.\2", name)


def _monai_resnet(name: str) -> Callable[[int, int, int, Options], nn.Module]:
    def build(classes: int, channels: int, spatial_dims: int, options: Options) -> nn.Module:
        from monai.networks import nets  # noqa: PLC0415 - several seconds, only where used

        make = getattr(nets, name)
        module: nn.Module = make(spatial_dims=spatial_dims, n_input_channels=channels, num_classes=classes, **options)
        return module

    return build


ARCHITECTURES: dict[str, Architecture] = {
    "small": Architecture(_small, "head", "features", (2, 3)),
    "resnet50": Architecture(_torchvision("resnet50"), "fc", ""),
    "inception_v3": Architecture(_torchvision("inception_v3", aux_logits=False, init_weights=False), "fc", ""),
    "efficientnet_b0": Architecture(_torchvision("efficientnet_b0"), "classifier", "features"),
    "efficientnet_v2_s": Architecture(_torchvision("efficientnet_v2_s"), "classifier", "features"),
    "vgg16": Architecture(_torchvision("vgg16"), "classifier", "features"),
    "densenet121": Architecture(_monai_densenet, "class_layers", "features", (2, 3), _as_in_monai),
    "monai_resnet18": Architecture(_monai_resnet("resnet18"), "fc", "", (2, 3)),
    "monai_resnet50": Architecture(_monai_resnet("resnet50"), "fc", "", (2, 3)),
}
