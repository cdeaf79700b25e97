"""The same on every device: steps, waits, resuming, compiled forwards, AutoAttack; on a GPU where there is one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import zoo
from test_zoo import NAMES, check_resume
from torch import Generator, Tensor, nn

from gambeson.attacks import FAB, PGD, AutoPGD, Square, Zero
from gambeson.core.layout import preferred_layout
from gambeson.core.streams import Streams
from gambeson.core.threat import Linf
from gambeson.core.types import Batch, Outcome
from gambeson.engine.precision import CompiledForward
from gambeson.engine.step import robust_step
from gambeson.evaluation import AutoAttackReport, autoattack
from gambeson.methods import Recipe

Net = Callable[..., nn.Sequential]
Labelled = Callable[..., Batch]

no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
on_every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=no_cuda)])
STEADY = ("standard", "fgsm", "v-lap", "pgd-at", "at-awp", "mart")
"""Methods that draw nothing, once their attack starts at the image: the same numbers on every device."""


def still(name: str) -> Recipe:
    """The recipe of a row, its attack from the image itself."""
    recipe = zoo.recipe(name)
    attack = recipe.attack
    return replace(recipe, attack=replace(attack, start=Zero())) if isinstance(attack, PGD) else recipe


def trained(
    recipe: Recipe, device: str, dtype: torch.dtype, layout: torch.memory_format | None = None
) -> tuple[nn.Module, list[Outcome]]:
    """A network after three steps in epoch 1, where every warm-up is over."""
    model = zoo.net()
    layout = layout or preferred_layout(model, torch.device(device))
    model = model.to(device, dtype, memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    parts = nn.ModuleList(part.build(model) for part in recipe.parts)
    outcomes = []
    for step in range(3):
        x, y, index = zoo.batch(step // recipe.replays, dtype=dtype)[:3]
        batch = Batch(x.to(device), y.to(device), index.to(device))
        rng: Callable[[str], Generator] = partial(Streams(0).at, step=step)
        outcomes.append(robust_step(model, batch, recipe, parts, optimizer, rng, 1))
    return model, outcomes


@no_cuda
@pytest.mark.parametrize("name", NAMES)
def test_every_method_trains_on_a_gpu(name: str) -> None:
    model, outcomes = trained(zoo.recipe(name), "cuda", torch.float32)
    assert all(bool(outcome.loss.isfinite()) for outcome in outcomes)
    fresh = dict(zoo.net().named_parameters())
    for key, p in model.named_parameters():
        assert p.is_cuda
        assert bool(p.isfinite().all())
        assert not torch.equal(p.cpu(), fresh[key]), key


@on_every_device
@pytest.mark.parametrize("name", STEADY)
def test_steps_without_draws_are_the_same_everywhere(name: str, device: str) -> None:
    found, there = trained(still(name), device, torch.float64)
    wanted, here = trained(still(name), "cpu", torch.float64, torch.contiguous_format)
    for key, t in found.state_dict().items():
        torch.testing.assert_close(t.cpu(), wanted.state_dict()[key], rtol=1e-8, atol=1e-10, msg=key)
    for one, other in zip(there, here, strict=True):
        torch.testing.assert_close(one.loss.cpu(), other.loss, rtol=1e-8, atol=1e-10)


@no_cuda
@pytest.mark.parametrize("name", ["rs-fgsm", "n-fgsm", "n-lap", "pgd-at", "trades", "mart", "at-awp", "part-t-awp-ema"])
def test_no_step_waits_for_the_device(name: str) -> None:
    recipe = zoo.recipe(name)
    model = zoo.net().cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    parts = nn.ModuleList(part.build(model) for part in recipe.parts)
    x, y, index = zoo.batch()[:3]
    batch = Batch(x.cuda(), y.cuda(), index.cuda())
    for step in range(3):  # what is settled at first use is, by the third
        torch.cuda.set_sync_debug_mode("error" if step == 2 else "default")
        try:
            robust_step(model, batch, recipe, parts, optimizer, partial(Streams(0).at, step=step), 1)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@no_cuda
@pytest.mark.parametrize("name", ["n-lap", "trades", "at-awp", "part-t", "free-at"])
def test_resume_to_the_bit_on_a_gpu(name: str, tmp_path: Path) -> None:
    check_resume(name, tmp_path, device="cuda", deterministic=True)


@on_every_device
def test_a_compiled_forward_is_the_forward_and_compiles_once(device: str) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("inductor" if device == "cuda" else "aot_eager")
    torch._dynamo.reset()
    model = zoo.net().to(device).eval()
    net = CompiledForward(model, 8)
    net._compiled = (torch.compile(model, dynamic=False, backend=counter),)
    for step in range(3):
        x = zoo.batch(step).x.to(device).requires_grad_()
        logits, plain = net(x), model(x)
        torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-4)
        grads = [torch.autograd.grad(z.logsumexp(1).sum(), x)[0] for z in (logits, plain)]
        torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)
    assert counter.frame_count == 1


@pytest.fixture
def curved(curved_net: Net, labelled: Labelled) -> tuple[nn.Module, Tensor, Tensor]:
    net = curved_net()
    batch = labelled(net, 40, wrong=3)
    return net, batch.x, batch.y


def attacked(net: nn.Module, x: Tensor, y: Tensor, **options: object) -> AutoAttackReport:
    searches = (
        AutoPGD(loss="ce", steps=6),
        AutoPGD(loss="dlr-targeted", steps=6, targets=3),
        FAB(steps=6, targets=2),
        Square(queries=40),
    )
    settings = {"num_classes": 6, "slots": 8, "version": "custom", "attacks": searches, **options}
    return autoattack(net, x, y, Linf(0.012), **settings)  # type: ignore[arg-type]


@on_every_device
@pytest.mark.parametrize("fold", [False, True])
def test_autoattack_has_the_same_verdicts_everywhere(
    device: str, fold: bool, curved: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = curved
    wanted = attacked(net, x, y, fold=False)
    found = attacked(copy.deepcopy(net).to(device), x, y, fold=fold)
    assert torch.equal(found.robust.cpu(), wanted.robust)
    assert 0 < int(wanted.robust.sum()) < len(y)


@on_every_device
def test_what_a_search_in_bfloat16_finds_fools_the_model(device: str, curved: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = curved
    net = copy.deepcopy(net).float().to(device)
    x = x.float()
    found = attacked(net, x, y, dtype=torch.bfloat16)
    wanted = attacked(net, x, y)
    with torch.no_grad():
        wrong = net(found.x_adv.to(device)).argmax(1).cpu() != y
    assert torch.equal(wrong, ~found.robust.cpu())
    assert float((found.x_adv.cpu() - x).abs().max()) <= 0.012 + 1e-6
    assert abs(int(found.robust.sum()) - int(wanted.robust.sum())) <= 3
