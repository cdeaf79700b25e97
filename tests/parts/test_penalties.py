from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gambeson.core.threat import Linf
from gambeson.core.types import Batch
from gambeson.parts import GradientAlignment

Net = Callable[..., nn.Sequential]
Images = Callable[..., Batch]
Rng = Callable[[int], torch.Generator]


def input_gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    nn.functional.cross_entropy(net(x), y).backward(inputs=[x])
    assert x.grad is not None
    return x.grad.flatten(1)


def test_the_penalty_by_hand(tiny_net: Net, tiny_batch: Images, generator: Rng) -> None:
    net, batch, threat = tiny_net().train(), tiny_batch(), Linf(0.3)
    a = input_gradient(net, batch.x, batch.y).tolist()
    b = input_gradient(net, batch.x + threat.sample(batch.x, generator(0)), batch.y).tolist()
    cosines = []
    for u, v in zip(a, b, strict=True):
        dot = sum(p * q for p, q in zip(u, v, strict=True))
        cosines.append(dot / (sum(p * p for p in u) * sum(q * q for q in v)) ** 0.5)
    before = int(net[1].num_batches_tracked)
    found = GradientAlignment(0.7)(net, batch, threat, generator(0)).detach()
    assert float(found) == pytest.approx(0.7 * (1 - sum(cosines) / len(cosines)), rel=1e-4)
    assert 0 < float(found) < 1.4
    assert int(net[1].num_batches_tracked) == before + 1  # the forward of the noisy images; the other leaves no trace


def test_its_gradient_by_the_weights_agrees_with_finite_differences(
    tiny_net: Net, tiny_batch: Images, generator: Rng
) -> None:
    """g(x) counts as a constant, so that only the gradient at the noisy images is differentiated."""
    net, batch = tiny_net().train().double(), tiny_batch()
    batch, threat = batch._replace(x=batch.x.double()), Linf(0.3)
    penalty = GradientAlignment(1.0)
    weight = net[0].weight
    found = torch.autograd.grad(penalty(net, batch, threat, generator(0)), weight)[0]
    plain = input_gradient(net, batch.x, batch.y)
    noisy = batch.x + threat.sample(batch.x, generator(0))

    def value() -> float:
        return float(1 - nn.functional.cosine_similarity(plain, input_gradient(net, noisy, batch.y)).mean())

    for position in [(0, 0, 0, 0), (1, 0, 1, 2), (3, 0, 2, 1)]:
        weight.data[position] += 1e-5
        above = value()
        weight.data[position] -= 2e-5
        below = value()
        weight.data[position] += 1e-5
        assert float(found[position]) == pytest.approx((above - below) / 2e-5, rel=1e-4, abs=1e-7)


def test_a_linear_model_has_no_penalty(tiny_batch: Images, generator: Rng) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))  # with two classes all input gradients are parallel
    batch = tiny_batch()
    batch = batch._replace(y=torch.zeros_like(batch.y))
    assert float(GradientAlignment(1.0)(net, batch, Linf(0.1), generator(0)).detach()) == pytest.approx(0, abs=1e-6)


def test_gradients_and_images_are_left_alone(tiny_net: Net, tiny_batch: Images, generator: Rng) -> None:
    net, batch = tiny_net().eval(), tiny_batch()
    GradientAlignment(1.0)(net, batch, Linf(0.1), generator(0))
    assert all(p.grad is None for p in net.parameters())
    assert not batch.x.requires_grad
