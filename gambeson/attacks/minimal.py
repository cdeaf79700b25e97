"""Minimal perturbations: how far every image must move until it is misclassified, by DeepFool or by bisection."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from gambeson.attacks.attack import Attack, per_image, require
from gambeson.attacks.margin import nearest_classes
from gambeson.core.errors import InputError
from gambeson.core.modes import batch_norm, frozen
from gambeson.core.threat import Threat, box, create_threat
from gambeson.core.types import Batch

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn


class Minimal(NamedTuple):
    """The nearest adversarial images that were met, all detached and still on the device.

    Attributes:
        x_adv: Those images, shape `(N, C, H, W)`, in [0, 1]; the clean image where none was found.
        norms: How far they are from the clean ones, shape `(N,)`: an upper bound of the true minimum. Zero for an image
            that is wrong as it is, infinite where none was found.
        found: Whether one was found, bool `(N,)`; true for an image that is wrong as it is.
    """

    x_adv: Tensor
    norms: Tensor
    found: Tensor


def deepfool(
    model: nn.Module,
    batch: Batch,
    norm: str = "L2",
    *,
    candidates: int = 10,
    steps: int = 50,
    overshoot: float = 0.02,
    nudge: float = 1e-4,
) -> Minimal:
    """Walk to the nearest decision boundary, as if the model were linear, until the class changes.

    With `g_k = z_k - z_y`, seen from the current image, every step goes to the nearest of the planes `g_k = 0`:

        k = argmin_k |g_k| / ||grad g_k||_q,   q = 2 for L2, q = 1 for Linf
        r <- r + (|g_k| / ||grad g_k||_q + nudge) d,   d = grad g_k / ||grad g_k||_2 for L2, sign(grad g_k) for Linf
        image <- clip(x + (1 + overshoot) r, 0, 1)

    Every example stops on its own, and those that have stopped are not computed any more. A step costs a forward with
    one backward per candidate, of the input only, for all examples together, and a forward to see who has stopped.
    BatchNorm uses its running statistics.

    Args:
        model: Maps images in [0, 1] to logits; its weights, modes and flags are as before afterwards.
        batch: Images and labels.
        norm: "L2" or "Linf", any case.
        candidates: Only the planes to that many classes, those of the largest clean logits; all wrong classes where
            there are fewer.
        steps: Steps at most.
        overshoot: By which share the perturbation is longer than to the planes, to come out behind them.
        nudge: How far behind the plane every step goes, in the norm: without it a step from an image that lies on the
            plane to the last bit would be none.

    Returns:
        Images, norms, and where the class changed. DeepFool looks for a near boundary, not for the nearest.

    Raises:
        InputError: An unknown norm, a setting out of range, or a model of one class.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2, bias=False))
        >>> with torch.no_grad():
        ...     _ = model[1].weight.copy_(torch.eye(2))  # class 1 where the second pixel is the larger
        >>> x, y = torch.tensor([0.5, 0.1, 0.5, 0.9]).view(2, 1, 1, 2), torch.tensor([0, 0])
        >>> [round(norm, 3) for norm in deepfool(model, Batch(x, y, torch.arange(2)), "Linf").norms.tolist()]
        [0.204, 0.0]

    References:
        Moosavi-Dezfooli, Fawzi, Frossard, "DeepFool: a simple and accurate method to fool deep neural networks", CVPR
        2016, https://arxiv.org/abs/1511.04599; code: https://github.com/LTS4/DeepFool
    Departures:
        With `overshoot=0, nudge=0`, away from the edges of [0, 1], this is the paper's algorithm 2 (L2) and its
        equations 11 and 12 (Linf). As the release (Python/deepfool.py) and unlike the paper, gradients are taken and
        the class is looked at behind the overshoot, and every step goes 1e-4 further; the paper applies the overshoot
        once, at the end. Images are clipped to [0, 1] after every step, which neither does. It is left from the label:
        an image that is wrong as it is does not move; the release leaves the predicted class. The release's
        `num_classes=10` counts the own class too.
    """
    ball = create_threat(norm, 1.0)
    require(candidates >= 1, "DeepFool needs at least one candidate class", candidates)
    require(steps >= 1, "DeepFool needs at least 1 step", steps)
    for name, value in (("overshoot", overshoot), ("nudge", nudge)):
        require(0 <= value < math.inf, f"the {name} of DeepFool must be finite and >= 0", value)
    x, y = batch.x.detach(), batch.y
    x_adv = x.clone()
    with frozen(model), batch_norm(model, "running"):
        with torch.no_grad():
            logits = model(x)
        found = _wrong(logits, y)
        planes = nearest_classes(logits, y, candidates)
        left = (~found).nonzero().squeeze(1)
        at, total = x[left], torch.zeros_like(x[left])
        for _ in range(steps):
            if len(left) == 0:
                break
            distance, grad = _nearest_plane(model, at, y[left], planes[:, left], ball.norm)
            total = total + per_image(distance + nudge, x) * ball.ascend(grad)
            at = box(x[left] + (1 + overshoot) * total)
            with torch.no_grad():
                fooled = _wrong(model(at), y[left])
            # Without a gradient the distance is infinite, times no direction: NaN, and the example is given up.
            moved = at.isfinite().flatten(1).all(1)
            fooled = fooled & moved
            x_adv[left[fooled]], found[left[fooled]] = at[fooled], True
            stay = moved & ~fooled
            left, at, total = left[stay], at[stay], total[stay]
    return Minimal(x_adv, _norms(ball, x_adv, x, found), found)


def minimal_eps(
    model: nn.Module, batch: Batch, attack: Attack, threat: Threat, rng: Generator, *, steps: int = 10
) -> Minimal:
    """Search for every example the smallest ball in which an attack finds an adversarial image, by bisection.

    The attack first gets the whole budget, then for every example that fell a budget of its own, half-way between the
    largest one at which the attack failed and the nearest adversarial image that was met. What the attack returns is
    projected onto the ball and clipped to [0, 1] before it is judged.

    The norms are those of images that were met, therefore upper bounds of the true minima, and more steps never make
    them larger. They are no lower bounds: an attack may fail where there is something to be found.

    Args:
        model: Maps images in [0, 1] to logits.
        batch: Images and labels.
        attack: Such as `PGD(steps=20)`; one that takes a budget per example.
        threat: The largest ball, its `eps` a number.
        rng: Randomness of the attack.
        steps: Halvings after the first attack: without luck the norm is known to `eps / 2**steps`.

    Returns:
        Images, norms, and where one was found inside the largest ball.

    Raises:
        InputError: A budget that is not one number, or fewer than 0 steps.

    Examples:
        >>> from gambeson.attacks import PGD
        >>> from gambeson.core.threat import Linf
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2, bias=False))
        >>> with torch.no_grad():
        ...     _ = model[1].weight.copy_(torch.eye(2))
        >>> batch = Batch(torch.tensor([0.5, 0.1]).view(1, 1, 1, 2), torch.tensor([0]), torch.arange(1))
        >>> found = minimal_eps(model, batch, PGD(steps=10), Linf(0.5), torch.Generator().manual_seed(0), steps=15)
        >>> bool(0.2 < found.norms[0] < 0.2001)
        True

    References:
        As Brendel, Rauber, Kümmerer, Ustyuzhaninov, Bethge, "Accurate, reliable and fast robustness evaluation",
        NeurIPS 2019, https://arxiv.org/abs/1907.01003, compare PGD with attacks that minimise norms.
    """
    if not isinstance(threat.eps, (int, float)):
        raise InputError("the largest ball of a bisection has one budget for all examples, got a tensor")
    require(steps >= 0, "a bisection has at least 0 steps", steps)
    x, y = batch.x.detach(), batch.y
    x_adv = x.clone()
    with torch.no_grad(), batch_norm(model, "running"):
        found = _wrong(model(x), y)
    left = (~found).nonzero().squeeze(1)
    low, high = (torch.full((len(left),), value, dtype=x.dtype, device=x.device) for value in (0.0, threat.eps))
    tried = high
    for step in range(steps + 1):
        if len(left) == 0:
            break
        rest, ball = Batch(x[left], y[left], batch.index[left]), threat.with_map(per_image(tried, x))
        images = box(ball.project(attack(model, rest, ball, rng), rest.x))
        with torch.no_grad(), batch_norm(model, "running"):
            fooled = _wrong(model(images), rest.y) & images.isfinite().flatten(1).all(1)
        x_adv[left[fooled]], found[left[fooled]] = images[fooled], True
        distance = ball.distance(images, rest.x)
        # Rounding may put an image a little outside of its ball; the budgets still halve.
        low, high = torch.where(fooled, low, tried), torch.where(fooled, torch.minimum(distance, tried), high)
        if step == 0:
            left, low, high = left[fooled], low[fooled], high[fooled]
        tried = (low + high) / 2
    return Minimal(x_adv, _norms(threat, x_adv, x, found), found)


def _nearest_plane(model: nn.Module, x: Tensor, y: Tensor, classes: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """The distance `(N,)` to the nearest plane between the class `y` and one of the `classes`, `(K, N)`; the gradient
    of its margin. The distance is infinite where no margin has a gradient."""
    at = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(at)
        margins = logits.gather(1, classes.T) - logits.gather(1, y[:, None])
        totals = margins.sum(0).unbind()
    nearest, grad_nearest = torch.full_like(margins[:, 0], math.inf), torch.zeros_like(x)
    for k, total in enumerate(totals):
        (grad,) = torch.autograd.grad(total, at, retain_graph=k + 1 < len(totals))
        size = grad.flatten(1).abs().sum(1) if norm == "Linf" else grad.flatten(1).norm(dim=1)
        distance = margins[:, k].detach().abs() / size  # infinite or NaN without a gradient, and then not nearer
        nearer = distance < nearest
        nearest = torch.where(nearer, distance, nearest)
        grad_nearest = torch.where(per_image(nearer, x), grad, grad_nearest)
    return nearest.detach(), grad_nearest


def _norms(threat: Threat, x_adv: Tensor, x: Tensor, found: Tensor) -> Tensor:
    norms = threat.distance(x_adv, x)
    return torch.where(found, norms, torch.full_like(norms, math.inf))


def _wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Misclassified, as the evaluation judges: logits that are not finite are wrong."""
    return (logits.argmax(1) != y) | ~logits.isfinite().all(1)
