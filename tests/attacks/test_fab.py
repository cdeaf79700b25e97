"""FAB against the release, written out image by image, and against the release itself where it is installed."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gambeson.attacks import FAB, Jobs, Retired, fab_minimal, hunt
from gambeson.attacks.search import State
from gambeson.core.errors import InputError
from gambeson.core.streams import Streams
from gambeson.core.threat import L2, Linf, Threat
from gambeson.core.types import Batch

Net = Callable[..., nn.Sequential]
Labelled = Callable[..., Batch]
Build = Callable[..., Batch]
Rng = Callable[[int], torch.Generator]

THREATS = pytest.mark.parametrize("threat", [Linf(0.03), L2(0.15)], ids=["Linf", "L2"])
TARGETED = pytest.mark.parametrize("targeted", [True, False], ids=["targeted", "untargeted"])


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Float64 everywhere, also for what the release creates on its own or rounds to float32."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


def wavy_net() -> nn.Sequential:
    """So curved that many steps land on the right side; and the nearest class is not the easiest."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        conv, linear = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.Linear(24, 6)
        net = nn.Sequential(conv, Sine(), nn.AvgPool2d(4), nn.Flatten(), linear).double()
        with torch.no_grad():
            conv.weight *= 40
            linear.bias -= net(torch.rand(200, 2, 8, 8, dtype=torch.float64)).mean(0)
            linear.bias[0] += 1
    return net


def jobs_of(net: nn.Module, x: Tensor, y: Tensor, turn: int = 0) -> Jobs:
    with torch.no_grad():
        return Jobs(x, y, net(x), torch.arange(len(x)), torch.full_like(y, turn))


def run(attack: FAB, net: nn.Module, jobs: Jobs, threat: Threat, steps: int | None = None) -> State:
    """One round in which nobody retires: the steps see a budget of zero."""
    state = attack.begin(jobs, threat, Streams(0))
    for _ in range(attack.steps if steps is None else steps):
        attack.step(net, state, threat.with_map(jobs.x.new_zeros(())))
    return state


def hunted(attack: FAB, net: nn.Module, jobs: Jobs, threat: Threat, **settings: int) -> tuple[Tensor, Tensor]:
    """Verdicts and images of a whole attack; the clean image for those that stand."""
    fooled, x_adv = torch.zeros(len(jobs.x), dtype=torch.bool), jobs.x.clone()

    def report(found: Retired) -> None:
        fooled[found.index] = found.fooled
        x_adv[found.index[found.fooled]] = found.x_adv

    hunt(net, attack, jobs, threat, Streams(0), report, **settings)
    return fooled, x_adv


def onto_plane(x: Tensor, w: Tensor, b: Tensor, norm: str) -> Tensor:
    """The smallest step onto the hyperplane in the box, for one flat image: pixel after pixel runs into its bound."""
    c = w @ x - b
    if c < 0:
        w, c = -w, -c
    room = torch.where(w > 0, x, 1 - x)
    size = w.abs()
    ends, slopes = (room, size) if norm == "Linf" else (room / size, size**2)
    t, slope, rest = 0.0, float(slopes.sum()), float(c)
    if rest >= float((size * room).sum()):
        return -w.sign() * room
    for i in ends.argsort().tolist():
        gain = slope * (float(ends[i]) - t)
        if gain >= rest:
            t += rest / slope
            break
        t, rest, slope = float(ends[i]), rest - gain, slope - float(slopes[i])
    return -w.sign() * torch.minimum(t * (torch.ones_like(w) if norm == "Linf" else size), room)


def released(
    net: nn.Module, x: Tensor, label: int, target: int | None, start: Tensor, norm: str, attack: FAB
) -> dict[str, Any]:
    """`FABAttack.attack_single_run` of fra31/auto-attack for the one image `x`, with all points that it visits."""
    measure = (lambda d: float(d.abs().max())) if norm == "Linf" else (lambda d: float(d.norm()))
    dual = (lambda d: float(d.abs().sum())) if norm == "Linf" else (lambda d: float(d.norm()))
    at, best, best_norm, visits, planes, backs = start, x, math.inf, [], [], 0
    for _ in range(attack.steps):
        visits.append(at)
        point = at.clone().requires_grad_()
        logits = net(point)[0]
        choices = []
        for k in range(len(logits)) if target is None else [target]:
            if k != label:
                grad = torch.autograd.grad(logits[k] - logits[label], point, retain_graph=True)[0].flatten()
                lead = float(logits[k].detach() - logits[label].detach())
                choices.append((abs(lead) / (1e-12 + dual(grad)), lead, grad, k))
        _, lead, w, k = min(choices, key=lambda choice: choice[0])
        planes.append(k)
        b = w @ at.flatten() - lead
        d1, d2 = (onto_plane(z.flatten(), w, b, norm).view_as(x) for z in (at, x))
        a1, a2 = max(measure(d1), 1e-8), max(measure(d2), 1e-8)
        alpha = min(a1 / (a1 + a2), attack.alpha_max)
        at = ((at + attack.eta * d1) * (1 - alpha) + (x + attack.eta * d2) * alpha).clamp(0, 1)
        visits.append(at)
        if int(net(at).argmax()) != label:
            backs += 1
            if measure(at - x) < best_norm:
                best, best_norm = at, measure(at - x)
            at = x + (at - x) * attack.beta
    return {"adv": best, "norm": best_norm, "visits": torch.cat(visits).detach(), "planes": planes, "backs": backs}


@TARGETED
@THREATS
def test_every_point_is_the_released_one(threat: Threat, targeted: bool, labelled: Labelled) -> None:
    net = wavy_net()
    x, y = labelled(net, 6)[:2]
    attack = FAB(targeted=targeted, steps=20, restarts=2)
    seen: list[Tensor] = []
    net.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    others, backs = 0, set()
    for turn in (0, 3) if targeted else (0, 1):
        jobs = jobs_of(net, x, y, turn)
        order = jobs.logits.argsort(1, descending=True)
        start = attack.begin(jobs, threat, Streams(0))["at"]
        seen.clear()
        state = run(attack, net, jobs, threat)
        visits = torch.stack(seen)
        assert len(visits) == 40  # one forward with and one without gradient
        for i in range(6):
            target = int(order[i, 1 + turn // 2]) if targeted else None
            one = released(net, x[i : i + 1], int(y[i]), target, start[i : i + 1], threat.norm, attack)
            torch.testing.assert_close(visits[:, i], one["visits"], rtol=0, atol=1e-9)
            torch.testing.assert_close(state["x_adv"][i : i + 1], one["adv"], rtol=0, atol=1e-9)
            assert float(state["norm"][i]) == pytest.approx(one["norm"], abs=1e-9)
            others += any(k != int(order[i, 1]) for k in one["planes"])
            backs.add(one["backs"])
    assert others > 0  # the nearest boundary is not always that of the largest wrong logit
    assert len(backs) > 1
    assert min(backs) < 20  # not every point was misclassified


@TARGETED
@THREATS
@pytest.mark.parametrize("classes", [6, 2])
@pytest.mark.usefixtures("double")
def test_the_images_are_those_of_the_installed_release(
    classes: int, threat: Threat, targeted: bool, curved_net: Net, labelled: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = pytest.importorskip("pyautoattack.fab_pt")
    net = curved_net(classes=classes)
    x, y = labelled(net, 12)[:2]
    theirs = release.FABAttack_PT(net, norm=threat.norm, n_iter=25, eps=threat.eps, targeted=targeted, device="cpu")
    attack = FAB(targeted=targeted, steps=25, restarts=2)
    draw = "rand" if threat.norm == "Linf" else "randn"
    for turn in (0, 1, 2)[: attack.rounds(classes)]:
        numbers = [
            getattr(torch, draw)(x.shape[1:], generator=Streams(0).at(f"{attack.name}/{turn}", i)) for i in range(12)
        ]
        theirs.target_class = 2 + turn // 2
        with monkeypatch.context() as patch:
            patch.setattr(torch, draw, lambda shape, numbers=numbers: torch.stack(numbers))
            x_adv = theirs.attack_single_run(x, y, use_rand_start=turn % 2 == 1, is_targeted=targeted)
        state = run(attack, net, jobs_of(net, x, y, turn), threat)
        torch.testing.assert_close(state["x_adv"], x_adv, rtol=0, atol=1e-8)
        torch.testing.assert_close(state["norm"], threat.distance(x_adv, x), rtol=0, atol=1e-8)
        assert int(state["norm"].isfinite().sum()) >= 6


@TARGETED
@THREATS
def test_in_float32_norms_and_verdicts_are_those_of_the_installed_release(
    threat: Threat, targeted: bool, tiny_net: Net, tiny_batch: Build
) -> None:
    release = pytest.importorskip("pyautoattack.fab_pt")
    net = tiny_net().eval()
    x = tiny_batch(24).x
    y = net(x).argmax(1)
    attack = FAB(targeted=targeted, steps=20)
    settings = {"norm": threat.norm, "n_iter": 20, "targeted": targeted, "device": "cpu", "n_target_classes": 2}
    norms = torch.full((24,), torch.inf)
    theirs = release.FABAttack_PT(net, eps=threat.eps, **settings)
    for turn in range(attack.rounds(3)):
        theirs.target_class = 2 + turn
        x_adv = theirs.attack_single_run(x, y, is_targeted=targeted)
        norms = torch.where(net(x_adv).argmax(1) != y, torch.minimum(norms, threat.distance(x_adv, x)), norms)
    found = fab_minimal(net, x, y, threat, Streams(0), attack=attack)
    torch.testing.assert_close(found.norm, norms, rtol=1e-4, atol=0)
    torch.testing.assert_close(threat.distance(found.x_adv, x), found.norm, rtol=0, atol=0)

    middle = threat.with_eps(float(norms.median()) * 1.001)
    judged = release.FABAttack_PT(net, eps=middle.eps, **settings).perturb(x, y)
    fell = (net(judged).argmax(1) != y) & (middle.distance(judged, x) <= middle.eps)
    fooled, x_adv = hunted(attack, net, jobs_of(net, x, y), middle, slots=7)
    assert torch.equal(fooled, fell)
    assert torch.equal(net(x_adv).argmax(1) != y, fell)
    assert bool((middle.distance(x_adv, x) <= middle.eps).all())
    assert 8 < int(fell.sum()) < 16


@TARGETED
@THREATS
@pytest.mark.parametrize("slots", [1, 3])
def test_slots_change_nothing(slots: int, threat: Threat, targeted: bool, curved_net: Net, labelled: Labelled) -> None:
    net = curved_net()
    jobs = jobs_of(net, *labelled(net, 14, wrong=2)[:2])
    attack = FAB(targeted=targeted, steps=5, restarts=2, targets=2)
    middle = threat.with_eps(float(fab_minimal(net, jobs.x, jobs.y, threat, Streams(0), attack=attack).norm.median()))
    fooled, x_adv = hunted(attack, net, jobs, middle, slots=slots)
    at_once = hunted(attack, net, jobs, middle, slots=64, every=3)
    assert torch.equal(fooled, at_once[0])
    torch.testing.assert_close(x_adv, at_once[1], rtol=0, atol=1e-10)
    assert 2 < int(fooled.sum()) < 14


@THREATS
def test_an_example_retires_with_the_verdict_that_the_last_step_would_give(
    threat: Threat, curved_net: Net, labelled: Labelled
) -> None:
    net = curved_net()
    x, y = labelled(net, 16)[:2]
    attack = FAB(steps=15, targets=3)
    found = fab_minimal(net, x, y, threat, Streams(0), attack=attack)
    for share in (0.3, 0.6):
        ball = threat.with_eps(float(found.norm.quantile(share)))
        fooled, x_adv = hunted(attack, net, jobs_of(net, x, y), ball)
        assert torch.equal(fooled, found.norm <= ball.eps)
        assert torch.equal(net(x_adv).argmax(1) != y, fooled)
        assert bool((ball.distance(x_adv, x)[fooled] <= ball.eps).all())
    assert torch.equal(net(found.x_adv).argmax(1) != y, found.norm.isfinite())
    torch.testing.assert_close(threat.distance(found.x_adv, x), found.norm, rtol=0, atol=0)


@TARGETED
@THREATS
def test_on_a_linear_model_the_norm_is_the_distance(threat: Threat, targeted: bool, generator: Rng) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 4)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(4, 48, generator=generator(0)))
        net[1].bias.zero_()
    x = 0.5 + 0.02 * torch.randn(15, 3, 4, 4, generator=generator(1), dtype=torch.float64)
    logits = net(x).detach()
    y = logits.argmax(1)
    w = net[1].weight.detach() - net[1].weight.detach()[y][:, None]
    sizes = w.abs().sum(-1) if threat.norm == "Linf" else w.norm(dim=-1)
    distance = ((logits.gather(1, y[:, None]) - logits) / sizes).scatter(1, y[:, None], torch.inf).amin(1)
    assert float(distance.max()) < 0.4  # the box is farther
    exact = fab_minimal(net, x, y, threat, Streams(0), attack=FAB(targeted=targeted, steps=5, eta=1 + 1e-7))
    torch.testing.assert_close(exact.norm, distance, rtol=1e-6, atol=0)
    usual = fab_minimal(net, x, y, threat, Streams(0), attack=FAB(targeted=targeted, steps=20))
    assert bool((usual.norm > distance).all())
    assert bool((usual.norm < 1.01 * distance).all())


def test_the_restarts_of_a_target_follow_each_other_and_start_half_a_budget_away(
    curved_net: Net, labelled: Labelled
) -> None:
    net = curved_net()
    x, y = labelled(net, 12)[:2]
    x = 0.1 + 0.8 * x
    attack, threat = FAB(restarts=3, targets=2), Linf(0.04)
    assert attack.rounds(6) == 6
    begun = [attack.begin(jobs_of(net, x, y, turn), threat, Streams(0)) for turn in range(6)]
    for turn, state in enumerate(begun):
        order = jobs_of(net, x, y).logits.scatter(1, y[:, None], torch.inf).argsort(1, descending=True)
        assert torch.equal(state["target"], order[:, 1 + turn // 3])
        size = threat.distance(state["at"], x)
        torch.testing.assert_close(size, torch.full_like(size, 0.0 if turn % 3 == 0 else 0.02))
    assert not torch.equal(begun[1]["at"], begun[2]["at"])
    assert not torch.equal(begun[1]["at"], begun[4]["at"])
    several = FAB(restarts=3).begin(jobs_of(net, x, y)._replace(round=torch.arange(12) % 6), threat, Streams(0))
    for i in range(12):
        assert torch.equal(several["at"][i], begun[i % 6]["at"][i])
        assert several["target"][i] == begun[i % 6]["target"][i]


def test_few_classes_leave_few_targets(tiny_net: Net, tiny_batch: Build) -> None:
    assert [FAB().rounds(classes) for classes in (2, 3, 10, 100)] == [1, 2, 9, 9]
    assert FAB(targeted=False, restarts=3).rounds(10) == 3
    net, x = tiny_net().eval(), tiny_batch(12).x
    y = net(x).argmax(1)
    for attack in (FAB(steps=20), FAB(steps=20, targeted=False)):
        found = fab_minimal(net, x, y, Linf(0.1), Streams(0), attack=attack)
        assert found.x_adv.shape == (12, 1, 8, 8)
        assert bool((net(found.x_adv).argmax(1) != y).all())


def test_a_wrong_example_has_fallen_before_the_first_step(curved_net: Net, labelled: Labelled) -> None:
    net = curved_net()
    x, y = labelled(net, 8, wrong=3)[:2]
    fooled, x_adv = hunted(FAB(steps=1, targets=1), net, jobs_of(net, x, y), Linf(1e-9))
    assert fooled.tolist() == [True] * 3 + [False] * 5
    assert torch.equal(x_adv, x)
    assert fab_minimal(net, x, y, Linf(0.1), Streams(0), attack=FAB(steps=2, targets=1)).norm[:4].gt(0).tolist() == [
        False
    ] * 3 + [True]


def test_who_has_fallen_or_ended_stays(curved_net: Net, labelled: Labelled) -> None:
    net = curved_net()
    jobs = jobs_of(net, *labelled(net, 12, wrong=1)[:2])
    attack, threat = FAB(steps=4), Linf(0.02)
    state = attack.begin(jobs, threat, Streams(0))
    for step in range(7):
        before = dict(state)
        attack.step(net, state, threat)
        stay = before["fooled"] | before["ended"]
        for name, values in before.items():
            assert torch.equal(state[name][stay], values[stay]), name
        assert bool((state["at"] != before["at"]).flatten(1).any(1)[~stay].all())
        assert torch.equal(state["ended"], torch.full((12,), step >= 3) & ~(state["taken"] < 4))
    assert 1 < int(state["fooled"].sum()) < 12


def test_a_fall_that_is_taken_back_does_not_count(curved_net: Net, labelled: Labelled) -> None:
    """A search in low precision may find what the model in its own precision calls right."""
    net = curved_net()
    jobs = jobs_of(net, *labelled(net, 12)[:2])
    attack, threat = FAB(steps=30), Linf(0.02)
    state = attack.begin(jobs, threat, Streams(0))
    while not bool(state["fooled"].any()):
        attack.step(net, state, threat)
    fell = state["fooled"].clone()
    first = state["norm"][fell]
    state["fooled"] = torch.zeros_like(fell)

    def right(x: Tensor) -> Tensor:  # nothing is misclassified
        logits = net(x)
        return logits + 1e3 * torch.nn.functional.one_hot(jobs.y, 6) * (not logits.requires_grad)

    attack.step(right, state, threat)
    assert not state["fooled"].any()
    for _ in range(12):
        attack.step(net, state, threat)
    assert bool(state["fooled"][fell].all())
    assert bool((state["norm"][fell] <= threat.eps).all())
    assert not torch.equal(state["norm"][fell], first)


@TARGETED
def test_parameters_get_no_gradients_and_modes_come_back(targeted: bool, curved_net: Net, labelled: Labelled) -> None:
    net = curved_net()
    jobs = jobs_of(net, *labelled(net, 6)[:2])
    net.train()
    net[4].bias.requires_grad_(False)
    attack = FAB(targeted=targeted, steps=3, targets=2)
    with torch.no_grad():
        found = fab_minimal(net, jobs.x, jobs.y, Linf(0.02), Streams(0), attack=attack)
        hunted(attack, net, jobs, Linf(0.02))
    assert all(p.grad is None for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == [True, True, True, True, False]
    assert net.training
    assert not found.x_adv.requires_grad
    state = attack.begin(jobs, Linf(0.02), Streams(0))
    attack.step(net, state, Linf(0.02))  # parameters are not frozen here
    assert all(p.grad is None for p in net.parameters())
    assert not any(values.requires_grad for values in state.values())


@TARGETED
@THREATS
def test_no_step_waits_for_the_device(threat: Threat, targeted: bool, tiny_net: Net, tiny_batch: Build) -> None:
    """Tensors without storage cannot be read back."""
    net, batch = tiny_net().eval(), tiny_batch(5)
    attack = FAB(targeted=targeted)
    begun = attack.begin(jobs_of(net, batch.x, batch.y), threat, Streams(0))
    state = {name: values.to("meta") for name, values in begun.items()}
    attack.step(net.to("meta"), state, threat)
    assert {name: (t.shape, t.dtype) for name, t in state.items()} == {n: (t.shape, t.dtype) for n, t in begun.items()}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 0}, "FAB needs steps >= 1, got 0"),
        ({"restarts": 0}, "FAB needs restarts >= 1, got 0"),
        ({"targets": 0}, "FAB needs targets >= 1, got 0"),
        ({"alpha_max": 1.1}, "alpha_max of FAB is a weight in .0, 1., got 1.1"),
        ({"alpha_max": math.nan}, "alpha_max"),
        ({"eta": 0.9}, "eta of FAB is an overshoot, finite and >= 1, got 0.9"),
        ({"eta": math.inf}, "eta"),
        ({"beta": 0.0}, "beta of FAB is a fraction in .0, 1., got 0.0"),
        ({"beta": 1.0}, "beta"),
    ],
)
def test_bad_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FAB(**setting)


def test_maps_of_budgets_and_single_classes_are_refused(curved_net: Net, labelled: Labelled) -> None:
    net = curved_net()
    jobs = jobs_of(net, *labelled(net, 4)[:2])
    for n in (4, 1):
        with pytest.raises(InputError, match=rf"one budget for all, got the shape \({n}, 1, 1, 1\)"):
            FAB().begin(jobs, Linf(torch.full((n, 1, 1, 1), 0.1)), Streams(0))
    with pytest.raises(InputError, match="FAB needs at least 2 classes, got 1"):
        FAB(targeted=False).begin(jobs._replace(logits=jobs.logits[:, :1]), Linf(0.1), Streams(0))
    one = FAB(restarts=2).begin(jobs._replace(round=jobs.round + 1), Linf(torch.tensor(0.1)), Streams(0))
    same = FAB(restarts=2).begin(jobs._replace(round=jobs.round + 1), Linf(0.1), Streams(0))
    torch.testing.assert_close(one["at"], same["at"], rtol=0, atol=1e-8)
