"""Folded BatchNorms: the same function, of whatever network, and what is left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from gambeson.core.types import Task
from gambeson.models import create
from gambeson.models.folding import folded

DIGITS = Task(num_classes=10, channels=1, size=8, mean=(0.3053,), std=(0.376,))


def settled(net: nn.Module, x: Tensor) -> nn.Module:
    """With statistics, scales and shifts that are not those of the start."""
    g = torch.Generator().manual_seed(0)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 2, generator=g)
            nn.init.normal_(m.bias, generator=g)
    with torch.no_grad():
        for _ in range(3):
            net.train()(x)
    return net.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18", 20), ("preact-resnet18", 8), ("wrn-28-10", 13), ("small-cnn", 4), ("vit-small", 0)],
)
def test_the_same_function_and_gradient(name: str, count: int, images: Tensor) -> None:
    width = {"width": 4} if name not in ("small-cnn", "vit-small") else {}
    net = settled(create(name, DIGITS, seed=0, **width).double(), images)
    before = copy.deepcopy(net.state_dict())
    other, found = folded(net, images)
    assert found == count
    assert (other is net) == (count == 0)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == found + sum(
        isinstance(m, nn.BatchNorm2d) for m in other.modules()
    ) * (found > 0)
    fresh = torch.rand(9, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ends = [x.requires_grad_() for x in (fresh.clone(), fresh.clone())]
    logits = [model(x) for model, x in zip((net, other), ends, strict=True)]
    torch.testing.assert_close(*logits, rtol=1e-11, atol=1e-11)
    grads = [torch.autograd.grad(z.square().sum(), x)[0] for z, x in zip(logits, ends, strict=True)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    assert not net.training


def test_the_copy_lies_as_is_fastest_and_the_model_stays(images: Tensor) -> None:
    net = settled(create("resnet18", DIGITS, seed=0, width=16).double(), images)
    other, _ = folded(net, images)
    weights = [[m.weight for m in model.modules() if isinstance(m, nn.Conv2d)] for model in (net, other)]
    assert all(w.is_contiguous() for w in weights[0])
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights[1])
    assert not all(w.is_contiguous() for w in weights[1])
    thin = settled(create("resnet18", DIGITS, seed=0, width=4).double(), images)  # unsafe: strided 1x1 of 4 channels
    other, found = folded(thin, images)
    assert found == 20
    assert all(m.weight.is_contiguous() for m in other.modules() if isinstance(m, nn.Conv2d))


class Net(nn.Module):
    """A convolution, a BatchNorm, and a way to use them."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        h = self.norm(z).relu()
        if self.use == "twice seen":
            h = h + z
        elif self.use == "twice run":
            h = h + self.norm(self.conv(x.flip(3)))
        elif self.use == "weight read":
            h = h * self.conv.weight.abs().mean()
        elif self.use == "random":
            h = h * torch.rand_like(h)
        elif self.use == "branches" and x.mean() > 0:
            h = h * 2
        return self.head(h.mean((2, 3)))


@pytest.mark.parametrize(
    "use", ["twice seen", "twice run", "weight read", "random", "branches", "hooked", "no statistics"]
)
def test_what_cannot_be_folded_is_left_alone(use: str, images: Tensor) -> None:
    net = settled(Net(use).double(), images)
    if use == "hooked":
        net.conv.register_forward_hook(lambda module, args, out: 2 * out)  # type: ignore[union-attr,operator]
    if use == "no statistics":
        net.norm = nn.BatchNorm2d(4, track_running_stats=False).double()
    assert folded(net, images) == (net, 0)


def test_the_plain_use_is_folded_and_modes_come_back(images: Tensor) -> None:
    net = settled(Net("plain").double(), images).train()
    other, count = folded(net, images)
    assert count == 1
    assert isinstance(other.norm, nn.Identity)
    assert all(m.training for m in net.modules())
    assert not any(m.training for m in other.modules())
    assert int(net.norm.num_batches_tracked) == 3  # type: ignore[union-attr,arg-type]


def test_a_copy_that_differs_is_not_used(images: Tensor) -> None:
    class Deciding(Net):
        """Looks at what its parts are."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 if isinstance(self.norm, nn.BatchNorm2d) else 2)

    net = settled(Deciding("plain").double(), images)
    assert folded(net, images) == (net, 0)
