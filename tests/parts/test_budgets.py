import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from gambeson.attacks import MMA, PGD, Boundary, Gaussian, Uniform, Zero
from gambeson.core.errors import FileError, GambesonWarning, InputError
from gambeson.core.streams import Streams
from gambeson.core.threat import Linf
from gambeson.core.types import Batch
from gambeson.data.loader import Loader
from gambeson.data.splits import Examples, hold_out
from gambeson.engine import Run, Settings, Trainer
from gambeson.engine.sentinel import Probe, Sentinel
from gambeson.methods import Recipe, fgsm, free_at, mart, n_fgsm, part, part_m, part_t, pgd_at, standard, trades
from gambeson.methods.recipe import search
from gambeson.parts import CAM, Jet, MaskFile, PixelBudget, Quadrant, Quantile, Random, ZScore
from gambeson.parts.budget_state import BudgetState
from gambeson.parts.cam import class_activation_maps, find_site, normalised
from gambeson.parts.masks import upsample

pytestmark = pytest.mark.filterwarnings("ignore::gambeson.core.errors.GambesonWarning")  # TinyNet has no closed form

EPS, LOW = 8 / 255, 2 / 255
STREAMS = Streams(4)
COUNT, BATCH = 20, 8  # three steps an epoch, the last one smaller
PARTS: dict[str, Callable[..., Recipe]] = {"part": part, "part-t": part_t, "part-m": part_m}
BASES = {
    "part": pgd_at(EPS, steps=2),
    "part-t": trades(EPS, beta=6.0, steps=2),
    "part-m": mart(EPS, beta=6.0, steps=2),
}


def rng(step: int = 0) -> Callable[[str], Generator]:
    return partial(STREAMS.at, step=step)


def trainer(recipe: Recipe, train: Examples | None = None, init: int = 0, **changes: Any) -> Trainer:
    chosen = {
        "epochs": 2,
        "batch_size": BATCH,
        "lr": 0.1,
        "pad": 1,
        "flip": True,
        "seed": 5,
        "probe_every": 0,
    } | changes
    examples = zoo.examples(COUNT, 1) if train is None else train
    return Trainer(zoo.net(init), recipe, examples, zoo.examples(8, 2), zoo.TASK, Settings(**chosen))


def trained(recipe: Recipe, steps: int | None = None, **changes: Any) -> dict[str, Tensor]:
    """Weights and buffers after `steps`, or after all of the epochs."""
    whole = trainer(recipe, **changes)
    for _ in range(whole.total if steps is None else steps):
        whole._train_step()
    return whole.model.state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


def state_of(whole: Trainer) -> BudgetState:
    (state,) = (part for part in whole.parts if isinstance(part, BudgetState))
    return state


def begun(spec: PixelBudget, model: nn.Module, loader: Loader, epoch: int = 0) -> BudgetState:
    state = spec.build(model)
    state.prepare(model, loader, epoch + 1)
    state.begin_epoch(model, loader, epoch)
    return state


def batches(loader: Loader, epoch: int = 0) -> list[Batch]:
    return [loader.batch(epoch * loader.steps_per_epoch + k) for k in range(loader.steps_per_epoch)]


def moved_by_hand(mask: Tensor, placement: Tensor) -> Tensor:
    """Pixel by pixel; False where the crop shows what is outside of the image."""
    out = torch.zeros_like(mask)
    n, channels, h, w = mask.shape
    for i in range(n):
        dy, dx, mirrored = placement[i].tolist()
        for r in range(h):
            for c in range(w):
                row, column = r + dy, (w - 1 - c if mirrored else c) + dx
                if 0 <= row < h and 0 <= column < w:
                    for k in range(channels):
                        out[i, k, r, c] = mask[i, k, row, column]
    return out


# --- inside the budget ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["paper", "release"])
@pytest.mark.parametrize("inner_attack", ["pgd", "mma"])
@pytest.mark.parametrize("name", PARTS)
def test_no_value_moves_further_than_its_budget(name: str, inner_attack: Any, protocol: Any) -> None:
    recipe = PARTS[name](EPS, LOW, inner_attack=inner_attack, steps=4, warmup=1, protocol=protocol)
    whole = trainer(recipe)
    (state,) = whole.parts
    state.begin_epoch(whole.model, whole.loader, 1)
    for step in (3, 4):
        batch = whole.loader.batch(step)
        threat = state.budget(whole.model, batch, recipe.threat, rng(step), 1)
        assert isinstance(threat.eps, Tensor)
        assert threat.eps.shape == (BATCH, 3 if protocol == "release" else 1, 8, 8)
        assert threat.eps.unique().tolist() == pytest.approx([LOW, EPS])
        x_adv = search(whole.model, batch, recipe, whole.optimizer, rng(step), 1, threat).x
        size = (x_adv - batch.x).abs()
        budget = threat.eps.expand_as(size)
        assert (size - budget).max() <= 1e-6
        assert size[budget > LOW].max() > 0.9 * EPS
        assert (size[budget < EPS] > 0.9 * LOW).float().mean() > 0.3  # the low budget is used as well
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1


def test_training_uses_the_budget() -> None:
    recipe = part(EPS, LOW, steps=2, warmup=1)
    assert not same(trained(recipe), trained(BASES["part"]))


MASKS = ["zscore", "quantile", "jet", "random", "quadrant:ur", "file"]
ROWS = [(mask, refresh) for mask in MASKS for refresh in ((0, 1) if mask in ("zscore", "quantile", "jet") else (1,))]


@pytest.fixture(scope="module")
def bases() -> dict[str, dict[str, Tensor]]:
    return {name: trained(recipe) for name, recipe in BASES.items()}


@pytest.mark.parametrize(("mask", "refresh"), ROWS)
@pytest.mark.parametrize("name", PARTS)
def test_equal_budgets_are_the_base_method_to_the_bit(
    name: str, mask: str, refresh: int, bases: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    if mask == "file":
        np.save(tmp_path / "masks.npy", torch.rand(COUNT, 8, 8, generator=rng()("masks")).numpy() > 0.5)
        mask = f"file:{tmp_path / 'masks.npy'}"
    recipe = PARTS[name](EPS, EPS, steps=2, warmup=0, mask=mask, refresh=refresh)
    assert same(trained(recipe), bases[name])


@pytest.mark.parametrize("assign", ["permuted", "release"])
def test_equal_budgets_are_the_base_method_whosever_the_masks_are(
    assign: Any, bases: dict[str, dict[str, Tensor]]
) -> None:
    assert same(trained(part(EPS, EPS, steps=2, warmup=0, assign=assign)), bases["part"])


STARTS = st.sampled_from([Zero(), Uniform(), Uniform(0.5), Uniform(eps=0.05, clip=False), Gaussian(0.01), Boundary()])
EPSILONS = st.floats(0.001, 0.3)


@settings(max_examples=15)
@given(EPSILONS, STARTS, st.sampled_from(["ce", "kl", "margin"]), st.sampled_from([(), (8, 1, 8, 8), (8, 3, 8, 8)]))
def test_a_constant_budget_per_pixel_is_the_scalar_to_the_bit(
    eps: float, start: Any, loss: Any, shape: tuple[int, ...]
) -> None:
    model, batch, threat = zoo.net(), zoo.batch(), Linf(eps)
    constant = threat.with_map(torch.full(shape, eps))
    for attack in (
        PGD(steps=2, step_size=0.3 * eps, start=start, loss=loss),
        PGD(steps=2, rel_step_size=0.5, start=start, loss=loss),
        MMA(targets=2, steps=2, step_size=0.3 * eps, start=start),
    ):
        expected = attack(model, batch, threat, rng()("attack"))
        assert torch.equal(attack(model, batch, constant, rng()("attack")), expected)
        assert not torch.equal(expected, batch.x)


@settings(max_examples=15)
@given(st.integers(0, 2**32), STARTS, st.booleans(), st.booleans())
def test_any_budget_per_pixel_bounds_every_value(seed: int, start: Any, channels: bool, margin: bool) -> None:
    model, batch = zoo.net(), zoo.batch()
    shape = (8, 3 if channels else 1, 8, 8)
    budget = (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.2).clamp_min(0) * 0.1
    attack: Any = MMA if margin else PGD
    attack = attack(steps=3, rel_step_size=0.5, start=start)
    x_adv = attack(model, batch, Linf(0.08).with_map(budget), rng()("attack"))
    assert ((x_adv - batch.x).abs() - budget).max() <= 1e-7
    assert torch.equal(x_adv[(budget == 0).expand_as(x_adv)], batch.x[(budget == 0).expand_as(x_adv)])
    assert ((x_adv - batch.x).abs() > 0.9 * budget)[budget.expand_as(x_adv) > 0].float().mean() > 0.4


# --- maps kept and maps made anew ----------------------------------------------------------------------------------

RULES = [ZScore(), Quantile(0.7), Jet()]
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)


@each_rule
def test_kept_maps_are_the_maps_of_the_batch_where_nothing_moves(rule: Any) -> None:
    model, loader = zoo.net(), Loader(zoo.examples(COUNT, 1), BATCH, STREAMS)
    kept, anew = (begun(PixelBudget(eps_low=LOW, mask=rule, refresh=s), model, loader, 3) for s in (1, 0))
    assert kept.maps.shape == (COUNT, 4, 4)
    assert anew.maps.shape == (0,)
    different = 0
    for batch in batches(loader, 3):
        assert batch.placement is None
        (a, dead), (b, _) = (state.mask(model, batch, rng()) for state in (kept, anew))
        different += int((a != b).sum())
        assert 0.02 < b.float().mean() < 0.7
        assert not dead.any()
        eps_kept, eps_anew = (state.budget(model, batch, Linf(EPS), rng(), 3).eps for state in (kept, anew))
        assert torch.equal(eps_kept == eps_anew, a == b)
    assert different <= 2  # batches of another size may round differently


@each_rule
def test_kept_masks_move_with_crop_and_flip(rule: Any) -> None:
    model, loader = zoo.net(), Loader(zoo.examples(COUNT, 1), BATCH, STREAMS, pad=3, flip=True)
    state = begun(PixelBudget(eps_low=LOW, mask=rule), model, loader)
    for batch in batches(loader):
        plain = rule(upsample(state.maps[batch.index], (8, 8)))
        assert batch.placement is not None
        expected = moved_by_hand(plain, batch.placement)
        assert torch.equal(state.mask(model, batch, rng())[0], expected)
        assert not torch.equal(expected, plain)


def test_kept_maps_are_those_of_the_images_without_augmentation() -> None:
    model, data = zoo.net(), zoo.examples(COUNT, 1)
    loader = Loader(data, BATCH, STREAMS, pad=3, flip=True)
    state = begun(PixelBudget(eps_low=LOW, cam=CAM("layercam", "conv2")), model, loader)
    x = data.x.float() / 255
    expected, _ = normalised(class_activation_maps(model, x, find_site(model, x, "conv2"), "layercam").maps)
    torch.testing.assert_close(state.maps, expected, rtol=0, atol=1e-5)
    other = begun(PixelBudget(eps_low=LOW), model, loader)
    assert (other.maps - expected).abs().max() > 0.1
    assert model.training


def test_maps_of_the_batch_are_those_of_the_augmented_images() -> None:
    model, loader = zoo.net(), Loader(zoo.examples(COUNT, 1), BATCH, STREAMS, pad=3, flip=True)
    state = begun(PixelBudget(eps_low=LOW, refresh=0), model, loader)
    batch = loader.batch(0)
    maps = class_activation_maps(model, batch.x, find_site(model, batch.x)).maps
    assert torch.equal(state.mask(model, batch, rng())[0], ZScore()(upsample(normalised(maps)[0], (8, 8))))


# --- the mask belongs to its image ---------------------------------------------------------------------------------


def brightness_net() -> nn.Sequential:
    """Its map is the brightness of the image in cells of 4x4 pixels."""
    model = nn.Sequential(
        nn.Conv2d(3, 2, 4, stride=4, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)
    )
    convolution, linear = model[0], model[3]
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        convolution.weight.fill_(1 / 48)
        linear.weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
        linear.bias.zero_()
    return model


def patches(count: int = 40) -> Examples:
    """Dark images of 16x16 pixels with a bright patch of 4x4 in a cell of their own."""
    drawn = torch.Generator().manual_seed(0)
    x = torch.randint(0, 20, (count, 3, 16, 16), generator=drawn)
    for i, cell in enumerate(torch.randint(0, 16, (count,), generator=drawn).tolist()):
        r, c = 4 * (cell // 4), 4 * (cell % 4)
        x[i, :, r : r + 4, c : c + 4] = 250
    return Examples(x.to(torch.uint8), torch.zeros(count, dtype=torch.int64))


@pytest.mark.parametrize(
    ("spec", "least", "most"),
    [
        ({}, 0.9, 1.0),
        ({"mask": Quantile(0.9)}, 0.9, 1.0),
        ({"refresh": 0}, 0.9, 1.0),
        ({"refresh": 3}, 0.9, 1.0),
        ({"assign": "permuted"}, 0.0, 0.35),
        ({"assign": "permuted", "mask": Quantile(0.9)}, 0.0, 0.4),
        ({"assign": "permuted", "refresh": 0}, 0.0, 0.4),
        ({"assign": "release"}, 0.0, 0.35),
    ],
)
def test_the_mask_covers_what_the_map_shows_unless_the_masks_are_permuted(
    spec: dict[str, Any], least: float, most: float
) -> None:
    model, loader = brightness_net(), Loader(patches(), 9, STREAMS, pad=3, flip=True)
    state = PixelBudget(eps_low=LOW, **spec).build(model)
    state.prepare(model, loader, 9)
    covered, shares = [], []
    for epoch in range(3):
        state.begin_epoch(model, loader, epoch)
        for step, batch in enumerate(batches(loader, epoch)):
            mask, dead = state.mask(model, batch, rng(step))
            bright = batch.x.mean(1, keepdim=True) > 0.5
            covered.append((mask & bright).sum((1, 2, 3)) / bright.sum((1, 2, 3)))
            shares.append(mask.float().mean())
            assert not dead.any()
    assert torch.stack(shares).mean() < 0.13  # covering everything would be no art
    found = torch.cat(covered)
    assert least <= found.mean() <= most
    assert least == 0 or found.min() >= 0.5  # a patch at the edge may be cut


def test_permuted_masks_are_those_of_other_images_moved_like_this_one() -> None:
    model, loader = zoo.net(), Loader(zoo.examples(COUNT, 1), BATCH, STREAMS, pad=2, flip=True)
    state = begun(PixelBudget(eps_low=LOW, assign="permuted"), model, loader)
    own = begun(PixelBudget(eps_low=LOW), model, loader)
    assert torch.equal(state.maps, own.maps)
    assert sorted(state.order.tolist()) == list(range(COUNT))
    assert (state.order != torch.arange(COUNT)).float().mean() > 0.7
    batch = loader.batch(0)
    assert batch.placement is not None
    expected = moved_by_hand(ZScore()(upsample(own.maps[state.order[batch.index]], (8, 8))), batch.placement)
    assert torch.equal(state.mask(model, batch, rng())[0], expected)


def test_permuted_masks_of_a_batch_are_those_of_the_batch() -> None:
    model, loader = zoo.net(), Loader(zoo.examples(COUNT, 1), BATCH, STREAMS, pad=2, flip=True)
    own, other = (begun(PixelBudget(eps_low=LOW, refresh=0, assign=a), model, loader) for a in ("own", "permuted"))  # type: ignore[arg-type]
    batch = loader.batch(0)
    a, b = ([tuple(m.flatten().tolist()) for m in s.mask(model, batch, rng())[0]] for s in (own, other))
    assert sorted(a) == sorted(b)
    assert a != b
    again = [tuple(m.flatten().tolist()) for m in other.mask(model, batch, rng(1))[0]]
    assert again != b


def test_the_release_looks_up_maps_of_augmented_images_by_place_and_moves_nothing() -> None:
    model, loader = zoo.net(), Loader(zoo.examples(COUNT, 1), BATCH, STREAMS, pad=2, flip=True)
    state = begun(PixelBudget(eps_low=LOW, mask=Jet(), assign="release", dead="low"), model, loader)
    own = begun(PixelBudget(eps_low=LOW), model, loader)
    assert (state.maps - own.maps).abs().amax((1, 2)).gt(0.01).float().mean() > 0.7  # of augmented images
    batch = loader.batch(0)
    maps = state.maps[state.order[batch.index]]
    expected = Jet()(upsample(maps, (8, 8))) & (maps.amax((1, 2)) > 0).view(-1, 1, 1, 1)
    assert torch.equal(state.mask(model, batch, rng())[0], expected)
    assert expected.any()
    first = state.order
    state.begin_epoch(model, loader, 1)
    assert not torch.equal(state.order, first)


def test_random_masks_and_quadrants_do_not_move() -> None:
    model, loader = zoo.net(), Loader(zoo.examples(COUNT, 1), BATCH, STREAMS, pad=3, flip=True)
    batch = loader.batch(0)
    quadrant = begun(PixelBudget(eps_low=LOW, mask=Quadrant("br")), model, loader)
    mask, dead = quadrant.mask(model, batch, rng())
    assert torch.equal(mask, Quadrant("br")(batch.x))
    assert not dead.any()
    drawn = begun(PixelBudget(eps_low=LOW, mask=Random(0.4)), model, loader)
    first, second = (drawn.mask(model, batch, rng(step))[0] for step in (0, 1))
    assert torch.equal(first, Random(0.4)(batch.x, rng()("budget")))
    assert not torch.equal(first, second)
    assert drawn.maps.numel() == drawn.order.numel() == 0


# --- masks from a file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assign", ["own", "permuted"])
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_masks_from_a_file_follow_hold_out_crop_and_flip(channels: int | None, assign: Any, tmp_path: Path) -> None:
    shape = (30, 8, 8) if channels is None else (30, channels, 8, 8)
    masks = torch.rand(shape, generator=rng()("file")) > 0.5
    np.save(tmp_path / "masks.npy", masks.numpy())
    everything = zoo.examples(30, 1)
    rest, held = hold_out(everything, 0.3, zoo.TASK.num_classes, seed=3)
    data = everything.subset(rest).subset(torch.arange(len(rest)).flip(0)).head(18)  # subsets of subsets, other orders
    spec = PixelBudget(eps_low=LOW, mask=MaskFile(str(tmp_path / "masks.npy")), assign=assign)
    model, loader = zoo.net(), Loader(data, 7, STREAMS, pad=2, flip=True)
    state = begun(spec, model, loader)
    of_image = {tuple(image.flatten().tolist()): i for i, image in enumerate(everything.x)}
    pixels = data.x[state.order] if assign == "permuted" else data.x
    for batch in batches(loader):
        positions = [of_image[tuple(image.flatten().tolist())] for image in pixels[batch.index]]
        assert not set(positions) & set(held.tolist())
        assert batch.placement is not None
        expected = moved_by_hand(masks.view(30, channels or 1, 8, 8)[positions], batch.placement)
        found, dead = state.mask(model, batch, rng())
        assert torch.equal(found, expected)
        assert not dead.any()
    assert "masks" not in state.state_dict()  # they are in the file


def test_a_file_of_masks_must_fit_the_whole_training_set(tmp_path: Path) -> None:
    np.save(tmp_path / "masks.npy", np.ones((COUNT, 8, 8), dtype=bool))
    recipe = part(mask=f"file:{tmp_path / 'masks.npy'}", warmup=0)
    trainer(recipe, zoo.examples(COUNT, 1))
    trainer(recipe, zoo.examples(COUNT, 1).head(12))
    with pytest.raises(FileError, match=r"holds masks of shape \(20, 8, 8\), needed is \(21, 8, 8\)"):
        trainer(recipe, zoo.examples(21, 1).head(20))
    with pytest.raises(FileError, match="cannot read the masks"):
        trainer(part(mask="file:nowhere.npy", warmup=0))


# --- dead maps and counters ----------------------------------------------------------------------------------------


def partly_dead() -> tuple[nn.Sequential, Examples]:
    """Images without any patch have no map: brightness only lowers the logit of what they are taken for."""
    model, data = brightness_net(), patches(12)
    with torch.no_grad():
        model[3].weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))  # type: ignore[union-attr]
        model[3].bias.copy_(torch.tensor([0.0, 0.12]))  # type: ignore[union-attr]
    x = data.x.clone()
    x[::3] = 10
    return model, Examples(x, data.y)


@pytest.mark.parametrize("refresh", [0, 1])
@pytest.mark.parametrize("dead", ["full", "low"])
def test_an_image_with_an_empty_map_gets_the_budget_that_is_asked_for(dead: Any, refresh: int) -> None:
    model, data = partly_dead()
    loader = Loader(data, 12, STREAMS, pad=1, flip=True)
    state = begun(PixelBudget(eps_low=LOW, dead=dead, refresh=refresh), model, loader)
    batch = loader.batch(0)
    eps = state.budget(model, batch, Linf(EPS), rng(), 0).eps
    assert isinstance(eps, Tensor)
    without = batch.index % 3 == 0
    assert eps[without].unique().tolist() == pytest.approx([EPS if dead == "full" else LOW])
    for i in (~without).nonzero().flatten():
        assert eps[i].unique().tolist() == pytest.approx([LOW, EPS])
    assert state.metrics()["train/dead_maps"] == 4


def test_the_metrics_are_counts_since_they_were_read_last() -> None:
    model, data = partly_dead()
    loader = Loader(data, 5, STREAMS, pad=2)
    state = begun(PixelBudget(eps_low=LOW, mask=Jet(), dead="full"), model, loader)
    assert state.metrics() == {}
    steps = batches(loader)
    for span in (steps[:2], steps[2:]):
        full = values = dead = 0
        for batch in span:
            eps = state.budget(model, batch, Linf(EPS), rng(), 0).eps
            assert isinstance(eps, Tensor)
            for value in eps.flatten().tolist():
                full += value > (EPS + LOW) / 2
                values += 1
            dead += sum(int(i) % 3 == 0 for i in batch.index)
        assert state.metrics() == {"train/full_budget": full / values, "train/dead_maps": dead}
        assert 0 < full < values
    assert state.metrics() == {}


@pytest.mark.parametrize(("mask", "share"), [("random:1", 1.0), ("uniform", 0.0), ("quadrant:ul", 0.75)])
def test_the_share_of_masks_without_maps(mask: str, share: float, tmp_path: Path) -> None:
    """Through the trainer: warm-up epochs have no line, and no dead maps are counted where there are none."""
    whole = trainer(part(EPS, LOW, steps=1, warmup=1, mask=mask), log_every=2)
    run = Run.create(tmp_path / "run", {})
    whole.fit(run)
    rows = [row for row in run.rows() if "train/loss" in row]
    assert [row["step"] for row in rows] == [2, 3, 4, 6]
    assert [row.get("train/full_budget") for row in rows] == [None, None, share, share]
    assert not any("train/dead_maps" in row for row in rows)


# --- warm-up and refreshes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("assign", ["own", "permuted", "release"])
@pytest.mark.parametrize("s", [1, 3])
def test_maps_are_made_when_they_are_due(s: int, assign: Any) -> None:
    warmup, epochs = 2, 10
    recipe = part(EPS, LOW, steps=1, warmup=warmup, refresh=s, assign=assign)
    whole = trainer(recipe, zoo.examples(6, 1), batch_size=3, epochs=epochs)
    state = state_of(whole)
    due, orders = [], []
    for epoch in range(epochs):
        before = state.maps
        for _ in range(2):
            whole._train_step()
            if len(due) == 0 or due[-1] != epoch:
                due += [epoch] if state.maps is not before else []
                before = state.maps
            assert state.maps is before  # at the start of the epoch or not at all
        orders.append(tuple(state.order.tolist()))
    if assign == "release":  # after the warm-up, and when the local epoch, from 1, is a multiple
        expected = [epoch for epoch in range(warmup, epochs) if epoch == warmup or (epoch - warmup + 1) % s == 0]
        assert expected == {1: list(range(2, 10)), 3: [2, 4, 7]}[s]
    else:
        expected = [epoch for epoch in range(warmup, epochs) if (epoch - warmup) % s == 0]
        assert expected == {1: list(range(2, 10)), 3: [2, 5, 8]}[s]
    assert due == expected
    assert orders[:warmup] == [(), ()]
    assert len(set(orders[warmup:])) == (1 if assign == "own" else 8)  # whose mask is drawn in every epoch


def test_refreshed_maps_are_those_of_the_present_weights() -> None:
    whole = trainer(part(EPS, LOW, steps=1, warmup=0, refresh=1), zoo.examples(6, 1), batch_size=3)
    first = None
    for epoch in range(2):
        weights = {name: t.clone() for name, t in whole.model.state_dict().items()}
        whole._train_step()
        fresh = zoo.net()
        fresh.load_state_dict(weights)
        x = whole.loader.examples.x.float() / 255
        expected = normalised(class_activation_maps(fresh, x, find_site(fresh, x)).maps)[0]
        torch.testing.assert_close(state_of(whole).maps, expected, rtol=0, atol=1e-4)
        if epoch:
            assert (state_of(whole).maps - first).abs().max() > 1e-3
        first = state_of(whole).maps
        whole._train_step()


@pytest.mark.parametrize("name", PARTS)
def test_warm_up_epochs_are_the_base_method(name: str) -> None:
    recipe = PARTS[name](EPS, LOW, steps=2, warmup=1)
    assert same(trained(recipe, 3), trained(BASES[name], 3))
    assert not same(trained(recipe, 4), trained(BASES[name], 4))


def test_in_the_warm_up_the_threat_is_passed_on() -> None:
    model, loader = zoo.net(), Loader(zoo.examples(COUNT, 1), BATCH, STREAMS)
    state = PixelBudget(eps_low=LOW, warmup=2).build(model)
    threat = Linf(EPS)
    for epoch in (0, 1):
        state.begin_epoch(model, loader, epoch)
        assert state.maps.numel() == 0
        assert state.budget(model, loader.batch(0), threat, rng(), epoch) is threat
    assert state.metrics() == {}
    state.begin_epoch(model, loader, 2)
    assert state.maps.numel() > 0
    found = state.budget(model, loader.batch(0), threat, rng(), 2)
    assert found is not threat
    assert threat.eps == EPS


def test_two_budgets_are_the_smaller_of_both() -> None:
    model, batch = zoo.net(), zoo.batch()
    threat: Any = Linf(EPS)
    for corner, low in (("ul", 5 / 255), ("ur", 2 / 255), ("ul", 7 / 255)):
        spec = PixelBudget(eps_low=low, mask=Quadrant(corner))  # type: ignore[arg-type]
        threat = spec.build(model).budget(model, batch, threat, rng(), 0)
    assert (threat.eps[..., :4, :4] == torch.tensor(5 / 255)).all()
    assert (threat.eps[..., :4, 4:] == torch.tensor(2 / 255)).all()
    assert (threat.eps[..., 4:, :] == torch.tensor(EPS)).all()


# --- interrupted ---------------------------------------------------------------------------------------------------


class _Stop(Exception):  # noqa: N818 (a signal, no error)
    pass


def rows_of(run: Run) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in run.rows()]


@pytest.mark.parametrize(
    "options",
    [
        {"refresh": 2},
        {"refresh": 2, "assign": "permuted"},
        {"refresh": 2, "assign": "release", "mask": "jet"},
        {"refresh": 0, "assign": "permuted"},
        {"mask": "file", "assign": "permuted"},
    ],
)
def test_a_training_with_kept_maps_is_resumed_to_the_bit(options: dict[str, Any], tmp_path: Path) -> None:
    """Stopped in the third epoch, whose maps were made in the second."""
    if options.get("mask") == "file":
        np.save(tmp_path / "masks.npy", torch.rand(COUNT, 8, 8, generator=rng()("masks")).numpy() > 0.5)
        options = {**options, "mask": f"file:{tmp_path / 'masks.npy'}"}
    recipe = part(EPS, LOW, steps=1, warmup=1, **options)
    make = partial(trainer, recipe, epochs=4, checkpoint_every=7, log_every=5)
    whole = make()
    whole_run = Run.create(tmp_path / "whole", {})
    whole.fit(whole_run)

    broken, run = make(), Run.create(tmp_path / "broken", {})

    def listen(row: dict[str, Any]) -> None:
        if row == {"step": 8}:
            raise _Stop

    with pytest.raises(_Stop):
        broken.fit(run, listen)
    resumed = make(init=1)
    resumed.resume(run)
    assert resumed.step == 7
    resumed.fit(run)
    (expected, expected_header), (found, found_header) = whole.state(), resumed.state()
    assert found.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    for header in (expected_header, found_header):
        header.pop("elapsed")
    assert json.dumps(found_header) == json.dumps(expected_header)
    assert rows_of(run) == rows_of(whole_run)
    assert any("train/full_budget" in row for row in rows_of(run))


@pytest.mark.parametrize("assign", ["own", "permuted"])
def test_a_rollback_to_weights_from_before_the_first_maps_goes_on(
    assign: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def look(self: Sentinel, model: nn.Module, step: int) -> Probe:
        looks.append(step)
        collapsed = looks.count(4) == 1 and step == 4
        return Probe(0.9, 0.1, True, 0.4, 0.1) if collapsed else Probe(0.5, 0.5, False, 0.0, 0.9)

    monkeypatch.setattr(Sentinel, "look", look)
    recipe = part(EPS, LOW, steps=1, warmup=1, assign=assign)
    whole = trainer(recipe, epochs=3, probe_every=2, on_overfitting="rollback")
    whole.fit(Run.create(tmp_path / "run", {}))
    assert whole.rollbacks == 1
    assert whole.step == whole.total


def test_the_state_dict_goes_into_a_fresh_module() -> None:
    model, loader = zoo.net(), Loader(zoo.examples(COUNT, 1), BATCH, STREAMS, pad=1)
    spec = PixelBudget(eps_low=LOW, assign="permuted")
    state = begun(spec, model, loader)
    state.budget(model, loader.batch(0), Linf(EPS), rng(), 0)
    saved = {name: t.clone() for name, t in state.state_dict().items()}
    assert set(saved) == {"maps", "order", "counts"}
    fresh = spec.build(zoo.net(1))
    nn.ModuleList([fresh]).load_state_dict({f"0.{name}": t for name, t in saved.items()})
    assert same(fresh.state_dict(), saved)
    for step in range(3):
        batch = loader.batch(step)
        assert torch.equal(fresh.mask(zoo.net(1), batch, rng())[0], state.mask(model, batch, rng())[0])
    assert fresh.metrics() == state.metrics()
    assert saved["counts"].any()  # loading did not take over the tensors


def test_the_maps_lie_where_the_model_lies_in_its_precision() -> None:
    model = zoo.net().double()
    state = PixelBudget(eps_low=LOW).build(model)
    assert state.maps.dtype == torch.float64
    assert [state.order.dtype, state.counts.dtype] == [torch.int64, torch.int64]
    batch = zoo.batch(dtype=torch.float64)
    spec = PixelBudget(eps_low=LOW, refresh=0)
    eps = spec.build(model).budget(model, batch, Linf(EPS), rng(), 0).eps
    assert isinstance(eps, Tensor)
    assert eps.dtype == torch.float64
    assert eps.unique().tolist() == [LOW, EPS]


# --- what does not go together -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "low", "said"),
    [
        (
            pgd_at(EPS),
            0.1,
            "eps_low must not exceed eps, got 0.1 and 0.03137\n"
            "hint: eps is the budget of the pixels in the mask, eps_low that of the others",
        ),
        (pgd_at(0.5, norm="L2"), LOW, "a budget per pixel needs the threat Linf, got L2"),
        (standard(EPS), LOW, "a budget per pixel needs an attack, and this recipe has none"),
        (
            n_fgsm(EPS),
            LOW,
            "a budget per pixel needs an attack that projects; with project=False it bounds nothing",
        ),
    ],
)
def test_a_recipe_that_cannot_use_a_budget_per_pixel_is_refused(base: Recipe, low: float, said: str) -> None:
    with pytest.raises(InputError) as error:
        replace(base, parts=(PixelBudget(eps_low=low),))
    assert str(error.value) == said


def test_the_low_budget_may_be_equal_to_eps_and_may_be_zero() -> None:
    for low in (EPS, 0.0):
        replace(fgsm(EPS), parts=(PixelBudget(eps_low=low),))
    with pytest.raises(InputError, match="eps_low must not exceed eps"):
        part(EPS, EPS + 1e-6)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eps_low": 2}, r"eps_low must be a fraction of the pixel range in \[0, 1\], got 2\nhint: 2 grey levels are"),
        ({"mask": "zscore"}, "one of ZScore, Quantile, Jet, Random, Quadrant, MaskFile, got str\nhint: create_mask"),
        ({"eps_low": -0.1}, r"in \[0, 1\], got -0\.1"),
        ({"eps_low": float("nan")}, r"in \[0, 1\], got nan"),
        ({"refresh": -1}, "refresh and warmup count epochs from 0, got -1 and 0"),
        ({"warmup": -3}, "refresh and warmup count epochs from 0, got 1 and -3"),
        ({"assign": "mine"}, "unknown assignment of masks 'mine'\nhint: known: own, permuted, release"),
        ({"dead": "half"}, "unknown budget of dead maps 'half'\nhint: known: full, low"),
        ({"assign": "release", "refresh": 0}, "needs stored maps\nhint: refresh 1"),
        ({"assign": "release", "mask": MaskFile("m.npy")}, "masks from a file have none"),
        ({"assign": "permuted", "mask": Random()}, "random, uniform and quadrant masks belong to no image"),
        ({"assign": "release", "mask": Quadrant("ul")}, "belong to no image, .*\nhint: leave assign at own"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        PixelBudget(**{"eps_low": LOW, **settings})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"protocol": "poster"}, "unknown protocol 'poster'\nhint: known: paper, release"),
        ({"inner_attack": "apgd"}, "unknown inner attack 'apgd'\nhint: known: pgd, mma"),
        ({"protocol": "release", "refresh": 0}, "needs stored maps"),
        ({"mask": "permuted"}, "permuted is no mask of its own"),
        ({"cam": "scorecam"}, "unknown class-activation map 'scorecam'"),
    ],
)
def test_settings_of_the_methods_are_refused(options: dict[str, Any], said: str) -> None:
    for method in PARTS.values():
        with pytest.raises(InputError, match=said):
            method(**options)


@pytest.mark.parametrize("warmup", [2, 20])
def test_a_warm_up_as_long_as_the_training_is_refused_before_it(warmup: int) -> None:
    with pytest.raises(InputError, match=f"a warm-up of {warmup} epochs leaves none of 2 for budgets per pixel\nhint"):
        trainer(part(warmup=warmup), epochs=2)
    trainer(part(warmup=1), epochs=2)


def test_the_warm_up_is_a_quarter_of_the_epochs() -> None:
    for epochs, warmup in ((80, 20), (30, 7), (2, 0)):
        (state,) = trainer(part(), epochs=epochs).parts
        assert state.warmup == warmup


def test_empty_maps_are_said_once() -> None:
    state = PixelBudget(eps_low=LOW).build(zoo.net())
    state.counts += torch.tensor([10, 20, 3, 5])
    with pytest.warns(GambesonWarning, match="3 of 5 class-activation maps are empty: those images have the full"):
        assert state.metrics() == {"train/full_budget": 0.5, "train/dead_maps": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for counts in ([10, 20, 3, 5], [10, 20, 2, 5]):
            state.counts += torch.tensor(counts)
            state.metrics()


def test_a_carried_perturbation_and_a_budget_per_pixel_are_refused() -> None:
    """It keeps to the budgets of the batch before."""
    base = free_at(EPS)
    with pytest.raises(InputError, match="a carried perturbation kept to the budgets of the batch before"):
        replace(base, parts=(*base.parts, PixelBudget(eps_low=LOW)))


def test_stored_maps_that_nobody_made_are_named(tiny_net: Any, tiny_batch: Any) -> None:
    state = PixelBudget(eps_low=LOW, refresh=1).build(tiny_net())
    with pytest.raises(InputError, match="there are no stored maps yet\nhint: begin_epoch makes them"):
        state.budget(tiny_net(), tiny_batch(), Linf(EPS), lambda purpose: torch.Generator(), 0)


def test_jet_masks_of_grey_images_are_refused_before_the_training(tiny_examples: Any, tiny_net: Any) -> None:
    loader = Loader(tiny_examples(), 5, STREAMS)
    with pytest.raises(
        InputError, match="the jet mask has three channels, the images have 1\nhint: use zscore or quan"
    ):
        PixelBudget(eps_low=LOW, mask=Jet()).build(tiny_net()).prepare(tiny_net(), loader, 9)
    PixelBudget(eps_low=LOW).build(tiny_net()).prepare(tiny_net(), loader, 9)


def test_an_unknown_layer_is_refused_before_the_training() -> None:
    with pytest.raises(InputError, match="the model has no layer 'conv4'\nhint: did you mean conv3"):
        trainer(part(warmup=0, layer="conv4"))


def test_protocols_are_their_settings() -> None:
    (paper,), (release,) = part().parts, part(protocol="release").parts
    assert paper == PixelBudget(eps_low=EPS * 7 / 8, warmup=None)
    assert release == PixelBudget(eps_low=EPS * 7 / 8, mask=Jet(), assign="release", dead="low", warmup=None)
    (random,) = part(mask="random", protocol="release").parts
    assert random.assign == "own"  # such masks belong to no image
    assert paper.eps_low == pytest.approx(7 / 255, rel=1e-15)
    assert part().attack == PGD(steps=10, step_size=0.25 * EPS, start=Uniform())
    assert part(protocol="release").attack == PGD(steps=10, step_size=0.25 * EPS, start=Uniform(eps=EPS, clip=False))
    for method in (part_t, part_m):
        assert method(protocol="release").attack == method().attack  # their start knows no budget
        assert isinstance(method(inner_attack="mma").attack, MMA)
    assert part(inner_attack="mma", protocol="release").attack == MMA(
        steps=10, step_size=0.25 * EPS, start=Uniform(eps=EPS)
    )
