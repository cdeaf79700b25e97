import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from gambeson.core.parameters import applied, layer_weights
from gambeson.core.streams import Streams
from gambeson.core.threat import Linf
from gambeson.core.types import Batch, Outcome
from gambeson.engine.precision import Bfloat16Forward
from gambeson.engine.step import forward, robust_step
from gambeson.methods import Recipe, at_awp, fgsm, free_at, grad_align, n_lap, pgd_at, standard, trades
from gambeson.methods.recipe import search
from gambeson.parts import EMA, CrossEntropy

Net = Callable[..., nn.Sequential]
Images = Callable[..., Batch]
Snapshot = Callable[[nn.Module], dict[str, Tensor]]
RNG = partial(Streams(0).at, step=0)
DECAY = 0.1


def sgd(net: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=DECAY)


def parts(recipe: Recipe, net: nn.Module) -> nn.ModuleList:
    return nn.ModuleList(part.build(net) for part in recipe.parts)


def step(recipe: Recipe, net: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer, epoch: int = 0) -> Outcome:
    return robust_step(net, batch, recipe, parts(recipe, net), optimizer, RNG, epoch)


def assert_same(a: nn.Module, b: nn.Module, tol: float = 1e-6) -> None:
    for (name, p), q in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=tol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("views", [("clean", "adv", "clean"), ("clean", "adv"), ("adv",), ("adv", "adv", "clean")])
def test_a_repeated_view_is_replayed_and_not_run(views: tuple[str, ...], tiny_net: Net, tiny_batch: Images) -> None:
    net = tiny_net().train()
    ran = copy.deepcopy(net)
    images = {"clean": tiny_batch(seed=0).x, "adv": tiny_batch(seed=1).x * 2}
    calls: list[int] = []
    net.register_forward_hook(lambda *_: calls.append(1))
    found = forward(net, images, views)
    for view in views:
        expected = ran(images[view])
        torch.testing.assert_close(found[view], expected)
    assert len(calls) == len(set(views))
    assert set(found) == set(views)
    assert_same(net, ran)


def test_a_model_without_batchnorm_has_nothing_to_replay(tiny_batch: Images) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    images = {"clean": tiny_batch(seed=0).x, "adv": tiny_batch(seed=1).x}
    assert set(forward(net, images, ("clean", "adv", "clean"))) == {"clean", "adv"}


def test_standard_training_is_a_plain_step(tiny_net: Net, tiny_batch: Images) -> None:
    net, batch = tiny_net().train(), tiny_batch()
    plain = copy.deepcopy(net)
    a, b = sgd(net), sgd(plain)
    for _ in range(3):
        outcome = step(standard(), net, batch, a)
        logits = plain(batch.x)
        loss = nn.functional.cross_entropy(logits, batch.y)
        b.zero_grad()
        loss.backward()
        b.step()
        torch.testing.assert_close(outcome.loss, loss.detach())
        torch.testing.assert_close(outcome.logits["clean"], logits.detach())
        assert not outcome.loss.requires_grad
        assert not outcome.logits["clean"].requires_grad
    assert_same(net, plain)
    assert all(p.grad is None for p in net.parameters())


def test_trades_is_its_formula_with_the_release_batchnorm(tiny_net: Net, tiny_batch: Images) -> None:
    net, batch, recipe = tiny_net().train(), tiny_batch(), trades(eps=0.1, steps=2)
    slow, optimizer = copy.deepcopy(net), None
    step(recipe, net, batch, sgd(net))
    assert recipe.attack is not None
    x_adv = recipe.attack(slow, batch, recipe.threat, RNG("attack"))
    optimizer = sgd(slow)
    natural, adv = slow(batch.x), slow(x_adv)
    robust = nn.functional.kl_div(adv.log_softmax(1), natural.softmax(1), reduction="batchmean")
    (nn.functional.cross_entropy(natural, batch.y) + 6 * robust).backward()
    with torch.no_grad():
        slow(batch.x)  # the release's second pass
    optimizer.step()
    assert_same(net, slow, tol=1e-5)


@pytest.mark.parametrize("decay", ["perturbed", "restored"])
def test_awp_steps_with_the_gradient_at_the_perturbed_weights(decay: str, tiny_net: Net, tiny_batch: Images) -> None:
    recipe = at_awp(eps=0.1, gamma=0.2, steps=1, bn="running")
    assert recipe.weight_perturbation is not None
    recipe = replace(recipe, weight_perturbation=replace(recipe.weight_perturbation, decay=decay))
    net, batch = tiny_net().train(), tiny_batch()
    slow = copy.deepcopy(net)
    fast_optimizer, optimizer = sgd(net), sgd(slow)
    for _ in range(3):
        x_adv, v = search(slow, batch, recipe, optimizer, RNG, 0)
        optimizer.zero_grad()
        weights = dict(slow.named_parameters())
        if decay == "perturbed":  # the release: step at w + v, then subtract v
            with torch.no_grad():
                for name in v:
                    weights[name].add_(v[name])
            nn.functional.cross_entropy(slow(x_adv), batch.y).backward()
            optimizer.step()
            with torch.no_grad():
                for name in v:
                    weights[name].sub_(v[name])
        else:
            with applied(slow, v):
                nn.functional.cross_entropy(slow(x_adv), batch.y).backward()
            optimizer.step()
        step(recipe, net, batch, fast_optimizer)
    assert_same(net, slow, tol=1e-5)
    for p, q in zip(net.parameters(), slow.parameters(), strict=True):
        a, b = (o.state[w]["momentum_buffer"] for o, w in ((fast_optimizer, p), (optimizer, q)))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_lap_keeps_its_perturbation(tiny_net: Net, tiny_batch: Images) -> None:
    recipe = n_lap(eps=0.1, beta=0.3)
    net, batch = tiny_net().train(), tiny_batch()
    slow = copy.deepcopy(net)
    fast_optimizer, optimizer = sgd(net), sgd(slow)
    for _ in range(3):
        x_adv, v = search(slow, batch, recipe, optimizer, RNG, 0)
        assert v
        with torch.no_grad():
            for name, w in layer_weights(slow).items():
                w.add_(v.get(name, torch.zeros_like(w)))
        optimizer.zero_grad()
        nn.functional.cross_entropy(slow(x_adv), batch.y).backward()
        optimizer.step()
        step(recipe, net, batch, fast_optimizer)
    assert_same(net, slow, tol=1e-5)


def test_a_penalty_is_added_to_the_loss(tiny_net: Net, tiny_batch: Images) -> None:
    batch, found = tiny_batch(), {}
    for weight in (0.0, 1.0, 2.0):
        net = tiny_net().train()
        found[weight] = float(step(grad_align(eps=0.3, weight=weight), net, batch, sgd(net)).loss)
    assert found[0.0] < found[1.0]
    assert found[2.0] - found[1.0] == pytest.approx(found[1.0] - found[0.0], rel=1e-3)


def test_an_average_follows_every_step(tiny_net: Net, tiny_batch: Images) -> None:
    net, batch = tiny_net().train(), tiny_batch()
    recipe = replace(standard(), parts=(EMA(0.5, warm=False),))
    built, optimizer = parts(recipe, net), sgd(net)
    expected = net[4].weight.detach().clone()
    for _ in range(3):
        robust_step(net, batch, recipe, built, optimizer, RNG, 0)
        expected = 0.5 * expected + 0.5 * net[4].weight.detach()
    torch.testing.assert_close(built[0].average[4].weight, expected)


def test_an_average_follows_under_bf16(tiny_net: Net, tiny_batch: Images) -> None:
    model = tiny_net().train()
    recipe = replace(standard(), parts=(EMA(),))
    built = parts(recipe, model)
    robust_step(Bfloat16Forward(model), tiny_batch(), recipe, built, sgd(model), RNG, 0)
    assert int(built[0].steps) == 1
    assert not torch.equal(built[0].average[4].weight, tiny_net()[4].weight)


@pytest.mark.parametrize("recipe", [fgsm(), at_awp(steps=1), n_lap(beta=0.1), trades(steps=1), free_at()])
def test_every_kind_of_step_runs_under_bf16(recipe: Recipe, tiny_net: Net, tiny_batch: Images) -> None:
    model = tiny_net().train()
    before = copy.deepcopy(model)
    optimizer = sgd(model)
    for _ in range(2):
        outcome = robust_step(Bfloat16Forward(model), tiny_batch(), recipe, parts(recipe, model), optimizer, RNG, 0)
    assert outcome.loss.isfinite()
    assert outcome.loss.dtype == torch.float32
    assert not torch.equal(model[0].weight, before[0].weight)


def test_free_at_moves_weights_and_perturbation_by_one_backward(tiny_net: Net, tiny_batch: Images) -> None:
    recipe = free_at(eps=0.1)
    net, batch = tiny_net().train(), tiny_batch()
    slow = copy.deepcopy(net)
    built, optimizer, slow_optimizer = parts(recipe, net), sgd(net), sgd(slow)
    calls: list[int] = []
    net.register_forward_hook(lambda *_: calls.append(1))
    delta = torch.zeros_like(batch.x)
    for _ in range(3):
        robust_step(net, batch, recipe, built, optimizer, RNG, 0)
        x = (batch.x + delta).clamp(0, 1).requires_grad_()
        slow_optimizer.zero_grad()
        nn.functional.cross_entropy(slow(x), batch.y).backward()
        slow_optimizer.step()
        assert x.grad is not None
        delta = (batch.x + (delta + 0.1 * x.grad.sign()).clamp(-0.1, 0.1)).clamp(0, 1) - batch.x
    assert_same(net, slow)
    torch.testing.assert_close(built[0].delta, delta, rtol=0, atol=1e-6)
    assert len(calls) == 3


def test_the_outcome_has_the_views_of_the_objective(tiny_net: Net, tiny_batch: Images) -> None:
    net = tiny_net().train()
    for recipe, views in ((standard(), {"clean"}), (pgd_at(steps=1), {"adv"}), (trades(steps=1), {"clean", "adv"})):
        assert set(step(recipe, net, tiny_batch(), sgd(net)).logits) == views


def test_an_unused_attack_does_not_change_the_step(tiny_net: Net, tiny_batch: Images, snapshot: Snapshot) -> None:
    """The views are what the objective names, whatever was searched."""
    found = []
    for attack in (None, pgd_at(steps=1).attack):
        net = tiny_net().train()
        step(Recipe(threat=Linf(0.1), objective=CrossEntropy("clean"), attack=attack), net, tiny_batch(), sgd(net))
        found.append(snapshot(net))
    assert all(torch.equal(t, found[1][name]) for name, t in found[0].items())
