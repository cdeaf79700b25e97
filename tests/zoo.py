"""The zoo: canonical tiny settings of every method and attack. A method without a row here fails collection."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gambeson.attacks import FAB, MD, AutoPGD, Search, Square
from gambeson.core.types import Batch, Task
from gambeson.data.splits import Examples
from gambeson.methods import METHODS, Recipe
from gambeson.parts import EMA, Relative, WeightPerturbation

METHOD_SETTINGS: dict[str, dict[str, Any]] = {
    "standard": {},
    "fgsm": {},
    "rs-fgsm": {},
    "n-fgsm": {},
    "v-lap": {"beta": 0.03},
    "r-lap": {"beta": 0.03},
    "n-lap": {"beta": 0.03},
    "free-at": {"replays": 2},
    "grad-align": {},
    "zero-grad": {},
    "multi-grad": {},
    "pgd-at": {"steps": 2},
    "trades": {"steps": 2},
    "mart": {"steps": 2},
    "score": {"steps": 2},
    "at-awp": {"steps": 2},
    "trades-awp": {"steps": 2, "warmup": 1},
    "mart-awp": {"steps": 2, "warmup": 1},
    "part": {"steps": 2, "warmup": 1, "eps_low": 2 / 255, "refresh": 0},
    "part-t": {"steps": 2, "warmup": 1, "eps_low": 2 / 255, "refresh": 0},
    "part-m": {"steps": 2, "warmup": 1, "eps_low": 2 / 255, "refresh": 0},
}
"""Every name of METHODS, and no other: few steps, a perturbation that can be seen, warm-ups over after one epoch."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "lap-gradient": ("r-lap", {"beta": 0.03, "direction": "gradient"}),
    "lap-random": ("r-lap", {"beta": 0.03, "direction": "random"}),
    "lap-ascent": ("v-lap", {"beta": 0.002, "ascent": True}),
    "lap-linf": ("r-lap", {"beta": 0.03, "weight_norm": "linf"}),
    "lap-a": ("n-lap", {"beta": 0.03, "extra_backward": True}),
    "pgd-at-batch": ("pgd-at", {"steps": 2, "bn": "batch"}),
    "pgd-at-l2": ("pgd-at", {"steps": 2, "norm": "L2", "eps": 0.5}),
    "trades-l2": ("trades", {"steps": 2, "norm": "L2", "eps": 0.5}),
    "score-at": ("score", {"steps": 2, "form": "at"}),
    "part-mma": ("part", {"steps": 2, "warmup": 1, "eps_low": 2 / 255, "refresh": 0, "inner_attack": "mma"}),
    "part-jet": ("part", {"steps": 2, "warmup": 1, "eps_low": 2 / 255, "refresh": 0, "mask": "jet"}),
    "part-random": ("part-t", {"steps": 2, "warmup": 1, "eps_low": 2 / 255, "mask": "random:0.3"}),
    "part-quadrant": ("part-m", {"steps": 2, "warmup": 0, "eps_low": 2 / 255, "mask": "quadrant:br"}),
}
"""Settings of methods that take another path through the code."""

AVERAGED = {"n-lap-ema": "n-lap", "standard-ema": "standard", "mart-awp-ema": "mart-awp", "part-t-ema": "part-t"}
"""Compositions with a moving average of the weights."""

COMPOSED = {"part-t-awp-ema": "part-t-ema"}
"""Compositions with a weight perturbation."""

ATTACK_NAMES: dict[str, str] = {
    "clean": "clean",
    "fgsm": "fgsm",
    "pgd-K": "pgd-3",
    "pgd-K-R": "pgd-2-2",
    "mma-K": "mma-3",
    "mm3": "mm3",
    "mm9": "mm9",
    "mm+": "mm+",
}
"""A cheap instance of every pattern in `gambeson.evaluation.ATTACKS` that is neither a search nor an ensemble."""

SEARCHES: dict[str, Search] = {
    "apgd-ce": AutoPGD(loss="ce", steps=3),
    "apgd-dlr": AutoPGD(loss="dlr", steps=3),
    "apgd-t": AutoPGD(loss="dlr-targeted", steps=2, targets=2),
    "fab": FAB(targeted=False, steps=2),
    "fab-t": FAB(targeted=True, steps=2, targets=2),
    "md": MD(steps=4, change=2),
    "square": Square(queries=5),
}
"""A cheap instance of every search in `gambeson.evaluation.SEARCHES`."""

TASK = Task(num_classes=5, channels=3, size=8, mean=(0.5, 0.45, 0.4), std=(0.25, 0.2, 0.3))


def recipe(name: str) -> Recipe:
    """The recipe of a row."""
    if name in COMPOSED:
        return replace(recipe(COMPOSED[name]), weight_perturbation=WeightPerturbation(size=Relative(0.01)))
    if name in AVERAGED:
        base = recipe(AVERAGED[name])
        return replace(base, parts=(*base.parts, EMA(decay=0.9)))
    method, settings = VARIANTS[name] if name in VARIANTS else (name, METHOD_SETTINGS[name])
    return METHODS[method](**settings)


class TinyNet(nn.Module):
    """Three convolutions with BatchNorm and a linear layer; on request dropout, which draws globally."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(24, TASK.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.leaky_relu(self.bn1(self.conv1((x - 0.45) / 0.25)), 0.1)
        out = F.leaky_relu(self.bn2(self.conv2(out)), 0.1)
        out = F.leaky_relu(self.bn3(self.conv3(out)), 0.1)
        return self.linear(self.dropout(F.adaptive_avg_pool2d(out, 2).flatten(1)))


def net(seed: int = 0, dropout: float = 0.0) -> TinyNet:
    """A network from a seed, in training mode; the global generator is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyNet(dropout).train()


def examples(count: int, seed: int) -> Examples:
    """Random images and labels."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (count, TASK.channels, TASK.size, TASK.size), generator=rng, dtype=torch.uint8)
    return Examples(x, torch.randint(0, TASK.num_classes, (count,), generator=rng))


def batch(step: int = 0, count: int = 8, dtype: torch.dtype = torch.float32) -> Batch:
    """Random images with pixels at 0 and at 1."""
    rng = torch.Generator().manual_seed(100 + step)
    x = torch.rand(count, TASK.channels, TASK.size, TASK.size, generator=rng, dtype=torch.float64) * 1.2 - 0.1
    return Batch(
        x.clamp(0, 1).to(dtype), torch.randint(0, TASK.num_classes, (count,), generator=rng), torch.arange(count)
    )
