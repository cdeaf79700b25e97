"""Context managers for the state of a model during an attack: frozen parameters and the use of BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, get_args

import torch

from gambeson.core.errors import InputError, require_known

if TYPE_CHECKING:
    from torch import Tensor, nn

BatchNormMode = Literal["running", "batch", "update"]
"""Evaluation mode with running statistics; training mode with batch statistics that leave no trace; training mode."""


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside the block no parameter requires a gradient; afterwards each is as it was."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for p, _ in flags:
            p.requires_grad_(False)
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


@contextmanager
def batch_norm(model: nn.Module, mode: BatchNormMode) -> Iterator[None]:
    """Inside the block the model normalises as `mode` says; afterwards every module's flags are as they were.

    Args:
        model: Any model; the modes of all its modules are set, those of frozen sub-modules too.
        mode: `"running"`: evaluation mode. `"batch"`: training mode, batch statistics, running statistics untouched.
            `"update"`: training mode, running statistics move.

    Raises:
        InputError: Another mode.
    """
    require_known("BatchNorm mode", mode, get_args(BatchNormMode))
    modules = list(model.modules())
    training = [m.training for m in modules]
    tracking = [(m, m.track_running_stats) for m in batch_norms(model)]
    try:
        model.train(mode != "running")
        if mode == "batch":
            for m, _ in tracking:
                m.track_running_stats = False  # F.batch_norm then gets no buffers to update
        yield
    finally:
        for module, flag in zip(modules, training, strict=True):
            module.training = flag
        for m, flag in tracking:
            m.track_running_stats = flag


def batch_norms(model: nn.Module) -> list[torch.nn.modules.batchnorm._BatchNorm]:
    """The BatchNorm modules of a model."""
    return [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]


def running_statistics(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Copies of the running means and variances, in module order."""
    return [
        (m.running_mean.clone(), m.running_var.clone())
        for m in batch_norms(model)
        if m.running_mean is not None and m.running_var is not None
    ]


def replay_statistics(
    model: nn.Module, before: list[tuple[Tensor, Tensor]], after: list[tuple[Tensor, Tensor]]
) -> None:
    """Move the running statistics once more by the batch whose forward took them from `before` to `after`.

    With momentum m a forward does `r <- (1-m) r + m s`. The same images through the same weights give the same s, so
    the second forward of a repeated view is `r <- (1-m) r + after - (1-m) before`, without running it. TRADES' release
    passes the clean images twice in training mode; this reproduces what that does.
    """
    with torch.no_grad():
        modules = [m for m in batch_norms(model) if m.running_mean is not None]
        rows: list[tuple[Tensor, Tensor, Tensor, float]] = []
        for m, old, new in zip(modules, before, after, strict=True):
            if not m.training:
                continue
            if m.momentum is None:
                raise InputError(
                    "cannot replay cumulative BatchNorm statistics (momentum=None)", hint="give the layer a momentum"
                )
            for running, r0, r1 in zip((m.running_mean, m.running_var), old, new, strict=True):
                assert running is not None
                # .data: the graph of a training-mode forward keeps these buffers, without using them, and would refuse
                # the backward after a change that it counts; a second forward is not counted either.
                rows.append((running.data, r0, r1, 1 - m.momentum))
            if m.num_batches_tracked is not None:
                m.num_batches_tracked.add_(1)
        if rows:
            now, olds, news, stay = (list(column) for column in zip(*rows, strict=True))
            moved = torch._foreach_mul(torch._foreach_sub(now, olds), stay)
            torch._foreach_copy_(now, torch._foreach_add(moved, news))
