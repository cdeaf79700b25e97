"""Training steps with ten gradients per batch as their releases make them: PGD-AT twice, TRADES, MART and AT-AWP.

Transcriptions of the procedures, written from their specifications and not copied: PGD-AT around an attack as
torchattacks 3.5.1 writes it (so in MAIR and in RiFT's base), PGD-AT of locuslab/robust_overfitting (Rice et al., ICML
2020), `trades.py` of yaodongyu/TRADES, `mart.py` of YisenWang/MART, and `AT_AWP` of csdongxian/AWP. They differ from
the releases as those of `benchmarks.references.steps` do; TRADES and MART also take eps 8/255 and steps of 2/255 for
0.031 and 0.007, which costs nothing. torchattacks' examination of its inputs, which waits for the device, is left out
in its favour.

The loops of robust_overfitting and AT-AWP run two more passes of a batch in training mode: one over the images that the
attack has ended with, to choose among restarts of which there is one, and one over the clean images after the step, for
the log. No weight depends on either, but both move the running statistics of BatchNorm, towards clean images: the
network is another one at test time. `idle_passes` keeps them, and without them the step costs two forwards less.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from benchmarks.references.steps import EPS, Step, descend, difference, inside
from gambeson.core.types import Batch, Rng

STEP, STEPS = 2 / 255, 10


def pgd_at(model: nn.Module, optimizer: SGD) -> Step:
    """Steps of PGD-AT: attacked in evaluation mode, the gradient of the images alone."""

    def step(batch: Batch, rng: Rng) -> Tensor:
        x, y = batch.x, batch.y
        model.eval()
        x_adv = x.clone().detach()
        x_adv = (x_adv + torch.empty_like(x_adv).uniform_(-EPS, EPS, generator=rng("attack"))).clamp(0, 1).detach()
        for _ in range(STEPS):
            x_adv.requires_grad = True
            grad = torch.autograd.grad(F.cross_entropy(model(x_adv), y), x_adv)[0]
            x_adv = x_adv.detach() + STEP * grad.sign()
            delta = (x_adv - x).clamp(-EPS, EPS)
            x_adv = (x + delta).clamp(0, 1).detach()
        model.train()
        return descend(optimizer, F.cross_entropy(model(x_adv), y))

    return step


def rice(model: nn.Module, optimizer: SGD, *, idle_passes: bool = False) -> Step:
    """Steps of robust_overfitting: attacked in training mode, a full `backward()` at each of the ten steps."""

    def step(batch: Batch, rng: Rng) -> Tensor:
        x, y = batch.x, batch.y
        delta = training_mode_attack(model, batch, rng, idle_passes=idle_passes)
        loss = descend(optimizer, F.cross_entropy(model((x + delta).clamp(0, 1)), y))
        if idle_passes:
            F.cross_entropy(model(x), y)
        return loss

    return step


def trades(model: nn.Module, optimizer: SGD, beta: float = 6.0) -> Step:
    """Steps of TRADES: the clean images once more at each of the ten steps, and twice in training mode."""
    criterion = nn.KLDivLoss(reduction="sum")

    def divergence(x_adv: Tensor, x: Tensor) -> Tensor:
        kl: Tensor = criterion(F.log_softmax(model(x_adv), dim=1), F.softmax(model(x), dim=1))
        return kl

    def step(batch: Batch, rng: Rng) -> Tensor:
        x, y = batch.x, batch.y
        x_adv = evaluation_mode_attack(model, x, rng, lambda x_adv: divergence(x_adv, x))
        optimizer.zero_grad()
        natural = F.cross_entropy(model(x), y)
        return descend(optimizer, natural + beta * divergence(x_adv, x) / len(x))

    return step


def mart(model: nn.Module, optimizer: SGD, beta: float = 5.0) -> Step:
    """Steps of MART: the wrong class by sorting, every gradient kept."""
    criterion = nn.KLDivLoss(reduction="none")

    def step(batch: Batch, rng: Rng) -> Tensor:
        x, y = batch.x, batch.y
        x_adv = evaluation_mode_attack(model, x, rng, lambda x_adv: F.cross_entropy(model(x_adv), y))
        optimizer.zero_grad()
        logits, logits_adv = model(x), model(x_adv)
        p_adv = F.softmax(logits_adv, dim=1)
        order = torch.argsort(p_adv, dim=1)[:, -2:]
        wrong = torch.where(order[:, -1] == y, order[:, -2], order[:, -1])
        boosted = F.cross_entropy(logits_adv, y) + F.nll_loss(torch.log(1.0001 - p_adv + 1e-12), wrong)
        p = F.softmax(logits, dim=1)
        own = torch.gather(p, 1, y.unsqueeze(1)).squeeze(1)
        apart = criterion(torch.log(p_adv + 1e-12), p).sum(dim=1)
        return descend(optimizer, boosted + beta / len(x) * (apart * (1.0000001 - own)).sum())

    return step


def at_awp(model: nn.Module, optimizer: SGD, gamma: float = 0.01, *, idle_passes: bool = False) -> Step:
    """Steps of AT-AWP: a second model takes one step up the loss, and the first is trained where that one went."""
    proxy = copy.deepcopy(model)
    proxy_optimizer = SGD(proxy.parameters(), lr=0.01)

    def add(change: dict[str, Tensor], factor: float) -> None:
        with torch.no_grad():
            for name, w in model.named_parameters():
                if name in change:
                    w.add_(factor * change[name])

    def step(batch: Batch, rng: Rng) -> Tensor:
        x, y = batch.x, batch.y
        delta = training_mode_attack(model, batch, rng, idle_passes=idle_passes)
        model.train()
        x_adv = (x + delta).clamp(0, 1)
        proxy.load_state_dict(model.state_dict())
        proxy.train()
        descend(proxy_optimizer, -F.cross_entropy(proxy(x_adv), y))
        change = difference(model, proxy)
        add(change, gamma)
        loss = descend(optimizer, F.cross_entropy(model(x_adv), y))
        add(change, -gamma)
        if idle_passes:
            F.cross_entropy(model(x), y)
        return loss

    return step


def evaluation_mode_attack(model: nn.Module, x: Tensor, rng: Rng, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The attack of TRADES and MART, from a Gaussian start; the network is in training mode afterwards."""
    model.eval()
    x_adv = x.detach() + 0.001 * torch.randn(x.shape, generator=rng("attack"), device=x.device, dtype=x.dtype)
    for _ in range(STEPS):
        x_adv.requires_grad_()
        grad = torch.autograd.grad(loss(x_adv), x_adv)[0]
        x_adv = x_adv.detach() + STEP * grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS)
        x_adv = x_adv.clamp(0, 1)
    model.train()
    return x_adv


def training_mode_attack(model: nn.Module, batch: Batch, rng: Rng, *, idle_passes: bool) -> Tensor:
    """The attack of robust_overfitting and AT-AWP, as a perturbation; the gradients of the weights add up meanwhile."""
    x, y = batch.x, batch.y
    delta = inside(torch.zeros_like(x).uniform_(-EPS, EPS, generator=rng("attack")), x).requires_grad_()
    for _ in range(STEPS):
        F.cross_entropy(model(x + delta), y).backward()
        assert delta.grad is not None
        moved = (delta.detach() + STEP * delta.grad.sign()).clamp(-EPS, EPS)
        delta.data = inside(moved, x)
        delta.grad.zero_()
    if idle_passes:  # the loss where the attack has ended; it chooses among restarts, and there is one
        F.cross_entropy(model(x + delta), y, reduction="none")
    return delta.detach()
