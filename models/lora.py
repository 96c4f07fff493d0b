"""Fine-tuning by small added matrices (LoRA, Hu et al. 2022) through `peft`, merged away before anything is saved.

Every convolution and linear layer of the body gets an update of low rank; the head trains whole; the rest is frozen.
After `merge` the network is a plain one again, with the names and shapes that its specification builds.
"""

import re
import warnings

import torch
from torch import nn

from models.errors import TrainingFailed
from models.networks import head_name, head_parameters


def add_adapters(module: nn.Module, rank: int, seed: int) -> None:
    """Add adapters in place and freeze all else but the head. The network's answers stay the same until it is trained.

    Raises TrainingFailed where no layer takes an adapter.
    """
    # Imported here because it takes seconds, and only a run of this kind needs it.
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415

    names = adaptable(module)
    if not names:
        raise TrainingFailed("the network has no layer that takes an adapter")
    pattern = "|".join(re.escape(name) for name in names)
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=f"({pattern})", bias="none")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        # Layers narrower than the rank are legitimate here.
        warnings.simplefilter("ignore")
        inject_adapter_in_model(settings, module)
    for parameter in head_parameters(module):
        parameter.requires_grad = True


def adaptable(module: nn.Module) -> list[str]:
    """Names of the body's ungrouped convolutions and linear layers: a depthwise one is cheaper than its adapter."""
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    prefix = head_name(module)
    return [
        name
        for name, each in module.named_modules()
        if isinstance(each, kinds) and getattr(each, "groups", 1) == 1 and name != prefix and not name.startswith(f"{prefix}.")
    ]


def merge(module: nn.Module) -> None:
    """Add each adapter to its layer's weights and take it out again, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: PLC0415 - as above

    wrapped = [(name, each) for name, each in module.named_modules() if isinstance(each, BaseTunerLayer)]
    for name, layer in wrapped:
        layer.merge()
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, layer.get_base_layer())
    for leftover in ("peft_config",):
        if hasattr(module, leftover):
            delattr(module, leftover)
    module.requires_grad_(requires_grad=True)
