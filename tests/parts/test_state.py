from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gambeson.core.threat import L2, Linf
from gambeson.core.types import Batch
from gambeson.parts import EMA, CarriedPerturbation

Net = Callable[..., nn.Sequential]
Images = Callable[..., Batch]


# --- averaged weights ----------------------------------------------------------------------------------------------


def train(net: nn.Sequential, step: int, images: Images) -> None:
    net.train()(images(seed=step).x)  # moves the BatchNorm buffers
    rng = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=rng))


@pytest.mark.parametrize("warm", [True, False])
def test_the_average_against_a_loop(warm: bool, tiny_net: Net, tiny_batch: Images) -> None:
    net = tiny_net()
    part = EMA(0.7, warm).build(net)
    expected = {name: t.detach().clone().double() for name, t in net.state_dict().items()}
    for t in range(30):
        train(net, t, tiny_batch)
        part.observe(net)
        decay = min(0.7, (1 + t) / (10 + t)) if warm else 0.7
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value.detach().double()
            else:
                expected[name] = value.double()
    average = part.average.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(average[name].double(), value, rtol=1e-5, atol=1e-5)
    assert int(average["1.num_batches_tracked"]) == 30
    assert int(part.steps) == 30


def test_the_average_is_a_copy_that_is_never_trained(tiny_net: Net, tiny_batch: Images) -> None:
    net = tiny_net()
    part = EMA().build(net)
    before = {name: t.clone() for name, t in part.average.state_dict().items()}
    train(net, 0, tiny_batch)
    assert all(torch.equal(t, before[name]) for name, t in part.average.state_dict().items())
    assert not any(p.requires_grad for p in part.average.parameters())
    assert all(p.requires_grad for p in net.parameters())
    assert not part.average.training
    assert net.training


def test_the_state_dict_of_an_average_goes_into_a_fresh_module(tiny_net: Net, tiny_batch: Images) -> None:
    def state(part: nn.Module) -> dict[str, Tensor]:
        return {name: t.clone() for name, t in part.state_dict().items()}

    net = tiny_net()
    part = EMA(0.9).build(net)
    for t in range(3):
        train(net, t, tiny_batch)
        part.observe(net)
    fresh = EMA(0.9).build(tiny_net(seed=1))
    fresh.load_state_dict(state(part))
    for other in (part, fresh):
        other.observe(net)
    assert all(torch.equal(t, state(fresh)[name]) for name, t in state(part).items())


# --- carried perturbation ------------------------------------------------------------------------------------------


def test_the_perturbation_is_carried_from_batch_to_batch(tiny_batch: Images) -> None:
    part = CarriedPerturbation(0.6).build(torch.nn.Identity())
    delta = torch.zeros(6, 1, 8, 8)
    for step in range(5):
        x = tiny_batch(seed=step).x
        grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(step))
        torch.testing.assert_close(part.apply_to(x), (x + delta).clamp(0, 1), rtol=0, atol=1e-6)
        part.carry(x, grad, Linf(0.1))
        delta = (delta + 0.06 * grad.sign()).clamp(-0.1, 0.1)
        delta = (x + delta).clamp(0, 1) - x
        torch.testing.assert_close(part.delta, delta, rtol=0, atol=1e-6)
    assert delta.abs().max() > 0.09


def test_a_larger_batch_starts_at_zero_in_its_new_places_and_a_smaller_one_keeps_the_rest(tiny_batch: Images) -> None:
    part = CarriedPerturbation().build(torch.nn.Identity())
    for n in (3, 5, 2):
        x = tiny_batch(n).x
        before = part.delta.clone() if n != 3 else torch.zeros(0, 1, 8, 8)
        seen = part.apply_to(x)
        old = min(n, len(before))
        torch.testing.assert_close(seen[:old], (x[:old] + before[:old]).clamp(0, 1))
        assert torch.equal(seen[old:], x[old:])
        part.carry(x, torch.ones_like(x), Linf(0.1))
        assert torch.equal(part.delta[n:], before[n:])
    assert len(part.delta) == 5


def test_the_perturbation_stays_in_the_ball_of_the_threat(tiny_batch: Images) -> None:
    for threat in (Linf(0.05), L2(0.3)):
        part = CarriedPerturbation().build(torch.nn.Identity())
        for step in range(4):
            x = tiny_batch(seed=step).x
            assert threat.distance(part.apply_to(x), x).max() <= float(threat.eps) + 1e-6
            part.carry(x, torch.randn(x.shape, generator=torch.Generator().manual_seed(step)), threat)


def test_the_state_dict_of_a_perturbation_goes_into_a_fresh_module(tiny_batch: Images) -> None:
    part = CarriedPerturbation().build(torch.nn.Identity())
    x = tiny_batch().x
    part.apply_to(x)
    part.carry(x, torch.ones_like(x), Linf(0.1))
    fresh = CarriedPerturbation().build(torch.nn.Identity())
    parts, other = torch.nn.ModuleList([part]), torch.nn.ModuleList([fresh])
    other.load_state_dict({name: t.clone() for name, t in parts.state_dict().items()})
    assert torch.equal(fresh.delta, part.delta)
    assert torch.equal(fresh.apply_to(x), part.apply_to(x))
    fresh.load_state_dict({"delta": torch.zeros(0)})  # and back to a memory that has seen nothing
    assert torch.equal(fresh.apply_to(x), x)


def test_loading_does_not_take_over_the_tensor(tiny_batch: Images) -> None:
    part = CarriedPerturbation().build(torch.nn.Identity())
    saved = torch.zeros(2, 1, 8, 8)
    part.load_state_dict({"delta": saved})
    x = tiny_batch(2).x
    part.carry(x, torch.ones_like(x), Linf(0.1))
    assert not saved.any()
    assert part.delta.any()
