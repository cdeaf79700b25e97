"""What both sides of a parity test share: a small network, batches, random draws by address, and the comparison.

Nothing here is a method. The reference sides are written from the specifications and never call the library, except to
draw the same random numbers from the same address.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim import SGD

from gambeson.core.streams import Streams
from gambeson.core.types import Batch, Outcome
from gambeson.engine.step import robust_step
from gambeson.methods import Recipe

EPS = 8 / 255
CLASSES = 5
STREAMS = Streams(7)


class Net(nn.Module):
    """Four convolutions and a linear layer (one with a bias before BatchNorm), a residual, smooth activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(6)
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(6, 6, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(6)
        self.linear = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out = F.silu(self.bn1(self.conv1((x - 0.45) / 0.25)))
        out = F.silu(self.bn2(self.conv2(out)))
        out = F.silu(self.bn3(self.conv3(out) + self.shortcut(out)))
        return self.linear(F.adaptive_avg_pool2d(out, 2).flatten(1))


def net(seed: int = 0, dtype: torch.dtype = torch.float64) -> Net:
    """The same weights for the same seed, with BatchNorm scales and statistics away from their initial values."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Net().to(dtype).train()
        for p in model.parameters():
            if p.ndim == 1:
                p.data.add_(0.1 * torch.randn_like(p))
        with torch.no_grad():
            model(torch.rand(16, 3, 8, 8, dtype=dtype))
    return model


def batch(step: int = 0, count: int = 6, margin: float | None = None) -> Batch:
    """Images in [0, 1]. A fifth of the pixels is 0 or 1; with `margin` all are inside `[margin, 1 - margin]`."""
    rng = torch.Generator().manual_seed(1000 + step)
    x = torch.rand(count, 3, 8, 8, generator=rng, dtype=torch.float64) * 1.25 - 0.125
    x = x.clamp(0, 1) if margin is None else x.clamp(margin, 1 - margin)
    y = torch.randint(0, CLASSES, (count,), generator=rng)
    return Batch(x, y, torch.arange(count))


def rng(step: int) -> Callable[[str], Generator]:
    """Generators of a step by purpose, as the trainer gives them."""
    return partial(STREAMS.at, step=step)


def uniform(x: Tensor, radius: float, step: int, purpose: str = "attack") -> Tensor:
    """The draw from `U(-radius, radius)` behind an address."""
    return (2 * torch.rand(x.shape, generator=STREAMS.at(purpose, step), dtype=x.dtype) - 1) * radius


def gaussian(x: Tensor, step: int, purpose: str = "attack") -> Tensor:
    """The standard normal draw behind an address."""
    return torch.randn(x.shape, generator=STREAMS.at(purpose, step), dtype=x.dtype)


def sgd(model: nn.Module, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 5e-4) -> SGD:
    """The optimizer of both sides."""
    return SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)


def train(
    model: nn.Module, optimizer: SGD, recipe: Recipe, data: Batch, step: int, epoch: int = 0, parts: object = None
) -> Outcome:
    """One step of the library."""
    modules = parts if isinstance(parts, nn.ModuleList) else nn.ModuleList()
    return robust_step(model, data, recipe, modules, optimizer, rng(step), epoch)


def descend(optimizer: SGD, loss: Tensor) -> None:
    """zero_grad, backward, step: the end of every reference step."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def twins(seed: int = 0) -> tuple[Net, Net]:
    """Two equal networks: the library's and the reference's."""
    ours = net(seed)
    return ours, copy.deepcopy(ours)


def assert_equal_state(
    ours: nn.Module, ours_optimizer: SGD, theirs: nn.Module, their_optimizer: SGD, tolerance: float = 1e-10
) -> None:
    """Parameters, BatchNorm buffers and momentum agree to `tolerance`, absolutely; counters exactly."""
    expected = theirs.state_dict()
    for name, value in ours.state_dict().items():
        if value.is_floating_point():
            error = (value - expected[name]).abs().max().item()
            assert error <= tolerance, f"{name} differs by {error:.3g}"
        else:
            assert torch.equal(value, expected[name]), f"{name}: {value} for {expected[name]}"
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        mine = ours_optimizer.state.get(p, {}).get("momentum_buffer")
        reference = their_optimizer.state.get(q, {}).get("momentum_buffer")
        assert (mine is None) == (reference is None), f"momentum of {name}: {mine} for {reference}"
        if mine is not None and reference is not None:
            error = (mine - reference).abs().max().item()
            assert error <= tolerance, f"momentum of {name} differs by {error:.3g}"
