"""Module robust criticality (MRC): what it is, how it is searched, and what was found."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gambeson.core.errors import InputError, require_known

Strategy = Literal["cached", "wavefront", "naive"]


@dataclass(frozen=True, kw_only=True)
class MRC:
    """How the worst weights are searched.

    `MRC_i = max_{|V_i| <= radius |W_i|} L(W + V_i) - L(W)`, L the mean cross-entropy on fixed adversarial images, V_i a
    perturbation of the weight of layer i alone (no bias, no normalisation), norms Euclidean over the whole tensor.

    Args:
        update: `sgd`: a step after every mini-batch; `full-batch`: one step per epoch along the summed gradient of
            all images.
        on_violation: After leaving the ball: `project` and go on, or project and `stop`.
        project_every: When the ball is looked at: after every `epoch` or every `step`.
        reduce: The loss that counts: the `max` over the ends of the epochs, or that of the `last` weights.
        epochs: Passes over the images.
        lr: Step along the gradient: of the mini-batch's mean loss for `sgd`, of the summed loss for `full-batch`.
        batch_size: Images per mini-batch.
        radius: Size of the ball, as a share of the weight's norm.

    Raises:
        InputError: A setting out of range.

    References:
        Zhu, Wang, Hu, Xie, Yang, "Improving generalization of adversarial training via robust critical fine-tuning",
        ICCV 2023, https://arxiv.org/abs/2308.02533, section 3; microsoft/robustlearn, RiFT/main.py:16-146.
    """

    update: Literal["sgd", "full-batch"] = "sgd"
    on_violation: Literal["project", "stop"] = "project"
    project_every: Literal["epoch", "step"] = "epoch"
    reduce: Literal["max", "last"] = "max"
    epochs: int = 10
    lr: float = 1.0
    batch_size: int = 512
    radius: float = 0.1

    def __post_init__(self) -> None:
        for name, known in (
            ("update", ("sgd", "full-batch")),
            ("on_violation", ("project", "stop")),
            ("project_every", ("epoch", "step")),
            ("reduce", ("max", "last")),
        ):
            require_known(name, getattr(self, name), known)
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "radius"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be positive and finite, got {getattr(self, name)}")


PROTOCOLS: dict[str, MRC] = {
    "release": MRC(),
    "paper": MRC(update="full-batch", on_violation="stop", reduce="last"),
}
"""The released code (mini-batch ascent, projection once per epoch, maximum over epochs) and the paper's algorithm 1.

Algorithm 1 adds up the gradients of all batches at the same weights, then projects and stops at the first violation. It
prints neither the step nor whether L is a sum; its equation 1 is a sum, and so is ours, with step 1: then practically
every layer leaves the ball in the first epoch and the result is the loss at `W + radius |W| g / |g|`. Where the
algorithm is inconsistent (it projects around the last iterate and evaluates the last but one), the projection is around
W and the last iterate is evaluated. That iterate can have a lower loss than W, and its MRC is then negative, as the
maximum in the definition cannot be: the ball contains 0.
"""


@dataclass(frozen=True)
class LayerCriticality:
    """What was found for one layer.

    Attributes:
        layer: Its name.
        shape: Of the weight.
        mrc: Increase of the mean cross-entropy.
        loss: Mean cross-entropy at the weights that count.
        accuracy: Share of the adversarial images that they classify correctly.
        distance: `|V| / |W|` at the last weights.
        epochs: Passes that were made.
        pruned: Whether the search stopped once the layer could no longer be the least critical one; `mrc` is then a
            lower bound.
    """

    layer: str
    shape: tuple[int, ...]
    mrc: float
    loss: float
    accuracy: float
    distance: float
    epochs: int
    pruned: bool = False


@dataclass(frozen=True)
class Criticality:
    """The criticality of every layer.

    Attributes:
        layers: In the order of the forward.
        loss: Mean cross-entropy on the adversarial images with the model's own weights.
        accuracy: Share of them that it classifies correctly.
        n: Number of images.
        protocol: How it was searched.
        strategy: How it was computed; without influence on the result beyond rounding.
        untraced: Why nothing could be reused between passes, or None.
    """

    layers: tuple[LayerCriticality, ...]
    loss: float
    accuracy: float
    n: int
    protocol: MRC
    strategy: Strategy
    untraced: str | None = None

    def ranking(self) -> list[LayerCriticality]:
        """From the least to the most critical; pruned layers, of which only a lower bound is known, come last."""
        return sorted(self.layers, key=lambda row: (row.pruned, row.mrc))

    @property
    def argmin(self) -> LayerCriticality:
        """The layer that robustness needs least."""
        return self.ranking()[0]

    def drop(self, row: LayerCriticality) -> float:
        """By how much the accuracy on the adversarial images falls, in [-1, 1]."""
        return self.accuracy - row.accuracy

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            **{key: value for key, value in asdict(self).items() if key != "layers"},
            "layers": [{**asdict(row), "drop": self.drop(row)} for row in self.layers],
            "ranking": [row.layer for row in self.ranking()],
        }
