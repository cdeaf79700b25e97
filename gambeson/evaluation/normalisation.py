"""Is an image normalised once? Layers that hold constants of a normalisation, and what they are given in a forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gambeson.evaluation.finding import Finding, finite_number

CONSTANTS = (("mean", "std"), ("mu", "sigma"), ("new_mean", "new_std"))
"""What normalisation layers call their constants, here and in the releases of others."""

Heard = dict[str, tuple[Tensor, Tensor, Tensor]]
"""By name of a normalisation layer, the images that it was given, its mean and its standard deviation."""


def normalisers(model: nn.Module, channels: int) -> dict[str, tuple[nn.Module, Tensor, Tensor]]:
    """The modules that hold the constants of a normalisation on the scale of [0, 1]: module, mean and std by name.

    A layer that does nothing (mean 0, std 1) and one for grey levels up to 255 are none.
    """
    found: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}
    for name, module in model.named_modules():
        held = {**vars(module), **module._parameters, **module._buffers}
        for pair in CONSTANTS:
            mean, std = (_numbers(held.get(word), channels) for word in pair)
            if mean is None or std is None or bool((std <= 0).any()):
                continue
            if bool((mean.abs() <= 1).all() & (std <= 1).all()) and not bool((mean == 0).all() & (std == 1).all()):
                found[name or "the model itself"] = (module, mean, std)
    return found


def _numbers(value: Any, channels: int) -> Tensor | None:
    """One number, or one per channel; else None."""
    if isinstance(value, (int, float)):
        value = [value]
    if isinstance(value, (tuple, list)) and all(isinstance(v, (int, float)) for v in value):
        value = torch.tensor(value, dtype=torch.float64)
    if not isinstance(value, Tensor) or value.numel() not in (1, channels) or value.is_complex():
        return None
    return value.detach().cpu().double().flatten().expand(channels)


@contextmanager
def listening(model: nn.Module, channels: int) -> Iterator[Heard]:
    """Inside the block, note what every normalisation layer is given first."""
    heard: Heard = {}

    def note(name: str, mean: Tensor, std: Tensor) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
            if given and isinstance(given[0], Tensor) and given[0].ndim == 4 and given[0].shape[1] == channels:
                heard.setdefault(name, (given[0].detach().clone(), mean, std))

        return hook

    found = normalisers(model, channels)
    handles = [m.register_forward_pre_hook(note(name, mean, std)) for name, (m, mean, std) in found.items()]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def examine_normalisation(x: Tensor, heard: Heard) -> Finding:
    """Is every normalisation layer given images in [0, 1], and not such as were scaled and shifted before?

    For every channel the line `v = a u + b` is fitted from the images u to what the layer is given, v. Where it fits
    without rest and is not `a = 1, b = 0`, the images were normalised before.

    Args:
        x: The images that the model was given.
        heard: From `listening`, after one forward of these.
    """
    names = list(heard)
    evidence: dict[str, Any] = {"layers": names}
    if not names:
        return Finding("normalisation", "pass", "no normalisation layer: images in [0, 1] go in as they are")
    for name, (given, mean, std) in heard.items():
        a, b, rest = _line(x, given)
        if a is not None and rest < 1e-3 * max(1.0, abs(a)) and max(abs(a - 1), abs(b)) > 0.01:
            evidence |= {"layer": name, "scale": a, "shift": b}
            message = (
                f"{name} normalises images that were already scaled by {a:.4g} and shifted by {round(b, 3) + 0.0:g}"
            )
            hint = "images are normalised twice" + (f": keep one of {', '.join(names)}" if len(names) > 1 else "")
            return Finding("normalisation", "error", message, hint, evidence)
        low, high = float(given.min()), float(given.max())
        if low < -0.02 or high > 1.02:
            evidence |= {"layer": name, "min": finite_number(low), "max": finite_number(high)}
            message = f"{name} is given values from {low:.3g} to {high:.3g}, not images in [0, 1]"
            return Finding("normalisation", "warn", message, "are they normalised twice?", evidence)
        centre = (given.double().mean((0, 2, 3)).cpu() - mean) / std
        width = given.double().std((0, 2, 3)).cpu() / std
        if len(given) >= 16 and bool(((centre.abs() > 1.5) | (width < 0.25) | (width > 4)).any()):
            evidence |= {"layer": name, "mean": centre.tolist(), "std": width.tolist()}
            message = (
                f"after {name} the images have means {_list(centre)} and standard deviations {_list(width)}, which"
                " should be near 0 and 1"
            )
            return Finding("normalisation", "warn", message, "are its constants those of these images?", evidence)
    return Finding("normalisation", "pass", f"once, by {' and '.join(names)}", None, evidence)


def _line(u: Tensor, v: Tensor) -> tuple[float | None, float, float]:
    """Scale, shift and largest rest of the line from `u` to `v`, of the channel that is furthest from `v = u`."""
    worst: tuple[float | None, float, float] = (None, 0.0, 0.0)
    if u.shape != v.shape:
        return worst
    for here, there in zip(u.cpu().double().unbind(1), v.cpu().double().unbind(1), strict=True):
        centred = here - here.mean()
        variance = float(centred.square().mean())
        if variance < 1e-8:
            continue
        a = float((centred * there).mean()) / variance
        b = float(there.mean()) - a * float(here.mean())
        rest = float((there - a * here - b).abs().max())
        if worst[0] is None or abs(a - 1) + abs(b) > abs(worst[0] - 1) + abs(worst[1]):
            worst = (a, b, rest)
    return worst


def _list(values: Tensor) -> str:
    return ", ".join(f"{v:.2g}" for v in values.tolist())
