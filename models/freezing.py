"""Which layers a fine-tuning moves, and how the others are kept still."""

from typing import Literal, TypeAlias

from torch import nn

from models.networks import body_blocks, head_parameters

Strategy: TypeAlias = Literal["full", "partial", "head_only"]


def freeze(module: nn.Module, strategy: Strategy) -> None:
    """Set which parameters train: all, all but the front half of the body's blocks, or the head alone."""
    module.requires_grad_(requires_grad=True)
    if strategy == "partial":
        blocks = body_blocks(module)
        for block in blocks[: len(blocks) // 2]:
            block.requires_grad_(requires_grad=False)
    elif strategy == "head_only":
        module.requires_grad_(requires_grad=False)
        for parameter in head_parameters(module):
            parameter.requires_grad = True


def train_mode(module: nn.Module) -> None:
    """Training mode, except for parts whose parameters are all frozen: their BatchNorm statistics and dropout rest too."""
    module.train()
    for part in module.modules():
        parameters = list(part.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            part.eval()
