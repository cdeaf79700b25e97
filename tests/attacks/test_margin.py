"""The minimum-margin attacks against the released procedures, written out target by target."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gambeson.attacks import MMA, PGD, Boundary, Gaussian, MarginAPGD, Uniform, Zero, apgd, mm3, mm9, mm_plus
from gambeson.attacks.margin import nearest_classes
from gambeson.core.errors import InputError
from gambeson.core.losses import margin, targeted_margin
from gambeson.core.threat import L2, Linf, Threat
from gambeson.core.types import Batch

Net = Callable[..., nn.Sequential]
Labelled = Callable[..., Batch]
Rng = Callable[[int], torch.Generator]
Snapshot = Callable[[nn.Module], dict[str, Tensor]]
CLASSES = 6


def record(net: nn.Module) -> list[Tensor]:
    """The images of every forward from now on."""
    seen: list[Tensor] = []
    net.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    return seen


def released_mma(
    net: nn.Module, batch: Batch, start: Tensor, eps: float | Tensor, alpha: float | Tensor, k: int, steps: int
) -> tuple[Tensor, Tensor]:
    """`mmu_at_train` of Sjtubrian/MM-attack: images, and which target was chosen, from the nearest on."""
    data, y = batch.x, batch.y
    one_hot = torch.zeros(len(y), CLASSES, dtype=data.dtype)
    one_hot[torch.arange(len(y)), y] = 1
    index = torch.argsort(net(data) - 10000 * one_hot)[:, CLASSES - k :]
    candidates, final = [], []
    for i in range(k):
        x = start.clone()
        for _ in range(steps):
            x.requires_grad_()
            z = net(x)
            z_y, z_t = z[torch.arange(len(y)), y], z[torch.arange(len(y)), index[:, i]]
            loss = -torch.clamp(z_y - z_t + 50, min=0).sum()
            x = x.detach() + alpha * torch.autograd.grad(loss, x)[0].sign()
            x = torch.min(torch.max(x, data - eps), data + eps).clamp(0, 1)
        z = net(x).detach()
        final.append(z[torch.arange(len(y)), index[:, i]] - z[torch.arange(len(y)), y])
        candidates.append(x)
    chosen = torch.stack(final, 1).argsort(1)[:, -1]
    return torch.stack([candidates[int(c)][n] for n, c in enumerate(chosen)]), k - 1 - chosen


@pytest.mark.parametrize("shape", [None, (12, 1, 1, 1), (12, 2, 8, 8), (1, 1, 8, 8)])
@pytest.mark.parametrize("targets", [1, 3, 5])
def test_mma_is_the_released_attack(
    targets: int, shape: tuple[int, ...] | None, generator: Rng, curved_net: Net, labelled: Labelled
) -> None:
    net = curved_net()
    batch = labelled(net, wrong=2)
    eps = 0.03 if shape is None else torch.rand(shape, generator=generator(5), dtype=torch.float64) * 0.06
    threat = Linf(eps)
    start = Uniform()(batch.x, threat, generator(3))
    expected, chosen = released_mma(net, batch, start, eps, eps / 4, targets, 8)
    found = MMA(targets=targets, steps=8)(net, batch, threat, generator(3))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert targets == 1 or len(chosen.unique()) > 1  # not always the nearest class
    assert ((found - batch.x).abs() <= eps + 1e-12).all()
    assert not found.requires_grad


@pytest.mark.parametrize("start", [Uniform(), Uniform(eps=0.03, clip=False), Gaussian(0.01), Zero(), Boundary()])
@pytest.mark.parametrize(("settings", "step"), [({"step_size": 0.01}, 0.01), ({"rel_step_size": 0.5}, 0.02)])
def test_mma_takes_start_and_step_of_pgd(
    start: Uniform | Gaussian | Zero,
    settings: dict[str, float],
    step: float,
    generator: Rng,
    curved_net: Net,
    labelled: Labelled,
) -> None:
    net = curved_net()
    batch = labelled(net, wrong=2)
    expected, _ = released_mma(net, batch, start(batch.x, Linf(0.04), generator(3)), 0.04, step, 3, 5)
    found = MMA(steps=5, start=start, **settings)(net, batch, Linf(0.04), generator(3))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_all_targets_have_the_same_start_and_share_every_forward(
    generator: Rng, curved_net: Net, labelled: Labelled
) -> None:
    net = curved_net()
    batch, seen = labelled(net, wrong=2), record(net)
    MMA(targets=3, steps=4)(net, batch, Linf(0.03), generator(0))
    assert [len(x) for x in seen] == [12, 36, 36, 36, 36, 36]  # clean, four steps, the choice
    assert torch.equal(seen[0], batch.x)
    for copied in seen[1].split(12):
        assert torch.equal(copied, Uniform()(batch.x, Linf(0.03), generator(0)))
    assert not torch.equal(seen[2][:12], seen[2][12:24])


@pytest.mark.parametrize("kind", [Linf, L2])
def test_a_stacked_run_is_one_run_per_target(
    kind: type[Linf] | type[L2], generator: Rng, curved_net: Net, labelled: Labelled
) -> None:
    net = curved_net()
    batch = labelled(net, wrong=2)
    threat: Threat = kind(torch.linspace(0.005, 0.5, 12, dtype=torch.float64).view(-1, 1, 1, 1))
    start = Uniform()(batch.x, threat, generator(1))
    order = net(batch.x).detach().scatter(1, batch.y[:, None], -torch.inf).argsort(1, descending=True)
    runs, margins = [], []
    for target in order.T[:3]:

        def loss(logits: Tensor, target: Tensor = target) -> Tensor:
            rows = torch.arange(12)
            return logits[rows, target] - logits[rows, batch.y]

        runs.append(PGD(steps=6).climb(net, batch.x, batch.y, loss, start, threat, generator(0)))
        margins.append(loss(net(runs[-1]).detach()))
    best = torch.stack(margins).argmax(0)
    expected = torch.stack([runs[int(b)][n] for n, b in enumerate(best)])
    torch.testing.assert_close(MMA(steps=6)(net, batch, threat, generator(1)), expected, rtol=0, atol=1e-12)
    assert len(best.unique()) > 1


@pytest.mark.parametrize("make", [MMA, MarginAPGD])
def test_there_are_no_more_targets_than_wrong_classes(
    make: type[MMA] | type[MarginAPGD], generator: Rng, curved_net: Net, labelled: Labelled
) -> None:
    for classes in (2, 6):
        net = curved_net(classes=classes)
        batch = labelled(net)
        found = make(targets=99, steps=4)(net, batch, Linf(0.01), generator(0))
        assert torch.equal(found, make(targets=classes - 1, steps=4)(net, batch, Linf(0.01), generator(0)))
    with pytest.raises(InputError, match="at least 2 classes, got 1"):
        make()(curved_net(classes=1), batch, Linf(0.01), generator(0))


def test_the_nearest_classes_leave_out_the_true_one() -> None:
    logits = torch.tensor([[5.0, 1.0, 3.0, 4.0], [0.0, -1.0, -3.0, -2.0]])
    assert nearest_classes(logits, torch.tensor([0, 2]), 2).tolist() == [[3, 0], [2, 1]]
    assert nearest_classes(logits, torch.tensor([3, 0]), 9).tolist() == [[0, 1], [2, 3], [1, 2]]
    assert targeted_margin(logits, torch.tensor([0, 2]), torch.tensor([3, 0])).tolist() == [-1.0, 3.0]


def test_more_targets_never_leave_a_smaller_margin(generator: Rng, curved_net: Net, labelled: Labelled) -> None:
    """A true margin: towards two classes the nearest is both, so the largest margin to a target is the margin."""
    net = curved_net()
    batch = labelled(net, 20)
    found = [margin(net(MMA(targets=k, steps=6)(net, batch, Linf(0.02), generator(0))), batch.y) for k in (1, 5)]
    assert (found[1] >= found[0] - 1e-12).all()
    assert (found[1] > found[0] + 1e-6).any()


def sequential(
    net: nn.Module, batch: Batch, starts: list[Tensor], eps: float | Tensor, k: int, steps: int
) -> tuple[Tensor, list[list[int]]]:
    """`eval_robust_mm_sequential` of Sjtubrian/MM-attack: images, and the rows that were attacked for each target."""
    robust = {n for n in range(len(batch.y)) if int(net(batch.x[n : n + 1]).argmax()) == int(batch.y[n])}
    out, attacked = batch.x.clone(), []
    for i in range(k):
        attacked.append(sorted(robust))
        for n in sorted(robust):
            x, y = batch.x[n : n + 1], batch.y[n : n + 1]
            target = int(net(x).sort(dim=1)[1][0, -(i + 2)])
            threat = Linf(eps if isinstance(eps, float) else eps.expand_as(batch.x)[n : n + 1])

            def loss(z: Tensor, y: Tensor = y, target: int = target) -> Tensor:
                return -(z[:, int(y)] - z[:, target])

            found = apgd(net, x, y, loss, starts[i][n : n + 1], threat, steps=steps)
            if int(net(found.x_adv).argmax()) != int(y):
                out[n] = found.x_adv[0]
                robust.discard(n)
    return out, attacked


@pytest.mark.parametrize("per_pixel", [False, True])
def test_the_adaptive_form_is_the_released_sequence(
    per_pixel: bool, generator: Rng, curved_net: Net, labelled: Labelled
) -> None:
    net = curved_net()
    batch = labelled(net, 40, seed=2, wrong=3)
    eps = torch.rand(40, 2, 8, 8, generator=generator(5), dtype=torch.float64) * 0.04 if per_pixel else 0.02
    rng = generator(1)
    starts = [Boundary()(batch.x, Linf(eps), rng) for _ in range(3)]
    expected, attacked = sequential(net, batch, starts, eps, 3, 10)
    seen = record(net)
    found = MarginAPGD(targets=3, steps=10)(net, batch, Linf(eps), generator(1))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert [len(x) for x in seen] == [40] + [len(rows) for rows in attacked for _ in range(11)]
    assert attacked[0] == list(range(3, 40))  # not those that are wrong without attack
    assert len(attacked[0]) > len(attacked[1]) > len(attacked[2]) > 0  # some fall to each target
    still = net(found).argmax(1) == batch.y
    assert 0 < int(still.sum()) < len(attacked[2])  # some to the last, some never
    assert torch.equal(found[still], batch.x[still])
    assert torch.equal(found[:3], batch.x[:3])
    assert ((found - batch.x).abs() <= eps + 1e-12).all()


def test_an_image_falls_to_any_class(generator: Rng) -> None:
    class Between(nn.Module):
        """On the way to class 1, the nearest, class 2 wins in between."""

        def forward(self, x: Tensor) -> Tensor:
            rise = (x - 0.5).flatten(1).mean(1)
            return torch.stack([0.05 - 0 * rise, rise, 20 * rise - 0.5, -10 - 0 * rise], 1)

    x = torch.full((2, 2, 8, 8), 0.5, dtype=torch.float64)
    batch = Batch(x, torch.zeros(2, dtype=torch.int64), torch.arange(2))
    found = MarginAPGD(targets=1, steps=10)(Between(), batch, Linf(0.04), generator(0))
    assert Between()(found).argmax(1).tolist() == [2, 2]


def test_a_batch_without_a_correct_image_comes_back(generator: Rng, curved_net: Net, labelled: Labelled) -> None:
    net = curved_net()
    batch, seen = labelled(net, 5, wrong=5), record(net)
    found = mm3()(net, batch, Linf(0.1), generator(0))
    assert torch.equal(found, batch.x)
    assert found is not batch.x
    assert len(seen) == 1


ATTACKS = [MMA(steps=3), MMA(targets=2, steps=2, start=Zero()), MarginAPGD(targets=2, steps=3)]
every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=repr)


@every_attack
def test_the_model_comes_back_as_it_was(
    attack: MMA | MarginAPGD, generator: Rng, snapshot: Snapshot, curved_net: Net, labelled: Labelled
) -> None:
    net = curved_net().train()
    net[1].eval()
    net[4].bias.requires_grad_(False)
    net[4].weight.grad = torch.ones_like(net[4].weight)
    before, modes, batch = snapshot(net), [m.training for m in net.modules()], labelled(net, wrong=2)
    x = batch.x.clone()
    asked: list[bool] = []
    net.register_forward_hook(lambda *_: asked.append(any(p.requires_grad for p in net.parameters())))
    attack(net, batch, Linf(0.03), generator(0))
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == [True, True, True, True, False]
    assert [p.grad is None for p in net.parameters()] == [True, True, True, False, True]
    assert torch.equal(net[4].weight.grad, torch.ones_like(net[4].weight))
    assert torch.equal(batch.x, x)
    assert asked
    assert not any(asked)


@every_attack
def test_batch_statistics_are_never_used(
    attack: MMA | MarginAPGD, generator: Rng, curved_net: Net, labelled: Labelled
) -> None:
    net = curved_net()
    batch = labelled(net, wrong=2)
    trained = attack(net.train(), batch, Linf(0.03), generator(0))
    assert torch.equal(trained, attack(net.eval(), batch, Linf(0.03), generator(0)))


@every_attack
def test_the_model_comes_back_after_an_exception(
    attack: MMA | MarginAPGD, generator: Rng, curved_net: Net, labelled: Labelled
) -> None:
    net = curved_net().train()
    bad = labelled(net)._replace(x=torch.rand(12, 3, 8, 8, dtype=torch.float64))
    with pytest.raises(RuntimeError):
        attack(net, bad, Linf(0.03), generator(0))
    assert net[1].training
    assert all(p.requires_grad for p in net.parameters())


@every_attack
@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.5)], ids=["Linf", "L2"])
def test_images_stay_in_ball_and_box_and_depend_on_the_generator_alone(
    attack: MMA | MarginAPGD, threat: Threat, generator: Rng, curved_net: Net, labelled: Labelled
) -> None:
    net = curved_net()
    batch = labelled(net, 12)
    numbers = torch.get_rng_state()
    found = attack(net, batch, threat, generator(0))
    assert torch.equal(torch.get_rng_state(), numbers)
    with torch.no_grad():
        assert torch.equal(found, attack(net, batch, threat, generator(0)))
    if not isinstance(attack, MMA) or attack.start != Zero():
        assert not torch.equal(found, attack(net, batch, threat, generator(1)))
    assert threat.distance(found, batch.x).max() <= float(threat.eps) + 1e-12
    assert found.min() >= 0
    assert found.max() <= 1
    correct = net(batch.x).argmax(1) == batch.y
    assert int((net(found).argmax(1) == batch.y)[correct].sum()) < int(correct.sum())


def test_the_published_forms() -> None:
    assert (mm3(), mm9(), mm_plus()) == (
        MarginAPGD(targets=3, steps=20),
        MarginAPGD(targets=9, steps=20),
        MarginAPGD(targets=9, steps=100),
    )
    assert (MMA().targets, MMA().steps, MMA().start) == (3, 20, Uniform())


@every_attack
def test_an_attack_is_a_value(attack: MMA | MarginAPGD) -> None:
    assert eval(repr(attack)) == attack != replace(attack, steps=9)
    assert hash(attack) == hash(copy.deepcopy(attack))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MMA(targets=0), "at least one target, got 0"),
        (lambda: MMA(steps=0), "at least 1 step"),
        (lambda: MMA(step_size=0.1, rel_step_size=0.1), "not both"),
        (lambda: MMA(step_size=float("nan")), "finite"),
        (lambda: MarginAPGD(targets=0), "at least one target, got 0"),
        (lambda: MarginAPGD(steps=0), "at least 1 step, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
