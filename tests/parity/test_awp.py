"""AWP on PGD-AT, TRADES and MART against its release's procedure, with a real proxy model."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from gambeson.core.types import Batch
from gambeson.methods import Recipe, at_awp, mart, mart_awp, pgd_at, trades, trades_awp
from gambeson.methods.recipe import search
from parity.cases import EPS, assert_equal_state, batch, descend, rng, sgd, train, twins
from parity.references import mart_images, mart_loss, pgd_images, trades_images, trades_loss

STEPS = 2
GAMMA = 0.05
BETA = 5.0

Images = Callable[[nn.Module, Batch, int], Tensor]
Loss = Callable[[nn.Module, Batch, Tensor], Tensor]
CASES: dict[str, tuple[Recipe, Recipe, Images, Loss, float]] = {
    "at-awp": (
        at_awp(EPS, gamma=GAMMA, steps=STEPS),
        pgd_at(EPS, steps=STEPS, bn="update"),
        lambda model, data, step: pgd_images(model, data, step, STEPS, training=True),
        lambda model, data, x_adv: F.cross_entropy(model(x_adv), data.y),
        0.01,
    ),
    "trades-awp": (
        trades_awp(EPS, beta=BETA, gamma=GAMMA, warmup=0, steps=STEPS),
        trades(EPS, beta=BETA, steps=STEPS),
        lambda model, data, step: trades_images(model, data, step, STEPS),
        lambda model, data, x_adv: trades_loss(model, data, x_adv, BETA),
        0.1,
    ),
    "mart-awp": (
        mart_awp(EPS, beta=BETA, gamma=GAMMA, warmup=0, steps=STEPS),
        mart(EPS, beta=BETA, steps=STEPS),
        lambda model, data, step: mart_images(model, data, step, STEPS),
        lambda model, data, x_adv: mart_loss(model(data.x), model(x_adv), data.y, BETA),
        0.01,
    ),
}


def difference(model: nn.Module, data: Batch, x_adv: Tensor, loss: Loss, proxy_lr: float) -> dict[str, Tensor]:
    """Steps 2 and 3: a copy of the model ascends by one plain SGD step; per tensor, rescaled to the norm of w."""
    proxy = copy.deepcopy(model)
    proxy.train()
    descend(SGD(proxy.parameters(), lr=proxy_lr), -loss(proxy, data, x_adv))
    moved = proxy.state_dict()
    found = {}
    for name, w in model.state_dict().items():
        if w.ndim > 1 and "weight" in name:
            d = moved[name] - w
            found[name] = w.norm() / (d.norm() + 1e-20) * d
    return found


def add(model: nn.Module, change: dict[str, Tensor], factor: float) -> None:
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in change:
                p.add_(factor * change[name])


def release_step(model: nn.Module, optimizer: SGD, name: str, data: Batch, step: int) -> None:
    """Steps 1 to 6: the optimizer steps at w + gamma * diff, and gamma * diff is subtracted afterwards."""
    _, _, images, loss, proxy_lr = CASES[name]
    x_adv = images(model, data, step)
    change = difference(model, data, x_adv, loss, proxy_lr)
    add(model, change, GAMMA)
    descend(optimizer, loss(model, data, x_adv))
    add(model, change, -GAMMA)


@pytest.mark.parametrize("weight_decay", [5e-4, 0.05])
@pytest.mark.parametrize("name", CASES)
def test_steps_equal_the_proxy_procedure(name: str, weight_decay: float) -> None:
    """With a large weight decay it matters that the release decays w + v."""
    ours, theirs = twins(9)
    a, b = sgd(ours, weight_decay=weight_decay), sgd(theirs, weight_decay=weight_decay)
    for step in range(3):
        train(ours, a, CASES[name][0], batch(step), step)
        release_step(theirs, b, name, batch(step), step)
        assert_equal_state(ours, a, theirs, b)


@pytest.mark.parametrize("name", CASES)
def test_search_finds_the_release_difference(name: str) -> None:
    recipe, _, images, loss, proxy_lr = CASES[name]
    ours, theirs = twins(9)
    data = batch(1)
    found = search(ours, data, recipe, sgd(ours), rng(1), 0)
    expected = difference(theirs, data, images(theirs, data, 1), loss, proxy_lr)
    assert list(found.weights) == list(expected)
    assert set(expected) == {f"{layer}.weight" for layer in ("conv1", "conv2", "conv3", "shortcut", "linear")}
    for key, v in found.weights.items():
        assert torch.allclose(v, GAMMA * expected[key], rtol=0, atol=1e-12)
        assert v.norm().item() == pytest.approx(GAMMA * ours.get_parameter(key).norm().item(), rel=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_ascent_raises_the_loss(name: str) -> None:
    recipe, _, _, loss, _ = CASES[name]
    model, _ = twins(9)
    data = batch(1)
    found = search(model, data, recipe, sgd(model), rng(1), 0)
    before = loss(copy.deepcopy(model), data, found.x).item()
    add(model, found.weights, 1.0)
    assert loss(model, data, found.x).item() > before + 1e-3


@pytest.mark.parametrize("name", CASES)
def test_weights_come_back_bit_for_bit_and_were_perturbed_meanwhile(name: str) -> None:
    recipe, _, _, _, _ = CASES[name]
    model, _ = twins(9)
    model.float()
    optimizer = sgd(model, lr=0.0)  # the step itself moves nothing
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    seen: list[dict[str, float]] = []

    def look(module: nn.Module, inputs: object) -> None:
        seen.append({key: (p.detach() - before[key]).norm().item() for key, p in model.named_parameters()})

    handle = model.register_forward_pre_hook(look)
    data = batch(1)
    train(model, optimizer, recipe, data._replace(x=data.x.float()), 1)
    handle.remove()
    for key, p in model.named_parameters():
        assert torch.equal(p, before[key]), key
        assert optimizer.state[p]["momentum_buffer"].abs().sum() > 0
    assert max(seen[0].values()) == 0.0  # the attack saw the unperturbed weights
    for key, distance in seen[-1].items():
        perturbed = "weight" in key and before[key].ndim > 1
        expected = GAMMA * before[key].norm().item() if perturbed else 0.0
        assert distance == pytest.approx(expected, rel=1e-5), key


@pytest.mark.parametrize("name", CASES)
def test_ascent_leaves_no_trace_in_batch_norm(name: str) -> None:
    """After the search the buffers are those of the plain attack."""
    recipe, base, _, _, _ = CASES[name]
    ours, theirs = twins(9)
    search(ours, batch(1), recipe, sgd(ours), rng(1), 0)
    search(theirs, batch(1), base, sgd(theirs), rng(1), 0)
    for (key, mine), reference in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        assert torch.equal(mine, reference), key


WARM = {
    "at-awp": at_awp(EPS, gamma=GAMMA, warmup=2, steps=STEPS),
    "trades-awp": trades_awp(EPS, beta=BETA, gamma=GAMMA, warmup=2, steps=STEPS),
    "mart-awp": mart_awp(EPS, beta=BETA, gamma=GAMMA, warmup=2, steps=STEPS),
}


@pytest.mark.parametrize("name", WARM)
def test_warmup(name: str) -> None:
    """Epochs 0 and 1 are the base method, bit for bit; epoch 2 is not."""
    for epoch in (0, 1, 2):
        ours, theirs = twins(9)
        a, b = sgd(ours), sgd(theirs)
        train(ours, a, WARM[name], batch(0), 0, epoch=epoch)
        train(theirs, b, CASES[name][1], batch(0), 0, epoch=epoch)
        if epoch < 2:
            assert_equal_state(ours, a, theirs, b, tolerance=0.0)
        else:
            assert (ours.conv1.weight - theirs.conv1.weight).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("recipe", "gamma", "warmup"), [(at_awp(), 0.01, 0), (trades_awp(), 0.005, 10)], ids=["at-awp", "trades-awp"]
)
def test_defaults_are_the_release(recipe: Recipe, gamma: float, warmup: int) -> None:
    wp = recipe.weight_perturbation
    assert wp is not None
    assert (wp.size(1, 5), wp.size(5, 5), wp.warmup, wp.keep, wp.sign) == (gamma, gamma, warmup, False, 1)
