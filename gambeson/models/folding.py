"""BatchNorm folded into the convolution before it: the same function in evaluation mode, with less to do."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gambeson.core.layout import preferred_layout
from gambeson.core.modes import batch_norm

TOLERANCE = 1e-3
"""What logits of the folded model may differ by, as a share of the largest; float32 rounding is a thousandth of it."""


def folded(model: nn.Module, images: Tensor) -> tuple[nn.Module, int]:
    """A copy of `model` for evaluation, with as many BatchNorms as can be folded into the convolution before them.

    With running mean m, variance v, scale g and shift b, and s = g / sqrt(v + 1e-5),

        BN(W * x + c) = (s W) * x + s (c - m) + b

    A graph of the model (`torch.fx`) tells which convolutions only a BatchNorm follows; the copy runs the model's own
    forward, not the graph. Its weights lie in the memory as is fastest (`preferred_layout`), however the model's do.

    Args:
        model: Any model. It is not changed.
        images: Images to compare the two on, as the model takes them.

    Returns:
        The copy, in evaluation mode, and how many were folded; the model itself and 0 where there are none, where the
        model cannot be copied or traced or is randomised, or where the two differ by more than `TOLERANCE`.
    """
    with torch.no_grad(), batch_norm(model, "running"):
        wanted = model(images)
        try:
            other = copy.deepcopy(model)
            pairs = _pairs(other)
            for conv, norm in pairs:
                both: Any = other.get_submodule(conv), other.get_submodule(norm)
                other.set_submodule(conv, fuse_conv_bn_eval(*both))
                other.set_submodule(norm, nn.Identity())
            other = other.to(memory_format=preferred_layout(other, images.device))  # type: ignore[call-overload]
            found = other(images)
        except Exception:  # copying and tracing run the model's own Python, which may raise anything
            return model, 0
    agree = float((found - wanted).abs().max()) <= TOLERANCE * float(wanted.abs().max())  # False for NaN
    return (other.eval(), len(pairs)) if pairs and agree else (model, 0)


def _pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Names of convolutions, and of the BatchNorm that alone sees what each gives."""
    modules = dict(model.named_modules())
    nodes = list(fx.Tracer().trace(model).nodes)
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    read = {str(node.target) for node in nodes if node.op == "get_attr"}

    def plain(name: str, kind: type[nn.Module]) -> bool:
        """Used once, by a call, without hooks or computed parameters."""
        module = modules[name]
        hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        return (
            type(module) is kind
            and calls[name] == 1
            and not hooked
            and not any(word.startswith(f"{name}.") for word in read)
        )

    found = []
    for node in nodes:
        if node.op != "call_module" or not plain(str(node.target), nn.BatchNorm2d):
            continue
        (before,) = node.all_input_nodes
        if before.op == "call_module" and len(before.users) == 1 and plain(str(before.target), nn.Conv2d):
            norm = modules[str(node.target)]
            if norm.running_mean is not None:
                found.append((str(before.target), str(node.target)))
    return found
