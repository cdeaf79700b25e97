"""The networks by name: each takes images in [0, 1], normalises them itself and returns logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from gambeson.core.errors import InputError, nearest
from gambeson.core.types import Task
from gambeson.models.resnets import (
    preact_resnet18,
    preact_resnet18_tiny,
    resnet18,
    resnet18_tiny,
    resnet34,
    resnet34_tiny,
)
from gambeson.models.small_cnn import SmallCNN
from gambeson.models.vit import vit_small
from gambeson.models.wide_resnet import wrn_28_10, wrn_34_10, wrn_34_10_tiny

__all__ = ["MODELS", "ModelEntry", "create", "require_model"]

SMALLEST = 8
"""Smallest image size, pixels: three strides of 2 leave one position."""


@dataclass(frozen=True)
class ModelEntry:
    """One row of `MODELS`.

    Attributes:
        build: Makes the network from a task, and from `width=` where there is one.
        summary: What it is, in one line.
        width: Channels of the first stage in the papers, or None if the network comes in one width only.
    """

    build: Callable[..., nn.Module]
    summary: str
    width: int | None = None


MODELS: dict[str, ModelEntry] = {
    "preact-resnet18": ModelEntry(
        preact_resnet18, "pre-activation ResNet-18 (Fast AT, LAP); at 64x64 the -tiny one", 64
    ),
    "preact-resnet18-tiny": ModelEntry(preact_resnet18_tiny, "its Tiny-ImageNet variant: activated shortcut", 64),
    "resnet18": ModelEntry(resnet18, "ResNet-18 with a 3x3 stem and no max-pooling (PART, RiFT)", 64),
    "resnet18-tiny": ModelEntry(resnet18_tiny, "its Tiny-ImageNet variant: four cells at 64x64 (RiFT)", 64),
    "resnet34": ModelEntry(resnet34, "ResNet-34 with a 3x3 stem and no max-pooling (RiFT)", 64),
    "resnet34-tiny": ModelEntry(resnet34_tiny, "its Tiny-ImageNet variant: four cells at 64x64 (RiFT)", 64),
    "small-cnn": ModelEntry(SmallCNN, "four convolutions for 8x8 digits up to 32x32 images, seconds on a CPU"),
    "vit-small": ModelEntry(vit_small, "vision transformer, 4x4 patches, 384 dimensions, 12 blocks (LAP)"),
    "wrn-28-10": ModelEntry(wrn_28_10, "WideResNet-28-10, with ReLU", 160),
    "wrn-34-10": ModelEntry(wrn_34_10, "WideResNet-34-10 (TRADES, AWP, LAP, PART, RiFT)", 160),
    "wrn-34-10-tiny": ModelEntry(wrn_34_10_tiny, "its Tiny-ImageNet variant: four cells at 64x64 (RiFT)", 160),
}
"""Every network by name. Underscores are accepted for hyphens."""


def create(name: str, task: Task, *, width: int | None = None, seed: int | None = None) -> nn.Module:
    """Makes an untrained network for a task.

    Its first child `normalize` holds the task's constants, its attribute `task` holds the task, and its state dict has
    the names of the papers' checkpoints. `preact-resnet18` on 64x64 images is the papers' Tiny-ImageNet variant; see
    `gambeson.models.resnets.preact_resnet18`.

    Args:
        name: A key of `MODELS`; `preact_resnet18` is understood as `preact-resnet18`.
        task: The data: classes, channels, size, normalisation.
        width: Channels of the first stage (later stages have 2, 4 and, in ResNets, 8 times as many), for work on a
            CPU; None for the papers' width: 64 for ResNets, 160 for the WRNs (16 times the widen factor 10).
        seed: Seed of the initial weights, drawn without touching the global generator; None draws from that one.

    Returns:
        The network in training mode. It maps float images `(N, C, H, W)` in [0, 1] to logits `(N, num_classes)`.

    Raises:
        InputError: If the name is unknown, the network has no such option, or the task does not fit it.

    Examples:
        >>> task = Task(num_classes=10, channels=1, size=8, mean=(0.3,), std=(0.38,))
        >>> net = create("preact-resnet18", task, width=8, seed=0)
        >>> net(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 10])
        >>> create("resnet19", task)
        Traceback (most recent call last):
        gambeson.core.errors.InputError: unknown model 'resnet19'
        hint: did you mean resnet18 or resnet34 or preact-resnet18?
    """
    entry = MODELS[require_model(name, width)]
    _check(task)
    options = {} if width is None else {"width": width}
    if seed is None:
        return entry.build(task, **options)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also move the GPUs' generators
        return entry.build(task, **options)


def require_model(name: str, width: int | None = None) -> str:
    """The key of `MODELS` that is meant by a name.

    Raises:
        InputError: The name is unknown, or the network does not come in that width.

    Examples:
        >>> require_model("preact_resnet18", 8)
        'preact-resnet18'
    """
    key = name.replace("_", "-")
    if key not in MODELS:
        raise InputError(f"unknown model {name!r}", hint=nearest(key, MODELS))
    entry = MODELS[key]
    if width is not None and entry.width is None:
        with_width = ", ".join(other for other, row in sorted(MODELS.items()) if row.width is not None)
        raise InputError(f"{key} comes in one width only, got width={width}", hint=f"with a width: {with_width}")
    if width is not None and width < 1:
        raise InputError(f"width must be a number of channels, at least 1, got {width}", hint=f"papers: {entry.width}")
    return key


def _check(task: Task) -> None:
    """Raises an `InputError` for a task that no network can be built for."""
    if task.size < SMALLEST:
        raise InputError(
            f"images must be at least {SMALLEST}x{SMALLEST} pixels, got {task.size}x{task.size}",
            hint="enlarge or pad the images",
        )
    if not len(task.mean) == len(task.std) == task.channels:
        raise InputError(
            f"mean and std must have one number for each of the {task.channels} channels, "
            f"got {len(task.mean)} and {len(task.std)}"
        )
    if min(task.std) <= 0:
        raise InputError(
            f"std must be positive in every channel, got {task.std}",
            hint="measure mean and std on training images in [0, 1]; use std=1 for a constant channel",
        )
