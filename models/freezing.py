"""Which layers a fine-tuning moves, and how the others are kept still."""

from typing import Literal, TypeAlias

from torch import nn

from models.adaptation import batch_norms
from models.harmonisation import harmoniser_of
from models.networks import body_blocks, head_parameters
from models.schedules import open_blocks

Strategy: TypeAlias = Literal["full", "partial", "head_only", "gradual", "adapters"]


def freeze(module: nn.Module, strategy: Strategy) -> None:
    """Set which parameters may train: all (gradual too), all but the front half of the body's blocks, or the head alone."""
    module.requires_grad_(requires_grad=True)
    if strategy == "partial":
        blocks = body_blocks(module)
        for block in blocks[: len(blocks) // 2]:
            block.requires_grad_(requires_grad=False)
    elif strategy == "adapters":
        msg = "adapters are added by models.lora, which freezes the rest itself"
        raise ValueError(msg)
    elif strategy == "head_only":
        module.requires_grad_(requires_grad=False)
        for parameter in head_parameters(module):
            parameter.requires_grad = True


def open_gradually(module: nn.Module, epoch: int, epochs: int) -> None:
    """Let train what an epoch of a gradual unfreezing trains: the head, and the last blocks of the body (`open_blocks`)."""
    module.requires_grad_(requires_grad=False)
    blocks = body_blocks(module)
    count = open_blocks(epoch, epochs, len(blocks))
    if count == len(blocks):
        module.requires_grad_(requires_grad=True)
        return
    for parameter in head_parameters(module):
        parameter.requires_grad = True
    for block in blocks[len(blocks) - count :]:
        block.requires_grad_(requires_grad=True)


def train_mode(module: nn.Module) -> None:
    """Training mode, except for parts whose parameters are all frozen: their BatchNorm statistics and dropout rest too.

    In a network that keeps statistics for kinds of images all BatchNorm statistics rest: a batch of several kinds has none.
    """
    module.train()
    if harmoniser_of(module) is not None:
        for layer in batch_norms(module).values():
            layer.eval()
    for part in module.modules():
        parameters = list(part.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            part.eval()
