import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gambeson.attacks.pgd import PGD, Uniform, fgsm
from gambeson.core.streams import Streams
from gambeson.core.threat import L2, Linf, Threat
from gambeson.core.types import Batch
from gambeson.data import load
from gambeson.engine.run import Run
from gambeson.engine.sentinel import Probe, Sentinel, alignment
from gambeson.engine.settings import Settings
from gambeson.engine.trainer import Trainer
from gambeson.evaluation.judging import judge, returned_images
from gambeson.methods import METHODS
from gambeson.models import create

Net = Callable[..., nn.Sequential]
Images = Callable[..., Batch]
Snapshot = Callable[[nn.Module], dict[str, Tensor]]
EPS = 0.1


class Answers(nn.Module):
    """Class 0, by a margin that depends on how far the first pixel is from 1/2, in units of eps."""

    def __init__(self, margin: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, x: Tensor) -> Tensor:
        z = self.margin((x[:, 0, 0, 0] - 0.5) / EPS)
        return torch.stack([z, -z], 1)


def robust(u: Tensor) -> Tensor:
    return 2 - 0.1 * u


def shortcut(u: Tensor) -> Tensor:
    """Right at 0 and after a whole step of eps, wrong half way: what catastrophic overfitting looks like."""
    return torch.cos(2 * math.pi * (u + 0.05))


def wavy(u: Tensor) -> Tensor:
    """As `shortcut`, but that a step of eps does not come back to the same loss, which rounding would compare."""
    return torch.cos(2 * math.pi * 0.8 * (u + 0.05))


def weak(u: Tensor) -> Tensor:
    return 0.5 - u


PROBE = Batch(torch.full((20, 1, 2, 2), 0.5), torch.zeros(20, dtype=torch.int64), torch.arange(20))


def sentinel(**settings: float) -> Sentinel:
    return Sentinel(PROBE, Linf(EPS), 2, 0, **settings)


def test_a_collapse_after_health_is_told() -> None:
    watch = sentinel()
    healthy = watch.look(Answers(robust), 0)
    assert (healthy.fgsm, healthy.pgd, healthy.gap, healthy.collapsed) == (1.0, 1.0, 0.0, False)
    collapsed = watch.look(Answers(shortcut), 50)
    assert collapsed.fgsm == 1.0
    assert collapsed.pgd < 0.2
    assert collapsed.gap == collapsed.fgsm - collapsed.pgd
    assert collapsed.collapsed


def test_a_model_that_answers_one_step_and_was_never_robust_has_collapsed() -> None:
    assert sentinel().look(Answers(shortcut), 0).collapsed


def test_a_model_that_is_weak_against_both_attacks_has_not_collapsed() -> None:
    watch = sentinel()
    watch.look(Answers(robust), 0)
    look = watch.look(Answers(weak), 50)
    assert (look.fgsm, look.pgd) == (0.0, 0.0)
    assert not look.collapsed


@pytest.mark.parametrize(
    ("best", "fgsm", "pgd", "collapsed"),
    [
        (0.8, 0.8, 0.35, True),
        (0.8, 0.8, 0.40, False),  # not below half
        (0.8, 0.5, 0.35, False),  # a small gap
        (0.8, 0.55, 0.35, True),  # the gap counts from 0.2 on
        (0.0, 1.0, 0.0, True),  # it never rose
        (0.2, 0.8, 0.2, False),  # not below a quarter of FGSM
        (0.1, 0.15, 0.0, False),  # a small gap again
        (0.3, 1.0, 0.5, False),  # a new maximum
    ],
)
def test_the_verdict(best: float, fgsm: float, pgd: float, collapsed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([fgsm, pgd])

    def judged(model: nn.Module, x: Tensor, y: Tensor, num_classes: int) -> Tensor:
        right = torch.zeros(20, dtype=torch.bool)
        right[: round(20 * next(values))] = True
        return right

    monkeypatch.setattr("gambeson.engine.sentinel.judge", judged)
    watch = sentinel()
    watch.load_state_dict({"best": best})
    look = watch.look(Answers(robust), 0)
    assert (look.fgsm, look.pgd) == pytest.approx((fgsm, pgd))
    assert look.collapsed == collapsed
    assert watch.state_dict() == {"best": pytest.approx(max(best, pgd))}


def test_another_gap_is_another_verdict() -> None:
    for gap, collapsed in ((0.2, True), (1.1, False)):
        watch = sentinel(gap=gap)
        watch.look(Answers(robust), 0)
        assert watch.look(Answers(shortcut), 50).collapsed == collapsed


def test_the_state_carries_the_verdict_over() -> None:
    watch, fresh = sentinel(), sentinel()
    watch.look(Answers(robust), 0)
    fresh.load_state_dict(watch.state_dict())
    assert fresh.look(Answers(shortcut), 50).collapsed


def test_looking_changes_nothing_and_is_reproducible(tiny_net: Net, tiny_batch: Images, snapshot: Snapshot) -> None:
    net = tiny_net().train()
    watch = Sentinel(tiny_batch(30), Linf(0.2), 3, 0)
    before, state = snapshot(net), torch.get_rng_state()
    assert watch.look(net, 3) == watch.look(net, 3)
    assert net.training
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_gap_is_fgsm_minus_pgd() -> None:
    assert Probe(0.75, 0.5, False, 0.0, 1.0).gap == 0.25


@pytest.mark.parametrize("threat", [Linf(0.2), L2(1.0)])
def test_the_accuracies_are_those_of_the_attacks_to_the_bit(threat: Threat, tiny_net: Net, tiny_batch: Images) -> None:
    """The gradient at the images is computed once, for FGSM and for the alignment."""
    net, batch = tiny_net(), tiny_batch(64)
    with torch.no_grad():
        batch = Batch(batch.x, net.eval()(batch.x).argmax(1), batch.index)  # right without attack
    look = Sentinel(batch, threat, 3, 7).look(net, 3)
    values = []
    for attack in (fgsm(), PGD(steps=10, rel_step_size=0.25, start=Uniform(), freeze_fooled=True)):
        x_adv, _ = returned_images(attack(net, batch, threat, Streams(7).at("sentinel", 3)), batch.x, threat)
        values.append(judge(net, x_adv, batch.y, 3).float().mean().item())
    assert (look.fgsm, look.pgd) == tuple(values)
    assert 0 < look.pgd < 1


@pytest.mark.parametrize("step", [0, 50])
@pytest.mark.parametrize("margin", [robust, wavy, weak])
def test_the_symptoms_of_a_model_of_one_pixel(margin: Callable[[Tensor], Tensor], step: int) -> None:
    """Only the first pixel has a gradient: all can be computed by hand from where it starts."""
    start = Linf(EPS).sample(PROBE.x, Streams(0).at("sentinel/symptoms", step))[:, 0, 0, 0] / EPS

    def loss(u: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-2 * margin(u))

    def rises(u: Tensor) -> Tensor:
        return (loss(u + 1e-3) - loss(u - 1e-3)).sign()

    after = loss((start + rises(start)).clamp(-1, 1))
    wanted = (after < loss(start)).float().mean().item()
    look = sentinel().look(Answers(margin), step)
    assert look.aae == pytest.approx(wanted)
    assert look.alignment == pytest.approx((rises(torch.zeros(20)) * rises(start)).mean().item(), abs=1e-6)
    assert (wanted > 0.2) == (margin is wavy)


def test_alignment_is_the_mean_cosine_of_what_has_a_direction() -> None:
    first = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [math.nan, 1.0]]).view(5, 1, 1, 2)
    second = torch.tensor([[4.0, 3.0], [0.0, 2.0], [-5.0, -5.0], [1.0, 0.0], [1.0, 1.0]]).view(5, 1, 1, 2)
    assert alignment(first, second) == pytest.approx((0.96 + 0 - 1) / 3, abs=1e-6)
    assert alignment(1e-30 * first, second) == pytest.approx((0.96 + 0 - 1) / 3, abs=1e-6)  # their squares are zero
    assert alignment(first[3:], second[3:]) is None
    assert alignment(first, torch.zeros_like(first)) is None


@pytest.mark.parametrize(
    ("name", "eps", "arguments", "collapsed"),
    [("fgsm", 0.3, {}, True), ("n-lap", 0.2, {"beta": 0.005}, False)],
)
def test_real_digits(name: str, eps: float, arguments: dict[str, float], collapsed: bool, tmp_path: Path) -> None:
    """FGSM training collapses at eps 0.3, N-LAP at 0.2 does not."""
    data = load("digits", val_fraction=0)
    recipe = METHODS[name](eps=eps, **arguments)
    model = create("small-cnn", data.facts.task, seed=0)
    settings = Settings(epochs=12, lr=0.1, probe_every=66)
    trainer = Trainer(model, recipe, data.train, data.val, data.facts.task, settings)
    run = Run.create(tmp_path / "run", {})
    trainer.fit(run)
    looks = [row for row in run.rows() if "probe/gap" in row]
    assert [row["step"] for row in looks] == [0, 66, 132]
    assert ("event" in looks[-1]) == collapsed
    assert collapsed == (looks[-1]["probe/gap"] > 0.3)
    assert all(0 <= row["probe/aae"] <= 1 and 0 < row["probe/alignment"] <= 1 for row in looks)
