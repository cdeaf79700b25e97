from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from gambeson.core.parameters import applied, layer_weights
from gambeson.core.types import Batch
from gambeson.engine.precision import Bfloat16Forward, CompiledForward, unwrapped

Net = Callable[..., nn.Sequential]
Images = Callable[..., Batch]


def test_logits_gradients_and_weights_are_float32(tiny_net: Net, tiny_batch: Images) -> None:
    model = tiny_net()
    net, x = Bfloat16Forward(model), tiny_batch().x.requires_grad_()
    inside = []
    model[4].register_forward_hook(lambda module, args, out: inside.append(out.dtype))
    logits = net(x)
    logits.square().sum().backward()
    assert inside == [torch.bfloat16]
    assert logits.dtype == x.grad.dtype == torch.float32  # type: ignore[union-attr]
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
    plain = model(tiny_batch().x)
    torch.testing.assert_close(logits, plain, rtol=0.05, atol=0.05)
    assert not torch.equal(logits, plain)


def test_autocast_ends_with_the_forward(tiny_net: Net, tiny_batch: Images) -> None:
    Bfloat16Forward(tiny_net())(tiny_batch().x)
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("grad", [True, False])
def test_the_second_forward_sees_a_weight_perturbation(grad: bool, tiny_net: Net, tiny_batch: Images) -> None:
    net, x = Bfloat16Forward(tiny_net().eval()), tiny_batch().x
    v = {name: torch.ones_like(p) for name, p in layer_weights(net).items()}
    with torch.set_grad_enabled(grad):
        before = net(x)
        with applied(net, v):
            inside = net(x)
            fresh = Bfloat16Forward(net.model)(x)
        after = net(x)
    assert torch.equal(before, after)
    assert torch.equal(inside, fresh)
    assert not torch.allclose(before, inside, atol=1.0)


def test_only_batches_of_the_size_are_compiled(
    tiny_net: Net, tiny_batch: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    model, x = tiny_net().eval(), tiny_batch().x
    net = CompiledForward(model, len(x))
    torch.testing.assert_close(net(x), model(x))
    assert counter.frame_count == 1
    torch.testing.assert_close(net(x[:2]), model(x[:2]))
    net(x)
    assert counter.frame_count == 1
    assert unwrapped(Bfloat16Forward(net)) is model
    assert dict(net.named_parameters()).keys() == {f"model.{name}" for name, _ in model.named_parameters()}
