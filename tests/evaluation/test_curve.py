"""Curves of a model whose nearest adversarial images are known, and grids as they are written."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gambeson.attacks import deepfool
from gambeson.core.errors import InputError
from gambeson.core.threat import Linf
from gambeson.core.types import Batch
from gambeson.evaluation import Curve, curve, evaluate, minimal_norms, robust_curve, wilson

Net = Callable[..., nn.Sequential]
Images = Callable[..., Batch]


class Bright(nn.Module):
    """Class 1 where the mean of the image is above 1/2; the images of every forward are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        value = x.flatten(1).mean(1) - 0.5
        return torch.stack([-value, value], 1)


def predicted(tiny_net: Net, tiny_batch: Images, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A small model under which all classes occur, and images with the labels that it gives."""
    net, x = tiny_net().eval(), tiny_batch(n).x
    with torch.no_grad():
        net[4].bias -= net(x).mean(0)
        return net, x, net(x).argmax(1)


RADII = torch.tensor([0.03, 0.06, 0.11, 0.16, 0.3, 0.02, 0.07, 0.4], dtype=torch.float64)
X = (0.5 - RADII).view(-1, 1, 1, 1).expand(8, 1, 4, 4).clone()
Y = torch.tensor([0, 0, 0, 0, 0, 1, 0, 0])  # the sixth is wrong as it is
GRID = (0.0, 0.05, 0.1, 0.2)


def measured(attack: str = "fgsm", grid: tuple[float, ...] = GRID, **settings: object) -> Curve:
    return robust_curve(Bright(), X, Y, attack, grid, num_classes=2, **settings)


@pytest.mark.parametrize("attack", ["fgsm", "pgd-20", "mm3"])
@pytest.mark.parametrize("batch_size", [3, 256])
def test_every_example_falls_at_the_first_budget_above_its_radius(attack: str, batch_size: int) -> None:
    found = measured(attack, batch_size=batch_size)
    assert found.fell.tolist() == [0.05, 0.1, 0.2, 0.2, math.inf, 0.0, 0.1, math.inf]
    assert [found.accuracy(eps) for eps in GRID] == [wilson(k, 8) for k in (7, 6, 4, 2)]
    assert found.grid == GRID


def test_the_norm_is_that_of_the_ball() -> None:
    """A grey step of r has the Euclidean norm 4 r in 16 pixels."""
    found = measured("pgd-40", tuple(4 * eps for eps in GRID), norm="l2")
    assert [4 * value for value in (0.05, 0.1, 0.2, 0.2)] == pytest.approx(found.fell[:4].tolist())
    assert found.settings["norm"] == "L2"
    assert found.grey == pytest.approx(2.0)  # half of sqrt(16)


def test_what_has_fallen_is_not_attacked_again() -> None:
    """FGSM: one forward with a gradient and one that judges, for those that stand."""
    net = Bright()
    robust_curve(net, X, Y, "fgsm", GRID, num_classes=2)
    assert net.seen == 8 + 2 * (7 + 6 + 4) + 1  # clean, three budgets, and plain grey


def test_the_first_budget_is_as_evaluated_and_the_curve_never_rises(tiny_net: Net, tiny_batch: Images) -> None:
    net, x, y = predicted(tiny_net, tiny_batch, 40)
    y[:4] = (y[:4] + 1) % 3
    grid = (0.01, 0.02, 0.03, 0.05)
    found = robust_curve(net, x, y, "fgsm", grid, num_classes=3)
    values = [found.accuracy(eps).value for eps in found.grid]
    assert values == sorted(values, reverse=True)
    assert values[0] == 0.9
    alone = [evaluate(net, x, y, ["fgsm"], Linf(eps), num_classes=3).outcomes["fgsm"] for eps in grid]
    assert torch.equal(found.fell > 0.01, alone[0])
    together = torch.ones(40, dtype=torch.bool)
    for eps, outcome in zip(grid, alone, strict=True):  # one step may overshoot: then the larger ball alone holds more
        together &= outcome
        assert torch.equal(found.fell > eps, together)
    assert 0 < values[-1] < values[1]


def test_a_point_does_not_depend_on_the_budgets_after_it_and_draws_have_addresses(
    tiny_net: Net, tiny_batch: Images
) -> None:
    net, x, y = predicted(tiny_net, tiny_batch, 60)
    short, long, other = (
        robust_curve(net, x, y, "pgd-2", grid, num_classes=3, seed=seed).fell
        for grid, seed in (((0.015,), 0), ((0.015, 0.03), 0), ((0.015,), 1))
    )
    assert torch.equal(short == 0.015, long == 0.015)
    assert not torch.equal(short, other)


def test_broken_images_are_counted_and_the_clean_ones_judged() -> None:
    class Nan(Bright):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            if logits.requires_grad:
                logits.register_hook(lambda grad: grad * torch.nan)
            return logits

    found = robust_curve(Nan(), X, Y, "pgd-3", (0.1, 0.2), norm="L2", num_classes=2)
    assert found.fell.isinf().sum() == 7
    assert found.settings["failed"] == 14


def test_progress_counts_every_image_once_per_budget() -> None:
    done: list[int] = []
    measured(batch_size=5, progress=done.append)
    assert sum(done) == 8 * 4
    assert set(done) == {5, 3}
    done.clear()
    minimal_norms(Bright(), X, Y, num_classes=2, batch_size=5, progress=done.append)
    assert done == [5, 3]


def test_the_record_holds_the_points() -> None:
    found = measured(seed=3).to_dict()
    assert [point["eps"] for point in found["points"]] == list(GRID)
    assert found["points"][2] == {"eps": 0.1, **vars(wilson(4, 8))}
    assert (found["attack"], found["norm"], found["seed"], found["n"], found["failed"]) == ("fgsm", "Linf", 3, 8, 0)


# the warning


def test_a_curve_that_comes_to_zero_needs_no_word() -> None:
    assert measured(grid=(0.2, 0.5)).warning() is None


def test_a_grid_that_ends_early_is_no_evidence() -> None:
    said = measured().warning()
    assert said == (
        "at the largest budget, 0.2, accuracy is 25.0 %, not 0: a grid up to 0.5, where every image can be made plain"
        " grey, should come to 0"
    )


class Masked(nn.Module):
    """Plain grey and brighter is class 1, by a threshold without a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        value = (x.flatten(1).mean(1) >= 0.5).double() - 0.5 + 0 * x.flatten(1).sum(1)
        return torch.stack([-value, value], 1)


def test_an_attack_that_misses_plain_grey_is_accused() -> None:
    y = torch.zeros(8, dtype=torch.int64)
    found = robust_curve(Masked(), X, y, "fgsm", (0.5,), num_classes=2)
    assert found.grey_class == 1
    assert "is misclassified for 8 of the 8 images that stand: the attack fails, the gradients may be masked" in str(
        found.warning()
    )


def test_the_class_of_plain_grey_may_stand() -> None:
    x = torch.full((3, 1, 4, 4), 0.6, dtype=torch.float64)
    found = robust_curve(Masked(), x, torch.ones(3, dtype=torch.int64), "fgsm", (0.5,), num_classes=2)
    assert "all that stand have the class of plain grey" in str(found.warning())


# what is refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"attack": "clean"}, "a curve needs an attack, got 'clean'"),
        ({"attack": "pdg-3"}, "unknown attack 'pdg-3'"),
        ({"grid": (0.1, 8.0)}, r"eps must be a fraction of the pixel range in \(0, 1\], got 8"),
        ({"grid": (0.1, math.nan)}, "finite numbers"),
        ({"grid": ()}, "one of them above 0"),
        ({"norm": "L1"}, "unknown norm 'L1'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        measured(**words)


def test_only_measured_budgets_have_an_accuracy() -> None:
    with pytest.raises(InputError, match=r"eps 0.15 was not measured") as error:
        measured().accuracy(0.15)
    assert error.value.hint == "measured: 0, 0.05, 0.1, 0.2"


# minimal norms


@pytest.mark.parametrize("batch_size", [3, 256])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_norms_are_those_of_deepfool(norm: str, batch_size: int) -> None:
    found = minimal_norms(Bright(), X, Y, norm=norm, num_classes=2, batch_size=batch_size)
    factor = 1 if norm == "Linf" else 4
    wanted = 1.02 * (factor * RADII + 1e-4)
    wanted[5] = 0
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)


def test_images_of_bytes_are_taken(tiny_net: Net) -> None:
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8))
    net = tiny_net().eval()
    with torch.no_grad():
        y = net(x / 255).argmax(1)
    found = minimal_norms(net, x, y, num_classes=3, norm="L2", candidates=1)
    wanted = deepfool(net, Batch(x / 255, y, torch.arange(6)), "L2", candidates=1).norms
    torch.testing.assert_close(found, wanted.double(), rtol=0, atol=1e-6)


def test_what_deepfool_returns_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    def lying(model: nn.Module, batch: Batch, norm: str, candidates: int) -> object:
        return deepfool(model, batch, norm, candidates=candidates)._replace(x_adv=batch.x)

    monkeypatch.setattr(curve, "deepfool", lying)
    assert minimal_norms(Bright(), X, Y, num_classes=2).tolist() == [math.inf] * 5 + [0.0] + [math.inf] * 2


def test_norms_of_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="no examples"):
        minimal_norms(Bright(), X[:0], Y[:0], num_classes=2)
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        minimal_norms(Bright(), X, Y, num_classes=2, batch_size=0)
