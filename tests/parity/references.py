"""Transcriptions: attacks and losses of PGD-AT, TRADES and MART, as released."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gambeson.core.types import Batch
from parity.cases import EPS, gaussian, uniform

STEP_SIZE = 2 / 255


def linf_ascent(x: Tensor, x_adv: Tensor, loss: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    """`steps` times: + step * sign, project to eps, project to [0, 1]."""
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        grad = torch.autograd.grad(loss(x_adv), x_adv)[0]
        x_adv = x_adv.detach() + STEP_SIZE * grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS).clamp(0, 1)
    return x_adv.detach()


def uniform_start(x: Tensor, step: int) -> Tensor:
    return (x + uniform(x, EPS, step)).clamp(0, 1)


def gaussian_start(x: Tensor, step: int) -> Tensor:
    """Not projected before the first step."""
    return x + 0.001 * gaussian(x, step)


def pgd_images(model: nn.Module, data: Batch, step: int, steps: int, *, training: bool) -> Tensor:
    """Uniform start, CE; in training mode the model's BatchNorm statistics move with every forward."""
    model.train(training)
    x_adv = linf_ascent(data.x, uniform_start(data.x, step), lambda x_adv: F.cross_entropy(model(x_adv), data.y), steps)
    model.train()
    return x_adv


def mart_images(model: nn.Module, data: Batch, step: int, steps: int) -> Tensor:
    """TRADES' start, CE, evaluation mode."""
    model.eval()
    start = gaussian_start(data.x, step)
    x_adv = linf_ascent(data.x, start, lambda x_adv: F.cross_entropy(model(x_adv), data.y), steps)
    model.train()
    return x_adv


def trades_images(model: nn.Module, data: Batch, step: int, steps: int) -> Tensor:
    """Evaluation mode; p(x) recomputed at every step, as in the release."""
    model.eval()
    criterion = nn.KLDivLoss(reduction="sum")

    def loss(x_adv: Tensor) -> Tensor:
        return criterion(F.log_softmax(model(x_adv), dim=1), F.softmax(model(data.x), dim=1))

    x_adv = linf_ascent(data.x, gaussian_start(data.x, step), loss, steps)
    model.train()
    return x_adv


def trades_loss(model: nn.Module, data: Batch, x_adv: Tensor, beta: float) -> Tensor:
    """Three forwards: clean for CE, adversarial, clean again for KL; nothing is detached."""
    natural = F.cross_entropy(model(data.x), data.y)
    divergence = nn.KLDivLoss(reduction="sum")(F.log_softmax(model(x_adv), dim=1), F.softmax(model(data.x), dim=1))
    return natural + beta * divergence / len(data.y)


def mart_loss(logits: Tensor, logits_adv: Tensor, y: Tensor, beta: float) -> Tensor:
    """Boosted CE towards the second of an argsort, and the weighted KL; the release's constants."""
    adv_probs = F.softmax(logits_adv, dim=1)
    order = torch.argsort(adv_probs, dim=1)[:, -2:]
    wrong = torch.where(order[:, -1] == y, order[:, -2], order[:, -1])
    boosted = F.cross_entropy(logits_adv, y) + F.nll_loss(torch.log(1.0001 - adv_probs + 1e-12), wrong)
    nat_probs = F.softmax(logits, dim=1)
    true_probs = torch.gather(nat_probs, 1, y.unsqueeze(1)).squeeze(1)
    divergence = nn.KLDivLoss(reduction="none")(torch.log(adv_probs + 1e-12), nat_probs).sum(1)
    return boosted + beta / len(y) * (divergence * (1.0000001 - true_probs)).sum()
