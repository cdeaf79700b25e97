"""One training step: search the worst case, minimise there, update."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gambeson.core.modes import replay_statistics, running_statistics
from gambeson.core.parameters import applied
from gambeson.core.processes import average_statistics, sum_gradients, weighted
from gambeson.core.types import Batch, Outcome, Rng
from gambeson.engine.precision import unwrapped
from gambeson.methods.recipe import Recipe, search
from gambeson.parts.state import CarriedState, Parts


def robust_step(
    net: nn.Module, batch: Batch, recipe: Recipe, parts: Parts, optimizer: Optimizer, rng: Rng, epoch: int
) -> Outcome:
    """Train `net` on one batch.

    Where the batch is a share of the step's images, the gradients, those of weight perturbations too, are those of the
    mean over all of them, and BatchNorm's running statistics are averaged: weights stay equal in all processes. Images
    are attacked by every process for itself.

    Args:
        net: The model, in training mode.
        batch: Images in [0, 1] on the device of the model.
        recipe: The method.
        parts: The recipe's parts, built.
        optimizer: Steps once; gradients are cleared afterwards.
        rng: Generators of this step by purpose.
        epoch: Counted from 0, for warm-ups.

    Returns:
        Mean loss and logits by view of this batch, detached, on the device.

    Raises:
        ProcessError: Another of the processes has ended.
    """
    if recipe.inner == "carried":
        return _carried_step(net, batch, recipe, parts, optimizer)
    threat = recipe.threat
    for part in parts:
        threat = part.budget(unwrapped(net), batch, threat, rng, epoch)
    x_adv, perturbation = search(net, batch, recipe, optimizer, rng, epoch, threat)
    wp = recipe.weight_perturbation
    keep = wp is not None and wp.keep
    with applied(net, perturbation, keep=keep):
        logits = forward(net, {"clean": batch.x, "adv": x_adv}, recipe.objective.views)
        loss = recipe.objective(logits, batch.y).mean()
        if recipe.penalty is not None:
            loss = loss + recipe.penalty(net, batch, threat, rng("penalty"))
        weighted(loss, batch.share).backward()
    sum_gradients(net, batch.share)
    if wp is not None and wp.decay == "perturbed" and not keep:
        _decay_perturbation(net, perturbation, optimizer)
    _update(net, batch, parts, optimizer)
    return Outcome(loss.detach(), {view: z.detach() for view, z in logits.items()})


def forward(net: nn.Module, images: dict[str, Tensor], views: tuple[str, ...]) -> dict[str, Tensor]:
    """Logits by view, in order. A view that comes twice is not run again, only its effect on BatchNorm is replayed."""
    logits: dict[str, Tensor] = {}
    moved: dict[str, tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]] = {}
    for view in views:
        if view in logits:
            replay_statistics(net, *moved[view])
            continue
        if views.count(view) == 1:
            logits[view] = net(images[view])
            continue
        before = running_statistics(net)
        logits[view] = net(images[view])
        moved[view] = (before, running_statistics(net))
    return logits


def _carried_step(net: nn.Module, batch: Batch, recipe: Recipe, parts: Parts, optimizer: Optimizer) -> Outcome:
    memory = next(part for part in parts if isinstance(part, CarriedState))
    x_adv = memory.apply_to(batch.x).requires_grad_()
    logits = forward(net, {"clean": batch.x, "adv": x_adv}, recipe.objective.views)
    loss = recipe.objective(logits, batch.y).mean()
    weighted(loss, batch.share).backward()  # one backward for the weights and for the next perturbation
    assert x_adv.grad is not None
    memory.carry(batch.x, x_adv.grad, recipe.threat)
    sum_gradients(net, batch.share)
    _update(net, batch, parts, optimizer)
    return Outcome(loss.detach(), {view: z.detach() for view, z in logits.items()})


def _decay_perturbation(net: nn.Module, perturbation: dict[str, Tensor], optimizer: Optimizer) -> None:
    """Let weight decay act on `w + v` though the step starts from w: the release steps first and subtracts v then."""
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    parameters = dict(net.named_parameters())
    moved = [(parameters[name], v) for name, v in perturbation.items()]
    rows = [(w.grad, v, decay[id(w)]) for w, v in moved if w.grad is not None]
    if rows:
        grads, vs, decays = (list(column) for column in zip(*rows, strict=True))
        torch._foreach_add_(grads, torch._foreach_mul(vs, decays))


def _update(net: nn.Module, batch: Batch, parts: Parts, optimizer: Optimizer) -> None:
    average_statistics(net, batch.share)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for part in parts:
        part.observe(unwrapped(net))
