"""A perturbation that survives the batch: Free adversarial training carries it from replay to replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from gambeson.parts.state import CarriedState


@dataclass(frozen=True)
class CarriedPerturbation:
    """`delta <- clip(delta + step * sign(grad), -eps, eps)`, kept by position in the batch, not by image.

    Args:
        rel_step_size: Step as a multiple of eps (1 in the release).
    """

    rel_step_size: float = 1.0

    def build(self, model: nn.Module) -> CarriedState:
        """The state: an empty perturbation that takes the shape of the first batch."""
        from gambeson.parts.state import CarriedState  # keeps the values free of torch at import

        return CarriedState(self.rel_step_size)
