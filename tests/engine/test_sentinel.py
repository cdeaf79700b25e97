import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gambeson.core.threat import Linf
from gambeson.core.types import Batch
from gambeson.data import load
from gambeson.engine.run import Run
from gambeson.engine.sentinel import Probe, Sentinel
from gambeson.engine.settings import Settings
from gambeson.engine.trainer import Trainer
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
    assert Probe(0.75, 0.5, False).gap == 0.25


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
