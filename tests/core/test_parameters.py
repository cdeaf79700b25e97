from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gambeson.core.parameters import applied, layer_weights, like_of
from gambeson.core.types import Task
from gambeson.models import create

Net = Callable[..., nn.Sequential]
Snapshot = Callable[[nn.Module], dict[str, Tensor]]


def test_layer_weights_are_the_weights_of_two_dimensions_from_input_to_output(tiny_net: Net) -> None:
    net = tiny_net()
    assert list(layer_weights(net)) == ["0.weight", "4.weight"]  # no BatchNorm scale, no bias
    assert layer_weights(net)["4.weight"] is net[4].weight


def test_layer_weights_leave_out_tensors_without_weight_in_the_name() -> None:
    class WithToken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 1, 4))
            self.weight_scale = nn.Parameter(torch.zeros(4))
            self.head = nn.Linear(4, 2)

    assert list(layer_weights(WithToken())) == ["head.weight"]


@pytest.mark.parametrize(("name", "layers"), [("preact-resnet18", 21), ("wrn-34-10", 35)])
def test_the_layer_counts_of_the_papers_models(name: str, layers: int) -> None:
    task = Task(num_classes=10, channels=3, size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert len(layer_weights(create(name, task, width=32 if name.startswith("wrn") else 4))) == layers


def perturbation(net: nn.Module, scale: float = 0.1) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {name: scale * torch.randn(p.shape, generator=rng) for name, p in layer_weights(net).items()}


def test_inside_the_weights_are_moved_and_afterwards_the_old_bits(tiny_net: Net, snapshot: Snapshot) -> None:
    net = tiny_net()
    before, v = snapshot(net), perturbation(net)
    with applied(net, v):
        for name, p in net.named_parameters():
            assert torch.equal(p, before[name] + v[name] if name in v else before[name])
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    # adding and subtracting would not do:
    assert any(not torch.equal((before[name] + v[name]) - v[name], before[name]) for name in v)


def test_weights_come_back_after_an_exception_and_after_an_update_inside(tiny_net: Net, snapshot: Snapshot) -> None:
    net = tiny_net()
    before = snapshot(net)
    with pytest.raises(RuntimeError, match="inside"), applied(net, perturbation(net)):  # noqa: PT012
        with torch.no_grad():
            net[4].weight.mul_(7)
        raise RuntimeError("inside")
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_a_perturbation_that_does_not_fit_leaves_the_weights(tiny_net: Net, snapshot: Snapshot) -> None:
    net = tiny_net()
    before = snapshot(net)
    v = perturbation(net) | {"4.bias": torch.zeros(99)}
    with pytest.raises(RuntimeError), applied(net, v):
        pass
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_keep_leaves_the_weights_moved(tiny_net: Net, snapshot: Snapshot) -> None:
    net = tiny_net()
    before, v = snapshot(net), perturbation(net)
    with applied(net, v, keep=True):
        pass
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name] + v[name] if name in v else before[name])


def test_gradients_are_taken_at_the_moved_weights(tiny_net: Net) -> None:
    net = tiny_net()[4]
    with applied(net, {"weight": torch.ones(3, 256)}):
        net.weight.square().sum().backward()
    torch.testing.assert_close(net.weight.grad, 2 * (net.weight.detach() + 1))


def test_the_like_of_a_model_is_its_first_parameter_or_an_empty_image() -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert like_of(nn.Linear(2, 2).double(), images).dtype == torch.float64
    assert like_of(nn.Flatten(), images).dtype == torch.float32
    assert like_of(nn.Flatten(), images.half()).dtype == torch.float16
    assert like_of(nn.Flatten(), images).numel() == 0
