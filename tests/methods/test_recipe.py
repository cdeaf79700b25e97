from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gambeson.attacks import PGD, Unanimous, Zero
from gambeson.core.errors import InputError
from gambeson.core.parameters import applied, layer_weights
from gambeson.core.threat import Linf
from gambeson.core.types import Batch
from gambeson.methods import METHODS, Recipe, at_awp, fgsm, free_at, n_lap, pgd_at, standard, trades_awp
from gambeson.methods.recipe import search
from gambeson.parts import (
    CarriedPerturbation,
    CrossEntropy,
    GradientAlignment,
    Relative,
    Trades,
    WeightPerturbation,
)

Net = Callable[..., nn.Sequential]
Images = Callable[..., Batch]
Rng = Callable[[int], torch.Generator]
Snapshot = Callable[[nn.Module], dict[str, Tensor]]

THREAT = Linf(0.1)
WP = WeightPerturbation(size=Relative(0.1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": CrossEntropy("adv")}, "CrossEntropy needs adversarial images"),
        ({"objective": Trades()}, "Trades needs adversarial images"),
        ({"inner": "outer", "attack": PGD()}, "unknown inner search 'outer'"),
        ({"inner": "carried"}, "exactly one CarriedPerturbation"),
        ({"parts": (CarriedPerturbation(),), "attack": PGD()}, "exactly one CarriedPerturbation"),
        ({"inner": "carried", "parts": (CarriedPerturbation(), CarriedPerturbation())}, "exactly one"),
        ({"inner": "carried", "parts": (CarriedPerturbation(),), "attack": PGD()}, "replaces attack"),
        ({"inner": "carried", "parts": (CarriedPerturbation(),), "weight_perturbation": WP}, "replaces attack"),
        ({"inner": "carried", "parts": (CarriedPerturbation(),), "penalty": GradientAlignment(1.0)}, "replaces attack"),
        ({"inner": "joint", "attack": PGD(steps=1)}, "needs an attack and a weight perturbation"),
        ({"inner": "weights-first", "weight_perturbation": WP}, "needs"),
        ({"inner": "joint", "attack": PGD(steps=2), "weight_perturbation": WP}, "plain one-step attack"),
        ({"inner": "joint", "attack": PGD(steps=1, loss="kl"), "weight_perturbation": WP}, "plain one-step attack"),
        (
            {"inner": "weights-first", "attack": PGD(steps=1, gradient=Unanimous()), "weight_perturbation": WP},
            "plain one-step attack",
        ),
        ({"attack": PGD(), "replays": 0}, "replays must be at least 1, got 0"),
        ({"trainable": ()}, "trains nothing"),
        ({"bn": "batch"}, "unknown BatchNorm mode of training 'batch'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe(**{"threat": THREAT, "objective": CrossEntropy(), **settings})  # type: ignore[arg-type]


def test_a_weight_perturbation_without_attack_is_refused_or_used(tiny_net: Net, tiny_batch: Images) -> None:
    try:
        recipe = Recipe(threat=THREAT, objective=CrossEntropy("clean"), weight_perturbation=WP)
    except InputError:
        return
    assert run(recipe, tiny_net(), tiny_batch())[1]


def test_restarts_in_a_joint_search_are_refused() -> None:
    with pytest.raises(InputError):
        replace(n_lap(), attack=PGD(steps=1, restarts=2))


def test_a_recipe_is_a_frozen_value() -> None:
    with pytest.raises(FrozenInstanceError):
        standard().replays = 2  # type: ignore[misc]
    assert replace(pgd_at(), replays=1) == pgd_at()
    assert eval(repr(trades_awp()), _names()) == trades_awp()  # what a checkpoint compares


def test_a_recipe_reads_as_in_older_checkpoints() -> None:
    """Written out: a checkpoint of an earlier version is compared with it, and could not be resumed otherwise."""
    assert repr(standard(eps=0.1)) == (
        "Recipe(threat=Linf(eps=0.1), objective=CrossEntropy(view='clean'), attack=None, weight_perturbation=None,"
        " inner='inputs-first', penalty=None, parts=(), replays=1)"
    )


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({"trainable": ("0.weight",)}, ", replays=1, trainable=('0.weight',))"),
        ({"bn": "frozen"}, ", replays=1, bn='frozen')"),
        ({"trainable": ("a", "b"), "bn": "frozen"}, ", replays=1, trainable=('a', 'b'), bn='frozen')"),
        ({"trainable": None, "bn": "update"}, ", replays=1)"),
    ],
)
def test_fields_of_fine_tuning_are_shown_where_they_are_used(changes: dict[str, Any], end: str) -> None:
    recipe = replace(standard(), **changes)
    assert repr(recipe).endswith(end)
    assert eval(repr(recipe), _names()) == recipe


def _names() -> dict[str, object]:
    import gambeson.attacks.pgd as pgd
    import gambeson.core.threat as threat
    import gambeson.methods.recipe as recipe
    import gambeson.parts as parts

    return {**vars(pgd), **vars(threat), **vars(recipe), **vars(parts)}


PIXEL = ("part", "part-t", "part-m")


def test_single_step_methods_know_that_they_are() -> None:
    single = {name for name, function in METHODS.items() if function().single_step}
    several = {"standard", "pgd-at", "trades", "mart", "score", "at-awp", "trades-awp", "mart-awp", *PIXEL}
    assert single == set(METHODS) - several


def run(recipe: Recipe, net: nn.Module, batch: Batch, epoch: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    rng = {"attack": 1, "weights": 2}
    return search(net, batch, recipe, optimizer, lambda purpose: torch.Generator().manual_seed(rng[purpose]), epoch)


def gradients(net: nn.Module, loss: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(layer_weights(net).values()))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "free-at"])
def test_the_search_changes_nothing_but_statistics(
    name: str, tiny_net: Net, tiny_batch: Images, snapshot: Snapshot
) -> None:
    net = tiny_net().train()
    before = snapshot(net)
    recipe = METHODS[name](**({"warmup": 0} if name.endswith("awp") else {}))
    x_adv, v = run(recipe, net, tiny_batch())
    moved = {key for key, t in net.state_dict().items() if not torch.equal(t, before[key])}
    assert moved <= {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert net.training
    assert bool(v) == (recipe.weight_perturbation is not None)
    assert not x_adv.requires_grad
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_standard_training_searches_nothing(tiny_net: Net, tiny_batch: Images) -> None:
    batch = tiny_batch()
    x_adv, v = run(standard(), tiny_net(), batch)
    assert x_adv is batch.x
    assert v == {}


def test_awp_perturbs_at_the_adversarial_images(tiny_net: Net, tiny_batch: Images) -> None:
    net, batch = tiny_net().train(), tiny_batch()
    recipe = at_awp(eps=0.1, gamma=0.05, steps=2, bn="running")
    x_adv, v = run(recipe, net, batch)
    assert recipe.attack is not None
    attacked = recipe.attack(net, batch, recipe.threat, torch.Generator().manual_seed(1))
    assert torch.equal(x_adv, attacked)
    for (name, w), g in zip(
        layer_weights(net).items(), gradients(net, nn.functional.cross_entropy(net(attacked), batch.y)), strict=True
    ):
        torch.testing.assert_close(v[name], (0.05 * w.norm() * g / g.norm()).detach())


def test_awp_moves_no_statistics_by_its_own_forward(tiny_net: Net, tiny_batch: Images, snapshot: Snapshot) -> None:
    net = tiny_net().train()
    before = snapshot(net)
    run(at_awp(steps=1, bn="running"), net, tiny_batch())
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_awp_waits_for_its_warmup(tiny_net: Net, tiny_batch: Images) -> None:
    recipe = at_awp(steps=1, warmup=3)
    counts = [len(run(recipe, tiny_net(), tiny_batch(), epoch)[1]) for epoch in range(5)]
    assert counts == [0, 0, 0, 2, 2]


@pytest.mark.parametrize("direction", ["gradient", "optimizer"])
def test_lap_takes_both_gradients_from_one_backward_at_the_start(
    direction: str, tiny_net: Net, tiny_batch: Images
) -> None:
    net, batch = tiny_net().train(), tiny_batch()
    calls: list[int] = []
    net.register_forward_hook(lambda *_: calls.append(1))
    recipe = n_lap(eps=0.1, beta=0.2, direction=direction)  # type: ignore[arg-type]
    x_adv, v = run(recipe, net, batch)
    assert len(calls) == 1
    assert recipe.attack is not None
    start = recipe.attack.begin(batch.x, recipe.threat, torch.Generator().manual_seed(1)).requires_grad_()
    loss = nn.functional.cross_entropy(net(start), batch.y)
    grad, g, _ = torch.autograd.grad(loss, [start, *layer_weights(net).values()])
    torch.testing.assert_close(x_adv, (start + 0.1 * grad.sign()).clamp(0, 1).detach(), rtol=0, atol=1e-6)
    assert list(v) == ["0.weight"]  # of two layers, the last has size zero
    w = net[0].weight
    d = g + 1e-2 * w if direction == "optimizer" else g
    torch.testing.assert_close(v["0.weight"], (-0.2 * w.norm() * d / d.norm()).detach(), rtol=1e-4, atol=1e-7)


def test_lap_a_finds_its_images_at_the_perturbed_weights(tiny_net: Net, tiny_batch: Images) -> None:
    net, batch = tiny_net().train(), tiny_batch()
    recipe = n_lap(eps=0.1, beta=2.0, extra_backward=True)
    x_adv, v = run(recipe, net, batch)
    assert recipe.attack is not None
    start = recipe.attack.begin(batch.x, recipe.threat, torch.Generator().manual_seed(1)).requires_grad_()
    found = {}
    for name, weights in (("perturbed", v), ("plain", {})):
        with applied(net, weights):
            grad = torch.autograd.grad(nn.functional.cross_entropy(net(start), batch.y), start)[0]
        found[name] = (start + 0.1 * grad.sign()).clamp(0, 1).detach()
    torch.testing.assert_close(x_adv, found["perturbed"], rtol=0, atol=1e-6)
    assert not torch.allclose(x_adv, found["plain"])


def test_fgsm_is_the_textbooks(tiny_net: Net, tiny_batch: Images) -> None:
    net, batch = tiny_net().train(), tiny_batch()
    assert fgsm().attack == PGD(steps=1, rel_step_size=1.0, start=Zero(), bn="update")
    x = batch.x.clone().requires_grad_()
    grad = torch.autograd.grad(nn.functional.cross_entropy(net(x), batch.y), x)[0]
    expected = (batch.x + 0.1 * grad.sign()).clamp(0, 1)
    torch.testing.assert_close(run(fgsm(eps=0.1), net, batch)[0], expected, rtol=0, atol=1e-6)


def test_free_at_replays_with_a_carried_perturbation() -> None:
    recipe = free_at(replays=3)
    assert (recipe.replays, recipe.inner, recipe.attack) == (3, "carried", None)
