"""What the head of a network sees of each image: the body's answer, which stays the same while the body rests."""

import torch
from torch import nn

from models.data import TensorSet
from models.networks import head_of


def head_inputs(module: nn.Module, tensors: TensorSet, device: torch.device, batch_size: int = 64) -> TensorSet:
    """The same studies, each image as what the head of the network sees of it; the network is left in evaluation mode."""
    seen: list[torch.Tensor] = []
    hook = head_of(module).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().float().cpu()))
    module.to(device).eval()
    images = [image for study in tensors.studies for image in study]
    try:
        with torch.no_grad():
            for start in range(0, len(images), batch_size):
                module(torch.stack(images[start : start + batch_size]).to(device))
    finally:
        hook.remove()
    studies = torch.split(torch.cat(seen), [len(study) for study in tensors.studies])
    return TensorSet(tuple(studies), tensors.labels, tensors.patients, tensors.keys)
