"""The matrix: what holds for every method and every attack, whatever they do inside."""

from __future__ import annotations

import dataclasses
import json
import pickle
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from torch import Generator, Tensor, nn

import gambeson.attacks
import gambeson.core.threat
import gambeson.parts
from gambeson.attacks import PGD, Hunt
from gambeson.core.parameters import applied, layer_weights
from gambeson.core.streams import Streams
from gambeson.core.types import Outcome
from gambeson.engine import Run, Settings, Trainer
from gambeson.engine.step import robust_step
from gambeson.evaluation import ATTACKS, SEARCHES, ensemble_of, evaluate, parse_attack
from gambeson.methods import METHODS, Recipe
from gambeson.methods.recipe import search

assert set(zoo.METHOD_SETTINGS) == set(METHODS), (
    "tests/zoo.py and gambeson.methods.METHODS disagree on "
    f"{sorted(set(zoo.METHOD_SETTINGS) ^ set(METHODS))}: every method has a row, every row a method"
)
STEPWISE = {name for name in ATTACKS if ensemble_of(name)}
assert set(zoo.ATTACK_NAMES) == set(ATTACKS) - STEPWISE, (
    f"tests/zoo.py and gambeson.evaluation.ATTACKS disagree on {sorted(set(zoo.ATTACK_NAMES) ^ set(ATTACKS))}"
)
assert set(zoo.SEARCHES) == set(SEARCHES), (
    f"tests/zoo.py and gambeson.evaluation.SEARCHES disagree on {sorted(set(zoo.SEARCHES) ^ set(SEARCHES))}"
)

NAMES = [*zoo.METHOD_SETTINGS, *zoo.VARIANTS, *zoo.AVERAGED, *zoo.COMPOSED]
ATTACKED = [name for name in NAMES if zoo.recipe(name).attack is not None]
PERTURBED = [name for name in NAMES if zoo.recipe(name).weight_perturbation is not None]
every_recipe = pytest.mark.parametrize("name", NAMES)

Row = dict[str, Any]


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def draws(step: int, seed: int = 0) -> Callable[[str], Generator]:
    return partial(Streams(seed).at, step=step)


def steps(name: str, model: nn.Module, count: int = 3, seed: int = 0) -> tuple[list[Outcome], nn.ModuleList]:
    """`count` steps in epoch 1, after every warm-up, on batches of which the last is smaller."""
    recipe = zoo.recipe(name)
    parts = nn.ModuleList(part.build(model) for part in recipe.parts)
    optimizer = sgd(model)
    dtype = next(model.parameters()).dtype
    outcomes = []
    for step in range(count):
        batch = zoo.batch(step // recipe.replays, 5 if step == count - 1 else 8, dtype)
        outcomes.append(robust_step(model, batch, recipe, parts, optimizer, draws(step, seed), 1))
    return outcomes, parts


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# The recipe is a value.


@every_recipe
def test_recipe_is_frozen_and_equal_to_its_twin(name: str) -> None:
    recipe, twin = zoo.recipe(name), zoo.recipe(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.replays = 3  # type: ignore[misc]
    assert recipe == twin
    assert hash(recipe) == hash(twin)
    assert dataclasses.replace(recipe) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    other = dataclasses.replace(recipe, threat=recipe.threat.with_eps(0.123))
    assert other != recipe
    assert other.objective == recipe.objective


@every_recipe
def test_repr_builds_the_recipe_again(name: str) -> None:
    """Runs record recipes by their repr, and resume compares it: it must tell recipes apart."""
    recipe = zoo.recipe(name)
    recipe = dataclasses.replace(recipe, threat=recipe.threat.with_eps(0.123))  # no default
    names = {"Recipe": Recipe}
    for module in (gambeson.attacks, gambeson.parts, gambeson.core.threat):
        names |= {key: value for key, value in vars(module).items() if isinstance(value, type)}
    assert eval(repr(recipe), names) == recipe


def test_rows_are_different_recipes() -> None:
    recipes = {name: zoo.recipe(name) for name in NAMES}
    assert len(set(recipes.values())) == len(recipes)
    assert len({repr(recipe) for recipe in recipes.values()}) == len(recipes)


# A step.


@every_recipe
def test_three_steps_train_every_parameter(name: str) -> None:
    model = zoo.net()
    before = tensors(model)
    outcomes, _ = steps(name, model)
    assert all(bool(outcome.loss.isfinite()) and outcome.loss.ndim == 0 for outcome in outcomes)
    for outcome in outcomes:
        assert set(outcome.logits) == set(zoo.recipe(name).objective.views)
        assert not any(z.requires_grad for z in [outcome.loss, *outcome.logits.values()])
    after = tensors(model)
    assert all(bool(t.isfinite().all()) for t in after.values())
    still = [key for key, _ in model.named_parameters() if torch.equal(before[key], after[key])]
    assert still == []
    assert not same({"mean": before["bn1.running_mean"]}, {"mean": after["bn1.running_mean"]})


@every_recipe
def test_step_leaves_flags_modes_and_gradients_as_they_belong(name: str) -> None:
    model = zoo.net()
    steps(name, model, 1)
    assert all(p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert all(module.track_running_stats for module in model.modules() if isinstance(module, nn.BatchNorm2d))


@every_recipe
def test_step_leaves_global_random_state_alone(name: str) -> None:
    model = zoo.net()
    before = torch.get_rng_state(), random.getstate(), pickle.dumps(np.random.get_state())
    steps(name, model, 2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert pickle.dumps(np.random.get_state()) == before[2]


@every_recipe
def test_same_seed_same_weights(name: str) -> None:
    first, second = zoo.net(), zoo.net()
    steps(name, first)
    with torch.random.fork_rng():
        torch.manual_seed(99)  # must not matter
        steps(name, second)
    assert same(tensors(first), tensors(second))
    recipe = zoo.recipe(name)
    random_start = recipe.attack is not None and recipe.attack.start != gambeson.attacks.Zero()
    if random_start or recipe.penalty is not None:
        third = zoo.net()
        steps(name, third, seed=1)
        assert not same(tensors(first), tensors(third))


@every_recipe
def test_double_precision(name: str) -> None:
    model = zoo.net().double()
    outcomes, parts = steps(name, model, 2)
    assert outcomes[0].loss.dtype == torch.float64
    for t in [*model.parameters(), *model.buffers(), *parts.parameters(), *parts.buffers()]:
        assert t.dtype in (torch.float64, torch.int64, torch.bool)


# The search.


@pytest.mark.parametrize("name", ATTACKED)
def test_adversarial_images_are_inside_ball_and_box(name: str) -> None:
    recipe = zoo.recipe(name)
    attack = recipe.attack
    assert attack is not None
    batch, model = zoo.batch(), zoo.net()
    x_adv = search(model, batch, recipe, sgd(model), draws(0), 1).x
    bound = recipe.threat.eps
    if isinstance(attack, PGD) and not attack.project:
        bound *= getattr(attack.start, "radius", 0.0) + (attack.rel_step_size or 0.25)
    distance = recipe.threat.distance(x_adv, batch.x)
    assert x_adv.shape == batch.x.shape
    assert x_adv.dtype == torch.float32
    assert not x_adv.requires_grad
    assert distance.max() <= bound + 1e-6
    assert distance.min() > 0.3 * recipe.threat.eps
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


@every_recipe
def test_search_moves_no_weight(name: str) -> None:
    recipe, model = zoo.recipe(name), zoo.net()
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimizer = sgd(model)
    search(model, zoo.batch(), recipe, optimizer, draws(0), 1)
    assert same(before, {key: p.detach() for key, p in model.named_parameters()})
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("name", PERTURBED)
def test_perturbed_weights_come_back_bit_for_bit_unless_kept(name: str) -> None:
    recipe, model = zoo.recipe(name), zoo.net()
    wp = recipe.weight_perturbation
    assert wp is not None
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    found = search(model, zoo.batch(), recipe, sgd(model), draws(0), 1).weights
    assert set(found) <= set(layer_weights(model))
    assert len(found) >= 3
    with applied(model, found, keep=wp.keep):
        inside = {key: p.detach().clone() for key, p in model.named_parameters()}
    assert {key for key in before if not torch.equal(before[key], inside[key])} == set(found)
    after = {key: p.detach() for key, p in model.named_parameters()}
    assert same(after, inside if wp.keep else before)


@pytest.mark.parametrize("bn", ["running", "batch", "update"])
@pytest.mark.parametrize("name", [name for name in ATTACKED if isinstance(zoo.recipe(name).attack, PGD)])
def test_attack_moves_batch_norm_only_if_told_to(name: str, bn: str) -> None:
    recipe, model = zoo.recipe(name), zoo.net()
    assert recipe.attack is not None
    recipe = dataclasses.replace(recipe, attack=dataclasses.replace(recipe.attack, bn=bn))  # type: ignore[arg-type]
    before = {key: t.clone() for key, t in model.named_buffers()}
    search(model, zoo.batch(), recipe, sgd(model), draws(0), 1)
    assert same(before, dict(model.named_buffers())) == (bn != "update")
    assert all(module.training for module in model.modules())


# The trainer: what was interrupted goes on to the bit.

SETTINGS = Settings(
    epochs=2,
    batch_size=16,
    lr=0.1,
    pad=1,
    flip=True,
    seed=5,
    log_every=5,
    probe_every=3,
)


class _Stop(Exception):  # noqa: N818 (a signal, no error)
    pass


def trainer(name: str, init: int = 0, dropout: float = 0.0, device: str = "cpu", **changes: Any) -> Trainer:
    """40 images in batches of 16: epochs of three batches, the last one of eight."""
    model, recipe = zoo.net(init, dropout), zoo.recipe(name)
    every = 3 * recipe.replays + 1  # one step into the second epoch, in the middle of a replay for Free
    settings = dataclasses.replace(SETTINGS, checkpoint_every=every, **changes)
    return Trainer(model, recipe, zoo.examples(40, 1), zoo.examples(12, 2), zoo.TASK, settings, device=device)


def record(run: Run) -> list[Row]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in run.rows()]


def check_resume(name: str, path: Path, **options: Any) -> None:
    whole = trainer(name, **options)
    whole_run = Run.create(path / "whole", {})
    whole.fit(whole_run)

    broken = trainer(name, **options)
    run = Run.create(path / "broken", {})
    saved, stop = broken.settings.checkpoint_every, broken.total  # lines of metrics in between have to go again

    def listen(row: Row) -> None:
        if row == {"step": stop}:
            raise _Stop

    with pytest.raises(_Stop):
        broken.fit(run, listen)

    assert max(row["step"] for row in record(run)) > saved
    resumed = trainer(name, init=1, **options)  # other initial weights: everything has to come from the checkpoint
    resumed.resume(run)
    assert resumed.step == saved == broken.steps_per_epoch + 1
    resumed.fit(run)

    (expected, expected_header), (found, found_header) = whole.state(), resumed.state()
    assert found.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    assert sum(key.startswith("optimizer/") for key in found) == len(list(resumed.model.parameters()))
    assert any(key.startswith("parts/") for key in found) == bool(resumed.recipe.parts)
    for header in (expected_header, found_header):
        header.pop("elapsed")
    assert json.dumps(found_header) == json.dumps(expected_header)
    assert record(run) == record(whole_run)
    assert any(resumed.select in row for row in record(run))
    for checkpoint in ("last", "best", "final"):
        assert run.checkpoint(checkpoint).is_file()
        assert whole_run.checkpoint(checkpoint).is_file()


@every_recipe
def test_resume_to_the_bit(name: str, tmp_path: Path) -> None:
    check_resume(name, tmp_path)


@pytest.mark.parametrize("name", ["n-lap-ema", "mart-awp"])
def test_resume_to_the_bit_under_bfloat16(name: str, tmp_path: Path) -> None:
    check_resume(name, tmp_path, bf16=True)


@pytest.mark.parametrize("name", ["standard", "r-lap", "pgd-at"])
def test_resume_to_the_bit_with_dropout(name: str, tmp_path: Path) -> None:
    check_resume(name, tmp_path, dropout=0.3)


def test_another_seed_trains_other_weights(tmp_path: Path) -> None:
    """The comparison of a resumed run can fail."""
    found = []
    for seed in (5, 6):
        found.append(trainer("standard", seed=seed))
        found[-1].fit(Run.create(tmp_path / str(seed), {}))
    assert not same(found[0].state()[0], found[1].state()[0])


# The attacks.


@pytest.mark.parametrize("name", [*zoo.ATTACK_NAMES.values(), *zoo.SEARCHES])
def test_attack_by_name(name: str) -> None:
    batch, model = zoo.batch(), zoo.net()
    attack = Hunt(zoo.SEARCHES[name], slots=3) if name in zoo.SEARCHES else parse_attack(name)
    if attack is None:
        assert name == "clean"
        return
    threat = gambeson.core.threat.Linf(8 / 255)
    before = tensors(model)
    x_adv = attack(model, batch, threat, Streams(0).at("attack"))
    assert torch.equal(x_adv, attack(model, batch, threat, Streams(0).at("attack")))
    assert threat.distance(x_adv, batch.x).max() <= threat.eps + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert not x_adv.requires_grad
    assert same(before, tensors(model))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert model.training


@pytest.mark.parametrize("name", zoo.ATTACK_NAMES.values())
def test_attack_never_raises_the_accuracy(name: str) -> None:
    model = zoo.net()
    data = zoo.examples(30, 4)
    threat = gambeson.core.threat.Linf(0.1)
    report = evaluate(model, data.x, data.y, [name], threat, num_classes=zoo.TASK.num_classes)
    assert not bool((report.outcomes[name] & ~report.outcomes["clean"]).any())
    again = evaluate(model, data.x, data.y, [name], threat, num_classes=zoo.TASK.num_classes)
    assert torch.equal(report.outcomes[name], again.outcomes[name])
