"""New classes for a trained network, with the old ones left as they were."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from models.errors import UnknownNetwork
from models.networks import head_name
from models.spec import ModelSpec

UNLIKELY = -4.0
"""Bias of a new class: it is called rarely until it has been trained."""


def with_classes(spec: ModelSpec, module: nn.Module, added: Sequence[str]) -> tuple[ModelSpec, nn.Module]:
    """A specification and network with further classes behind the old ones; the old classes' logits stay the same but for rounding.

    The given module stays as it is. Raises UnknownNetwork where the head does not end in a linear layer, ValueError (from
    the specification) for a class that is there already.
    """
    grown = copy.deepcopy(module)
    name, last = _last_linear(grown)
    wider = nn.Linear(
        last.in_features, last.out_features + len(added), bias=True, dtype=last.weight.dtype, device=last.weight.device
    )
    with torch.no_grad():
        wider.weight.zero_()
        wider.bias.fill_(UNLIKELY)
        wider.weight[: last.out_features] = last.weight
        wider.bias[: last.out_features] = last.bias if last.bias is not None else 0.0
    for hook in last._forward_hooks.values():  # noqa: SLF001 - what kinds of images have of their own stays with the layer
        wider.register_forward_hook(hook)
    parent, _, attribute = name.rpartition(".")
    setattr(grown.get_submodule(parent), attribute, wider)
    calibration = spec.calibration
    if calibration.offsets:
        calibration = calibration.model_copy(update={"offsets": (*calibration.offsets, *(0.0 for _ in added))})
    fields = spec.model_dump() | {"classes": (*spec.classes, *added), "calibration": calibration.model_dump()}
    return ModelSpec.model_validate(fields), grown


def last_linear(module: nn.Module) -> nn.Linear:
    """The layer that gives the logits. Raises UnknownNetwork where the head does not end in a linear layer."""
    return _last_linear(module)[1]


def _last_linear(module: nn.Module) -> tuple[str, nn.Linear]:
    prefix = head_name(module)
    named = [(name, each) for name, each in module.named_modules() if isinstance(each, nn.Linear)]
    inside = [(name, each) for name, each in named if name == prefix or name.startswith(f"{prefix}.")]
    if not inside:
        raise UnknownNetwork("the network's head does not end in a linear layer, so it cannot be given more classes")
    return inside[-1]
