"""Directions in which a diagnosis moves weights, and the images on which it measures what that does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from gambeson.attacks.pgd import PGD
from gambeson.core.parameters import like_of
from gambeson.core.streams import Streams
from gambeson.core.threat import Threat, box
from gambeson.core.types import Batch
from gambeson.data.loader import to_unit
from gambeson.evaluation.evaluate import parse_attack


def filter_normalised(direction: Tensor, weight: Tensor) -> Tensor:
    """A direction whose filters have the norms of the weight's: `d_f |w_f| / |d_f|`, f the first dimension.

    A filter of zeros is not moved, and neither is one whose direction is zero.

    References:
        Li, Xu, Taylor, Studer, Goldstein, "Visualizing the loss landscape of neural nets", NeurIPS 2018,
        https://arxiv.org/abs/1712.09913, section 4.
    """
    shape = (-1, *[1] * (weight.ndim - 1))
    wanted, given = (t.flatten(1).norm(dim=1) for t in (weight, direction))
    return direction * torch.where(given > 0, wanted / given, 0).view(shape)


def random_direction(weight: Tensor, name: str, *, which: int = 0, seed: int = 0) -> Tensor:
    """A filter-normalised Gaussian direction that belongs to a layer's name, the same on every device.

    Args:
        weight: The layer's.
        name: Its name.
        which: Its first direction, its second, and so on.
        seed: Seed of the draw.
    """
    rng = Streams(seed).at(f"landscape/{name}", which)
    drawn = torch.randn(weight.shape, generator=rng, dtype=torch.float32)
    return filter_normalised(drawn.to(weight.device, weight.dtype), weight)


def attacked_images(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    inputs: str,
    threat: Threat,
    *,
    freeze_fooled: bool = True,
    batch_size: int = 256,
    seed: int = 0,
) -> Tensor:
    """The images on which moved weights are measured: `clean`, or those of an attack by name on the model as it is.

    Args:
        model: Maps images in [0, 1] to logits.
        x: Images `(N, C, H, W)`, uint8 or float in [0, 1].
        y: Labels `(N,)`.
        inputs: A name for `parse_attack`.
        threat: Ball of the attack.
        freeze_fooled: PGD stops moving an image once it is misclassified, as where accuracy is evaluated; otherwise
            all steps are made, and its loss is higher.
        batch_size: Images at a time.
        seed: Seed of the attack.

    Returns:
        `(N, C, H, W)`, on the model's device and in its type.
    """
    attack, like, made = parse_attack(inputs), like_of(model, x), []
    if isinstance(attack, PGD) and not freeze_fooled:
        attack = replace(attack, freeze_fooled=False)
    for number, start in enumerate(range(0, len(y), batch_size)):
        part = slice(start, start + batch_size)
        images, labels = to_unit(x[part].to(like.device)).to(like.dtype), y[part].to(like.device, torch.int64)
        if attack is not None:
            batch = Batch(images, labels, torch.arange(len(labels), device=like.device))
            rng = Streams(seed).at(f"landscape/{inputs}", number, like.device)
            images = box(threat.project(attack(model, batch, threat, rng), images))
        made.append(images)
    return torch.cat(made)


def batches(n: int, batch_size: int) -> Iterator[slice]:
    """Where each batch of n images is."""
    for start in range(0, n, batch_size):
        yield slice(start, start + batch_size)
