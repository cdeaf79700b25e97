"""Adversarial and layer-aware weight perturbation: how large, in which direction, and whether it stays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from gambeson.core.errors import InputError, require_known

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn
    from torch.optim import Optimizer


@dataclass(frozen=True)
class LayerAware:
    """`size(l) = beta * (1 - (ln l / ln L)^gamma)`, l = 1..L: full beta at the first layer, nothing at the last.

    Args:
        beta: Relative norm at the first layer, positive.
        gamma: How fast the size falls with depth, positive. Large: uniform over all layers but the last. Small: first
            layer only.

    Examples:
        >>> [round(LayerAware(1.0, 0.3)(l, 21), 4) for l in (1, 2, 3, 21)]
        [1.0, 0.3585, 0.2635, 0.0]

    References:
        tmllab/2024_ICML_LAP, utils.py:38-46.
    """

    beta: float
    gamma: float = 0.3

    def __post_init__(self) -> None:
        if not (0 <= self.beta < math.inf and 0 < self.gamma < math.inf):
            raise InputError(
                f"LAP needs beta >= 0 and gamma > 0, both finite, got beta={self.beta}, gamma={self.gamma}"
            )

    def __call__(self, layer: int, layers: int) -> float:
        """The relative norm for `layer` (1-based) of `layers`."""
        if layers < 2:
            raise InputError("a layer-aware perturbation needs a model with at least two weight layers")
        return self.beta * (1 - (math.log(layer) / math.log(layers)) ** self.gamma)


@dataclass(frozen=True)
class Relative:
    """`size(l) = gamma` for every layer (AWP)."""

    gamma: float

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < math.inf:
            raise InputError(f"AWP needs a finite gamma >= 0, got {self.gamma}")

    def __call__(self, layer: int, layers: int) -> float:
        """The relative norm, the same for every layer."""
        return self.gamma


@dataclass(frozen=True, kw_only=True)
class WeightPerturbation:
    """`v_l = sign * size(l) * ||w_l|| / (||d_l|| + 1e-20) * d_l` for every weight layer l.

    The direction d is the gradient of the training loss; or what the optimizer would subtract, `mu m_l + g_l + kappa
    w_l` with the momentum buffer m and weight decay kappa of SGD (LAP's release takes an optimizer step and measures
    where it went: the learning rate cancels, so this closed form needs neither the step nor copies of the state); or
    Gaussian noise.

    Args:
        size: `LayerAware(beta, gamma)` or `Relative(gamma)`.
        direction: `"gradient"`, `"optimizer"` or `"random"`.
        sign: +1 moves the weights up the loss (AWP), -1 down (LAP's release).
        norm: `"l2"` (Frobenius), or `"linf"`: the largest absolute entry replaces both norms.
        keep: The weights stay at `w + v` after the step (LAP accumulates).
        warmup: Epochs without perturbation at the start (TRADES-AWP: 10).
        decay: With `keep=False`: weight decay acts on `"perturbed"` weights `w + v`, as in AWP's release, which steps
            there and subtracts v afterwards; or on the `"restored"` weights.

    References:
        Lin et al., LAP, ICML 2024, https://arxiv.org/abs/2405.16262; Wu, Xia, Wang, AWP, NeurIPS 2020,
        https://arxiv.org/abs/2004.05884
    """

    size: LayerAware | Relative
    direction: Literal["gradient", "optimizer", "random"] = "gradient"
    sign: Literal[1, -1] = 1
    norm: Literal["l2", "linf"] = "l2"
    keep: bool = False
    warmup: int = 0
    decay: Literal["perturbed", "restored"] = "perturbed"

    def __post_init__(self) -> None:
        for name, known in (
            ("direction", ("gradient", "optimizer", "random")),
            ("norm", ("l2", "linf")),
            ("decay", ("perturbed", "restored")),
        ):
            require_known(name, getattr(self, name), known)
        if self.sign not in (1, -1):
            raise InputError(f"the sign of a weight perturbation is 1 (up the loss) or -1, got {self.sign}")

    def from_grads(
        self,
        weights: Mapping[str, nn.Parameter],
        grads: Sequence[Tensor],
        optimizer: Optimizer,
        rng: Generator,
    ) -> dict[str, Tensor]:
        """The perturbation from gradients that are already there.

        Args:
            weights: The model's `layer_weights`, in order.
            grads: The gradient of the loss for each of them.
            optimizer: Its momentum buffers and weight decay are read where the direction asks for them; it is not
                changed.
            rng: Source of the random direction.

        Returns:
            `v` by name; layers of size zero are absent. Empty while the learning rate is 0 and the direction is the
            optimizer's: a step of length zero has no direction (the cyclic schedule starts there).
        """
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        chosen: dict[str, tuple[nn.Parameter, Tensor, float]] = {}
        for layer, ((name, w), g) in enumerate(zip(weights.items(), grads, strict=True), start=1):
            size = self.size(layer, len(weights))
            if size and not (self.direction == "optimizer" and groups[id(w)]["lr"] == 0):
                chosen[name] = (w, g, self.sign * size)
        if not chosen:
            return {}
        with torch.no_grad():
            own, directions, sizes = (list(column) for column in zip(*chosen.values(), strict=True))
            if self.direction == "optimizer":
                directions = sgd_directions(own, directions, optimizer)
            elif self.direction == "random":
                directions = [torch.randn(w.shape, generator=rng, device=w.device, dtype=w.dtype) for w in own]
            return dict(zip(chosen, of_relative_norms(directions, own, sizes, self.norm), strict=True))


def of_relative_norm(direction: Tensor, weight: Tensor, size: float, norm: Literal["l2", "linf"] = "l2") -> Tensor:
    """`size * ||w|| / (||d|| + 1e-20) * d`: a direction with a share of the weight's norm, AWP's and LAP's rule.

    Args:
        direction: `d`, of any norm; zeros stay zeros.
        weight: `w`, of the same shape.
        size: Relative norm of the result; negative to go the other way.
        norm: `"l2"` (Frobenius), or `"linf"`: the largest absolute entry.
    """
    return of_relative_norms([direction], [weight], [size], norm)[0]


def of_relative_norms(
    directions: Sequence[Tensor],
    weights: Sequence[Tensor],
    sizes: Sequence[float],
    norm: Literal["l2", "linf"] = "l2",
) -> list[Tensor]:
    """`of_relative_norm` of many weights, in a few operations for all of them."""
    order = 2 if norm == "l2" else math.inf
    scale = torch._foreach_mul(torch._foreach_norm(list(weights), order), list(sizes))
    torch._foreach_div_(scale, torch._foreach_add(torch._foreach_norm(list(directions), order), 1e-20))
    return list(torch._foreach_mul(list(directions), scale))


def sgd_directions(weights: Sequence[nn.Parameter], grads: Sequence[Tensor], optimizer: Optimizer) -> list[Tensor]:
    """What SGD would subtract from every weight, divided by the learning rate: `mu m + g + kappa w`.

    Raises:
        InputError: The optimizer is not SGD without dampening and Nesterov momentum.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for group in optimizer.param_groups:
        if "momentum" not in group or group.get("dampening") or group.get("nesterov"):
            raise InputError(
                "the optimizer's direction is defined for SGD without dampening and Nesterov momentum",
                hint="use direction='gradient' with another optimizer",
            )
    found = list(torch._foreach_mul(list(weights), [float(groups[id(w)]["weight_decay"]) for w in weights]))
    torch._foreach_add_(found, list(grads))
    buffers = [optimizer.state.get(w, {}).get("momentum_buffer") for w in weights]
    moving = [n for n, buffer in enumerate(buffers) if buffer is not None]
    if moving:
        momenta = [float(groups[id(weights[n])]["momentum"]) for n in moving]
        torch._foreach_add_([found[n] for n in moving], torch._foreach_mul([buffers[n] for n in moving], momenta))
    return found
