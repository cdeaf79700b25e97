"""Random numbers of one block of images, always drawn for the whole block: no image depends on how many come."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]

BLOCK = 100
"""Images that share a generator."""


class Draws:
    """Random numbers for the first `count` images of a block; every method draws for all `BLOCK` and cuts.

    Args:
        rng: The block's generator, on the CPU.
        count: How many images there are, at most `BLOCK`.
    """

    def __init__(self, rng: torch.Generator, count: int) -> None:
        self.rng, self.count = rng, count

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Array:
        """Uniform on `[low, high)`, float64, shape `(count, *shape)`."""
        drawn = torch.rand(BLOCK, *shape, generator=self.rng, dtype=torch.float64)
        return low + (high - low) * self._cut(drawn)

    def normal(self, *shape: int) -> Array:
        """Standard normal, float64, shape `(count, *shape)`."""
        return self._cut(torch.randn(BLOCK, *shape, generator=self.rng, dtype=torch.float64))

    def integers(self, low: int, high: int, *shape: int) -> Array:
        """Uniform on `low..high-1`, int64, shape `(count, *shape)`."""
        return self._cut(torch.randint(low, high, (BLOCK, *shape), generator=self.rng))

    def _cut(self, drawn: torch.Tensor) -> Array:
        numbers: Array = drawn[: self.count].numpy()
        return numbers
