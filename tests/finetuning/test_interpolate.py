"""The line between two checkpoints: ends to the bit, the formula between, the rule by hand, and what is refused."""

from __future__ import annotations

import json

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


def test_nothing_of_the_other_end_is_in_an_end():
    """Not even by a product with zero."""
    one = {"w": torch.tensor([-0.0, -0.0, 1.0]), "n": torch.tensor(2**53 + 1)}
    other = {"w": torch.tensor([1.0, -1.0, float("inf")]), "n": torch.tensor(5)}
    for found in (
        interpolated(one, other, 0.0, "full-state", ["w"]),
        interpolated(other, one, 1.0, "full-state", ["w"]),
    ):
        assert torch.equal(bits(found["w"]), bits(one["w"]))
        assert int(found["n"]) == 2**53 + 1


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


def test_parameters_only_moves_the_parameters_between_the_ends_too(tiny_net):
    model, a, b = pair(tiny_net)
    found = interpolated(a, b, 0.5, "parameters", names_of(model))
    torch.testing.assert_close(found["4.weight"], a["4.weight"] + (b["4.weight"] - a["4.weight"]) / 2)
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(found[name], a[name])


@pytest.mark.parametrize("alpha", [-0.5, 2.0])
def test_beyond_the_ends_it_is_extrapolated(tiny_net, alpha):
    model, a, b = pair(tiny_net)
    found = interpolated(a, b, alpha, "full-state", names_of(model))
    for name, t in found.items():
        if t.is_floating_point():
            wanted = a[name].double() + alpha * (b[name].double() - a[name].double())
            torch.testing.assert_close(t.double(), wanted, atol=1e-6, rtol=1e-5)


def test_whole_numbers_are_cut_off_towards_zero():
    a, b = {"n": torch.tensor(-3)}, {"n": torch.tensor(2**40 + 1)}
    assert int(interpolated(a, b, 0.9, "full-state", [])["n"]) == int(-0.3 + 0.9 * (2**40 + 1))
    assert int(interpolated(a, {"n": torch.tensor(0)}, 0.5, "full-state", [])["n"]) == -1


@pytest.mark.parametrize("entries", ["full-state", "parameters"])
def test_what_is_made_shares_no_memory_with_its_ends(tiny_net, entries):
    model, a, b = pair(tiny_net)
    ends = {t.data_ptr() for state in (a, b) for t in state.values()}
    for alpha in (0.0, 0.5, 1.0):
        found = interpolated(a, b, alpha, entries, names_of(model))
        assert list(found) == list(a)
        assert not ends & {t.data_ptr() for t in found.values()}


def test_unknown_entries_are_refused(tiny_net):
    _, a, b = pair(tiny_net)
    with pytest.raises(InputError, match="unknown entries 'buffers'"):
        interpolated(a, b, 0.5, "buffers", [])


def test_two_architectures_are_refused_with_every_difference():
    a = {"w": torch.zeros(2), "u": torch.zeros(1), "same": torch.zeros(1)}
    b = {"w": torch.zeros(3), "v": torch.zeros(1), "same": torch.zeros(1)}
    with pytest.raises(CheckpointError) as error:
        interpolated(a, b, 0.5, "full-state", ["w"])
    for words in ("u is only in the first", "v is only in the second", "w has shape (2,) in the first, (3,)"):
        assert words in str(error.value)
    assert "same" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0,0.5,1", (0, 0.5, 1)),
        ("[0, 1]", (0, 1)),
        ("0:1:0.25", (0, 0.25, 0.5, 0.75, 1)),
        ("1,0,1,0.2", (0, 0.2, 1)),
        ("0:0.3:0.1", (0, 0.1, 0.2, 0.3)),
        ("0", (0,)),
        (" 1 , 0 ,", (0, 1)),
        ("-0.5:1.5:0.5", (-0.5, 0, 0.5, 1, 1.5)),
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
        ("0:nan:0.1", "finite"),
        ("0:inf:1", "finite"),
        ("0:1:-0.1", "does not go"),
        ("1:0:0.1", "does not go"),
        ("0.5:1:0.1", "needs 0"),
        ("0:1", "alphas are numbers"),
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


def test_alpha_zero_may_always_be_chosen():
    assert choose_alpha([point(0, 800, 500), point(0.5, 900, 0), point(1, 900, 498)]) == 0
    assert choose_alpha([point(0, 800, 0), point(1, 700, 900)], 0) == 0
    assert choose_alpha([point(0, 800, 500)], 0) == 0


@pytest.mark.parametrize("count", [3, 7, 9, 10, 11, 13, 997, 10000])
def test_a_fall_of_exactly_the_tolerance_is_allowed(count):
    """Whatever the rounding of the fractions."""
    for start in range(2, count + 1):
        points = [
            Point(alpha, wilson(clean, count), wilson(robust, count), ())
            for alpha, clean, robust in ((0.0, 0, start), (0.5, 1, start - 1), (1.0, 2, start - 2))
        ]
        assert choose_alpha(points, 1 / count) == 0.5


def test_the_order_of_the_points_does_not_matter():
    points = [point(1, 850, 500), point(0.5, 850, 500), point(0, 800, 500), point(-1, 850, 500)]
    assert choose_alpha(points) == choose_alpha(points[::-1]) == -1


def test_the_rule_needs_its_start_and_a_tolerance():
    with pytest.raises(InputError, match="alpha 0"):
        choose_alpha([point(0.5, 1, 1)])
    for tolerance in (-0.1, float("nan")):
        with pytest.raises(InputError, match="tolerance"):
            choose_alpha([point(0, 1, 1)], tolerance)


def test_every_point_is_what_its_model_does(tiny_net, tiny_batch):
    model, a, b = pair(tiny_net)
    x, y, *_ = tiny_batch(40)
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
    x, y, *_ = tiny_batch(60)
    found = walk(model, a, a, x, y, Linf(0.5), num_classes=3, alphas=(0, 0.25, 0.5), attack=NOISE)
    other = walk(model, a, a, x, y, Linf(0.5), num_classes=3, alphas=(0,), attack=NOISE, seed=1)
    assert len({one.robust.value for one in found.points}) == 1
    assert other.at(0.0).robust != found.at(0.0).robust


def test_of_several_runs_the_lowest_counts(tiny_batch):
    model, a = sensitive()
    x, y, *_ = tiny_batch(200)
    found = walk(model, a, a, x, y, Linf(0.5), num_classes=3, alphas=(0,), attack=NOISE, runs=4)
    (only,) = found.points
    assert len(set(only.runs)) > 1
    assert only.robust.value == min(only.runs)


def test_the_model_comes_back_and_may_be_one_end_itself(tiny_net, tiny_batch, snapshot):
    model, a, b = pair(tiny_net)
    x, y, *_ = tiny_batch(300)
    before = snapshot(model)
    alphas = (0, 0.3, 0.5, 0.6, 1)  # the weights at one alpha must not be the start of the next
    live = walk(model, model.state_dict(), b, x, y, THREAT, num_classes=3, alphas=alphas, attack=PGD(steps=1))
    kept = walk(model, a, b, x, y, THREAT, num_classes=3, alphas=alphas, attack=PGD(steps=1))
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
    x, y, *_ = tiny_batch(20)
    calls = []
    monkeypatch.setattr(
        "gambeson.finetuning.interpolate.reestimate_statistics", lambda *args, **kwargs: calls.append(args[1])
    )
    walk(model, a, b, x, y, THREAT, num_classes=3, alphas=(0, 0.5, 1), attack=PGD(steps=1), statistics_from=x[:5])
    assert len(calls) == 1
    assert torch.equal(calls[0], x[:5])


def test_a_walk_goes_by_its_entries_beyond_the_ends_and_says_what_it_has_done(tiny_net, tiny_batch):
    model, a, b = pair(tiny_net)
    x, y, *_ = tiny_batch(20)
    seen: list[int] = []
    found = walk(
        model,
        a,
        b,
        x,
        y,
        THREAT,
        num_classes=3,
        alphas=(2, 0, 0.5),
        entries="parameters",
        attack=PGD(steps=1),
        batch_size=8,
        tolerance=0.25,
        progress=seen.append,
    )
    assert [one.alpha for one in found.points] == [0, 0.5, 2]
    assert seen == [8, 8, 4] * 3
    assert found.chosen == choose_alpha(found.points, 0.25)
    for one in found.points:
        own = tiny_net(3).eval()
        own.load_state_dict(interpolated(a, b, one.alpha, "parameters", names_of(own)))
        assert one.clean.value == int((own(x).argmax(1) == y).sum()) / 20


def test_without_an_attack_it_is_pgd_10_with_quarter_steps(tiny_batch):
    model, a = sensitive()
    x, y, *_ = tiny_batch(60)
    settings = {"num_classes": 3, "alphas": (0.0,)}
    found = walk(model, a, a, x, y, Linf(0.02), **settings)
    assert found == walk(model, a, a, x, y, Linf(0.02), attack=PGD(steps=10, rel_step_size=0.25), **settings)
    assert 0 < found.at(0.0).robust.value < found.at(0.0).clean.value


def test_uint8_images_are_those_in_the_unit_interval(tiny_net, tiny_examples):
    model, a, b = pair(tiny_net)
    data = tiny_examples(12)
    settings = {"num_classes": 3, "alphas": (0.0, 0.5), "attack": PGD(steps=1), "statistics_from": None}
    found = walk(model, a, b, data.x, data.y, THREAT, **settings)
    assert found == walk(model, a, b, data.x.float() / 255, data.y, THREAT, **settings)


def test_the_model_comes_back_after_an_error_too(tiny_net, tiny_batch, snapshot):
    model, a, b = pair(tiny_net)
    model.train()
    x, y, *_ = tiny_batch(8)
    before = snapshot(model)
    calls: list[int] = []

    def fail(count: int) -> None:
        calls.append(count)
        if len(calls) == 2:  # at alpha 1, whose weights are loaded
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        walk(model, b, a, x, y, THREAT, num_classes=3, alphas=(0, 1), attack=PGD(steps=1), progress=fail)
    assert all(torch.equal(bits(t), bits(before[name])) for name, t in model.state_dict().items())
    assert model.training


def test_reestimation_is_seeded_and_moves_nothing_global(tiny_batch, tiny_net):
    x = tiny_batch(24).x
    state = torch.get_rng_state()
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Dropout(0.5), *tiny_net(0))
        reestimate_statistics(model, x, batch_size=8)
        assert torch.initial_seed() == seed
        found.append(model[2].running_mean.clone())
    torch.set_rng_state(state)
    assert torch.equal(*found)


def test_between_the_ends_the_model_has_the_statistics_of_the_images(tiny_net, tiny_batch):
    model, a, b = pair(tiny_net)
    x, y, *_ = tiny_batch(200)
    images = tiny_batch(64, seed=3).x
    settings = {"num_classes": 3, "alphas": (0.0, 0.5, 1.0), "attack": PGD(steps=1), "batch_size": 32}
    found = walk(model, a, b, x, y, THREAT, statistics_from=images, **settings)
    plain = walk(model, a, b, x, y, THREAT, **settings)
    own = tiny_net(3).eval()
    own.load_state_dict(interpolated(a, b, 0.5, "full-state", names_of(own)))
    features = own[0](images)
    own[1].running_mean.copy_(torch.stack([p.mean((0, 2, 3)) for p in features.split(32)]).mean(0).detach())
    own[1].running_var.copy_(torch.stack([p.var((0, 2, 3)) for p in features.split(32)]).mean(0).detach())
    assert found.at(0.5).clean == wilson(int((own(x).argmax(1) == y).sum()), 200)
    assert found.at(0.5) != plain.at(0.5)
    assert (found.at(0.0), found.at(1.0)) == (plain.at(0.0), plain.at(1.0))


def test_a_line_is_json_and_knows_its_points(tiny_net, tiny_batch):
    model, a, b = pair(tiny_net)
    x, y, *_ = tiny_batch(4)
    found = walk(model, a, b, x, y, THREAT, num_classes=3, alphas=(0, 1), attack=PGD(steps=1))
    content = json.loads(json.dumps(found.to_dict()))
    assert (content["chosen"], content["tolerance"], len(content["points"])) == (found.chosen, 0.001, 2)
    with pytest.raises(InputError, match=r"alpha 0\.5 was not measured\nhint: 0, 1"):
        found.at(0.5)


def test_what_a_walk_refuses(tiny_net, tiny_batch):
    model, a, b = pair(tiny_net)
    x, y, *_ = tiny_batch(4)
    with pytest.raises(InputError, match="needs 0"):
        walk(model, a, b, x, y, THREAT, num_classes=3, alphas=(0.5, 1))
    with pytest.raises(InputError, match="no examples"):
        walk(model, a, b, x[:0], y[:0], THREAT, num_classes=3)
    with pytest.raises(InputError, match="at least 1"):
        walk(model, a, b, x, y, THREAT, num_classes=3, runs=0)
    with pytest.raises(CheckpointError, match="no line"):
        walk(model, a, {"0.weight": b["0.weight"]}, x, y, THREAT, num_classes=3)
