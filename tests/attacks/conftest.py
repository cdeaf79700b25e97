"""A small model on which it matters how an attack searches, in float64 so that procedures can be compared exactly."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from gambeson.core.types import Batch


@pytest.fixture(scope="session")
def curved_net() -> Callable[..., nn.Sequential]:
    """Builds a model for 2x8x8 images from a seed, in evaluation mode; the nearest class is not always the easiest."""

    def build(seed: int = 2, classes: int = 6) -> nn.Sequential:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = nn.Sequential(
                nn.Conv2d(2, 6, 3, padding=1, bias=False),
                nn.BatchNorm2d(6),
                nn.Tanh(),
                nn.Flatten(),
                nn.Linear(384, classes),
            )
            net = net.double().eval()
            with torch.no_grad():
                net[0].weight *= 2
                net[4].weight *= torch.logspace(-1, 0.5, classes)[:, None]  # classes rise at different speeds
                net[4].bias -= net(torch.rand(200, 2, 8, 8, dtype=torch.float64)).mean(0)  # all classes occur
        return net

    return build


@pytest.fixture(scope="session")
def labelled() -> Callable[..., Batch]:
    """Builds `n` random images with the labels that a model gives in evaluation mode, the first `wrong` of them not."""

    def build(net: nn.Module, n: int = 12, seed: int = 1, wrong: int = 0) -> Batch:
        rng = torch.Generator().manual_seed(seed)
        x = torch.rand((n, 2, 8, 8), generator=rng, dtype=torch.float64)
        with torch.no_grad():
            logits = copy.deepcopy(net).eval()(x)
        y = logits.argmax(1)
        y[:wrong] = (y[:wrong] + 1) % logits.shape[1]
        return Batch(x, y, torch.arange(n))

    return build
