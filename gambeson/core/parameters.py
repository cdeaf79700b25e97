"""A model's weights: on which device, which are perturbed, in which order, and how they come back bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


def like_of(model: nn.Module, x: Tensor) -> Tensor:
    """A tensor on the device and of the type that a model takes: its first parameter, without any an empty image."""
    empty = torch.empty(0, device=x.device, dtype=x.dtype if x.is_floating_point() else torch.float32)
    return next(model.parameters(), empty)


def layer_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The tensors that layer-wise methods perturb, from the input to the output.

    Parameters with "weight" in the name and at least two dimensions, in `named_parameters()` order: convolutions and
    linear layers; no biases, no normalisation scales, no class token or position embedding. PreActResNet-18 has 21 of
    them, WRN-34-10 has 35, ViT-small 50. The number of layers L of LAP is the length of this dict, never an option: an
    L smaller than the model's turns the sign of the last layers' perturbation.

    References:
        tmllab/2024_ICML_LAP, utils.py:26-46; csdongxian/AWP, utils_awp.py (the same rule).
    """
    return {name: p for name, p in model.named_parameters() if p.ndim >= 2 and "weight" in name}


def misfits(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Everything that keeps `weights` from being a model's state dict `own`, a few words each; empty if they fit.

    Args:
        weights: Tensors by name.
        own: The model's, by name.

    Examples:
        >>> misfits({"fc.weight": torch.zeros(2, 3)}, {"linear.weight": torch.zeros(2, 3)})
        ['missing linear.weight', 'unexpected fc.weight']
    """
    wrong = [f"missing {name}" for name in own if name not in weights]
    wrong += [f"unexpected {name}" for name in weights if name not in own]
    return wrong + [
        f"{name} has shape {tuple(weights[name].shape)}, the model {tuple(t.shape)}"
        for name, t in own.items()
        if name in weights and weights[name].shape != t.shape
    ]


@contextmanager
def applied(model: nn.Module, perturbation: Mapping[str, Tensor], *, keep: bool = False) -> Iterator[None]:
    """Inside the block the model's weights are `w + v`; afterwards they are `w` again, bit for bit.

    The kept weights are copied back. Adding and then subtracting `v` would restore only about 98 % of float32 weights
    exactly.

    Args:
        model: The model whose parameters change in place.
        perturbation: `v` by parameter name; may be empty.
        keep: Leave the weights at `w + v` (LAP accumulates its perturbation).
    """
    parameters = dict(model.named_parameters()) if perturbation else {}
    kept: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            own: list[Tensor] = [parameters[name] for name in perturbation]
            if not keep:
                kept = {name: parameters[name].detach().clone() for name in perturbation}
            if own:
                torch._foreach_add_(own, list(perturbation.values()))
        yield
    finally:
        with torch.no_grad():
            if kept:
                torch._foreach_copy_([parameters[name] for name in kept], list(kept.values()))
