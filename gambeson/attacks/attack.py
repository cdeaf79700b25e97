"""What all attacks share: how they are called, the gradient with respect to the images, and budgets row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch

from gambeson.core.errors import InputError

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from gambeson.core.threat import Threat
    from gambeson.core.types import Batch

LogitLoss = Callable[["Tensor"], "Tensor"]
"""What an attack maximises: maps logits `(N, K)` to one value per example `(N,)`."""


class Attack(Protocol):
    """Anything that finds adversarial images; `PGD`, `MMA` and `MarginAPGD` are such attacks."""

    def __call__(self, model: nn.Module, batch: Batch, threat: Threat, rng: Generator) -> Tensor:
        """Adversarial images for `batch`, of its shape, detached.

        Args:
            model: Maps images in [0, 1] to logits; its weights, modes and flags are as before afterwards.
            batch: Images and labels.
            threat: What may change.
            rng: The only source of randomness, on the device of the images.
        """


def input_gradient(model: Callable[[Tensor], Tensor], loss: LogitLoss, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of the summed loss with respect to the images, and what the forward gave on the way.

    Args:
        model: Maps images to logits; the caller freezes it and sets its modes.
        loss: Maps the logits to one value per example.
        x: Images `(N, C, H, W)`; not written to.

    Returns:
        The gradient, of the shape of `x`, the logits `(N, K)` and the losses `(N,)`, all detached.
    """
    at = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(at)
        values = loss(logits)
        total = values.sum()
    return torch.autograd.grad(total, at)[0], logits.detach(), values.detach()


def budget_of(threat: Threat, rows: Tensor) -> Threat:
    """The threat of the examples `rows`, int64 `(M,)`; rows may repeat. A budget that all examples share stays."""
    eps = threat.eps
    if isinstance(eps, (int, float)) or eps.ndim == 0 or len(eps) == 1:
        return threat
    return threat.with_map(eps[rows])


def per_image(values: Tensor, x: Tensor) -> Tensor:
    """`values` of shape `(N,)` with dimensions of size one added, so that they broadcast against the images `x`."""
    return values.view(-1, *[1] * (x.ndim - 1))


def require(holds: bool, rule: str, value: object) -> None:
    """Refuse a setting.

    Raises:
        InputError: `holds` is false; the message is the `rule` and the `value` that came.
    """
    if not holds:
        raise InputError(f"{rule}, got {value}")
