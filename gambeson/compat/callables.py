"""Models that are no modules: a function that maps images to logits, as auto-attack takes one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gambeson.core.modes import batch_norm
from gambeson.evaluation.examples import check_images, check_labels, check_shapes


class Function(nn.Module):
    """A function as a model without parameters; what it closes over is its own business."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the images `x`."""
        return self.function(x)


def as_module(model: nn.Module | Callable[[Tensor], Tensor]) -> nn.Module:
    """`model` itself, or the function wrapped."""
    return model if isinstance(model, nn.Module) else Function(model)


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """The logits `(N, K)` in evaluation mode and without gradients, on the device of the model."""
    like = next(model.parameters(), x)
    with torch.no_grad(), batch_norm(model, "running"):
        logits: Tensor = model(x.to(like.device))
    return logits


def require_fitting(model: nn.Module, x: Tensor, y: Tensor, classes: int = 0) -> int:
    """Refuse images and labels that do not fit, after one image's forward at most; returns the number of classes.

    Args:
        model: From `as_module`.
        x: Images, `(N, C, H, W)`.
        y: Labels `(N,)`.
        classes: The number of classes where it is known; 0 asks the model.

    Raises:
        InputError: As `check_examples`.
    """
    check_shapes(x, y)
    check_images(x)
    classes = classes or logits_of(model, x[:1]).shape[1]
    check_labels(y, classes)
    return classes
