"""PGD-AT, TRADES, MART and SCORE against transcriptions of their releases."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gambeson.core.types import Batch
from gambeson.methods import Recipe, mart, pgd_at, score, trades
from gambeson.methods.recipe import search
from parity.cases import CLASSES, EPS, assert_equal_state, batch, descend, net, rng, sgd, train, twins
from parity.references import (
    gaussian_start,
    linf_ascent,
    mart_images,
    mart_loss,
    pgd_images,
    trades_images,
    trades_loss,
    uniform_start,
)

STEPS = 3
BETA = 6.0


def lse(p: Tensor, q: Tensor) -> Tensor:
    return (p - q).pow(2).sum(1)


def bound(c: float, classes: int = CLASSES) -> float:
    """LSE between `(1 - c, c/(K-1), ...)` and the one-hot label, written out."""
    return (1 - (1 - c)) ** 2 + (classes - 1) * (c / (classes - 1)) ** 2


def one_hot(y: Tensor) -> Tensor:
    return torch.eye(CLASSES, dtype=torch.float64)[y]


def trades_value(logits: Tensor, logits_adv: Tensor, y: Tensor) -> Tensor:
    kl = nn.KLDivLoss(reduction="sum")(F.log_softmax(logits_adv, dim=1), F.softmax(logits, dim=1))
    return F.cross_entropy(logits, y) + BETA * kl / len(y)


def score_value(logits: Tensor, logits_adv: Tensor, y: Tensor) -> Tensor:
    p, q = logits.softmax(1), logits_adv.softmax(1)
    return F.relu(lse(p, one_hot(y)) + BETA * lse(q, p) - bound(0.3)).mean()


def score_at_value(logits: Tensor, logits_adv: Tensor, y: Tensor) -> Tensor:
    return F.relu(lse(logits_adv.softmax(1), one_hot(y)) - bound(0.4)).mean()


VALUES: dict[str, tuple[Recipe, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "pgd-at": (pgd_at(EPS), lambda clean, adv, y: F.cross_entropy(adv, y)),
    "trades": (trades(EPS, beta=BETA), trades_value),
    "mart": (mart(EPS, beta=BETA), lambda clean, adv, y: mart_loss(clean, adv, y, BETA)),
    "score": (score(EPS, beta=BETA), score_value),
    "score-at": (score(EPS, form="at"), score_at_value),
}


def logits(scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of logits with right and wrong predictions on both sides."""
    generator = torch.Generator().manual_seed(3)
    clean = scale * torch.randn(40, CLASSES, generator=generator, dtype=torch.float64)
    adv = clean + scale * torch.randn(40, CLASSES, generator=generator, dtype=torch.float64)
    return clean, adv, torch.randint(0, CLASSES, (40,), generator=generator)


@pytest.mark.parametrize("scale", [0.3, 3.0, 30.0])
@pytest.mark.parametrize("name", VALUES)
def test_loss_and_gradient_in_both_logits(name: str, scale: float) -> None:
    """At scale 30 probabilities reach zero: MART's 1e-12 and 1.0001 then decide."""
    recipe, value = VALUES[name]
    clean, adv, y = logits(scale)
    mine, theirs = (
        [z.clone().requires_grad_() for z in (clean, adv)],
        [z.clone().requires_grad_() for z in (clean, adv)],
    )
    ours = recipe.objective({"clean": mine[0], "adv": mine[1]}, y)
    assert ours.shape == y.shape
    expected = value(theirs[0], theirs[1], y)
    assert ours.mean().item() == pytest.approx(expected.item(), rel=1e-11)
    ours.mean().backward()
    expected.backward()
    for a, b in zip(mine, theirs, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None and b.grad is not None:
            assert torch.allclose(a.grad, b.grad, rtol=1e-10, atol=1e-12)
    if "clean" in recipe.objective.views:
        assert mine[0].grad is not None, "the clean side is not detached"
        assert mine[0].grad.abs().max() > 1e-6


@pytest.mark.parametrize(
    ("c", "classes", "value"), [(0.4, 10, 0.1778), (0.4, 100, 0.1616), (0.3, 10, 0.1), (0.3, 100, 0.0909)]
)
def test_clip_bound_of_score(c: float, classes: int, value: float) -> None:
    """The released numbers; a prediction of confidence 1 - c then has no loss, a slightly worse one has."""
    assert bound(c, classes) == pytest.approx(value, abs=5e-5)
    objective = score(EPS, form="at", clip=c).objective
    p = torch.full((1, classes), c / (classes - 1), dtype=torch.float64)
    p[0, 0] = 1 - c
    y = torch.zeros(1, dtype=torch.int64)
    assert objective({"adv": p.log()}, y).item() == pytest.approx(0.0, abs=1e-12)
    p[0, 0] -= 0.01
    p[0, 1] += 0.01
    expected = (c + 0.01) ** 2 + (c / (classes - 1) + 0.01) ** 2 + (classes - 2) * (c / (classes - 1)) ** 2
    assert objective({"adv": p.log()}, y).item() == pytest.approx(expected - bound(c, classes), rel=1e-9)


def test_score_without_clip_is_the_squared_error_of_rift() -> None:
    clean, adv, y = logits(3.0)
    objective = score(EPS, form="at", clip=0.0).objective
    assert torch.allclose(objective({"clean": clean, "adv": adv}, y), lse(adv.softmax(1), one_hot(y)), atol=1e-13)


def score_images(model: nn.Module, data: Batch, step: int) -> Tensor:
    """TRADES form: .001 randn start, evaluation mode, p(x) detached."""
    model.eval()
    p = model(data.x).softmax(1).detach()
    start = gaussian_start(data.x, step)
    x_adv = linf_ascent(data.x, start, lambda x_adv: lse(model(x_adv).softmax(1), p).sum(), STEPS)
    model.train()
    return x_adv


def score_at_images(model: nn.Module, data: Batch, step: int) -> Tensor:
    """PGD-AT form: uniform start, training-mode BatchNorm."""
    start = uniform_start(data.x, step)
    return linf_ascent(data.x, start, lambda x_adv: lse(model(x_adv).softmax(1), one_hot(data.y)).sum(), STEPS)


Images = Callable[[nn.Module, Batch, int], Tensor]
Loss = Callable[[nn.Module, Batch, Tensor], Tensor]
STEP: dict[str, tuple[Recipe, Images, Loss, int]] = {
    "pgd-at": (
        pgd_at(EPS, steps=STEPS),
        lambda model, data, step: pgd_images(model, data, step, STEPS, training=False),
        lambda model, data, x_adv: F.cross_entropy(model(x_adv), data.y),
        1,
    ),
    "pgd-at-update": (
        pgd_at(EPS, steps=STEPS, bn="update"),
        lambda model, data, step: pgd_images(model, data, step, STEPS, training=True),
        lambda model, data, x_adv: F.cross_entropy(model(x_adv), data.y),
        1 + STEPS,
    ),
    "trades": (
        trades(EPS, beta=BETA, steps=STEPS),
        lambda model, data, step: trades_images(model, data, step, STEPS),
        lambda model, data, x_adv: trades_loss(model, data, x_adv, BETA),
        3,
    ),
    "mart": (
        mart(EPS, beta=BETA, steps=STEPS),
        lambda model, data, step: mart_images(model, data, step, STEPS),
        lambda model, data, x_adv: mart_loss(model(data.x), model(x_adv), data.y, BETA),
        2,
    ),
    "score": (
        score(EPS, beta=BETA, steps=STEPS),
        score_images,
        lambda model, data, x_adv: score_value(model(data.x), model(x_adv), data.y),
        2,
    ),
    "score-at": (
        score(EPS, form="at", steps=STEPS),
        score_at_images,
        lambda model, data, x_adv: score_at_value(x_adv, model(x_adv), data.y),
        1 + STEPS,
    ),
}


@pytest.mark.parametrize("name", STEP)
def test_training_steps(name: str) -> None:
    """Parameters, momentum and BatchNorm statistics after two steps; forwards in training mode are counted."""
    recipe, images, loss, forwards = STEP[name]
    ours, theirs = twins(8)
    a, b = sgd(ours), sgd(theirs)
    for step in range(2):
        data = batch(step)
        outcome = train(ours, a, recipe, data, step)
        value = loss(theirs, data, images(theirs, data, step))
        descend(b, value)
        assert outcome.loss.item() == pytest.approx(value.item(), rel=1e-11)
        assert_equal_state(ours, a, theirs, b)
    assert ours.bn1.num_batches_tracked == 1 + 2 * forwards


@pytest.mark.parametrize("name", STEP)
def test_training_images(name: str) -> None:
    recipe, images, _, _ = STEP[name]
    ours, theirs = twins(8)
    data = batch(5)
    found = search(ours, data, recipe, sgd(ours), rng(5), 0).x
    assert torch.allclose(found, images(theirs, data, 5), rtol=0, atol=1e-12)
    assert 0.5 * EPS < (found - data.x).abs().max() <= EPS + 1e-12


def test_second_clean_forward_of_trades_is_not_vacuous() -> None:
    """The statistics after clean, adv, clean differ from those after clean, adv: the comparison above can fail."""
    recipe, images, _, _ = STEP["trades"]
    ours, theirs = twins(8)
    data = batch(0)
    train(ours, sgd(ours), recipe, data, 0)
    x_adv = images(theirs, data, 0)
    theirs(data.x)
    theirs(x_adv)
    assert (ours.bn1.running_mean - theirs.bn1.running_mean).abs().max() > 1e-4


def test_seeds_matter() -> None:
    """Another start gives other images: the shared draws are what makes the sides equal."""
    recipe = STEP["trades"][0]
    first, second = (search(net(8), batch(0), recipe, sgd(net(8)), rng(step), 0).x for step in (0, 1))
    assert not torch.equal(first, second)
