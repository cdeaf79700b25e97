"""Mixed precision inside the forward only: images, logits, losses and weights stay float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def unwrapped(net: nn.Module) -> nn.Module:
    """The model itself, whose parameters have its own names."""
    return net.model if isinstance(net, Bfloat16Forward) else net


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
