from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gambeson.core.errors import InputError
from gambeson.core.types import Batch
from gambeson.parts import EMA

Net = Callable[..., nn.Sequential]
Images = Callable[..., Batch]


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


def test_a_state_dict_goes_into_a_fresh_module(tiny_net: Net, tiny_batch: Images) -> None:
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


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, float("nan")])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(InputError, match=r"\(0, 1\)"):
        EMA(decay)
