import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gambeson.core.errors import InputError
from gambeson.core.modes import batch_norm, batch_norms, frozen, replay_statistics, running_statistics
from gambeson.core.types import Batch

Net = Callable[..., nn.Sequential]
Images = Callable[..., Batch]
Snapshot = Callable[[nn.Module], dict[str, Tensor]]


def flags(net: nn.Module) -> list[tuple[bool, bool | None]]:
    return [(m.training, getattr(m, "track_running_stats", None)) for m in net.modules()]


def test_frozen_restores_each_flag_also_after_an_exception(tiny_net: Net) -> None:
    net = tiny_net()
    net[4].bias.requires_grad_(False)
    before = [p.requires_grad for p in net.parameters()]
    with pytest.raises(RuntimeError, match="inside"), frozen(net):  # noqa: PT012
        assert not any(p.requires_grad for p in net.parameters())
        raise RuntimeError("inside")
    assert [p.requires_grad for p in net.parameters()] == before
    assert before.count(False) == 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["running", "batch", "update"])
def test_flags_come_back_and_statistics_move_as_the_mode_says(
    mode: str, training: bool, tiny_net: Net, tiny_batch: Images, snapshot: Snapshot
) -> None:
    net, x = tiny_net().train(training), tiny_batch().x
    net[1].train(not training)  # a nested module in another mode
    before, state = flags(net), snapshot(net)
    with pytest.raises(RuntimeError, match="inside"), batch_norm(net, mode):  # type: ignore[arg-type]  # noqa: PT012
        assert all(m.training == (mode != "running") for m in net.modules())
        net(x)
        raise RuntimeError("inside")
    assert flags(net) == before
    moved = {name for name, t in net.state_dict().items() if not torch.equal(t, state[name])}
    expected = {"1.running_mean", "1.running_var", "1.num_batches_tracked"} if mode == "update" else set()
    assert moved == expected


def test_batch_mode_normalises_by_the_batch_and_running_mode_does_not(tiny_net: Net, tiny_batch: Images) -> None:
    net, x = tiny_net(), tiny_batch().x
    with torch.no_grad():
        with batch_norm(net, "batch"):
            batch = net(x)
        with batch_norm(net, "running"):
            running = net(x)
        assert torch.equal(batch, copy.deepcopy(net).train()(x))
        assert torch.equal(running, copy.deepcopy(net).eval()(x))
    assert not torch.allclose(batch, running)


def test_a_layer_without_running_statistics_stays_without(tiny_batch: Images) -> None:
    net = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.BatchNorm2d(1))
    with batch_norm(net, "batch"):
        net(tiny_batch().x)
    assert [m.track_running_stats for m in batch_norms(net)] == [False, True]
    assert len(running_statistics(net)) == 1


def test_another_mode_is_refused_and_nothing_changes(tiny_net: Net) -> None:
    net = tiny_net()
    before = flags(net)
    with pytest.raises(InputError, match="unknown BatchNorm mode 'eval'"), batch_norm(net, "eval"):  # type: ignore[arg-type]
        pass
    assert flags(net) == before


@given(st.integers(0, 2**32), st.floats(0.01, 1.0))
def test_replayed_statistics_are_those_of_a_second_forward(
    tiny_net: Net, tiny_batch: Images, seed: int, momentum: float
) -> None:
    net = nn.Sequential(tiny_net()[0], nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).train()
    for m in batch_norms(net):
        m.momentum = momentum
    first, between = tiny_batch(seed=seed).x, tiny_batch(seed=seed + 1).x * 3
    ran = copy.deepcopy(net)
    with torch.no_grad():
        before = running_statistics(net)
        net(first)
        after = running_statistics(net)
        net(between)
        replay_statistics(net, before, after)
        for x in (first, between, first):
            ran(x)
    for name, t in ran.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], t, rtol=0, atol=1e-6)


def test_running_statistics_are_copies(tiny_net: Net, tiny_batch: Images) -> None:
    net = tiny_net().train()
    ((mean, var),) = running_statistics(net)
    net(tiny_batch().x)
    assert not mean.any()
    assert (var == 1).all()


def test_cumulative_statistics_cannot_be_replayed(tiny_batch: Images) -> None:
    net = nn.Sequential(nn.BatchNorm2d(1, momentum=None))
    before = running_statistics(net)
    net(tiny_batch().x)
    with pytest.raises(InputError, match="momentum=None"):
        replay_statistics(net, before, running_statistics(net))
