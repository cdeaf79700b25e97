"""Models that are no modules: a function that maps images to logits, as auto-attack takes one."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


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
