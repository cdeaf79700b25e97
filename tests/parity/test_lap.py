"""LAP against its release's state-copy procedure, transcribed literally.

The release snapshots model and optimizer, lets the optimizer take a real step, measures where the weights went,
restores everything, and adds the rescaled difference. Its momentum is restored too, as on torch 2.0.1 (trap 6).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from gambeson.engine.optim import cycled_momentum, learning_rate
from gambeson.methods import Recipe, fgsm, n_fgsm, n_lap, r_lap, rs_fgsm, v_lap
from gambeson.methods.recipe import search
from gambeson.parts import LayerAware
from parity.cases import EPS, assert_equal_state, batch, descend, net, rng, sgd, train, twins, uniform

BETA, GAMMA = 0.05, 0.3


@dataclass(frozen=True)
class Variant:
    """A row of table 2.1: radius of the start and alpha in units of eps, and whether delta is clipped to eps."""

    method: Callable[..., Recipe]
    base: Callable[..., Recipe]
    radius: float
    alpha: float
    clamp: bool


VARIANTS = {
    "V": Variant(v_lap, fgsm, 0.0, 1.0, True),
    "R": Variant(r_lap, rs_fgsm, 1.0, 1.25, True),
    "N": Variant(n_lap, n_fgsm, 2.0, 1.0, False),
}


def to_box(delta: Tensor, x: Tensor) -> Tensor:
    return torch.max(torch.min(delta, 1 - x), 0 - x)


def layers(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if "weight" in name and p.ndim >= 2]


def strength(layer: int, count: int, gamma: float = GAMMA) -> float:
    return 1 - (math.log(layer) / math.log(count)) ** gamma


def release_step(
    model: nn.Module,
    optimizer: SGD,
    variant: Variant,
    step: int,
    *,
    beta: float = BETA,
    sign: int = 1,
    norm: Callable[[Tensor], Tensor] = torch.linalg.vector_norm,
    direction: str = "optimizer",
    extra_backward: bool = False,
) -> None:
    """The release, step by step; the keyword arguments are the ablations. `sign=1` is the release."""
    data = batch(step)
    x, y = data.x, data.y
    start = to_box(uniform(x, variant.radius * EPS, step), x) if variant.radius else torch.zeros_like(x)

    def moved(delta: Tensor, gradient: Tensor) -> Tensor:
        delta = delta + variant.alpha * EPS * gradient.sign()
        return to_box(delta.clamp(-EPS, EPS) if variant.clamp else delta, x)

    delta = start.clone().requires_grad_()
    loss = F.cross_entropy(model(x + delta), y)
    proxy = copy.deepcopy(model.state_dict())
    proxy_optimizer = copy.deepcopy(optimizer.state_dict())
    rate = optimizer.param_groups[0]["lr"]
    if direction == "gradient":
        walker = SGD(model.parameters(), lr=rate)
    else:
        walker = optimizer
    walker.zero_grad()
    loss.backward()
    walker.step()
    assert delta.grad is not None
    adversarial = moved(start, delta.grad)

    after = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = layers(model)
    differences = {}
    noise = rng(step)("weights")
    for number, name in enumerate(names, start=1):
        old = proxy[name]
        if direction == "random":
            # Minus: the step of the optimizer is minus its direction, and so is that of a random direction.
            d = -torch.randn(old.shape, generator=noise, dtype=old.dtype) if number < len(names) else 0 * old
        else:
            d = after[name] - old
        differences[name] = norm(old) / (norm(d) + 1e-20) * d

    model.load_state_dict(proxy)
    optimizer.load_state_dict(copy.deepcopy(proxy_optimizer))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in differences:
                p.add_(sign * beta * strength(1 + names.index(name), len(names)) * differences[name])

    if extra_backward:  # LAP-A: the images are found at the perturbed weights
        delta = start.clone().requires_grad_()
        gradient = torch.autograd.grad(F.cross_entropy(model(x + delta), y), delta)[0]
        adversarial = moved(start, gradient)

    descend(optimizer, F.cross_entropy(model((x + adversarial).clamp(0, 1)), y))


@pytest.mark.parametrize("name", VARIANTS)
def test_first_step_equals_the_state_copy_procedure(name: str) -> None:
    variant = VARIANTS[name]
    ours, theirs = twins()
    a, b = sgd(ours), sgd(theirs)
    train(ours, a, variant.method(EPS, beta=BETA), batch(3), 3)
    release_step(theirs, b, variant, 3)
    assert_equal_state(ours, a, theirs, b)
    assert ours.bn1.num_batches_tracked == 1 + 2  # one forward in cases.net, two per iteration


@pytest.mark.parametrize("name", VARIANTS)
def test_steps_under_the_cyclic_schedule_equal_the_state_copy_procedure(name: str) -> None:
    """Learning rate from 0 past the peak, and momentum cycled from 0.9 to 0.8 and back, by torch's CyclicLR."""
    variant = VARIANTS[name]
    total = 6
    ours, theirs = twins(1)
    a, b = sgd(ours, lr=0.2), sgd(theirs, lr=0.2)
    schedule = torch.optim.lr_scheduler.CyclicLR(b, 0.0, 0.2, step_size_up=total / 2, step_size_down=total / 2)
    recipe = variant.method(EPS, beta=BETA)
    for step in range(5):
        group = a.param_groups[0]
        group["lr"] = learning_rate("cyclic", step, total, 0.2)
        group["momentum"] = cycled_momentum("cyclic", step, total, 0.9, 0.8)
        assert group["lr"] == pytest.approx(b.param_groups[0]["lr"], abs=1e-15)
        assert group["momentum"] == pytest.approx(b.param_groups[0]["momentum"], abs=1e-15)
        train(ours, a, recipe, batch(step), step)
        release_step(theirs, b, variant, step)
        schedule.step()
        assert_equal_state(ours, a, theirs, b)
    assert ours.bn1.num_batches_tracked == 1 + 2 * 5


ABLATIONS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "ascent": ({"ascent": True}, {"sign": -1}),
    "gradient": ({"direction": "gradient"}, {"direction": "gradient"}),
    "gradient-ascent": ({"direction": "gradient", "ascent": True}, {"direction": "gradient", "sign": -1}),
    "LAP-R": ({"direction": "random"}, {"direction": "random"}),
    "LAP-Linf": ({"weight_norm": "linf"}, {"norm": lambda w: w.abs().max()}),
    "LAP-A": ({"extra_backward": True}, {"extra_backward": True}),
}


@pytest.mark.parametrize("base", ["R", "N"])
@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_equals_its_formula(name: str, base: str) -> None:
    ours_options, their_options = ABLATIONS[name]
    variant = VARIANTS[base]
    ours, theirs = twins(2)
    a, b = sgd(ours), sgd(theirs)
    for step in range(2):  # the second step has momentum
        train(ours, a, variant.method(EPS, beta=BETA, **ours_options), batch(step), step)
        release_step(theirs, b, variant, step, **their_options)  # type: ignore[arg-type]
        assert_equal_state(ours, a, theirs, b)
    assert ours.bn1.num_batches_tracked == 1 + 2 * (3 if name == "LAP-A" else 2)


@pytest.mark.parametrize("lr", [1e-300, 1e-9, 0.1, 10.0])
def test_relative_size_is_beta_lambda_whatever_the_learning_rate(lr: float) -> None:
    model = net(4)
    optimizer = sgd(model, lr=0.1)
    train(model, optimizer, n_lap(EPS, beta=BETA), batch(0), 0)  # fills the momentum
    optimizer.param_groups[0]["lr"] = lr
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = search(model, batch(1), n_lap(EPS, beta=BETA), optimizer, rng(1), 0)
    names = layers(model)
    assert list(found.weights) == names[:-1]  # the classifier has lambda = 0
    for number, name in enumerate(names[:-1], start=1):
        expected = BETA * strength(number, len(names)) * before[name].norm().item()
        assert found.weights[name].norm().item() == pytest.approx(expected, rel=1e-12)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), "the search itself must not move the weights"


def test_the_perturbation_stays_in_the_weights() -> None:
    """With a learning rate of nothing, a step moves layer l by beta * lambda_l * ||W_l||, and nothing else."""
    model = net(4)
    optimizer = sgd(model, lr=1e-300)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, optimizer, r_lap(EPS, beta=BETA), batch(0), 0)
    names = layers(model)
    for name, p in model.named_parameters():
        moved = (p.detach() - before[name]).norm().item()
        if name in names[:-1]:
            number = 1 + names.index(name)
            relative = BETA * strength(number, len(names))
            assert moved == pytest.approx(relative * before[name].norm().item(), rel=1e-12)
        else:
            assert moved == 0.0, f"{name} has no perturbation"


def test_direction_is_what_the_optimizer_would_do() -> None:
    """Section 1.3: `d = mu m + g + kappa W`, towards lower loss; the gradient is taken at the unperturbed weights."""
    model = net(5)
    optimizer = sgd(model, lr=0.1, momentum=0.7, weight_decay=0.05)
    train(model, optimizer, n_lap(EPS, beta=BETA), batch(0), 0)
    data = batch(1)
    reference = copy.deepcopy(model)
    start = (data.x + uniform(data.x, 2 * EPS, 1)).clamp(0, 1)
    F.cross_entropy(reference(start), data.y).backward()
    found = search(model, data, n_lap(EPS, beta=BETA), optimizer, rng(1), 0)
    ours = dict(model.named_parameters())
    names = layers(model)
    for name, p in reference.named_parameters():
        if name in found.weights:
            assert p.grad is not None
            d = 0.7 * optimizer.state[ours[name]]["momentum_buffer"] + p.grad + 0.05 * p.detach()
            size = BETA * strength(1 + names.index(name), len(names)) * p.detach().norm()
            assert torch.allclose(found.weights[name], -size * d / d.norm(), rtol=0, atol=1e-13)


def test_a_learning_rate_of_zero_moves_no_weight() -> None:
    """Iteration 0 of CyclicLR: only BatchNorm statistics and the momentum buffer change."""
    model = net(6)
    optimizer = sgd(model, lr=0.0)
    before = copy.deepcopy(model.state_dict())
    train(model, optimizer, v_lap(EPS, beta=0.5), batch(0), 0)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
        assert optimizer.state[p]["momentum_buffer"].abs().sum() > 0
    assert not torch.equal(model.bn1.running_mean, before["bn1.running_mean"])


@pytest.mark.parametrize("name", VARIANTS)
def test_beta_zero_is_the_base_method_bit_for_bit(name: str) -> None:
    variant = VARIANTS[name]
    ours, theirs = twins(7)
    a, b = sgd(ours), sgd(theirs)
    for step in range(3):
        train(ours, a, variant.method(EPS, beta=0.0), batch(step), step)
        train(theirs, b, variant.base(EPS), batch(step), step)
    assert_equal_state(ours, a, theirs, b, tolerance=0.0)
    assert ours.bn1.num_batches_tracked == 1 + 2 * 3


LAMBDA = {
    21: "1 .3585 .2635 .2102 .1741 .1470 .1257 .1081 .0932 .0804 .0691 .0591 .0501 .0420 .0345 .0277 .0213 .0155 .0100"
    " .0048 0",
    35: "1 .3877 .2969 .2461 .2116",
    50: "1 .4050 .3168 .2675 .2339",
}


@pytest.mark.parametrize("count", LAMBDA)
def test_layer_table(count: int) -> None:
    """Section 1.4."""
    expected = [float(value) for value in LAMBDA[count].split()]
    size = LayerAware(1.0, 0.3)
    assert [round(size(layer, count), 4) for layer in range(1, len(expected) + 1)] == expected
    assert size(count, count) == 0.0
    assert LayerAware(0.02, 0.3)(2, count) == pytest.approx(0.02 * strength(2, count), rel=1e-15)


def test_limits_of_gamma() -> None:
    """gamma to infinity: all ones but the last layer; gamma to 0: the first layer only."""
    assert [round(LayerAware(1.0, 1e4)(layer, 8), 9) for layer in range(1, 9)] == [1.0] * 7 + [0.0]
    assert [round(LayerAware(1.0, 1e-9)(layer, 8), 6) for layer in range(1, 9)] == [1.0] + [0.0] * 7
