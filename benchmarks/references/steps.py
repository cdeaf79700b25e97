"""Training steps with one gradient per batch as their releases make them: RS-FGSM, N-FGSM and LAP.

Transcriptions of the procedures, written from their specifications and not copied: `train_fgsm.py` of
locuslab/fast_adversarial (Wong et al., ICLR 2020), `train.py` of pdejorge/N-FGSM (de Jorge et al., NeurIPS 2022) and
`LAP.py` with `utils.py` of tmllab/2024_ICML_LAP (Lin et al., ICML 2024). What differs, in all of them: the network
normalises, so that eps, step and box are numbers and not one per channel; one draw serves all channels, from the
generator of the step's address, so that others can draw the same noise; and sums for the log, each of which waits for
the device, are left out. The last two are in their favour.

LAP's release restores the momentum that its first optimizer step moved. On torch before 2.1, which it was published
with, `Optimizer.load_state_dict` copied the tensors; today it does not, and the momentum would stay moved. The copies
here are those of the authors' torch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from gambeson.core.types import Batch, Rng

Step = Callable[[Batch, Rng], Tensor]
"""Trains on a batch once, drawing from the generators of the step; the loss, detached."""
Make = Callable[[nn.Module, SGD], Step]
"""Prepares the steps of a network and its optimizer."""

EPS = 8 / 255
MOMENTUM = {"momentum": 0.9, "weight_decay": 5e-4}


def rs_fgsm(model: nn.Module, optimizer: SGD) -> Step:
    """Steps of RS-FGSM: a full `backward()` for the gradient of the images, whose weight gradients are thrown away."""

    def step(batch: Batch, rng: Rng) -> Tensor:
        x, y = batch.x, batch.y
        delta = inside(torch.zeros_like(x).uniform_(-EPS, EPS, generator=rng("attack")), x).requires_grad_()
        F.cross_entropy(model(x + delta), y).backward()
        assert delta.grad is not None
        delta = (delta.detach() + 10 / 255 * delta.grad.sign()).clamp(-EPS, EPS)
        return descend(optimizer, F.cross_entropy(model(x + inside(delta, x)), y))

    return step


def n_fgsm(model: nn.Module, optimizer: SGD) -> Step:
    """Steps of N-FGSM: more noise, no clipping to eps, and the gradient of the noise alone."""

    def step(batch: Batch, rng: Rng) -> Tensor:
        x, y = batch.x, batch.y
        noise = inside(torch.zeros_like(x).uniform_(-2 * EPS, 2 * EPS, generator=rng("attack")), x).requires_grad_()
        grad = torch.autograd.grad(F.cross_entropy(model(x + noise), y), noise)[0]
        delta = inside(noise.detach() + EPS * grad.sign(), x)
        return descend(optimizer, F.cross_entropy(model(x + delta), y))

    return step


def n_lap(model: nn.Module, optimizer: SGD, beta: float = 0.001, gamma: float = 0.3) -> Step:
    """Steps of N-LAP: a step that is measured and taken back, with a second model and a second optimizer for that."""
    proxy = copy.deepcopy(model)
    proxy_optimizer = SGD(model.parameters(), lr=optimizer.param_groups[0]["lr"], **MOMENTUM)
    layers = sum(w.ndim > 1 and "weight" in name for name, w in model.state_dict().items())

    def step(batch: Batch, rng: Rng) -> Tensor:
        x, y = batch.x, batch.y
        model.train()
        proxy.train()
        delta = inside(torch.zeros_like(x).uniform_(-2 * EPS, 2 * EPS, generator=rng("attack")), x).requires_grad_()
        loss = F.cross_entropy(model(x + delta), y)
        proxy.load_state_dict(model.state_dict())
        proxy_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        descend(optimizer, loss)
        assert delta.grad is not None
        delta = inside(delta.detach() + EPS * delta.grad.sign(), x)
        change = difference(proxy, model)
        model.load_state_dict(proxy.state_dict())
        optimizer.load_state_dict(copy.deepcopy(proxy_optimizer.state_dict()))
        add_by_layer(change)
        return descend(optimizer, F.cross_entropy(model((x + delta).clamp(0, 1)), y))

    def add_by_layer(change: dict[str, Tensor]) -> None:
        layer = 0
        with torch.no_grad():
            for name, w in model.named_parameters():
                if name in change:
                    layer += 1
                    w.add_((1 - (math.log(layer) / math.log(layers)) ** gamma) * beta * change[name])

    return step


def inside(delta: Tensor, x: Tensor) -> Tensor:
    """The perturbation that keeps `x + delta` in [0, 1]."""
    return torch.max(torch.min(delta, 1 - x), 0 - x)


def descend(optimizer: SGD, loss: Tensor) -> Tensor:
    """Clear the gradients, go backward, step."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def difference(old: nn.Module, new: nn.Module) -> dict[str, Tensor]:
    """Where every layer's weight went, with the norm of the old weight."""
    found: dict[str, Tensor] = {}
    for (name, w), moved in zip(old.state_dict().items(), new.state_dict().values(), strict=True):
        if w.ndim > 1 and "weight" in name:
            change = moved - w
            found[name] = w.norm() / (change.norm() + 1e-20) * change
    return found
