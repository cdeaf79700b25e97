"""Normalisation as the first module of every network, so that everything outside sees pixels in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gambeson.core.types import Task


class Normalize(nn.Module):
    """Subtracts the mean and divides by the standard deviation of each channel: `(x - mean) / std`.

    The two buffers follow `.to()` but are no part of the state dict: they come from the task, and without them the
    state dict has exactly the names of the papers' checkpoints.

    Args:
        task: Gives the `mean` and `std` of the training images, one number per channel, on the [0, 1] scale.

    Examples:
        >>> task = Task(num_classes=2, channels=1, size=8, mean=(0.5,), std=(0.25,))
        >>> Normalize(task)(torch.ones(1, 1, 1, 1)).item()
        2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(task.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(task.std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images `(N, C, H, W)` in [0, 1] to the network's scale, same shape."""
        return (x - self.mean) / self.std
