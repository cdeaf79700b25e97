"""Penalties that are added to the outer loss and need the model, not only its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gambeson.core.losses import ce
from gambeson.core.modes import batch_norm
from gambeson.core.threat import Threat
from gambeson.core.types import Batch

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn


@dataclass(frozen=True)
class GradientAlignment:
    """`weight * (1 - mean cos(g(x), g(x + u)))`, g the input gradient of CE, u uniform in the ball; g(x) is detached.

    Args:
        weight: The coefficient lambda.

    References:
        Andriushchenko & Flammarion, "Understanding and improving fast adversarial training", NeurIPS 2020,
        https://arxiv.org/abs/2007.02617
    """

    weight: float

    def __call__(self, model: nn.Module, batch: Batch, threat: Threat, rng: Generator) -> Tensor:
        """The penalty, a scalar that can be differentiated by the weights (double backward)."""
        with batch_norm(model, "batch"):  # in the release this gradient comes out of the attack's forward
            plain = self._gradient(model, batch.x, batch.y, graph=False)
        noisy = self._gradient(model, batch.x + threat.sample(batch.x, rng), batch.y, graph=True)
        return self.weight * (1 - torch.nn.functional.cosine_similarity(plain, noisy, dim=1, eps=1e-10).mean())

    @staticmethod
    def _gradient(model: nn.Module, x: Tensor, y: Tensor, *, graph: bool) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(ce(model(x), y).mean(), x, create_graph=graph)[0].flatten(1)
