"""Checks of the gradient with respect to the images: is there one wherever the logits change inside the ball?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from gambeson.core.losses import ce, margin
from gambeson.core.threat import Threat, box
from gambeson.evaluation.behaviour import Seen
from gambeson.evaluation.finding import Finding

_LOSSES: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "ce": ("cross-entropy", ce),
    "margin": ("margin loss", margin),
}
LOSSES = tuple(_LOSSES)
"""Losses whose gradients are examined: that of PGD, and that of the margin attacks and DLR."""

SHARE = 0.1
"""Share of the images from which a missing gradient is an error: the accuracy under attack may be wrong by as much."""


@dataclass(frozen=True, eq=False)
class Slopes:
    """What a model gave with gradients.

    Attributes:
        logits: `(N, K)`, or None where the forward failed.
        by_loss: The gradient of each loss with respect to the images, `(N, C, H, W)`; zero where there is none.
        detached: Whether the logits do not depend on the images as far as autograd knows.
        failure: The error of the forward or the backward.
    """

    logits: Tensor | None
    by_loss: dict[str, Tensor]
    detached: bool = False
    failure: str | None = None


def differentiate(model: nn.Module, x: Tensor, y: Tensor, losses: Sequence[str]) -> Slopes:
    """The gradients of the losses, by one forward; the caller freezes the model and sets its mode."""
    at = x.detach().clone().requires_grad_()
    found: dict[str, Tensor] = {}
    logits = None
    try:
        with torch.enable_grad():
            logits = model(at)
            detached = not logits.requires_grad
            for loss in losses:
                total = _LOSSES[loss][1](logits, y).sum()
                grad = None if detached else torch.autograd.grad(total, at, retain_graph=True, allow_unused=True)[0]
                detached = detached or grad is None
                found[loss] = torch.zeros_like(x) if grad is None else grad
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return Slopes(None if logits is None else logits.detach(), {}, failure=str(error).splitlines()[0])
    return Slopes(logits.detach(), found, detached)


def examine_gradients(
    model: nn.Module, seen: Seen, slopes: Slopes, threat: Threat, losses: Sequence[str], rng: Generator
) -> list[Finding]:
    """Is there a gradient of each loss at every image whose logits change inside the ball?

    A gradient of zero is no fault where the logits are constant: then there is nothing to attack. Images whose logits
    are not finite are left out.

    Args:
        model: Maps images to logits.
        seen: What it gave.
        slopes: Its gradients.
        threat: The ball.
        losses: Which to examine.
        rng: Draws the point of the ball that is compared with its centre.
    """
    if slopes.failure is not None:
        message = f"the model cannot be differentiated: {slopes.failure}"
        hint = "use operations that autograd knows; in-place ones on the input are not among them"
        return [Finding(f"gradient ({loss})", "error", message, hint) for loss in losses]
    rows = seen.logits.isfinite().all(1)
    zero = {loss: rows & (grad == 0).flatten(1).all(1) for loss, grad in slopes.by_loss.items()}
    moved = torch.zeros_like(rows)
    if any(bool(z.any()) for z in zero.values()):
        with torch.no_grad():
            there = model(box(seen.x + threat.sample(seen.x, rng)))
        moved = rows & ((there - seen.logits).abs().amax(1) > seen.noise)
    found = []
    for loss in losses:
        grad, blocked = slopes.by_loss[loss], zero[loss] & moved
        counts = {
            "n": int(rows.sum()),
            "broken": int((rows & ~grad.isfinite().flatten(1).all(1)).sum()),
            "blocked": int(blocked.sum()),
            "constant": int((zero[loss] & ~moved).sum()),
        }
        saturated = loss == "ce" and _saturated(seen.logits[blocked])
        if "margin" in zero:  # what blocks both is not the softmax
            saturated &= bool((blocked & ~zero["margin"]).any())
        found.append(_verdict(loss, counts, slopes.detached, saturated, seen))
    return found


def _saturated(logits: Tensor) -> bool:
    """Whether every softmax is exactly one class: all other probabilities underflow."""
    return len(logits) > 0 and logits.shape[1] > 1 and bool((logits.softmax(1).topk(2, dim=1).values[:, 1] == 0).all())


def _verdict(loss: str, counts: dict[str, int], detached: bool, saturated: bool, seen: Seen) -> Finding:
    check, n, of = f"gradient ({loss})", counts["n"], f"the gradient of the {_LOSSES[loss][0]}"
    if counts["broken"]:
        level = "error" if counts["broken"] >= SHARE * n else "warn"
        hint = "sqrt, norm or log at 0, or division by 0, in the forward: add a small constant"
        message = f"{of} is NaN or infinite at {counts['broken']} of {n} images"
        return Finding(check, level, message, hint, counts)  # type: ignore[arg-type]
    if counts["blocked"]:
        level = "error" if counts["blocked"] >= SHARE * n else "warn"
        message = f"{of} is zero at {counts['blocked']} of {n} images, though their logits change inside the ball"
        hint = "a rounding, quantisation or argmax on the way: attack with its backward replaced (BPDA)"
        if detached:
            hint = "the forward leaves autograd: no_grad(), inference_mode(), detach() or numpy"
        elif saturated:
            hint = f"the softmax saturates, with logits {seen.spread:.2g} apart: attack the margin (mm3)"
        return Finding(check, level, message, hint, counts)  # type: ignore[arg-type]
    if n and counts["constant"] >= SHARE * n and seen.noise <= seen.rounding:
        message = f"the logits of {counts['constant']} of {n} images do not change inside the ball"
        return Finding(check, "warn", message, "does the model use its input? are its units dead?", counts)
    return Finding(check, "pass", f"{of} is there at {n - counts['constant']} of {n} images", None, counts)
