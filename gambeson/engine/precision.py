"""A forward as training runs it: under autocast inside only, or compiled; weights and images stay float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def unwrapped(net: nn.Module) -> nn.Module:
    """The model itself, whose parameters have its own names."""
    while isinstance(net, (Bfloat16Forward, CompiledForward)):
        net = net.model
    return net


class Bfloat16Forward(nn.Module):
    """A model whose forward runs under bfloat16 autocast; logits come out in float32.

    A context per forward, not per step: autocast keeps cast copies of the weights until its context ends, and would
    reuse them after a weight perturbation.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(N, K)`, float32."""
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            logits: Tensor = self.model(x)
        return logits.float()


class CompiledForward(nn.Module):
    """A model whose forward is compiled by `torch.compile` for batches of one size; others run as they are.

    The passes of a step differ in what their graphs are made for (modes of the modules, frozen parameters); each is
    compiled when it first comes, in the first step. So the last, smaller batch of an epoch compiles nothing.

    Args:
        model: The model.
        batch_size: Images that a compiled forward takes.
    """

    def __init__(self, model: nn.Module, batch_size: int) -> None:
        super().__init__()
        self.model, self.batch_size = model, batch_size
        self._compiled = (torch.compile(model, dynamic=False),)  # in a tuple: not a second child with the same weights

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(N, K)`."""
        logits: Tensor = (self._compiled[0] if len(x) == self.batch_size else self.model)(x)
        return logits
