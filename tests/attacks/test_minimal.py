"""DeepFool against the paper's algorithm, written out image by image, and bisection where the minimum is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from gambeson.attacks import PGD, Attack, deepfool, fgsm, minimal_eps, mm3
from gambeson.core.errors import InputError
from gambeson.core.threat import L2, Linf, Threat
from gambeson.core.types import Batch

Net = Callable[..., nn.Sequential]
Labelled = Callable[..., Batch]
Rng = Callable[[int], torch.Generator]
Snapshot = Callable[[nn.Module], dict[str, Tensor]]
NORMS = pytest.mark.parametrize("norm", ["L2", "Linf"])
BALLS: dict[str, Threat] = {"L2": L2(1.0), "Linf": Linf(1.0)}


def written_out(
    net: nn.Module, x0: Tensor, label: int, norm: str, classes: int, overshoot: float, nudge: float, steps: int = 50
) -> tuple[Tensor, bool, int]:
    """Algorithm 2 of the paper for the one image `x0`: `(image, fooled, steps)`. The overshoot and the nudge are those
    of the release, which the paper does not have inside of the loop; the clip is ours."""
    with torch.no_grad():
        order = [int(k) for k in net(x0)[0].argsort(descending=True) if int(k) != label][:classes]
    x, r = x0, torch.zeros_like(x0)
    for step in range(steps):
        x = x.detach().requires_grad_()
        f = net(x)[0]
        if int(f.argmax()) != label:
            return x.detach(), True, step
        own = torch.autograd.grad(f[label], x, retain_graph=True)[0]
        best, w_best = math.inf, None
        for k in order:
            w = torch.autograd.grad(f[k], x, retain_graph=True)[0] - own
            dual = float(w.norm()) if norm == "L2" else float(w.abs().sum())
            distance = abs(float((f[k] - f[label]).detach())) / dual
            if distance < best:
                best, w_best = distance, w
        r = r + (best + nudge) * (w_best / w_best.norm() if norm == "L2" else w_best.sign())
        x = (x0 + (1 + overshoot) * r).clamp(0, 1)
    with torch.no_grad():
        return x.detach(), int(net(x).argmax()) != label, steps


@pytest.mark.parametrize("classes", [1, 3, 10])
@NORMS
def test_every_image_goes_the_way_of_the_algorithm(
    norm: str, classes: int, curved_net: Net, labelled: Labelled
) -> None:
    net = curved_net()
    x, y, index = labelled(net, 30, wrong=3)[:3]
    x = (1.2 * x - 0.1).clamp(0, 1)  # some pixels lie on the edge
    found = deepfool(net, Batch(x, y, index), norm, candidates=classes)
    taken, edges = set(), 0
    for i in range(len(x)):
        image, fooled, steps = written_out(net, x[i : i + 1], int(y[i]), norm, classes, 0.02, 1e-4)
        assert bool(found.found[i]) == fooled
        torch.testing.assert_close(found.x_adv[i : i + 1], image if fooled else x[i : i + 1], rtol=0, atol=1e-10)
        taken.add(steps)
        edges += steps and int((((x[i] == 0) | (x[i] == 1)) & (image[0] == x[i])).sum())
    assert len(taken) > 2  # the examples stop at steps of their own
    assert edges > 100  # pixels that the clip has held back
    assert found.found.sum() > 20


@NORMS
def test_without_overshoot_and_nudge_it_is_the_paper(norm: str, curved_net: Net, labelled: Labelled) -> None:
    """Compared where the class changes clearly: on the plane itself the last bit decides how often a step is taken."""
    net = curved_net()
    batch = labelled(net, 40)
    batch = batch._replace(x=0.4 + 0.2 * batch.x)  # far from the edges
    with torch.no_grad():
        batch = batch._replace(y=net(batch.x).argmax(1))
    found = deepfool(net, batch, norm, overshoot=0, nudge=0)
    compared = 0
    for i in range(40):
        image, fooled, _ = written_out(net, batch.x[i : i + 1], int(batch.y[i]), norm, 5, 0, 0)
        logits = net(image)[0].detach()
        if fooled and logits.max() - logits[batch.y[i]] > 1e-9:
            compared += 1
            torch.testing.assert_close(found.x_adv[i : i + 1], image, rtol=0, atol=1e-10)
    assert compared > 10


@NORMS
def test_of_a_linear_model_the_norm_is_the_distance_to_the_plane(norm: str, generator: Rng) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(4, 64, generator=generator(0), dtype=torch.float64) * 0.1)
        net[1].bias.zero_()
    x = 0.4 + 0.2 * torch.rand(20, 1, 8, 8, generator=generator(1), dtype=torch.float64)
    z = net(x).detach()
    y = z.argmax(1)
    found = deepfool(net, Batch(x, y, torch.arange(20)), norm)
    w, dual = net[1].weight.detach(), 2 if norm == "L2" else 1
    for i in range(20):
        others = [k for k in range(4) if k != int(y[i])]
        true = min(float((z[i, y[i]] - z[i, k]) / (w[k] - w[y[i]]).norm(p=dual)) for k in others)
        assert float(found.norms[i]) == pytest.approx(1.02 * (true + 1e-4), rel=1e-9)
    assert len({round(float(value), 6) for value in found.norms}) == 20


@NORMS
def test_norms_are_those_of_the_images(norm: str, curved_net: Net, labelled: Labelled) -> None:
    net = curved_net()
    batch = labelled(net, 12, wrong=2)
    found = deepfool(net, batch, norm)
    assert found.norms[:2].tolist() == [0, 0]
    assert torch.equal(found.x_adv[:2], batch.x[:2])
    assert found.found.all()
    torch.testing.assert_close(found.norms, BALLS[norm].distance(found.x_adv, batch.x), rtol=0, atol=0)
    assert (found.norms[2:] > 0).all()
    assert (net(found.x_adv).argmax(1) != batch.y).all()


@NORMS
def test_too_few_steps_find_nothing(norm: str, curved_net: Net, labelled: Labelled) -> None:
    net = curved_net()
    batch = labelled(net, 30)
    found, more = deepfool(net, batch, norm, steps=1), deepfool(net, batch, norm)
    assert 0 < int(found.found.sum()) < int(more.found.sum()) == 30
    assert (found.norms.isinf() == ~found.found).all()
    assert torch.equal(found.x_adv[~found.found], batch.x[~found.found])
    assert torch.equal(found.norms[found.found], more.norms[found.found])


class Broken(nn.Module):
    """Bright images are class 1; the gradient of images below 0.3 is multiplied by a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1).mean(1) - 0.5
        if value.requires_grad:
            value.register_hook(lambda grad: torch.where(value < -0.2, grad * self.factor, grad))
        return torch.stack([torch.zeros_like(value), value], 1)


@pytest.mark.parametrize("factor", [0.0, math.nan, math.inf])
@NORMS
def test_nothing_is_found_without_a_usable_gradient(norm: str, factor: float) -> None:
    x = torch.tensor([0.4, 0.2, 0.1], dtype=torch.float64).view(3, 1, 1, 1).expand(3, 1, 2, 2).clone()
    found = deepfool(Broken(factor), Batch(x, torch.zeros(3, dtype=torch.int64), torch.arange(3)), norm, steps=3)
    assert found.found.tolist() == [True, False, False]
    assert torch.equal(found.x_adv[1:], x[1:])
    assert found.x_adv.isfinite().all()
    assert found.norms.isinf().tolist() == [False, True, True]


def test_fallen_examples_cost_nothing_more(curved_net: Net, labelled: Labelled) -> None:
    net = curved_net()
    batch = labelled(net, 30, wrong=4)
    seen: list[int] = []
    net.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    deepfool(net, batch, "L2")
    assert seen[0] == 30
    assert seen[1] == seen[2] == 26
    assert seen[1:] == sorted(seen[1:], reverse=True)
    assert seen[-1] < 26


def test_the_weights_get_no_gradient_and_the_model_comes_back(
    curved_net: Net, labelled: Labelled, generator: Rng, snapshot: Snapshot
) -> None:
    net = curved_net().train()
    batch, before = labelled(net), snapshot(net)
    net[4].bias.requires_grad_(False)
    flags, asked = [p.requires_grad for p in net.parameters()], []
    net.register_forward_hook(
        lambda module, args, out: asked.append((module.training, any(p.requires_grad for p in net.parameters())))
    )
    with torch.no_grad():
        found = deepfool(net, batch, "L2")
        assert asked
        assert set(asked) == {(False, False)}
        assert found.found.all()
        minimal_eps(net, batch, PGD(steps=2), L2(2.0), generator(0), steps=2)
    assert net.training
    assert [p.requires_grad for p in net.parameters()] == flags
    after = snapshot(net)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in net.parameters())
    assert not found.x_adv.requires_grad


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "L1"}, "unknown norm 'L1'"),
        ({"candidates": 0}, "at least one candidate class, got 0"),
        ({"steps": 0}, "at least 1 step, got 0"),
        ({"overshoot": -0.1}, "the overshoot of DeepFool must be finite and >= 0, got -0.1"),
        ({"nudge": math.inf}, "the nudge of DeepFool must be finite and >= 0, got inf"),
    ],
)
def test_settings_out_of_range_are_refused(
    settings: dict[str, float], message: str, curved_net: Net, labelled: Labelled
) -> None:
    net = curved_net()
    with pytest.raises(InputError, match=message):
        deepfool(net, labelled(net), **settings)


# bisection


class Bright(nn.Module):
    """Class 1 where the mean of the image is above 1/2."""

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1).mean(1) - 0.5
        return torch.stack([torch.zeros_like(value), value], 1)


def greys(n: int = 9) -> Batch:
    """Images of one grey each, class 0; the nearest image of class 1 is at 0.5, everywhere."""
    x = torch.linspace(0.1, 0.45, n, dtype=torch.float64).view(-1, 1, 1, 1).expand(n, 1, 4, 4).clone()
    return Batch(x, torch.zeros(n, dtype=torch.int64), torch.arange(n))


@pytest.mark.parametrize("attack", [fgsm(), PGD(steps=60), PGD(steps=60, freeze_fooled=True, restarts=2)])
@pytest.mark.parametrize("threat", [Linf(0.3), L2(1.2)], ids=["Linf", "L2"])
def test_the_norm_is_known_to_the_last_halving(attack: Attack, threat: Threat, generator: Rng) -> None:
    batch = greys()
    true = (0.5 - batch.x[:, 0, 0, 0]) * (1 if threat.norm == "Linf" else 4)
    found = minimal_eps(Bright(), batch, attack, threat, generator(0), steps=12)
    reached = true < float(threat.eps)
    assert 0 < int(reached.sum()) < 9
    assert torch.equal(found.found, reached)
    assert found.norms[~reached].isinf().all()
    assert (found.norms[reached] >= true[reached]).all()
    near = 1e-4 if threat.norm == "L2" else 1e-12  # how near PGD comes to the best image of a ball
    assert (found.norms[reached] <= true[reached] + float(threat.eps) / 2**12 + near).all()
    torch.testing.assert_close(found.norms[reached], threat.distance(found.x_adv, batch.x)[reached], rtol=0, atol=0)


@pytest.mark.parametrize("attack", [PGD(steps=3), PGD(steps=3, freeze_fooled=True), mm3()])
@NORMS
def test_more_steps_are_never_worse_and_images_are_adversarial(
    norm: str, attack: Attack, curved_net: Net, labelled: Labelled, generator: Rng
) -> None:
    net = curved_net()
    batch = labelled(net, 16, wrong=2)
    threat = BALLS[norm].with_eps({"L2": 0.6, "Linf": 0.08}[norm])
    rows = [minimal_eps(net, batch, attack, threat, generator(0), steps=steps) for steps in range(6)]
    for coarse, fine in pairwise(rows):
        assert (fine.norms <= coarse.norms).all()
    fell = rows[0].found
    assert torch.equal(rows[-1].found, fell)
    assert rows[-1].norms[fell].sum() < 0.7 * rows[0].norms[fell].sum()
    assert (rows[-1].norms[fell] <= float(threat.eps) + 1e-9).all()
    for row in rows:
        assert row.norms[:2].tolist() == [0, 0]
        assert torch.equal(net(row.x_adv).argmax(1) != batch.y, row.found)
        assert row.x_adv.min() >= 0
        assert row.x_adv.max() <= 1


def test_every_example_has_a_budget_of_its_own(generator: Rng) -> None:
    """The bisection, written out for one example at a time, asks for the same budgets."""
    asked: list[Tensor] = []

    class Listening:
        def __call__(self, model: nn.Module, batch: Batch, threat: Threat, rng: torch.Generator) -> Tensor:
            assert isinstance(threat.eps, Tensor)
            asked.append(threat.eps.flatten())
            return batch.x + threat.eps

    batch = greys(5)
    minimal_eps(Bright(), batch, Listening(), Linf(0.5), generator(0), steps=6)
    for i in range(5):
        low, high, true = 0.0, 0.5, 0.5 - float(batch.x[i].mean())
        for row in asked:
            budget = high if row is asked[0] else (low + high) / 2
            assert float(row[i]) == pytest.approx(budget, abs=1e-12)
            low, high = (low, budget) if budget > true else (budget, high)
    assert [len(row) for row in asked] == [5] * 7


def test_what_an_attack_returns_is_judged_inside_of_the_ball(generator: Rng) -> None:
    class Cheating:
        def __call__(self, model: nn.Module, batch: Batch, threat: Threat, rng: torch.Generator) -> Tensor:
            return torch.where((batch.index == 0).view(-1, 1, 1, 1), torch.nan, 9.0).expand_as(batch.x)

    batch = greys(4)
    found = minimal_eps(Bright(), batch, Cheating(), Linf(0.3), generator(0), steps=8)
    assert found.found.tolist() == [False, True, True, True]
    assert (found.norms[1:] <= 0.3 + 1e-12).all()
    assert found.x_adv.isfinite().all()


def test_an_example_that_never_fell_is_not_attacked_again(generator: Rng) -> None:
    sizes: list[int] = []
    attack = fgsm()

    class Counting:
        def __call__(self, model: nn.Module, batch: Batch, threat: Threat, rng: torch.Generator) -> Tensor:
            sizes.append(len(batch.x))
            return attack(model, batch, threat, rng)

    batch = greys()
    batch.y[0] = 1  # wrong as it is
    minimal_eps(Bright(), batch, Counting(), Linf(0.2), generator(0), steps=3)
    assert sizes[0] == 8
    assert len(set(sizes[1:])) == 1
    assert 0 < sizes[1] < 8


def test_a_bisection_begins_with_one_budget(generator: Rng) -> None:
    with pytest.raises(InputError, match="one budget for all examples"):
        minimal_eps(Bright(), greys(2), fgsm(), Linf(torch.full((2, 1, 1, 1), 0.1)), generator(0))
    with pytest.raises(InputError, match="at least 0 steps, got -1"):
        minimal_eps(Bright(), greys(2), fgsm(), Linf(0.1), generator(0), steps=-1)


def test_nothing_is_left_to_do(generator: Rng) -> None:
    batch = greys(3)
    batch.y.fill_(1)
    for found in (deepfool(Bright(), batch), minimal_eps(Bright(), batch, fgsm(), Linf(0.1), generator(0))):
        assert found.norms.tolist() == [0, 0, 0]
        assert found.found.all()
