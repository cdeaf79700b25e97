"""PGD as most scripts write it: `loss.backward()` through the weights, a clone and a detach every step.

Written from the formula of Madry et al. (ICLR 2018) as a reference, not to be used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def attack(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, step: float, steps: int) -> Tensor:
    """The last iterate from the clean image; the gradients of the weights are accumulated and thrown away."""
    x_adv = x.clone().detach()
    for _ in range(steps):
        x_adv.requires_grad_()
        loss = F.cross_entropy(model(x_adv), y)
        model.zero_grad()
        loss.backward()
        assert x_adv.grad is not None
        with torch.no_grad():
            x_adv = x_adv + step * x_adv.grad.sign()
            x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
        x_adv = x_adv.detach()
    return x_adv
