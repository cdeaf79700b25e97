"""Checks that need no forward: images, labels, the budget, the weights' type and the modes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gambeson.core.errors import InputError
from gambeson.core.threat import Threat
from gambeson.data.stored import Images, StoredImages
from gambeson.evaluation.examples import check_images, check_labels, check_shapes
from gambeson.evaluation.finding import Finding

FEW = 64
"""Stored images whose pixels are looked at."""


def examine_examples(x: Images, y: Tensor, num_classes: int) -> list[Finding]:
    """Are there images in [0, 1] or bytes, and labels in range?"""
    refused = _refusal("images", check_shapes, x, y)
    if refused:
        return [refused]
    return [
        _refusal("images", check_images, x) or _brightness(x if isinstance(x, Tensor) else _some(x), len(x)),
        _refusal("labels", check_labels, y, num_classes)
        or Finding("labels", "pass", f"{len(y):,} labels from {int(y.min())} to {int(y.max())}"),
    ]


def _refusal(check: str, function: Callable[..., None], *arguments: Any) -> Finding | None:
    try:
        function(*arguments)
    except InputError as error:
        return Finding(check, "error", error.message, error.hint)
    return None


def _some(x: StoredImages) -> Tensor:
    """A few, evenly over all: the others stay in their files."""
    return x[torch.linspace(0, len(x) - 1, min(FEW, len(x)), dtype=torch.float64).round().long()]


def _brightness(x: Tensor, count: int) -> Finding:
    """One grey level is all that is left of images that were divided by 255 once too often."""
    low, high = float(x.min()), float(x.max())
    level = 1.0 if x.dtype == torch.uint8 else 1 / 255
    evidence = {"min": low, "max": high, "dtype": str(x.dtype).removeprefix("torch.")}
    of = f" in {len(x)} of them" if len(x) < count else ""
    if 0 < high <= level * 1.001:
        what = "bytes of 0 and 1" if x.dtype == torch.uint8 else f"none brighter than {high:.4g}, one grey level of 255"
        hint = "multiply them by 255" if x.dtype == torch.uint8 else "they were divided by 255 twice"
        return Finding("images", "error", f"the images are almost black: {what}", hint, evidence)
    return Finding(
        "images", "pass", f"{count:,} images, {evidence['dtype']}, from {low:g} to {high:g}{of}", None, evidence
    )


def examine_budget(threat: Threat, shape: Sequence[int]) -> Finding:
    """Is eps a fraction of the pixel range, of a size that means something in its norm?

    Where every image of the ball's centre can become the same grey image, at Linf 1/2 and at L2 sqrt(d)/2, no
    classifier is better than chance.

    Args:
        threat: The ball.
        shape: Shape of an image, `(C, H, W)`.
    """
    eps = float(threat.eps) if isinstance(threat.eps, (int, float)) else float(threat.eps.max())
    d = math.prod(shape)
    per_pixel = eps / math.sqrt(d) if threat.norm == "L2" else eps
    evidence = {"norm": threat.norm, "eps": eps, "per_pixel": per_pixel}
    name, hint = f"{threat.norm} eps {eps:g}", None
    if not (0 < eps < math.inf) or (threat.norm == "Linf" and eps > 1):
        hint = f"{eps:g} grey levels are eps={eps:g}/255" if 1 < eps <= 255 else None
        return Finding("eps", "error", f"{name} is no fraction of the pixel range in (0, 1]", hint, evidence)
    if threat.norm == "L2" and eps >= 2 and eps == int(eps) and per_pixel > 0.05:
        hint = f"{eps:g} grey levels are eps={eps:g}/255"
        return Finding("eps", "warn", f"{name} moves the average pixel by {255 * per_pixel:.0f} of 255", hint, evidence)
    if per_pixel >= 0.5:
        hint = "an L2 budget, such as 0.5 on CIFAR, needs the norm L2" if threat.norm == "Linf" else None
        message = f"{name} is so large that every image can become the same grey one"
        return Finding("eps", "warn", message, hint, evidence)
    if per_pixel < 0.5 / 255 and (threat.norm == "Linf" or eps <= 16 / 255):
        hint = "is it an Linf budget?" if threat.norm == "L2" else "eight grey levels are eps=8/255"
        message = f"{name} moves the average pixel by {255 * per_pixel:.2g} of 255"
        return Finding("eps", "warn", message, hint, evidence)
    return Finding("eps", "pass", name, None, evidence)


def examine_types(model: nn.Module) -> Finding:
    """Are the weights float32? Images get the type of the first weight, as in `evaluate`."""
    names = [str(p.dtype).removeprefix("torch.") for p in model.parameters()]
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    evidence = {"tensors": counts}
    narrow = [name for name in counts if name in ("float16", "bfloat16")]
    hint = "use model.float(), and autocast inside the forward where speed matters"
    if narrow and names[0] in narrow:
        message = f"the weights are {names[0]}, and the images become it: budgets and gradients are rounded away"
        return Finding("types", "error", message, hint, evidence)
    if narrow:
        return Finding("types", "warn", f"some weights are {' and '.join(narrow)}", hint, evidence)
    if "float64" in counts:
        message = "the weights are float64: slow, and not what a float32 deployment computes"
        return Finding("types", "warn", message, "use model.float()", evidence)
    return Finding("types", "pass", f"weights: {', '.join(counts) or 'none'}", None, evidence)


def modal_modules(model: nn.Module) -> list[str]:
    """Names of the modules in training mode that are known to compute something else there."""
    return [
        name or "the model itself"
        for name, m in model.named_modules()
        if m.training
        and (
            isinstance(m, nn.modules.batchnorm._BatchNorm) or (isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0)
        )
    ]
