"""Exponential moving average of the weights, kept as a part: it is validated, saved and resumed like any state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gambeson.core.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from gambeson.parts.state import AveragedWeights


@dataclass(frozen=True)
class EMA:
    """`w_ema <- decay * w_ema + (1 - decay) * w` after every step; floating-point buffers are averaged alike.

    With `warm` the decay is `min(decay, (1 + t) / (10 + t))` at step t, so that the random initial weights fade at
    once.

    Args:
        decay: In (0, 1).
        warm: Use the smaller decay at the start.
    """

    decay: float = 0.995
    warm: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise InputError(f"the decay of a moving average lies in (0, 1), got {self.decay}")

    def build(self, model: nn.Module) -> AveragedWeights:
        """The state: a copy of `model` that follows it."""
        from gambeson.parts.state import AveragedWeights  # keeps the values free of torch at import

        return AveragedWeights(self.decay, self.warm, model)
