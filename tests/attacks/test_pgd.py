import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gambeson.attacks import PGD, Boundary, Gaussian, Plain, Unanimous, Uniform, Zero, ZeroSmall, fgsm
from gambeson.core.errors import InputError
from gambeson.core.losses import NEEDS_CLEAN, inner_loss
from gambeson.core.threat import L2, Linf, Threat, box
from gambeson.core.types import Batch

Net = Callable[..., nn.Sequential]
Images = Callable[..., Batch]
Rng = Callable[[int], torch.Generator]
Snapshot = Callable[[nn.Module], dict[str, Tensor]]

threats = st.builds(lambda kind, eps: kind(eps), st.sampled_from([Linf, L2]), st.floats(0.01, 1.0))
starts = st.sampled_from([Zero(), Uniform(), Uniform(2.0), Uniform(eps=0.3, clip=False), Gaussian(0.5), Boundary()])
attacks = st.builds(
    lambda steps, size, start, loss, gradient, restarts, freeze: PGD(
        steps=steps,
        rel_step_size=size,
        start=start,
        loss=loss,
        gradient=gradient,
        restarts=restarts,
        freeze_fooled=freeze,
    ),
    st.integers(1, 4),
    st.floats(0.0, 3.0),
    starts,
    st.sampled_from(sorted(NEEDS_CLEAN)),
    st.sampled_from([Plain(), ZeroSmall(0.3), Unanimous(2)]),
    st.integers(1, 3),
    st.booleans(),
)


class Linear(nn.Module):
    """Two classes; the margin of class 1 is `w.x`, so that the worst case of a ball is known."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(2, 64, generator=rng))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.w.T


@given(attacks, threats, st.integers(0, 99))
def test_images_never_leave_the_ball_and_the_box(
    tiny_net: Net, tiny_batch: Images, attack: PGD, threat: Threat, seed: int
) -> None:
    batch = tiny_batch(seed=seed)
    x_adv = attack(tiny_net(seed), batch, threat, torch.Generator().manual_seed(seed))
    assert threat.distance(x_adv, batch.x).max() <= float(threat.eps) * (1 + 1e-5) + 2e-7
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert x_adv.shape == batch.x.shape
    assert not x_adv.requires_grad
    assert x_adv.isfinite().all()


def test_an_example_fooled_by_its_start_is_still_inside_the_ball_and_the_box(tiny_net: Net, tiny_batch: Images) -> None:
    batch, threat = tiny_batch(), Linf(0.1)
    attack = PGD(steps=2, start=Gaussian(0.5), freeze_fooled=True)
    x_adv = attack(tiny_net(), batch, threat, torch.Generator().manual_seed(0))
    assert threat.distance(x_adv, batch.x).max() <= 0.1 + 1e-6
    assert torch.equal(x_adv, box(x_adv))


def test_without_projection_only_the_box_holds(tiny_net: Net, tiny_batch: Images, generator: Rng) -> None:
    batch, threat = tiny_batch(), Linf(0.1)
    attack = PGD(steps=1, rel_step_size=1.0, start=Uniform(2.0), project=False)
    x_adv = attack(tiny_net(), batch, threat, generator(0))
    assert torch.equal(x_adv, box(x_adv))
    assert 0.2 < threat.distance(x_adv, batch.x).max() <= 0.3 + 1e-6


def test_a_step_of_size_zero_returns_the_start(tiny_net: Net, tiny_batch: Images, generator: Rng) -> None:
    batch = tiny_batch()
    assert torch.equal(PGD(steps=3, step_size=0.0, start=Zero())(tiny_net(), batch, Linf(0.1), generator(0)), batch.x)


def test_a_model_without_gradient_leaves_the_images_at_the_start(tiny_batch: Images, generator: Rng) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), 3) + 0 * x.flatten(1)[:, :3]

    batch = tiny_batch()
    for threat in (Linf(0.1), L2(0.1)):
        assert torch.equal(PGD(start=Zero())(Constant(), batch, threat, generator(0)), batch.x)


def test_the_clean_batch_is_not_written_to(tiny_net: Net, tiny_batch: Images, generator: Rng) -> None:
    batch = tiny_batch()
    x = batch.x.clone()
    for start in (Zero(), Uniform()):
        PGD(steps=2, start=start, restarts=3, freeze_fooled=True)(tiny_net(), batch, Linf(0.1), generator(0))
    assert torch.equal(batch.x, x)
    assert not batch.x.requires_grad


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)])
def test_on_a_linear_model_pgd_finds_the_closed_form_optimum(
    threat: Threat, tiny_batch: Images, generator: Rng
) -> None:
    model = Linear()
    x = 0.45 + 0.1 * tiny_batch().x  # far from 0 and 1: the box is never in the way
    batch = Batch(x, torch.zeros(len(x), dtype=torch.int64), torch.arange(len(x)))
    w = (model.w[1] - model.w[0]).detach().view(1, 1, 8, 8)
    step = w.sign() if isinstance(threat, Linf) else w / w.norm()
    for attack in (PGD(steps=40, loss="margin"), PGD(steps=40, start=Zero()), PGD(steps=40, restarts=2)):
        x_adv = attack(model, batch, threat, generator(0))
        torch.testing.assert_close(x_adv, (x + threat.eps * step).expand_as(x), rtol=0, atol=1e-3)
    if isinstance(threat, Linf):
        torch.testing.assert_close(fgsm()(model, batch, threat, generator(0)), (x + 0.1 * step).expand_as(x))


@pytest.mark.parametrize("loss", sorted(NEEDS_CLEAN))
def test_the_loop_is_the_one_written_out(loss: str, tiny_net: Net, tiny_batch: Images, generator: Rng) -> None:
    net, batch, eps = tiny_net().eval(), tiny_batch(), 0.1
    start = batch.x + 0.01 * torch.randn(batch.x.shape, generator=generator(3))
    clean, x_adv = net(batch.x).detach(), start
    for _ in range(3):
        x_adv = x_adv.detach().requires_grad_()
        value = inner_loss(loss, net(x_adv), batch.y, clean).sum()  # type: ignore[arg-type]
        grad = torch.autograd.grad(value, x_adv)[0]
        x_adv = x_adv.detach() + 0.025 * grad.sign()
        x_adv = torch.max(torch.min(x_adv, batch.x + eps), batch.x - eps).clamp(0, 1)
    attack = PGD(steps=3, step_size=0.025, start=Gaussian(0.01), loss=loss)  # type: ignore[arg-type]
    torch.testing.assert_close(attack(net, batch, Linf(eps), generator(3)), x_adv, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_restarts_are_never_worse(seed: int, tiny_net: Net, tiny_batch: Images, generator: Rng) -> None:
    net, batch = tiny_net(seed).eval(), tiny_batch(40, seed)
    with torch.no_grad():
        batch = batch._replace(y=net(batch.x).argmax(1))
    fooled = []
    for restarts in (1, 2, 5):
        attack = PGD(steps=1, rel_step_size=0.3, restarts=restarts)
        x_adv = attack(net, batch, Linf(0.02), generator(seed))
        fooled.append(net(x_adv).argmax(1) != batch.y)
    for fewer, more in pairwise(fooled):
        assert (more >= fewer).all()


def test_restarts_help_where_a_single_start_fails(tiny_batch: Images, generator: Rng) -> None:
    class OneSide(nn.Module):
        """Wrong only above +eps/2 in the first pixel, with no gradient anywhere."""

        def forward(self, x: Tensor) -> Tensor:
            wrong = (x[:, 0, 0, 0] > 0.55).float() + 0 * x.flatten(1).sum(1)
            return torch.stack([0.5 - wrong, wrong - 0.5], 1)

    batch = Batch(torch.full((64, 1, 8, 8), 0.5), torch.zeros(64, dtype=torch.int64), torch.arange(64))
    model, found = OneSide(), {}
    for restarts in (1, 4, 16):
        x_adv = PGD(steps=1, restarts=restarts)(model, batch, Linf(0.1), generator(0))
        found[restarts] = int((model(x_adv).argmax(1) != 0).sum())
    assert found[1] < 32 < found[4] < found[16]  # a quarter, 1 - (3/4)^4, nearly all


def test_a_fooled_example_stops_where_it_first_was_fooled(tiny_batch: Images, generator: Rng) -> None:
    model = Linear()
    x = 0.45 + 0.1 * tiny_batch(20).x
    with torch.no_grad():
        y = model(x).argmax(1)
    batch, threat = Batch(x, y, torch.arange(20)), Linf(0.2)
    free = PGD(steps=20, step_size=0.005, start=Zero())
    frozen = replace(free, freeze_fooled=True)(model, batch, threat, generator(0))
    for i in range(20):
        path = [x[i : i + 1]]
        for steps in range(1, 21):
            one = Batch(x[i : i + 1], y[i : i + 1], torch.arange(1))
            path.append(replace(free, steps=steps)(model, one, threat, generator(0)))
        first = next((p for p in path if int(model(p).argmax(1)) != int(y[i])), path[-1])
        torch.testing.assert_close(frozen[i : i + 1], first, rtol=0, atol=1e-6)
    moved = threat.distance(frozen, x)
    assert len(moved.round(decimals=4).unique()) > 1  # they stop at different steps


@pytest.mark.parametrize("kind", [Linf, L2])
@pytest.mark.parametrize("restarts", [1, 3])
def test_a_budget_per_example_is_as_many_separate_runs(
    kind: type[Linf] | type[L2], restarts: int, tiny_batch: Images, generator: Rng
) -> None:
    model, batch = Linear(), tiny_batch(8)
    batch = batch._replace(y=batch.y % 2)
    eps = torch.linspace(0.005, 0.4, 8)
    attack = PGD(steps=4, start=Zero(), restarts=restarts)
    together = attack(model, batch, kind(eps.view(-1, 1, 1, 1)), generator(0))
    for i in range(8):
        one = Batch(batch.x[i : i + 1], batch.y[i : i + 1], batch.index[i : i + 1])
        alone = attack(model, one, kind(float(eps[i])), generator(0))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-6)


def test_restarts_keep_each_example_its_own_budget(tiny_net: Net, tiny_batch: Images, generator: Rng) -> None:
    net, batch = tiny_net().eval(), tiny_batch(16)
    with torch.no_grad():
        batch = batch._replace(y=net(batch.x).argmax(1))
    for shape in ((16, 1, 1, 1), (16, 1, 8, 8), (1, 1, 8, 8)):
        eps = torch.rand(shape, generator=generator(1)) * 0.1 + 1e-3
        x_adv = PGD(steps=2, restarts=4)(net, batch, Linf(eps), generator(0))
        assert ((x_adv - batch.x).abs() <= eps + 2e-7).all()
        assert net(x_adv).argmax(1).eq(batch.y).any()  # some needed every restart


def test_a_constant_budget_per_pixel_is_the_scalar_bit_for_bit(
    tiny_net: Net, tiny_batch: Images, generator: Rng
) -> None:
    net, batch = tiny_net(), tiny_batch()
    attack = PGD(steps=3, restarts=2)
    scalar = attack(net, batch, Linf(0.1), generator(0))
    for shape in ((6, 1, 1, 1), (6, 1, 8, 8), (1, 1, 1, 1)):
        assert torch.equal(attack(net, batch, Linf(torch.full(shape, 0.1)), generator(0)), scalar)


@pytest.mark.parametrize("bn", ["running", "batch", "update"])
def test_the_model_comes_back_as_it_was(
    bn: str, tiny_net: Net, tiny_batch: Images, generator: Rng, snapshot: Snapshot
) -> None:
    net = tiny_net().train()
    net[1].eval()
    net[4].bias.requires_grad_(False)
    net[4].weight.grad = torch.ones(3, 256)
    before, flags = snapshot(net), [p.requires_grad for p in net.parameters()]
    modes = [m.training for m in net.modules()]
    PGD(steps=2, restarts=2, bn=bn)(net, tiny_batch(), Linf(0.1), generator(0))  # type: ignore[arg-type]
    assert [p.requires_grad for p in net.parameters()] == flags
    assert [m.training for m in net.modules()] == modes
    assert [p.grad is None for p in net.parameters()] == [True, True, True, False, True]
    assert torch.equal(net[4].weight.grad, torch.ones(3, 256))
    moved = {name for name, t in net.state_dict().items() if not torch.equal(t, before[name])}
    assert moved == ({"1.running_mean", "1.running_var", "1.num_batches_tracked"} if bn == "update" else set())


def test_no_parameter_asks_for_a_gradient_during_the_attack(tiny_net: Net, tiny_batch: Images, generator: Rng) -> None:
    net = tiny_net()
    seen: list[bool] = []
    net.register_forward_hook(lambda *_: seen.append(any(p.requires_grad for p in net.parameters())))
    PGD(steps=2, restarts=2, loss="kl")(net, tiny_batch(), Linf(0.1), generator(0))
    assert len(seen) >= 3
    assert not any(seen)


def test_the_model_comes_back_after_an_exception(tiny_net: Net, tiny_batch: Images, generator: Rng) -> None:
    net = tiny_net().train()
    bad = tiny_batch()._replace(x=torch.rand(6, 2, 8, 8))
    with pytest.raises(RuntimeError):
        PGD()(net, bad, Linf(0.1), generator(0))
    assert net[1].training
    assert all(p.requires_grad for p in net.parameters())


def test_the_attack_works_inside_no_grad(tiny_net: Net, tiny_batch: Images, generator: Rng) -> None:
    net, batch = tiny_net(), tiny_batch()
    with torch.no_grad():
        inside = PGD(steps=2)(net, batch, Linf(0.1), generator(0))
    assert torch.equal(inside, PGD(steps=2)(net, batch, Linf(0.1), generator(0)))


@given(st.integers(0, 306).map(lambda k: k / 310), st.integers(0, 2**32))
def test_zero_small_drops_the_smallest_entries(quantile: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    x, grad = torch.rand(3, 2, 4, 4, generator=rng), torch.randn(3, 2, 4, 4, generator=rng)
    kept, logits = ZeroSmall(quantile)(lambda at: (grad, at.sum()), x, x, Linf(0.1), rng)
    for i in range(3):
        threshold = float(np.quantile(grad[i].abs().double().numpy(), quantile)) - 1e-6
        expected = [v if abs(v) >= threshold else 0.0 for v in grad[i].flatten().tolist()]
        assert kept[i].flatten().tolist() == expected
    assert torch.equal(logits, x.sum())


def test_unanimous_keeps_the_signs_on_which_all_points_agree(tiny_net: Net, tiny_batch: Images, generator: Rng) -> None:
    net, x, threat = tiny_net().eval(), tiny_batch().x, Linf(0.5)
    y = tiny_batch().y

    def at(point: Tensor) -> tuple[Tensor, Tensor]:
        point = point.detach().requires_grad_()
        logits = net(point)
        return torch.autograd.grad(inner_loss("ce", logits, y, None).sum(), point)[0], logits.detach()

    found, logits = Unanimous(3)(at, x, x, threat, generator(0))
    rng = generator(0)
    grads = []
    for _ in range(3):
        grad, last = at((x + threat.sample(x, rng)).clamp(0, 1))
        grads.append(grad.flatten().tolist())
    expected = [1.0 if min(signs) > 0 else -1.0 if max(signs) < 0 else 0.0 for signs in zip(*grads, strict=True)]
    assert found.flatten().tolist() == expected
    assert 0 < sum(v == 0 for v in expected) < len(expected)
    assert torch.equal(logits, last)


def test_starts(tiny_batch: Images, generator: Rng) -> None:
    x = tiny_batch(50).x
    assert Zero()(x, Linf(0.1), generator(0)) is x
    uniform = Uniform(2.0)(x, Linf(0.1), generator(0))
    assert torch.equal(uniform, (x + Linf(0.1).sample(x, generator(0), 2.0)).clamp(0, 1))
    gaussian = Gaussian(0.5)(x, Linf(0.1), generator(0))
    assert gaussian.min() < 0 < 1 < gaussian.max()
    assert float((gaussian - x).std()) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("threat", [Linf(torch.full((50, 1, 8, 8), 0.02)), Linf(0.3), L2(0.4)])
def test_a_uniform_start_may_have_a_budget_of_its_own(threat: Threat, tiny_batch: Images, generator: Rng) -> None:
    x = tiny_batch(50).x
    own = type(threat)(0.1)
    clipped = Uniform(2.0, eps=0.1)(x, threat, generator(0))
    assert torch.equal(clipped, Uniform(2.0)(x, own, generator(0)))
    free = Uniform(2.0, eps=0.1, clip=False)(x, threat, generator(0))
    assert torch.equal(free, x + own.sample(x, generator(0), 2.0))
    assert torch.equal(Uniform(clip=False)(x, threat, generator(0)), x + threat.sample(x, generator(0)))
    if isinstance(threat, Linf):
        assert free.min() < 0 < 1 < free.max()
        assert 0.19 < float((free - x).abs().max()) <= 0.2


def test_a_start_outside_the_box_is_where_the_first_gradient_is_taken(
    tiny_net: Net, tiny_batch: Images, generator: Rng
) -> None:
    net, batch = tiny_net().eval(), tiny_batch()
    seen: list[Tensor] = []
    net.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    attack = PGD(steps=2, start=Uniform(eps=0.2, clip=False))
    eps = torch.rand((6, 1, 8, 8), generator=generator(1)) * 0.1
    x_adv = attack(net, batch, Linf(eps), generator(0))
    assert torch.equal(seen[0], batch.x + Linf(0.2).sample(batch.x, generator(0)))
    assert seen[0].min() < 0
    assert ((x_adv - batch.x).abs() <= eps + 2e-7).all()
    assert torch.equal(x_adv, box(x_adv))


def test_the_repr_of_a_start_builds_it_again_and_keeps_its_old_form() -> None:
    """Checkpoints compare recipes by it."""
    starts = [Uniform(), Uniform(2.0), Uniform(eps=8 / 255), Uniform(clip=False), Uniform(0.5, 0.1, False), Boundary()]
    assert [eval(repr(start)) for start in starts] == starts
    assert len({repr(start) for start in starts}) == len(starts)
    assert repr(Uniform()) == "Uniform(radius=1.0)"


def test_the_default_step_is_a_quarter_of_the_budget(tiny_batch: Images) -> None:
    x = tiny_batch().x
    for attack in (PGD(), PGD(rel_step_size=0.25), PGD(step_size=0.02)):
        moved = attack.move(x, torch.ones_like(x), x, Linf(0.08))
        torch.testing.assert_close(moved, (x + 0.02).clamp(0, 1), rtol=0, atol=1e-6)


def test_an_attack_is_a_value_and_leaves_the_global_generator_alone(tiny_net: Net, tiny_batch: Images) -> None:
    assert PGD(steps=3) == PGD(steps=3) != PGD(steps=4)
    assert hash(fgsm()) == hash(copy.deepcopy(fgsm()))
    before = torch.get_rng_state()
    PGD(steps=1)(tiny_net(), tiny_batch(), Linf(0.1), torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "at least 1 step"),
        ({"restarts": 0}, "at least 1 step and 1 restart, got 10 and 0"),
        ({"step_size": 0.1, "rel_step_size": 0.1}, "not both"),
        ({"loss": "hinge"}, "unknown inner loss 'hinge'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PGD(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        lambda: ZeroSmall(1.5),
        lambda: ZeroSmall(-0.1),
        lambda: Unanimous(0),
        lambda: Uniform(-1.0),
        lambda: Uniform(eps=0.0),
        lambda: Uniform(eps=float("inf")),
        lambda: Gaussian(float("nan")),
        lambda: PGD(step_size=-0.1),
        lambda: PGD(rel_step_size=float("nan")),
        lambda: PGD(bn="eval"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_are_no_numbers_of_the_kind_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InputError):
        make()
