"""The few values that travel between the folders: a batch, a task, the result of the inner search and of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Generator, Tensor

Rng = Callable[[str], "Generator"]
"""Gives the generator of a step for a purpose."""


class Batch(NamedTuple):
    """One mini-batch on the device of the model.

    Attributes:
        x: Images, float32 in [0, 1], shape `(N, C, H, W)`.
        y: Labels, int64 in `[0, num_classes)`, shape `(N,)`.
        index: Position of every example in its split, int64, shape `(N,)`. State kept per example is keyed by it.
        placement: How the crop and the flip placed every image, int64 `(N, 3)`, see `gambeson.data.placement`: what is
            kept per pixel moves along. None for images as they are in the split.
        share: The part of the step's images that are in this batch, where several processes share a step and average
            their gradients; None where it has all of them.
    """

    x: Tensor
    y: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody wants here
    placement: Tensor | None = None
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a model has to solve: everything that a constructor needs to know about the data.

    Attributes:
        num_classes: Number of classes.
        channels: Image channels (1 or 3).
        size: Height and width of the square images, pixels.
        mean: Per-channel mean of the training images on the [0, 1] scale; the model subtracts it.
        std: Per-channel standard deviation on the same scale; the model divides by it.
    """

    num_classes: int
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Adversary(NamedTuple):
    """What the inner search found: worst-case images and, where the method has one, a weight perturbation.

    Attributes:
        x: Adversarial images, shape `(N, C, H, W)`.
        weights: Perturbation `v` by parameter name, each of the parameter's shape; empty without one.
    """

    x: Tensor
    weights: dict[str, Tensor]


class Outcome(NamedTuple):
    """What a training step reports, all detached and still on the device.

    Attributes:
        loss: Mean training loss, a scalar.
        logits: Logits `(N, num_classes)` by view (`"clean"`, `"adv"`).
    """

    loss: Tensor
    logits: dict[str, Tensor]
