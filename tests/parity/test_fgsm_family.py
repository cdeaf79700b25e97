"""FGSM, RS-FGSM, N-FGSM, ZeroGrad, MultiGrad, GradAlign and Free-AT against transcriptions of their releases."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from gambeson.core.types import Batch
from gambeson.methods import Recipe, fgsm, free_at, grad_align, multi_grad, n_fgsm, rs_fgsm, zero_grad
from gambeson.methods.recipe import search
from parity.cases import EPS, assert_equal_state, batch, descend, net, rng, sgd, train, twins, uniform


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(x), y), x)[0]


def fgsm_images(model: nn.Module, data: Batch, step: int) -> Tensor:
    return (data.x + EPS * input_gradient(model, data.x, data.y).sign()).clamp(0, 1)


def rs_fgsm_images(model: nn.Module, data: Batch, step: int) -> Tensor:
    x = data.x
    u = (x + uniform(x, EPS, step)).clamp(0, 1) - x
    delta = (u + 1.25 * EPS * input_gradient(model, x + u, data.y).sign()).clamp(-EPS, EPS)
    return (x + delta).clamp(0, 1)


def n_fgsm_images(model: nn.Module, data: Batch, step: int) -> Tensor:
    x = data.x
    u = (x + uniform(x, 2 * EPS, step)).clamp(0, 1) - x
    return (x + u + EPS * input_gradient(model, x + u, data.y).sign()).clamp(0, 1)


def zero_grad_images(model: nn.Module, data: Batch, step: int, q: float = 0.35) -> Tensor:
    """rohban-lab/catastrophic_overfitting, train_cifar.py:48-61 (quantile_fgsm)."""
    x = data.x
    u = (x + uniform(x, EPS, step)).clamp(0, 1) - x
    grad = input_gradient(model, x + u, data.y)
    threshold = torch.quantile(grad.abs().flatten(1), q, dim=1)
    grad[grad.abs() < threshold.view(-1, 1, 1, 1)] = 0
    return (x + (u + 2 * EPS * grad.sign()).clamp(-EPS, EPS)).clamp(0, 1)


def multi_grad_images(model: nn.Module, data: Batch, step: int) -> Tensor:
    """train_cifar.py:63-93 (consensus_fgsm) of the same repository, one point after the other."""
    x = data.x
    generator = rng(step)("attack")
    signs = []
    for _ in range(3):
        u = (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1) * EPS
        signs.append(input_gradient(model, (x + u).clamp(0, 1), data.y).sign())
    total = torch.stack(signs).sum(0)
    agreed = torch.where(total.abs() < 3, torch.zeros_like(total), total).sign()
    return (x + (2 * EPS * agreed).clamp(-EPS, EPS)).clamp(0, 1)


IMAGES = {
    "fgsm": (fgsm(EPS), fgsm_images),
    "rs-fgsm": (rs_fgsm(EPS), rs_fgsm_images),
    "n-fgsm": (n_fgsm(EPS), n_fgsm_images),
    "multi-grad": (multi_grad(EPS), multi_grad_images),
}


@pytest.mark.parametrize("name", IMAGES)
def test_training_images(name: str) -> None:
    recipe, images = IMAGES[name]
    ours, theirs = twins()
    data = batch(1)
    found = search(ours, data, recipe, sgd(ours), rng(1), 0)
    expected = images(theirs, data, 1)
    assert not torch.equal(expected, data.x)
    assert torch.allclose(found.x, expected, rtol=0, atol=1e-12)
    assert found.weights == {}


def test_n_fgsm_leaves_the_ball_and_the_others_do_not() -> None:
    data = batch(1)
    distance = {
        name: (search(net(), data, recipe, sgd(net()), rng(1), 0).x - data.x).abs().max().item() / EPS
        for name, (recipe, _) in IMAGES.items()
    }
    assert 2.5 < distance.pop("n-fgsm") <= 3 + 1e-9
    assert max(distance.values()) <= 1 + 1e-9


@pytest.mark.parametrize("name", IMAGES)
def test_training_steps(name: str) -> None:
    recipe, images = IMAGES[name]
    ours, theirs = twins(1)
    a, b = sgd(ours), sgd(theirs)
    for step in range(3):
        data = batch(step)
        train(ours, a, recipe, data, step)
        descend(b, F.cross_entropy(theirs(images(theirs, data, step)), data.y))
        assert_equal_state(ours, a, theirs, b)


def odd(data: Batch) -> Batch:
    """147 values an image: the median is one of them, and every definition of a quantile agrees on it."""
    return data._replace(x=data.x[:, :, :7, :7].contiguous())


def test_zero_grad_where_all_quantiles_agree() -> None:
    ours, theirs = twins(1)
    a, b = sgd(ours), sgd(theirs)
    recipe = zero_grad(EPS, quantile=0.5)
    for step in range(2):
        data = odd(batch(step))
        found = search(copy.deepcopy(ours), data, recipe, a, rng(step), 0)
        expected = zero_grad_images(copy.deepcopy(theirs), data, step, q=0.5)
        assert torch.allclose(found.x, expected, rtol=0, atol=1e-12)
        train(ours, a, recipe, data, step)
        descend(b, F.cross_entropy(theirs(zero_grad_images(theirs, data, step, q=0.5)), data.y))
        assert_equal_state(ours, a, theirs, b)


def test_zero_grad_with_the_release_quantile() -> None:
    ours, theirs = twins(1)
    data = batch(0)
    found = search(ours, data, zero_grad(EPS), sgd(ours), rng(0), 0)
    assert torch.allclose(found.x, zero_grad_images(theirs, data, 0), rtol=0, atol=1e-12)


LAM = 0.2


def alignment(model: nn.Module, data: Batch, step: int) -> tuple[Tensor, Tensor]:
    """The regulariser `1 - cos(g(x), g(x + u))`, g(x) detached, u ~ U(+-eps) not clipped; and g(x)."""
    clean = input_gradient(model, data.x, data.y).detach()
    noisy = (data.x + uniform(data.x, EPS, step, "penalty")).requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(model(noisy), data.y), noisy, create_graph=True)
    cosine = (clean * g).sum((1, 2, 3)) / (clean.square().sum((1, 2, 3)).sqrt() * g.square().sum((1, 2, 3)).sqrt())
    return 1 - cosine.mean(), clean


def test_grad_align_penalty_value_and_weight_gradient() -> None:
    ours, theirs = twins(3)
    data, recipe = batch(2), grad_align(EPS, weight=LAM)
    assert recipe.penalty is not None
    value = recipe.penalty(ours, data, recipe.threat, rng(2)("penalty"))
    expected = LAM * alignment(theirs, data, 2)[0]
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)
    assert value.item() > 1e-4
    value.backward()
    expected.backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        if p.grad is None:  # the last bias: no input gradient depends on it through the loss of double backward only
            assert q[1].grad is None, name
        else:
            assert torch.allclose(p.grad, q[1].grad, rtol=0, atol=1e-11), name


def test_grad_align_weight_gradient_by_finite_differences() -> None:
    """g(x) is a constant: the slope of the penalty along a direction, with the clean gradient held."""
    model, data = net(3), batch(2)
    recipe = grad_align(EPS, weight=LAM)
    assert recipe.penalty is not None
    recipe.penalty(model, data, recipe.threat, rng(2)("penalty")).backward()
    generator = torch.Generator().manual_seed(0)
    direction = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in model.named_parameters()}
    slope = sum((p.grad * direction[n]).sum().item() for n, p in model.named_parameters() if p.grad is not None)
    clean = alignment(model, data, 2)[1]
    h = 1e-6

    def at(t: float) -> float:
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for n, p in moved.named_parameters():
                p.add_(t * direction[n])
        noisy = data.x + uniform(data.x, EPS, 2, "penalty")
        g = input_gradient(moved, noisy, data.y)
        return LAM * (1 - F.cosine_similarity(clean.flatten(1), g.flatten(1), dim=1).mean().item())

    assert slope == pytest.approx((at(h) - at(-h)) / (2 * h), rel=1e-5)


def grad_align_step(model: nn.Module, optimizer: SGD, data: Batch, step: int) -> None:
    x = data.x
    delta = (1.25 * EPS * input_gradient(copy.deepcopy(model), x, data.y).sign()).clamp(-EPS, EPS)
    x_adv = (x + delta).clamp(0, 1)
    descend(optimizer, F.cross_entropy(model(x_adv), data.y) + LAM * alignment(model, data, step)[0])


def test_grad_align_steps_move_the_parameters_alike() -> None:
    ours, theirs = twins(3)
    a, b = sgd(ours), sgd(theirs)
    for step in range(2):
        train(ours, a, grad_align(EPS, weight=LAM), batch(step), step)
        grad_align_step(theirs, b, batch(step), step)
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(p, q, rtol=0, atol=1e-10), name
            assert torch.allclose(a.state[p]["momentum_buffer"], b.state[q]["momentum_buffer"], rtol=0, atol=1e-10), (
                name
            )


def test_grad_align_batch_norm_statistics() -> None:
    """The release takes g(x) from the FGSM pass: three training-mode forwards per step, at x, x_adv and x + u."""
    ours, theirs = twins(3)
    a, b = sgd(ours), sgd(theirs)
    data = batch(0)
    train(ours, a, grad_align(EPS, weight=LAM), data, 0)
    x = data.x
    clean = input_gradient(theirs, x, data.y)
    x_adv = (x + (1.25 * EPS * clean.sign()).clamp(-EPS, EPS)).clamp(0, 1)
    loss = F.cross_entropy(theirs(x_adv), data.y)
    noisy = (x + uniform(x, EPS, 0, "penalty")).requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(theirs(noisy), data.y), noisy, create_graph=True)
    loss = loss + LAM * (1 - F.cosine_similarity(clean.flatten(1), g.flatten(1), dim=1).mean())
    descend(b, loss)
    assert_equal_state(ours, a, theirs, b)


@pytest.mark.parametrize(("eps", "lam"), [(8, 0.2), (12, 0.632), (16, 2.0)])
def test_grad_align_coefficient(eps: int, lam: float) -> None:
    penalty = grad_align(eps / 255).penalty
    assert penalty is not None
    assert penalty.weight == pytest.approx(math.exp(eps * math.log(10) / 8 + math.log(0.02)), rel=1e-12)
    assert penalty.weight == pytest.approx(lam, rel=1e-3)


def free_steps(
    model: nn.Module, optimizer: SGD, batches: list[Batch], replays: int, size: int, clip: bool = False
) -> Tensor:
    """locuslab/fast_adversarial, train_free.py: delta lives as long as the training, at full batch size."""
    delta = torch.zeros(size, 3, 8, 8, dtype=torch.float64)
    for data in batches:
        x, y = data.x, data.y
        n = len(x)
        for _ in range(replays):
            point = x + delta[:n]
            point = (point.clamp(0, 1) if clip else point).requires_grad_()
            descend(optimizer, F.cross_entropy(model(point), y))
            assert point.grad is not None
            delta[:n] = (delta[:n] + EPS * point.grad.sign()).clamp(-EPS, EPS)
            delta[:n] = torch.max(torch.min(delta[:n], 1 - x), 0 - x)
    return delta


def free_ours(model: nn.Module, optimizer: SGD, recipe: Recipe, batches: list[Batch]) -> nn.ModuleList:
    parts = nn.ModuleList(part.build(model) for part in recipe.parts)
    for number, data in enumerate(batches):
        for replay in range(recipe.replays):
            train(model, optimizer, recipe, data, number * recipe.replays + replay, parts=parts)
    return parts


def test_free_at_carries_the_perturbation_across_replays_and_batches() -> None:
    """Three batches, the second smaller: the places beyond it keep their perturbation for the third."""
    ours, theirs = twins(4)
    a, b = sgd(ours), sgd(theirs)
    batches = [batch(0, 6, margin=EPS), batch(1, 4, margin=EPS), batch(2, 6, margin=EPS)]
    parts = free_ours(ours, a, free_at(EPS, replays=3), batches)
    delta = free_steps(theirs, b, batches, replays=3, size=6)
    assert_equal_state(ours, a, theirs, b)
    assert delta.abs().max().item() == pytest.approx(EPS)
    assert torch.allclose(parts[0].delta, delta, rtol=0, atol=1e-12)
    assert ours.bn1.num_batches_tracked == 1 + 9


def test_free_at_keeps_the_perturbation_inside_the_box() -> None:
    """On one batch with pixels at 0 and 1 the delta after every replay is the release's."""
    ours, theirs = twins(4)
    a, b = sgd(ours), sgd(theirs)
    parts = free_ours(ours, a, free_at(EPS, replays=4), [batch(0)])
    delta = free_steps(theirs, b, [batch(0)], replays=4, size=6)
    assert_equal_state(ours, a, theirs, b)
    assert torch.allclose(parts[0].delta, delta, rtol=0, atol=1e-12)


def test_free_at_at_the_border_departs_from_the_release_as_documented() -> None:
    """The release feeds `x + delta` unclipped at the first replay of a batch; here it is clipped, nothing else."""
    batches = [batch(0), batch(1)]
    ours, theirs = twins(4)
    a, b = sgd(ours), sgd(theirs)
    parts = free_ours(ours, a, free_at(EPS, replays=2), batches)
    delta = free_steps(theirs, b, batches, replays=2, size=6, clip=True)
    assert_equal_state(ours, a, theirs, b)
    assert torch.allclose(parts[0].delta, delta, rtol=0, atol=1e-12)
    release = net(4)
    free_steps(release, sgd(release), batches, replays=2, size=6)
    assert (release.conv1.weight - ours.conv1.weight).abs().max() > 1e-8


def test_free_at_does_not_depend_on_the_first_batch_being_full() -> None:
    recipe = replace(free_at(EPS), replays=1)
    ours, theirs = twins(4)
    a, b = sgd(ours), sgd(theirs)
    batches = [batch(0, 4, margin=EPS), batch(1, 6, margin=EPS)]
    free_ours(ours, a, recipe, batches)
    free_steps(theirs, b, batches, replays=1, size=6)
    assert_equal_state(ours, a, theirs, b)
