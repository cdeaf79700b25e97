"""The stateful halves of the parts, as modules, so that device moves and state dicts come for free."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from gambeson.core.processes import gathered, rank_and_world, shard
from gambeson.core.threat import L2, Linf, Threat, box
from gambeson.core.types import Batch, Rng
from gambeson.data.loader import Loader


class Part(nn.Module):
    """What a part may do, at each of these moments; nothing, unless it says otherwise."""

    def prepare(self, model: nn.Module, loader: Loader, epochs: int) -> None:
        """Before the training: refuse what cannot work with this model, these images and that many epochs."""

    def begin_epoch(self, model: nn.Module, loader: Loader, epoch: int) -> None:
        """Before the first step of an epoch."""

    def budget(self, model: nn.Module, batch: Batch, threat: Linf | L2, rng: Rng, epoch: int) -> Linf | L2:
        """The threat for this batch, from the one that the parts before gave."""
        return threat

    def observe(self, model: nn.Module) -> None:
        """After a step."""

    def metrics(self) -> dict[str, float]:
        """What a line of metrics shows of the steps since the last one, in all processes that share them."""
        return {}

    def whole_state(self) -> dict[str, Tensor]:
        """The state dict of all processes that share a training, for a checkpoint; called by all of them.

        Loading it into one process, or into any number, goes on from there.
        """
        return self.state_dict()


class Parts(nn.ModuleList):
    """The parts of a recipe, in its order."""

    def __iter__(self) -> Iterator[Part]:
        return cast("Iterator[Part]", super().__iter__())

    def whole_state(self) -> dict[str, Tensor]:
        """The state dict of all processes, see `Part.whole_state`."""
        return {f"{n}.{name}": t for n, part in enumerate(self) for name, t in part.whole_state().items()}


class AveragedWeights(Part):
    """The state behind `gambeson.parts.EMA`. `average` is the averaged model."""

    steps: Tensor

    def __init__(self, decay: float, warm: bool, model: nn.Module) -> None:
        super().__init__()
        self.decay, self.warm = decay, warm
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def observe(self, model: nn.Module) -> None:
        """Follow `model` by one step."""
        t = self.steps.float()
        decay = torch.minimum(torch.full_like(t, self.decay), (1 + t) / (10 + t)) if self.warm else self.decay
        self.steps += 1
        source = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, kept in [*self.average.named_parameters(), *self.average.named_buffers()]:
            if kept.is_floating_point():
                kept.lerp_(source[name], torch.as_tensor(1 - decay, dtype=kept.dtype, device=kept.device))
            else:
                kept.copy_(source[name])


class CarriedState(Part):
    """The state behind `gambeson.parts.CarriedPerturbation`."""

    delta: Tensor

    def __init__(self, rel_step_size: float) -> None:
        super().__init__()
        self.rel_step_size = rel_step_size
        self.register_buffer("delta", torch.zeros(0))

    def apply_to(self, x: Tensor) -> Tensor:
        """`box(x + delta)` for a batch; a batch larger than any before starts at zero in its new places."""
        if self.delta.shape[1:] != x.shape[1:]:
            self.delta = x.new_zeros(x.shape)
        elif len(self.delta) < len(x):
            self.delta = torch.cat([self.delta, x.new_zeros((len(x) - len(self.delta), *x.shape[1:]))])
        return box(x + self.delta[: len(x)])

    def carry(self, x: Tensor, grad: Tensor, threat: Threat) -> None:
        """Move the perturbation of the batch `x` along the gradient."""
        delta = self.delta[: len(x)] + self.rel_step_size * threat.eps * threat.ascend(grad)
        self.delta[: len(x)] = box(threat.project(x + delta, x)) - x

    def whole_state(self) -> dict[str, Tensor]:
        """The perturbations of all processes one after the other: those of the batch that they share."""
        return {"delta": gathered(self.delta)}

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:  # type: ignore[no-untyped-def]
        whole = state_dict[f"{prefix}delta"]
        mine = whole[shard(len(whole), *rank_and_world())]  # of the batch that they share
        self.delta = torch.empty_like(mine, device=self.delta.device)  # its shape is the batch's
        super()._load_from_state_dict({**state_dict, f"{prefix}delta": mine}, prefix, *args)
