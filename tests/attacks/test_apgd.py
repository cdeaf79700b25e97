"""Auto-PGD against the release, written out image by image, and against the release itself where it is installed."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gambeson.attacks import Boundary, apgd
from gambeson.attacks.apgd import _advance
from gambeson.core.losses import ce, dlr, margin
from gambeson.core.threat import L2, Linf, Threat
from gambeson.core.types import Batch

Net = Callable[..., nn.Sequential]
Labelled = Callable[..., Batch]
Rng = Callable[[int], torch.Generator]
Snapshot = Callable[[nn.Module], dict[str, Tensor]]
LOSSES = {"ce": ce, "dlr": dlr, "margin": margin}


class ReleasedL2(L2):
    """`L2` with the release's rounding: 1e-12 is added to norms, not their lower bound."""

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        delta, norm = x_adv - x, norms(x_adv - x)
        return x + delta / (norm + 1e-12) * norm.clamp_max(self.eps)

    def ascend(self, grad: Tensor) -> Tensor:
        return grad / (norms(grad) + 1e-12)


def norms(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


THREATS = pytest.mark.parametrize("threat", [Linf(0.015), ReleasedL2(0.1)], ids=["Linf", "L2"])


@pytest.fixture
def double() -> Iterator[None]:
    """Float64 everywhere, also for what the release creates on its own."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def setting(curved_net: Net, labelled: Labelled, n: int = 12) -> tuple[nn.Module, Tensor, Tensor]:
    net = curved_net()
    return net, *labelled(net, n, wrong=1)[:2]


def released(
    net: nn.Module, x: Tensor, label: int, loss: Any, start: Tensor, eps: float | Tensor, norm: str, steps: int
) -> dict[str, Any]:
    """`APGDAttack.attack_single_run` of fra31/auto-attack for the one image `x`, from `start`."""
    y = torch.tensor([label])

    def ball(point: Tensor) -> Tensor:
        if norm == "Linf":
            return torch.max(torch.min(point, x + eps), x - eps).clamp(0, 1)
        delta = point - x
        return (x + delta / (delta.norm() + 1e-12) * min(float(eps), float(delta.norm()))).clamp(0, 1)

    def look(point: Tensor) -> tuple[float, Tensor, bool]:
        point = point.clone().requires_grad_()
        logits = net(point)
        value = loss(logits, y)
        return float(value.detach()), torch.autograd.grad(value.sum(), point)[0], int(logits.argmax()) != label

    check_after, min_window, decrement = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    value, grad, wrong = look(start)
    at = old = best = start
    best_value, best_grad, best_value_then = value, grad, value
    adversarial = start if wrong else x
    eta, reduced, since, history, halvings = 2 * eps, True, 0, [0.0], 0
    for i in range(steps):
        velocity, old = at - old, at
        direction = grad.sign() if norm == "Linf" else grad / (grad.norm() + 1e-12)
        z = ball(at + eta * direction)
        a = 0.75 if i > 0 else 1.0
        at = ball(at + a * (z - at) + (1 - a) * velocity)
        value, grad, now_wrong = look(at)
        history.append(value)
        if now_wrong:
            adversarial, wrong = at, True
        if value > best_value:
            best, best_value, best_grad = at, value, grad
        since += 1
        if since == check_after:
            rises = sum(history[j] > history[j - 1] for j in range(len(history) - since, len(history)))
            stuck = not reduced and best_value_then >= best_value
            reduced, best_value_then = rises <= 0.75 * since or stuck, best_value
            if reduced:
                eta, at, grad, halvings = eta / 2, best, best_grad, halvings + 1
            since, check_after = 0, max(check_after - decrement, min_window)
    return {"best": best, "value": best_value, "adv": adversarial, "fooled": wrong, "halvings": halvings}


@pytest.mark.parametrize("steps", [1, 5, 20, 60])
@pytest.mark.parametrize("name", LOSSES)
@THREATS
def test_the_ascent_is_the_released_one(
    threat: Threat, name: str, steps: int, curved_net: Net, labelled: Labelled, generator: Rng
) -> None:
    net, x, y = setting(curved_net, labelled)
    start = Boundary()(x, threat, generator(0))
    found = apgd(net, x, y, lambda logits: LOSSES[name](logits, y), start, threat, steps=steps)
    halvings = []
    for i in range(len(x)):
        one = released(net, x[i : i + 1], int(y[i]), LOSSES[name], start[i : i + 1], threat.eps, threat.norm, steps)
        torch.testing.assert_close(found.x_best[i : i + 1], one["best"], rtol=0, atol=1e-10)
        torch.testing.assert_close(found.x_adv[i : i + 1], one["adv"], rtol=0, atol=1e-10)
        assert float(found.loss_best[i]) == pytest.approx(one["value"], rel=1e-6)
        assert bool(found.fooled[i]) == one["fooled"]
        halvings.append(one["halvings"])
    assert steps != 20 or len(set(halvings)) > 1  # the examples have step sizes of their own
    assert found.fooled.any()


@pytest.mark.parametrize("seed", range(12))
def test_checkpoints_are_the_released_ones_whatever_the_losses(
    seed: int, curved_net: Net, labelled: Labelled, generator: Rng
) -> None:
    """The values follow a script; only the gradient is the model's. The first script rises at once, but from below."""
    net, x, y = setting(curved_net, labelled, 1)
    values = [5.0, 1.0, 2.0, 3.0, 4.0, *torch.randn(16, generator=generator(seed)).tolist()]
    script = values if seed == 0 else torch.randint(-3, 9, (21,), generator=generator(seed)).sort().values.tolist()
    if seed > 0:
        script[seed], script[2 * seed - 2] = script[2 * seed - 2], script[seed]

    def follow() -> Callable[..., Tensor]:
        lines = iter(script)

        def loss(logits: Tensor, y: Tensor = y) -> Tensor:
            value = ce(logits, y)
            return value - value.detach() + next(lines)

        return loss

    visits: list[list[Tensor]] = []
    for ours in (True, False):
        visits.append([])
        hook = net.register_forward_pre_hook(lambda module, args: visits[-1].append(args[0].detach()))
        start = Boundary()(x, Linf(0.015), generator(0))
        if ours:
            apgd(net, x, y, follow(), start, Linf(0.015), steps=20)
        else:
            released(net, x, int(y), follow(), start, 0.015, "Linf", 20)
        hook.remove()
    torch.testing.assert_close(torch.stack(visits[0]), torch.stack(visits[1]), rtol=0, atol=1e-12)
    assert len(visits[0]) == 21


@pytest.mark.parametrize("name", ["ce", "dlr"])
@THREATS
@pytest.mark.usefixtures("double")
def test_the_ascent_is_that_of_the_installed_release(
    threat: Threat, name: str, curved_net: Net, labelled: Labelled, generator: Rng
) -> None:
    release = pytest.importorskip("pyautoattack.autopgd_base")
    net, x, y = setting(curved_net, labelled)
    start = Boundary()(x, threat, generator(0))
    theirs = release.APGDAttack(net, n_iter=50, norm=threat.norm, eps=threat.eps, loss=name, device="cpu")
    theirs.init_hyperparam(x)
    x_best, correct, loss_best, x_adv = theirs.attack_single_run(x, y, x_init=start)
    ours = apgd(net, x, y, lambda logits: LOSSES[name](logits, y), start, threat, steps=50)
    torch.testing.assert_close(ours.x_best, x_best.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(ours.loss_best, loss_best, rtol=0, atol=1e-10)
    assert torch.equal(ours.fooled, ~correct)
    torch.testing.assert_close(ours.x_adv[ours.fooled], x_adv.detach()[ours.fooled], rtol=0, atol=1e-10)
    assert ours.fooled.any()


@THREATS
def test_the_best_loss_is_the_largest_that_was_met(
    threat: Threat, curved_net: Net, labelled: Labelled, generator: Rng
) -> None:
    net, x, y = setting(curved_net, labelled)
    met: list[Tensor] = []

    def loss(logits: Tensor) -> Tensor:
        values = ce(logits, y)
        met.append(values.detach())
        return values

    found = apgd(net, x, y, loss, Boundary()(x, threat, generator(0)), threat, steps=30)
    assert len(met) == 31
    torch.testing.assert_close(found.loss_best, torch.stack(met).amax(0), rtol=0, atol=0)
    torch.testing.assert_close(ce(net(found.x_best), y).detach(), found.loss_best)
    assert (found.loss_best > met[0]).all()


class Distance(nn.Module):
    """Two classes, equal logits at an interior point: the margin falls with the distance from it."""

    def forward(self, x: Tensor) -> Tensor:
        away = (x - 0.513).abs().flatten(1).mean(1)
        return torch.stack([away, torch.zeros_like(away)], 1)


def test_the_step_is_halved_until_the_optimum_inside_the_ball_is_met() -> None:
    x, y = torch.full((2, 1, 2, 2), 0.5), torch.zeros(2, dtype=torch.int64)
    found = {
        steps: apgd(Distance(), x, y, lambda logits: margin(logits, y), x, Linf(0.1), steps=steps) for steps in (4, 100)
    }
    assert (found[4].x_best - 0.513).abs().max() > 0.005
    assert (found[100].x_best - 0.513).abs().max() < 0.0005  # a step of 0.2 has been halved often


def test_the_adversarial_image_is_misclassified_and_else_the_clean_one(
    curved_net: Net, labelled: Labelled, generator: Rng
) -> None:
    net, x, y = setting(curved_net, labelled, 30)
    start = Boundary()(x, Linf(0.01), generator(0))
    found = apgd(net, x, y, lambda logits: ce(logits, y), start, Linf(0.01), steps=10)
    assert torch.equal(net(found.x_adv).argmax(1) != y, found.fooled)
    assert torch.equal(found.x_adv[~found.fooled], x[~found.fooled])
    assert 0 < int(found.fooled.sum()) < 30


def test_a_start_that_fools_is_not_forgotten(generator: Rng) -> None:
    class Needle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            wrong = (x == 0.25).flatten(1).all(1).double() + 0 * x.flatten(1).sum(1)
            return torch.stack([0.5 - wrong, wrong - 0.5], 1) - x.flatten(1).sum(1, keepdim=True)

    x, y = torch.full((3, 1, 2, 2), 0.3, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    start = x.clone()
    start[1] = 0.25
    found = apgd(Needle(), x, y, lambda logits: logits[:, 0], start, Linf(0.1), steps=5)
    assert found.fooled.tolist() == [False, True, False]
    assert torch.equal(found.x_adv, start)


@pytest.mark.parametrize("shape", [(6, 1, 1, 1), (6, 2, 8, 8), (1, 1, 8, 8)])
def test_a_budget_per_pixel_is_kept_everywhere_and_is_the_released_one(
    shape: tuple[int, ...], curved_net: Net, labelled: Labelled, generator: Rng
) -> None:
    net, x, y = setting(curved_net, labelled, 6)
    eps = torch.rand(shape, generator=generator(1), dtype=torch.float64) * 0.03
    threat = Linf(eps)
    start = Boundary()(x, threat, generator(0))
    found = apgd(net, x, y, lambda logits: ce(logits, y), start, threat, steps=20)
    for images in (start, found.x_best, found.x_adv):
        assert ((images - x).abs() <= eps + 1e-12).all()
        assert images.min() >= 0
        assert images.max() <= 1
    for i in range(6):
        one = released(net, x[i : i + 1], int(y[i]), ce, start[i : i + 1], eps.expand_as(x)[i : i + 1], "Linf", 20)
        torch.testing.assert_close(found.x_best[i : i + 1], one["best"], rtol=0, atol=1e-10)


def test_a_budget_per_example_goes_with_l2(curved_net: Net, labelled: Labelled, generator: Rng) -> None:
    net, x, y = setting(curved_net, labelled, 6)
    eps = torch.linspace(0.02, 0.5, 6, dtype=torch.float64).view(-1, 1, 1, 1)
    start = Boundary()(x, L2(eps), generator(0))
    found = apgd(net, x, y, lambda logits: ce(logits, y), start, L2(eps), steps=10)
    for i in range(6):
        one = released(net, x[i : i + 1], int(y[i]), ce, start[i : i + 1], float(eps[i]), "L2", 10)
        torch.testing.assert_close(found.x_best[i : i + 1], one["best"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)], ids=["Linf", "L2"])
def test_the_start_is_on_the_boundary(threat: Threat, generator: Rng) -> None:
    x = torch.full((20, 3, 4, 4), 0.5)
    start = Boundary()(x, threat, generator(0))
    torch.testing.assert_close(threat.distance(start, x), torch.full((20,), float(threat.eps)), rtol=1e-5, atol=0)
    assert len((start - x).flatten().unique()) > 900
    rng = generator(0)
    t = 2 * torch.rand(x.shape, generator=rng) - 1 if threat.norm == "Linf" else torch.randn(x.shape, generator=rng)
    size = [float(image.abs().max() if threat.norm == "Linf" else image.norm()) for image in t]
    for i in range(20):
        torch.testing.assert_close(start[i], x[i] + float(threat.eps) * t[i] / size[i])
    clipped = Boundary()(torch.zeros(2, 1, 4, 4), threat, generator(0))
    assert clipped.min() == 0 < clipped.max()


def test_the_ascent_leaves_model_images_and_generators_alone(
    curved_net: Net, labelled: Labelled, generator: Rng, snapshot: Snapshot
) -> None:
    net = curved_net().train()
    batch = labelled(net)
    net[2].eval()
    net[4].bias.requires_grad_(False)
    before, modes, x = snapshot(net), [m.training for m in net.modules()], batch.x.clone()
    numbers = torch.get_rng_state()
    start = Boundary()(batch.x, Linf(0.01), generator(0))
    asked: list[bool] = []
    net.register_forward_hook(lambda *_: asked.append(any(p.requires_grad for p in net.parameters())))
    with torch.no_grad():
        found = apgd(net, batch.x, batch.y, lambda logits: ce(logits, batch.y), start, Linf(0.01), steps=4)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == [True, True, True, True, False]
    assert all(p.grad is None for p in net.parameters())
    assert asked == [False] * 5
    assert torch.equal(batch.x, x)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert not any(t.requires_grad for t in found)
    net.eval()  # with BatchNorm in training mode the images above would have been others
    again = apgd(net, batch.x, batch.y, lambda logits: ce(logits, batch.y), start, Linf(0.01), steps=4)
    assert torch.equal(found.x_best, again.x_best)


def test_nothing_is_read_back_from_the_device_between_the_steps() -> None:
    """A number in Python would wait for the device; the loop has none."""
    for loop in (inspect.getsource(apgd).split("for _ in range(steps + 1):")[1], inspect.getsource(_advance)):
        assert not [
            word for word in ("float(", "int(", "bool(", ".item", ".any", ".all(", "nonzero", ".cpu") if word in loop
        ]
