import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gambeson.core.errors import InputError
from gambeson.core.parameters import layer_weights
from gambeson.core.types import Batch
from gambeson.parts.weight_perturbation import (
    LayerAware,
    Relative,
    WeightPerturbation,
    of_relative_norm,
    sgd_directions,
)

Net = Callable[..., nn.Sequential]
Images = Callable[..., Batch]


def network(layers: int = 5) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)))


def gradients(net: nn.Module, seed: int = 1) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(w.shape, generator=rng) for w in layer_weights(net).values()]


def sgd(net: nn.Module, **settings: float) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), **{"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, **settings})  # type: ignore[arg-type]


@given(st.floats(0.0, 1.0), st.floats(0.01, 10.0), st.integers(2, 60))
def test_layer_aware_sizes_fall_from_beta_to_zero(beta: float, gamma: float, layers: int) -> None:
    size = LayerAware(beta, gamma)
    sizes = [size(layer, layers) for layer in range(1, layers + 1)]
    assert sizes[0] == beta
    assert sizes[-1] == 0
    assert sizes == sorted(sizes, reverse=True)
    middle = (layers + 1) // 2
    assert sizes[middle - 1] == pytest.approx(beta * (1 - (math.log(middle) / math.log(layers)) ** gamma))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_direction_takes_a_share_of_the_norm_of_the_weight(norm: str) -> None:
    rng = torch.Generator().manual_seed(0)
    d, w = (torch.randn(3, 2, 3, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    found = of_relative_norm(d, w, -0.02, norm)  # type: ignore[arg-type]
    order = 2 if norm == "l2" else math.inf
    wanted = -0.02 * torch.linalg.vector_norm(w, order) / torch.linalg.vector_norm(d, order) * d
    assert torch.allclose(found, wanted, atol=1e-15)
    assert not of_relative_norm(torch.zeros_like(d), w, 0.02).any()


def test_one_layer_is_refused_by_the_layer_aware_size() -> None:
    with pytest.raises(InputError, match="at least two weight layers"):
        LayerAware(0.1)(1, 1)


def test_relative_sizes_are_all_alike() -> None:
    assert [Relative(0.01)(layer, 21) for layer in (1, 7, 21)] == [0.01] * 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: LayerAware(-0.1),
        lambda: LayerAware(math.inf),
        lambda: LayerAware(math.nan),
        lambda: LayerAware(0.1, 0.0),
        lambda: LayerAware(0.1, math.inf),
        lambda: Relative(-0.1),
        lambda: Relative(math.nan),
        lambda: WeightPerturbation(size=Relative(0.1), sign=0),  # type: ignore[arg-type]
    ],
)
def test_sizes_out_of_range_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InputError):
        make()


@pytest.mark.parametrize("wrong", [{"direction": "gradiant"}, {"norm": "l1"}, {"decay": "none"}])
def test_unknown_names_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(InputError):
        WeightPerturbation(size=Relative(0.1), **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("direction", ["gradient", "optimizer", "random"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [LayerAware(0.3, 0.3), Relative(0.05)])
def test_the_relative_norms_are_exact(size: LayerAware | Relative, sign: int, norm: str, direction: str) -> None:
    net = network()
    wp = WeightPerturbation(size=size, direction=direction, sign=sign, norm=norm)  # type: ignore[arg-type]
    weights, grads = layer_weights(net), gradients(net)
    v = wp.from_grads(weights, grads, sgd(net), torch.Generator().manual_seed(0))
    measure = torch.linalg.vector_norm if norm == "l2" else (lambda t: t.abs().max())
    for layer, (name, w) in enumerate(weights.items(), start=1):
        relative = size(layer, 5)
        if relative == 0:
            assert name not in v
            continue
        torch.testing.assert_close(measure(v[name]), relative * measure(w.detach()), rtol=1e-5, atol=0)
        if direction == "gradient":
            torch.testing.assert_close(v[name] / v[name].norm(), sign * grads[layer - 1] / grads[layer - 1].norm())
        assert not v[name].requires_grad


def test_a_zero_gradient_gives_no_perturbation() -> None:
    net = network()
    weights = layer_weights(net)
    zeros = [torch.zeros_like(w) for w in weights.values()]
    wp = WeightPerturbation(size=Relative(0.1))
    v = wp.from_grads(weights, zeros, sgd(net), torch.Generator())
    assert all(not t.any() and t.isfinite().all() for t in v.values())


def test_weights_gradients_and_optimizer_are_not_changed() -> None:
    net = network()
    optimizer, weights, grads = sgd(net), layer_weights(net), gradients(net)
    old = [w.detach().clone() for w in weights.values()], [g.clone() for g in grads]
    WeightPerturbation(size=LayerAware(0.3), direction="optimizer").from_grads(
        weights, grads, optimizer, torch.Generator()
    )
    assert all(torch.equal(a, b) for a, b in zip(old[0], weights.values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(old[1], grads, strict=True))
    assert not optimizer.state


def test_random_directions_come_from_the_generator() -> None:
    net = network()
    wp = WeightPerturbation(size=Relative(0.1), direction="random")
    weights = layer_weights(net)
    a, b = (wp.from_grads(weights, gradients(net, s), sgd(net), torch.Generator().manual_seed(5)) for s in (1, 2))
    c = wp.from_grads(weights, gradients(net), sgd(net), torch.Generator().manual_seed(6))
    assert all(torch.equal(a[name], b[name]) and not torch.equal(a[name], c[name]) for name in a)


def test_at_learning_rate_zero_the_optimizer_has_no_direction() -> None:
    net = network()
    for direction, count in (("optimizer", 0), ("gradient", 5)):
        wp = WeightPerturbation(size=Relative(0.1), direction=direction)  # type: ignore[arg-type]
        assert len(wp.from_grads(layer_weights(net), gradients(net), sgd(net, lr=0.0), torch.Generator())) == count


@pytest.mark.parametrize(("momentum", "decay"), [(0.9, 5e-4), (0.9, 0.0), (0.0, 0.1), (0.0, 0.0)])
def test_the_optimizers_direction_is_what_sgd_really_does(
    momentum: float, decay: float, tiny_net: Net, tiny_batch: Images
) -> None:
    net = tiny_net().double()
    optimizer = sgd(net, momentum=momentum, weight_decay=decay)
    for step in range(4):
        batch = tiny_batch(seed=step)
        loss = nn.functional.cross_entropy(net(batch.x.double()), batch.y)
        optimizer.zero_grad()
        loss.backward()
        trial = copy.deepcopy(net)
        for p, q in zip(net.parameters(), trial.parameters(), strict=True):
            q.grad = p.grad
        probe = sgd(trial, momentum=momentum, weight_decay=decay)
        probe.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        probe.step()
        own = list(net.parameters())
        directions = sgd_directions(own, [p.grad for p in own], optimizer)
        for p, q, direction in zip(own, trial.parameters(), directions, strict=True):
            torch.testing.assert_close(direction, (p - q).detach() / 0.1, rtol=1e-6, atol=1e-9)
        optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
        lambda p: torch.optim.Adam(p, lr=0.1),
    ],
)
def test_other_optimizers_are_refused(make: Callable[..., torch.optim.Optimizer]) -> None:
    net = network()
    wp = WeightPerturbation(size=Relative(0.1), direction="optimizer")
    optimizer = make(net.parameters())
    with pytest.raises(InputError, match="SGD without dampening and Nesterov") as error:
        wp.from_grads(layer_weights(net), gradients(net), optimizer, torch.Generator())
    assert error.value.hint == "use direction='gradient' with another optimizer"
    other = WeightPerturbation(size=Relative(0.1))
    assert len(other.from_grads(layer_weights(net), gradients(net), optimizer, torch.Generator())) == 5
