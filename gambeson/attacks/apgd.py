"""Auto-PGD: gradient ascent with momentum that halves its step where it stops helping, for any loss of the logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from gambeson.attacks.attack import LogitLoss, input_gradient, per_image
from gambeson.core.modes import batch_norm, frozen
from gambeson.core.threat import Threat, box

if TYPE_CHECKING:
    from torch import Tensor, nn


class Ascent(NamedTuple):
    """Where an ascent came, all detached and still on the device.

    Attributes:
        x_best: The image of the highest loss, shape `(N, C, H, W)`.
        loss_best: That loss, shape `(N,)`.
        x_adv: The last misclassified image that was met, the start included; the clean image where there was none.
        fooled: Whether a misclassified image was met, bool `(N,)`.
    """

    x_best: Tensor
    loss_best: Tensor
    x_adv: Tensor
    fooled: Tensor


def apgd(
    model: nn.Module, x: Tensor, y: Tensor, loss: LogitLoss, start: Tensor, threat: Threat, *, steps: int
) -> Ascent:
    """Ascend `loss` from `start` by Auto-PGD.

    From step size `eta = 2 eps` on, with `P` the projection onto ball and box:

        z = P(x_t + eta * ascend(grad loss(x_t)))
        x_{t+1} = P(x_t + 3/4 (z - x_t) + 1/4 (x_t - x_{t-1})),   x_1 = P(z)

    Checkpoints come after 22 % of the steps, then in intervals that each time are shorter by 3 % of the steps, down to
    6 %. There `eta` is halved, and the ascent goes back to the best point, for every example whose loss rose in at most
    3/4 of the steps since the last checkpoint, or whose best loss has not moved since a last checkpoint that did not
    halve its step.

    The loop leaves the device alone: nothing is transferred between the steps. The model is in evaluation mode inside
    and as before afterwards.

    Args:
        model: Maps images in [0, 1] to logits.
        x: Clean images `(N, C, H, W)`.
        y: Labels `(N,)`, to see what is misclassified.
        loss: What is maximised: logits `(N, K)` to `(N,)`.
        start: The first point, inside the ball; `gambeson.attacks.Boundary()` is the published one.
        threat: The ball; `Linf` with any budget, or `L2`.
        steps: Number of steps, each with one forward and one backward, besides those at the start.

    Returns:
        The best and the adversarial images.

    References:
        Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
        ICML 2020, https://arxiv.org/abs/2003.01690; code: https://github.com/fra31/auto-attack
    Departures:
        None from the release's `attack_single_run` (autopgd_base.py), up to rounding. Where that differs from the
        paper, the release counts: the first step is a rise if its loss is above zero, not above the loss at the start;
        exactly 3/4 of rises halve too; the adversarial image is the last one that was met, not the one of the highest
        loss.
    """
    window, shorter, shortest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    with frozen(model), batch_norm(model, "running"):
        at = before = start.detach()
        grad, logits, values = input_gradient(model, loss, at)
        x_best, grad_best, loss_best = at, grad, values
        fooled = logits.argmax(1) != y
        x_adv = torch.where(per_image(fooled, x), at, x)

        scale = torch.full_like(values, 2.0)  # the step size in budgets
        previous, rises = torch.zeros_like(values), torch.zeros_like(values)
        loss_best_checked, halved = loss_best, torch.ones_like(fooled)
        left = window
        for step in range(steps):
            pull = 0.75 if step else 1.0
            aim = box(threat.project(at + per_image(scale, x) * threat.eps * threat.ascend(grad), x))
            moved = box(threat.project(at + pull * (aim - at) + (1 - pull) * (at - before), x))
            before, at = at, moved
            grad, logits, values = input_gradient(model, loss, at)

            wrong = logits.argmax(1) != y
            x_adv, fooled = torch.where(per_image(wrong, x), at, x_adv), fooled | wrong
            better = values > loss_best
            x_best = torch.where(per_image(better, x), at, x_best)
            grad_best = torch.where(per_image(better, x), grad, grad_best)
            loss_best = torch.where(better, values, loss_best)
            rises, previous = rises + (values > previous), values

            left -= 1
            if left == 0:
                halved = (rises <= 0.75 * window) | (~halved & (loss_best_checked >= loss_best))
                scale = torch.where(halved, scale / 2, scale)
                at = torch.where(per_image(halved, x), x_best, at)
                grad = torch.where(per_image(halved, x), grad_best, grad)
                loss_best_checked, rises = loss_best, torch.zeros_like(rises)
                left = window = max(window - shorter, shortest)
    return Ascent(x_best, loss_best, x_adv, fooled)
