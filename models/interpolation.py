"""Weights between an old network and the same network after fine-tuning (WiSE-FT, Wortsman et al. 2022)."""

import copy

import torch
from torch import nn


def between(old: nn.Module, new: nn.Module, share: float) -> nn.Module:
    """A network with `share` of the new weights and BatchNorm statistics and the rest of the old; both stay as they are."""
    mixed = copy.deepcopy(new)
    former = old.state_dict()
    with torch.no_grad():
        for name, tensor in mixed.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.lerp(former[name].to(tensor), tensor, share))
    return mixed
