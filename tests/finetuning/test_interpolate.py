"""The line between two checkpoints: ends to the bit, the formula between, the rule by hand, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gambeson.attacks.pgd import PGD
from gambeson.core.errors import CheckpointError, InputError
from gambeson.core.streams import Streams
from gambeson.core.threat import Linf
from gambeson.core.types import Batch
from gambeson.evaluation.statistics import wilson
from gambeson.finetuning import choose_alpha, interpolated, parse_alphas, reestimate_statistics, walk
from gambeson.finetuning.interpolate import Point

THREAT = Linf(0.1)
NOISE = PGD(steps=1, rel_step_size=0.0)
"""Only the start: what it fools depends on the draws."""


def pair(tiny_net) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    model, other = tiny_net(0).eval(), tiny_net(1).eval()
    with torch.no_grad():
        other[1].running_mean += 0.5
        other[1].running_var *= 2
        other[1].num_batches_tracked += 7
        model[4].bias[0] = -0.0
    states = [{name: t.detach().clone() for name, t in m.state_dict().items()} for m in (model, other)]
    return model, states[0], states[1]


def bits(t: Tensor) -> Tensor:
    return t.view(torch.int32) if t.dtype == torch.float32 else t


def sensitive() -> tuple[nn.Module, dict[str, Tensor]]:
    """A model whose answer follows the noise."""
    layer = nn.Linear(64, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(3, 64, generator=torch.Generator().manual_seed(0)))
        layer.bias.copy_(-layer.weight.sum(1) / 2)
    model = nn.Sequential(nn.Flatten(), layer).eval()
    return model, {name: t.clone() for name, t in model.state_dict().items()}


def names_of(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize(("alpha", "end"), [(0.0, 0), (1.0, 1)])
def test_the_ends_are_the_checkpoints_to_the_bit(tiny_net, alpha, end):
    model, *states = pair(tiny_net)
    found = interpolated(*states, alpha, "full-state", names_of(model))
    assert all(torch.equal(bits(found[name]), bits(t)) for name, t in states[end].items())


def test_between_it_is_the_formula_and_whole_numbers_are_cut_off(tiny_net):
    model, a, b = pair(tiny_net)
    found = interpolated(a, b, 0.3, "full-state", names_of(model))
    for name in a:
        if a[name].is_floating_point():
            wanted = (1 - 0.3) * a[name].double() + 0.3 * b[name].double()
            torch.testing.assert_close(found[name].double(), wanted, atol=1e-7, rtol=1e-6)
    assert found["1.num_batches_tracked"].dtype == torch.int64
    assert int(found["1.num_batches_tracked"]) == int(0.3 * 7)


def test_parameters_only_leaves_the_statistics_of_the_first(tiny_net):
    model, a, b = pair(tiny_net)
    found = interpolated(a, b, 1.0, "parameters", names_of(model))
    assert torch.equal(found["1.running_mean"], a["1.running_mean"])
    assert torch.equal(found["0.weight"], b["0.weight"])


def test_two_architectures_are_refused_with_every_difference():
    a = {"w": torch.zeros(2), "u": torch.zeros(1), "same": torch.zeros(1)}
    b = {"w": torch.zeros(3), "v": torch.zeros(1), "same": torch.zeros(1)}
    with pytest.raises(CheckpointError) as error:
        interpolated(a, b, 0.5, "full-state", ["w"])
    for words in ("u is only in the first", "v is only in the second", "w has shape (2,) in the first, (3,)"):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0,0.5,1", (0, 0.5, 1)),
        ("[0, 1]", (0, 1)),
        ("0:1:0.25", (0, 0.25, 0.5, 0.75, 1)),
        ("1,0,1,0.2", (0, 0.2, 1)),
        ("0:0.3:0.1", (0, 0.1, 0.2, 0.3)),
    ],
)
def test_grids(text, wanted):
    assert parse_alphas(text) == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.1,1", "needs 0"),
        ("", "needs 0"),
        ("0,x", "alphas are numbers"),
        ("0:1:0.3", "does not go from 0 to 1"),
        ("0:1:0", "does not go"),
        ("0,nan", "finite"),
    ],
)
def test_grids_that_are_none(text, words):
    with pytest.raises(InputError, match=words):
        parse_alphas(text)


def point(alpha: float, clean: int, robust: int) -> Point:
    return Point(alpha, wilson(clean, 1000), wilson(robust, 1000), (robust / 1000,))


def test_the_rule_takes_the_cleanest_that_stays_robust():
    points = [point(0, 800, 500), point(0.5, 810, 499), point(1, 850, 498)]
    assert choose_alpha(points) == 0.5  # 0.1 points below counts, 0.2 does not
    assert choose_alpha(points, 0.002) == 1
    assert choose_alpha(points, 0) == 0


def test_ties_go_to_the_more_robust_then_to_the_smaller_alpha():
    assert choose_alpha([point(0, 800, 500), point(0.5, 800, 501), point(1, 800, 500)]) == 0.5
    assert choose_alpha([point(0, 800, 500), point(1, 800, 500)]) == 0


def test_the_rule_needs_its_start_and_a_tolerance():
    with pytest.raises(InputError, match="alpha 0"):
        choose_alpha([point(0.5, 1, 1)])
    with pytest.raises(InputError, match="tolerance"):
        choose_alpha([point(0, 1, 1)], -0.1)


def test_every_point_is_what_its_model_does(tiny_net, tiny_batch):
    model, a, b = pair(tiny_net)
    x, y, _, _ = tiny_batch(40)
    found = walk(
        model, a, b, x, y, THREAT, num_classes=3, alphas=(0, 0.4, 1), attack=PGD(steps=3), batch_size=16, seed=5
    )
    for one in found.points:
        own = tiny_net(3).eval()
        own.load_state_dict(interpolated(a, b, one.alpha, "full-state", names_of(own)))
        clean, robust = 0, 0
        for number, begin in enumerate(range(0, 40, 16)):
            images, labels = x[begin : begin + 16], y[begin : begin + 16]
            rng = Streams(5).at("interpolate/0", number)
            x_adv = PGD(steps=3)(own, Batch(images, labels, torch.arange(len(labels))), THREAT, rng)
            right = own(images).argmax(1) == labels
            clean += int(right.sum())
            robust += int((right & (own(x_adv).argmax(1) == labels)).sum())
        assert one.clean.value == clean / 40
        assert one.robust.value == robust / 40


def test_the_starts_are_the_same_at_every_alpha(tiny_batch):
    model, a = sensitive()
    x, y, _, _ = tiny_batch(60)
    found = walk(model, a, a, x, y, Linf(0.5), num_classes=3, alphas=(0, 0.25, 0.5), attack=NOISE)
    other = walk(model, a, a, x, y, Linf(0.5), num_classes=3, alphas=(0,), attack=NOISE, seed=1)
    assert len({one.robust.value for one in found.points}) == 1
    assert other.at(0.0).robust != found.at(0.0).robust


def test_of_several_runs_the_lowest_counts(tiny_batch):
    model, a = sensitive()
    x, y, _, _ = tiny_batch(200)
    found = walk(model, a, a, x, y, Linf(0.5), num_classes=3, alphas=(0,), attack=NOISE, runs=4)
    (only,) = found.points
    assert len(set(only.runs)) > 1
    assert only.robust.value == min(only.runs)


def test_the_model_comes_back_and_may_be_one_end_itself(tiny_net, tiny_batch, snapshot):
    model, a, b = pair(tiny_net)
    x, y, _, _ = tiny_batch(20)
    before = snapshot(model)
    live = walk(model, model.state_dict(), b, x, y, THREAT, num_classes=3, alphas=(0, 0.5, 1), attack=PGD(steps=2))
    kept = walk(model, a, b, x, y, THREAT, num_classes=3, alphas=(0, 0.5, 1), attack=PGD(steps=2))
    assert live == kept
    assert all(torch.equal(bits(t), bits(before[name])) for name, t in model.state_dict().items())


def test_reestimated_statistics_are_means_over_batches_and_weights_stay(tiny_net, tiny_batch, snapshot):
    model = tiny_net(0).eval()
    x = tiny_batch(24).x
    before = snapshot(model)
    reestimate_statistics(model, x, batch_size=12)
    features = model[0](x)
    wanted = torch.stack([part.mean((0, 2, 3)) for part in features.split(12)]).mean(0)
    torch.testing.assert_close(model[1].running_mean, wanted)
    unbiased = torch.stack([part.transpose(0, 1).flatten(1).var(1) for part in features.split(12)]).mean(0)
    torch.testing.assert_close(model[1].running_var, unbiased)
    assert all(torch.equal(t, before[name]) for name, t in model.named_parameters())
    assert not model.training


def test_statistics_are_reestimated_between_the_ends_only(tiny_net, tiny_batch, monkeypatch):
    model, a, b = pair(tiny_net)
    x, y, _, _ = tiny_batch(20)
    calls = []
    monkeypatch.setattr(
        "gambeson.finetuning.interpolate.reestimate_statistics", lambda *args, **kwargs: calls.append(args[1])
    )
    walk(model, a, b, x, y, THREAT, num_classes=3, alphas=(0, 0.5, 1), attack=PGD(steps=1), statistics_from=x[:5])
    assert len(calls) == 1
    assert torch.equal(calls[0], x[:5])


def test_what_a_walk_refuses(tiny_net, tiny_batch):
    model, a, b = pair(tiny_net)
    x, y, _, _ = tiny_batch(4)
    with pytest.raises(InputError, match="needs 0"):
        walk(model, a, b, x, y, THREAT, num_classes=3, alphas=(0.5, 1))
    with pytest.raises(InputError, match="no examples"):
        walk(model, a, b, x[:0], y[:0], THREAT, num_classes=3)
    with pytest.raises(InputError, match="at least 1"):
        walk(model, a, b, x, y, THREAT, num_classes=3, runs=0)
