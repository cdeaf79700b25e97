"""Module robust criticality as RiFT's release computes it: layer after layer, the whole network in every pass.

A transcription of the procedure, written from its specification and not copied: RiFT/main.py:48-146 of
microsoft/robustlearn. Three things differ, the first two in its favour: a slice selects images from a tensor (the
release fetches them one by one and collates them again), the network is not wrapped in `DataParallel`, and the batches
are taken in order, so that others can be compared with it.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def criticality(
    model: nn.Module, x: Tensor, y: Tensor, *, epochs: int = 10, batch_size: int = 512, radius: float = 0.1
) -> dict[str, float]:
    """Largest mean cross-entropy over the ends of the epochs, minus that of the model, for every layer."""
    model.eval()
    base = evaluate(model, x, y, batch_size)
    names = [name for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and "sub" not in name]
    return {name: _worst(model, name, x, y, epochs, batch_size, radius) - base for name in names}


def evaluate(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> float:
    """Mean cross-entropy."""
    total, correct = 0.0, 0
    with torch.no_grad():
        for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            logits = model(images)
            total += F.cross_entropy(logits, labels).item() * len(labels)
            correct += int((logits.argmax(1) == labels).sum())  # the release reports the accuracy as well
    return total / len(y)


def _worst(model: nn.Module, name: str, x: Tensor, y: Tensor, epochs: int, batch_size: int, radius: float) -> float:
    own = copy.deepcopy(model).eval()
    for p in own.parameters():
        p.requires_grad = False
    weight = own.get_submodule(name).weight
    assert isinstance(weight, nn.Parameter)
    weight.requires_grad = True
    start = weight.detach().clone()
    optimizer = torch.optim.SGD([weight], lr=1)
    worst = float("-inf")
    for _ in range(epochs):
        for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            optimizer.zero_grad()
            (-F.cross_entropy(own(images), labels)).backward()
            optimizer.step()
        with torch.no_grad():  # once an epoch, and on it goes
            delta = weight - start
            ratio = delta.norm() / start.norm()
            if ratio > radius:
                weight.copy_(start + radius * delta / ratio)
        worst = max(worst, evaluate(own, x, y, batch_size))
    return worst
