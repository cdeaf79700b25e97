"""RiFT: robust critical fine-tuning of the layer that robustness needs least."""

from __future__ import annotations

import re
from typing import Literal

from torch import nn

from gambeson.core.errors import InputError
from gambeson.core.threat import L2, Linf
from gambeson.diagnosis.mrc import Criticality
from gambeson.diagnosis.suffix import critical_layers
from gambeson.methods.recipe import Recipe
from gambeson.parts.objectives import CrossEntropy

TOP = re.compile(r"top-([1-9]\d*)")


def needs_criticality(module: str) -> bool:
    """Whether the choice of a module has to be measured: `argmin` and `top-K`."""
    return module == "argmin" or TOP.fullmatch(module) is not None


def require_count(module: str, there: int) -> int:
    """How many layers `argmin` or `top-K` asks for.

    Raises:
        InputError: More than are `there`.
    """
    match = TOP.fullmatch(module)
    count = int(match[1]) if match else 1
    if count > there:
        raise InputError(f"{module} asks for more than the {there} layers that there are")
    return count


def choose_layers(model: nn.Module, module: str, found: Criticality | None = None) -> tuple[str, ...]:
    """The layers to fine-tune.

    Args:
        model: The model.
        module: `argmin` (the least critical layer), `top-K` (the K least critical), `last` (the layer before the
            logits), `all` (everything, normalisation too), or names, comma-separated.
        found: The criticality, for the first two.

    Returns:
        Names of layers; empty for `all`.

    Raises:
        InputError: An unknown layer, or more layers than there are.
    """
    if module == "all":
        return ()
    if module == "last":
        return (list(critical_layers(model))[-1],)
    if not needs_criticality(module):
        names = [word.strip() for word in module.split(",") if word.strip()]
        if not names:
            raise InputError(f"{module!r} names no layer", hint="argmin, top-3, last, all, or names of layers")
        try:
            return tuple(critical_layers(model, names))
        except InputError as error:
            also = "allowed are also argmin, top-K, last, all"
            hint = f"{error.hint}{'' if error.hint.endswith('?') else ';'} {also}" if error.hint else None
            raise InputError(error.message, hint=hint) from None
    if found is None:
        raise InputError(f"the choice {module!r} needs the layers' criticality")
    ranking = found.ranking()
    return tuple(row.layer for row in ranking[: require_count(module, len(ranking))])


def rift_recipe(
    model: nn.Module, layers: tuple[str, ...], threat: Linf | L2, bn: Literal["update", "frozen"] = "update"
) -> Recipe:
    """The recipe of RiFT's second step: cross-entropy on clean images, minimised over the parameters of a few layers.

    `min_{W_i} CE(f_W(x), y)`, all other weights fixed; then `gambeson.finetuning.walk` interpolates.

    Args:
        model: The model.
        layers: Layers whose parameters are trained (of a convolution its weight, of a linear layer weight and bias);
            empty for all parameters of the model.
        threat: Of the model; nothing is attacked in training.
        bn: `update`: training mode, in which the running statistics of every BatchNorm in the network move to those of
            clean images, as in the release; `frozen`: they normalise and stay.

    References:
        Zhu, Wang, Hu, Xie, Yang, "Improving generalization of adversarial training via robust critical fine-tuning",
        ICCV 2023, https://arxiv.org/abs/2308.02533, section 4; microsoft/robustlearn, RiFT/main.py:149-330.

    Departures:
        The release's layers are all whose name contains a word (`conv1` means many); here names are exact. The paper
        does not say that the statistics of BatchNorm move, and are interpolated: `bn` and the entries of `walk` tell
        the two effects apart. Epoch and alpha are selected on validation images, not on the test set, unless asked
        for. Not yet reproduced at full size.
    """
    if not layers:
        return Recipe(threat=threat, objective=CrossEntropy("clean"), bn=bn)
    found = critical_layers(model, layers)
    names = tuple(
        f"{layer}.{name}" for layer, module in found.items() for name, _ in module.named_parameters(recurse=False)
    )
    return Recipe(threat=threat, objective=CrossEntropy("clean"), trainable=names, bn=bn)
