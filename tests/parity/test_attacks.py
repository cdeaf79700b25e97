"""PGD and its settings against torchattacks where it is installed, and against slow transcriptions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gambeson.attacks import PGD, Gaussian, Uniform, Zero, fgsm
from gambeson.core.threat import L2, Linf, Threat
from parity.cases import EPS, STREAMS, batch, gaussian, net, uniform


@dataclass(frozen=True)
class At:
    """A start that is given: both sides begin at the same point."""

    x: Tensor

    def __call__(self, x: Tensor, threat: Threat, rng: Generator) -> Tensor:
        return self.x


def other(name: str, **settings: Any) -> Any:
    """An attack of torchattacks on the shared network in evaluation mode."""
    library = pytest.importorskip("torchattacks")
    return getattr(library, name)(net(11).eval(), **settings)


def drawn(attack: Any, *inputs: Tensor) -> Tensor:
    """The attack's images, with its draws from the global generator at a known seed."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return attack(*inputs).detach()


def shared_start(draw: Any) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return draw()


def compare(attack: PGD, threat: Threat, expected: Tensor) -> None:
    data = batch(2)
    model = net(11)  # in training mode: the attack itself has to switch
    found = attack(model, data, threat, STREAMS.at("attack"))
    assert (found - expected).abs().max().item() <= 1e-6
    assert (expected - data.x).abs().max().item() > 1e-3
    assert model.training


def test_fgsm() -> None:
    data = batch(2)
    compare(fgsm(), Linf(EPS), drawn(other("FGSM", eps=EPS), data.x, data.y))


@pytest.mark.parametrize("steps", [1, 10])
def test_pgd(steps: int) -> None:
    data = batch(2)
    expected = drawn(other("PGD", eps=EPS, alpha=2 / 255, steps=steps, random_start=True), data.x, data.y)
    start = shared_start(lambda: (data.x + torch.empty_like(data.x).uniform_(-EPS, EPS)).clamp(0, 1))
    compare(PGD(steps=steps, step_size=2 / 255, start=At(start)), Linf(EPS), expected)  # type: ignore[arg-type]


def test_pgd_from_the_clean_image_with_the_default_step() -> None:
    data = batch(2)
    expected = drawn(other("PGD", eps=EPS, alpha=EPS / 4, steps=5, random_start=False), data.x, data.y)
    compare(PGD(steps=5, start=Zero()), Linf(EPS), expected)


def test_rfgsm() -> None:
    """R+FGSM: a start at the sign of a Gaussian draw, then steps."""
    data = batch(2)
    expected = drawn(other("RFGSM", eps=EPS, alpha=EPS / 2, steps=3), data.x, data.y)
    start = shared_start(lambda: (data.x + EPS / 2 * torch.randn_like(data.x).sign()).clamp(0, 1))
    compare(PGD(steps=3, rel_step_size=0.5, start=At(start)), Linf(EPS), expected)  # type: ignore[arg-type]


def test_pgd_l2() -> None:
    data = batch(2)
    expected = drawn(other("PGDL2", eps=0.5, alpha=0.1, steps=8, random_start=False), data.x, data.y)
    compare(PGD(steps=8, step_size=0.1, start=Zero()), L2(0.5), expected)


def test_kl_attack() -> None:
    """TPGD: TRADES' attack, its start clipped to the box."""
    data = batch(2)
    expected = drawn(other("TPGD", eps=EPS, alpha=2 / 255, steps=6), data.x)
    start = shared_start(lambda: (data.x + 0.001 * torch.randn_like(data.x)).clamp(0, 1))
    compare(PGD(steps=6, step_size=2 / 255, start=At(start), loss="kl"), Linf(EPS), expected)  # type: ignore[arg-type]


def walk(loss: Any, start: Tensor, x: Tensor, steps: int, step_size: float) -> Tensor:
    x_adv = start
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        grad = torch.autograd.grad(loss(x_adv), x_adv)[0]
        x_adv = torch.min(torch.max(x_adv.detach() + step_size * grad.sign(), x - EPS), x + EPS).clamp(0, 1)
    return x_adv.detach()


def test_kl_attack_with_the_clean_output_recomputed() -> None:
    """The Gaussian start of TRADES is neither clipped nor projected; p(x) at every step anew gives the same images."""
    data, model = batch(3), net(11).eval()

    def loss(x_adv: Tensor) -> Tensor:
        p, q = F.softmax(model(data.x), dim=1), F.log_softmax(model(x_adv), dim=1)
        return (p * (p.log() - q)).sum()

    expected = walk(loss, data.x + 0.001 * gaussian(data.x, 4), data.x, 7, EPS / 4)
    attack = PGD(steps=7, start=Gaussian(0.001), loss="kl")
    assert torch.allclose(attack(net(11), data, Linf(EPS), STREAMS.at("attack", 4)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", ["ce", "margin", "squared-error"])
def test_losses_towards_the_label(loss: str) -> None:
    data, model = batch(3), net(11).eval()

    def value(x_adv: Tensor) -> Tensor:
        z = model(x_adv)
        if loss == "ce":
            return F.nll_loss(F.log_softmax(z, dim=1), data.y)
        if loss == "squared-error":
            return (F.softmax(z, dim=1) - torch.eye(z.shape[1], dtype=z.dtype)[data.y]).pow(2).sum()
        own = torch.eye(z.shape[1], dtype=torch.bool)[data.y]
        return (z[~own].view(len(z), -1).max(1).values - z[own]).sum()

    expected = walk(value, (data.x + uniform(data.x, EPS, 4)).clamp(0, 1), data.x, 4, EPS / 4)
    found = PGD(steps=4, start=Uniform(), loss=loss)(net(11), data, Linf(EPS), STREAMS.at("attack", 4))  # type: ignore[arg-type]
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_evaluation_pgd_of_lap_moves_only_examples_still_classified_correctly() -> None:
    """As in LAP's evaluation: an example stops at the first iterate that is misclassified."""
    data, model = batch(3, count=12), net(11).eval()
    with torch.no_grad():
        model.linear.bias -= model(data.x).mean(0)  # near the borders between the classes
        data = data._replace(y=model(data.x).argmax(1))
    data.y[:3] = (data.y[:3] + 1) % 5  # three that are wrong from the start
    eps = 0.05
    x_adv = (data.x + uniform(data.x, eps, 4)).clamp(0, 1)
    stopped_at = [0] * 12
    for step in range(10):
        point = x_adv.clone().requires_grad_()
        z = model(point)
        grad = torch.autograd.grad(F.cross_entropy(z, data.y), point)[0]
        for i in range(12):
            if z[i].argmax() == data.y[i]:
                moved = x_adv[i] + eps / 4 * grad[i].sign()
                x_adv[i] = torch.min(torch.max(moved, data.x[i] - eps), data.x[i] + eps).clamp(0, 1)
                stopped_at[i] = step + 1
    attack = PGD(steps=10, start=Uniform(), freeze_fooled=True)
    found = attack(model.train(), data, Linf(eps), STREAMS.at("attack", 4))
    assert torch.allclose(found, x_adv, rtol=0, atol=1e-12)
    assert stopped_at[:3] == [0, 0, 0]
    assert any(0 < steps < 10 for steps in stopped_at), "some example has to stop on the way"
