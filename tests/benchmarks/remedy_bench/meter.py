"""Arithmetic of the networks, counted as it is done: forward and backward, of frozen parts only what is really computed."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry


class Meter(TorchDispatchMode):
    """Counts floating point operations of convolutions and matrix products within its block.

    Unlike seconds they do not depend on the machine or on what else it does. Operators without a formula count nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        operator = func._overloadpacket
        if operator not in flop_registry:
            with self:
                parts = func.decompose(*args, **named)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **named)
        if operator == torch.ops.aten.convolution_backward:
            self.operations += backward_of_convolution(*args)
        elif operator in flop_registry:
            self.operations += flop_registry[operator](*args, **named, out_val=out)
        return out


def backward_of_convolution(gradient: torch.Tensor, images: torch.Tensor, weight: torch.Tensor, *rest: Any) -> int:
    """As much as forward for the gradient of the images, and again for that of the weights, where they are wanted.

    Torch's own formula leaves the groups out, which makes a depthwise convolution's gradient a hundredfold too dear.
    """
    wanted = rest[-1]
    return int(conv_flop_count(images.shape, weight.shape, gradient.shape) * (wanted[0] + wanted[1]))
