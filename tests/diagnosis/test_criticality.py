"""Criticality: what its definition promises, what a search costs, how it goes on when interrupted, what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gambeson.core.errors import InputError, RunError
from gambeson.core.threat import Linf, create_threat
from gambeson.core.types import Task
from gambeson.diagnosis import criticality as module
from gambeson.diagnosis import layer_search
from gambeson.diagnosis.criticality import adversarial_set, measure_criticality
from gambeson.diagnosis.layer_search import Problem
from gambeson.diagnosis.mrc import MRC, PROTOCOLS, Criticality, LayerCriticality
from gambeson.models.resnets import resnet18

QUICK = MRC(epochs=3, batch_size=4)
TASK = Task(num_classes=3, channels=3, size=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
PAPER = dataclasses.replace(PROTOCOLS["paper"], batch_size=4)


class Mlp(nn.Module):
    """Three layers without biases between which a factor can move."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(192, 12, False), nn.Linear(12, 8, False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x.flatten(1)).relu()).relu())


class Spare(Mlp):
    """Carries a layer that the forward does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(3, 3)


class Branching(Mlp):
    """Looks at values, so it cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


def made(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def small_resnet() -> nn.Module:
    return resnet18(TASK, width=4)


def images(count: int = 10, size: int = 8, seed: int = 1) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, size, size, generator=drawn), torch.randint(0, 3, (count,), generator=drawn)


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the layers that were searched, as they are."""
    names: list[str] = []

    class Noted(layer_search.Ascent):
        def __init__(self, name: str, *args: Any) -> None:
            names.append(name)
            super().__init__(name, *args)

    monkeypatch.setattr(module, "Ascent", Noted)
    return names


# --- the definition ------------------------------------------------------------------------------------------------


def test_a_factor_moved_between_relu_layers_changes_nothing_where_the_ball_is_left_at_once() -> None:
    """`W1 beta` and `W2 / beta` are the same network; the gradient's direction and the ball's relative size are too."""
    model, (x, y) = made(Mlp).double(), images()
    scaled = copy.deepcopy(model)
    beta = 3.7
    with torch.no_grad():
        scaled.first.weight.mul_(beta)
        scaled.second.weight.div_(beta)
    protocol = dataclasses.replace(PAPER, lr=1e3)  # a larger weight has a smaller gradient, and must leave its ball too
    plain, other = (measure_criticality(net, x.double(), y, protocol) for net in (model, scaled))

    assert {row.epochs for row in (*plain.layers, *other.layers)} == {1}
    assert [row.mrc for row in other.layers] == pytest.approx([row.mrc for row in plain.layers], rel=1e-9)
    assert min(row.mrc for row in plain.layers) > 1e-3


def test_every_protocol_stays_in_the_ball_and_reports_a_reachable_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = made(Mlp), images()
    weights: dict[str, list[Tensor]] = {}
    record = layer_search.Ascent.record

    def noted(self: layer_search.Ascent, loss: float, accuracy: float) -> None:
        weights.setdefault(self.name, []).append(self.weight)
        record(self, loss, accuracy)

    monkeypatch.setattr(layer_search.Ascent, "record", noted)
    protocols = [
        QUICK,
        PAPER,
        dataclasses.replace(QUICK, project_every="step", lr=20.0),
        dataclasses.replace(QUICK, radius=0.5, reduce="last"),
        dataclasses.replace(QUICK, update="full-batch", lr=10.0),
    ]
    for protocol in protocols:
        weights.clear()
        found = measure_criticality(model, x, y, protocol)
        for row in found.layers:
            start = model.get_submodule(row.layer).weight
            assert row.distance <= protocol.radius * (1 + 1e-6)
            losses = []
            for weight in weights[row.layer]:
                assert (weight - start).norm() <= protocol.radius * start.norm() * (1 + 1e-6)
                logits = torch.func.functional_call(model, {f"{row.layer}.weight": weight}, (x,))
                losses.append(F.cross_entropy(logits, y).item())
            wanted = losses[-1] if protocol.reduce == "last" else max(losses)
            assert row.loss == pytest.approx(wanted, rel=1e-5)
            assert row.mrc == pytest.approx(wanted - F.cross_entropy(model(x), y).item(), abs=1e-5)
            assert len(losses) == (1 if protocol.reduce == "last" else row.epochs)


def test_projection_after_every_step_is_not_projection_after_every_epoch() -> None:
    model, (x, y) = made(Mlp), images()
    by_step = dataclasses.replace(QUICK, project_every="step", lr=20.0)
    found = [
        [row.mrc for row in measure_criticality(model, x, y, protocol).layers]
        for protocol in (by_step, dataclasses.replace(by_step, project_every="epoch"))
    ]
    assert found[0] != pytest.approx(found[1], abs=1e-4)


def test_the_first_gradients_are_those_of_each_layer_alone() -> None:
    model, (x, y) = made(small_resnet).eval(), images()
    model.requires_grad_(False)
    for protocol in (QUICK, PAPER):
        problem = Problem(model, x, y, protocol, 0, shuffle=True)
        names = [name for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        together = problem.first_gradients(names)
        batches = list(problem.batches(0))
        assert len(batches) == 3
        for name in names:
            weight = model.get_submodule(name).weight
            weight.requires_grad_(True)
            total: Tensor | None = None
            for index in batches if protocol is PAPER else batches[:1]:
                (grad,) = torch.autograd.grad(problem.loss(model(x[index]), index), weight)
                total = grad if total is None else total + grad
            weight.requires_grad_(False)
            assert total is not None
            assert torch.equal(together[name], total)
            assert bool(total.any())


# --- ending early --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["cached", "naive"])
def test_the_least_critical_layer_alone_costs_less_and_is_exact(strategy: Any, searched: list[str]) -> None:
    model, (x, y) = made(Mlp), images()
    protocol = dataclasses.replace(QUICK, epochs=6)
    epochs: list[str] = []
    full = measure_criticality(model, x, y, protocol, strategy=strategy, shuffle=False)
    short = measure_criticality(
        model, x, y, protocol, strategy=strategy, shuffle=False, argmin_only=True, progress=epochs.append
    )

    assert short.argmin == full.argmin
    assert not short.argmin.pruned
    assert any(row.pruned for row in short.layers)
    assert not any(row.pruned for row in full.layers)
    for ours, exact in zip(short.layers, full.layers, strict=True):
        assert ours.layer == exact.layer
        assert short.argmin.mrc <= ours.mrc <= exact.mrc
        assert ours.pruned or ours == exact
        assert ours.epochs == epochs.count(ours.layer)
    assert len(epochs) < 3 * 6
    assert searched[:3] == ["first", "second", "third"]


def test_a_search_whose_last_loss_counts_cannot_end_early() -> None:
    model, (x, y) = made(Mlp), images()
    with pytest.raises(InputError, match="only where the maximum over epochs counts"):
        measure_criticality(model, x, y, PAPER, argmin_only=True)


def test_pruned_layers_rank_last() -> None:
    def row(name: str, mrc: float, pruned: bool) -> LayerCriticality:
        return LayerCriticality(name, (1,), mrc, mrc + 1, 0.25, 0.1, 1, pruned)

    rows = (row("a", 0.3, False), row("b", 0.1, True), row("c", 0.2, False))
    found = Criticality(rows, 1.0, 0.75, 8, QUICK, "cached")
    assert [one.layer for one in found.ranking()] == ["c", "a", "b"]
    assert found.argmin.layer == "c"
    assert found.drop(rows[0]) == 0.5


# --- the store -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["cached", "naive", "wavefront"])
def test_an_interrupted_search_goes_on(tmp_path: Path, searched: list[str], strategy: Any) -> None:
    model, (x, y) = made(Mlp), images()
    whole = measure_criticality(model, x, y, QUICK, strategy=strategy)
    store = tmp_path / "mrc.json"
    measure_criticality(model, x, y, QUICK, strategy=strategy, layers=["second"], store=store)
    searched.clear()
    resumed = measure_criticality(model, x, y, QUICK, strategy=strategy, store=store)
    if strategy != "wavefront":  # there Ascent is another module's
        assert searched == ["first", "third"]
    assert [row.layer for row in resumed.layers] == ["first", "second", "third"]
    if strategy == "wavefront":  # the batches that travel together are others
        assert [row.mrc for row in resumed.layers] == pytest.approx([row.mrc for row in whole.layers], abs=1e-5)
    else:
        assert resumed == whole

    def refused(self: Any, *_args: Any) -> None:
        raise AssertionError("nothing is left to be searched")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_search.Ascent, "step", refused)
        assert measure_criticality(model, x, y, QUICK, strategy=strategy, store=store) == resumed


def test_what_was_finished_before_a_crash_is_kept(tmp_path: Path, searched: list[str]) -> None:
    model, (x, y) = made(Mlp), images()
    store = tmp_path / "mrc.json"

    def crash(name: str) -> None:
        if name == "third":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_criticality(model, x, y, QUICK, store=store, progress=crash)
    searched.clear()
    resumed = measure_criticality(model, x, y, QUICK, store=store)
    assert searched == ["third"]
    assert resumed == measure_criticality(model, x, y, QUICK)


def test_a_store_of_another_search_is_refused_by_every_difference(tmp_path: Path) -> None:
    model, (x, y) = made(Mlp), images()
    store = tmp_path / "mrc.json"
    measure_criticality(model, x, y, QUICK, layers=["third"], store=store)
    other = dataclasses.replace(QUICK, lr=0.5, epochs=1)
    before = store.read_bytes()
    with pytest.raises(RunError, match="belongs to another search") as error:
        measure_criticality(made(Mlp, 9), x.flip(0), y, other, store=store, seed=4, shuffle=False, argmin_only=True)
    said = str(error.value)
    for field in ("weights", "images", "protocol.lr is 1.0 there, 0.5 here", "protocol.epochs", "seed", "shuffle"):
        assert field in said
    assert "argmin_only is False there, True here" in said
    assert "protocol.radius" not in said
    assert "delete it" in said
    assert store.read_bytes() == before


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"identity": {}, "layers": [{"layer": "x"}]}', "not json"])
def test_a_damaged_store_is_refused(tmp_path: Path, content: str) -> None:
    model, (x, y) = made(Mlp), images()
    store = tmp_path / "mrc.json"
    store.write_text(content)
    with pytest.raises(RunError, match="is no record of a search for criticality"):
        measure_criticality(model, x, y, QUICK, store=store)
    assert store.read_text() == content


# --- layers and models ---------------------------------------------------------------------------------------------


def test_only_the_layers_asked_for_in_the_order_of_the_model() -> None:
    model, (x, y) = made(Mlp), images()
    whole = {row.layer: row for row in measure_criticality(model, x, y, QUICK).layers}
    some = measure_criticality(model, x, y, QUICK, layers=["third", "first"])
    assert some.layers == (whole["first"], whole["third"])


def test_an_unknown_layer_is_answered_with_the_nearest_names() -> None:
    model, (x, y) = made(Mlp), images()
    with pytest.raises(InputError, match="no Conv2d or Linear layer 'secnd'") as error:
        measure_criticality(model, x, y, QUICK, layers=["secnd"])
    assert error.value.hint == "did you mean second?"
    with pytest.raises(InputError, match="no Conv2d and no Linear"):
        measure_criticality(nn.Sequential(nn.Flatten(), nn.ReLU()), x, y, QUICK)


def test_unused_layers_are_left_out_and_refused_by_name() -> None:
    model, (x, y) = made(Spare), images()
    assert [row.layer for row in measure_criticality(model, x, y, QUICK).layers] == ["first", "second", "third"]
    with pytest.raises(InputError, match="does not use unused: nothing depends"):
        measure_criticality(model, x, y, QUICK, layers=["first", "unused"])


def test_a_model_that_cannot_be_traced_gives_the_same_and_says_so() -> None:
    plain, (x, y) = made(Mlp), images()
    model = made(Branching)
    found = measure_criticality(model, x, y, QUICK)
    assert found.untraced is not None
    assert "control flow" in found.untraced
    assert found.layers == measure_criticality(plain, x, y, QUICK, strategy="naive").layers
    with pytest.raises(InputError, match="cannot be traced") as error:
        measure_criticality(model, x, y, QUICK, strategy="wavefront")
    assert error.value.hint == "use the cached strategy"


@pytest.mark.parametrize("strategy", ["cached", "naive", "wavefront"])
def test_the_model_comes_back_as_it_was(strategy: Any) -> None:
    model = made(small_resnet).train()
    x, y = images()
    model.layer2.eval()
    model.linear.bias.requires_grad_(False)
    weights = copy.deepcopy(model.state_dict())
    flags = [p.requires_grad for p in model.parameters()]
    modes = {name: m.training for name, m in model.named_modules()}
    generator = torch.get_rng_state()
    layers = ["conv1", "layer3.0.shortcut.0", "linear"]
    measure_criticality(model, x, y, dataclasses.replace(QUICK, epochs=1), layers=layers, strategy=strategy)

    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert {name: m.training for name, m in model.named_modules()} == modes
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_search_in_evaluation_mode_ignores_the_mode_it_finds() -> None:
    model = made(small_resnet)
    x, y = images()
    protocol, layers = dataclasses.replace(QUICK, epochs=1), ["layer4.1.conv2", "linear"]
    found = [measure_criticality(model.train(mode), x, y, protocol, layers=layers) for mode in (True, False)]
    assert found[0] == found[1]


# --- settings and inputs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"update": "adam"}, "unknown update 'adam'"),
        ({"on_violation": "break"}, "unknown on_violation"),
        ({"project_every": "batch"}, "unknown project_every"),
        ({"reduce": "mean"}, "unknown reduce"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1"),
        ({"lr": 0.0}, "lr must be positive and finite, got 0.0"),
        ({"lr": float("inf")}, "lr must be positive and finite"),
        ({"radius": float("nan")}, "radius must be positive and finite"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        MRC(**settings)


def test_the_protocols_are_those_of_the_release_and_of_the_paper() -> None:
    release, paper = PROTOCOLS["release"], PROTOCOLS["paper"]
    assert (release.update, release.on_violation, release.project_every) == ("sgd", "project", "epoch")
    assert (release.epochs, release.lr, release.batch_size, release.radius) == (10, 1.0, 512, 0.1)
    assert (paper.update, paper.on_violation, paper.project_every) == ("full-batch", "stop", "epoch")
    assert (release.reduce, paper.reduce) == ("max", "last")
    assert (paper.epochs, paper.radius) == (10, 0.1)


def test_images_that_are_not_fit_to_be_measured_on_are_refused() -> None:
    model, (x, y) = made(Mlp), images()
    with pytest.raises(InputError, match="measured on adversarial images in") as error:
        measure_criticality(model, (x * 255).to(torch.uint8), y, QUICK)
    assert error.value.hint == "see adversarial_set"
    for bad, labels, said in (
        (x[:0], y[:0], "no examples"),
        (x * 2, y, r"must lie in \[0, 1\]"),
        (x, y[:-1], "need images"),
        (x, y + 1, r"integers in \[0, 3\)"),
        (torch.where(x > 0.9, torch.nan, x), y, "NaN"),
    ):
        with pytest.raises(InputError, match=said):
            measure_criticality(model, bad, labels, QUICK)
    with pytest.raises(InputError, match="unknown strategy 'fast'"):
        measure_criticality(model, x, y, QUICK, strategy="fast")  # type: ignore[arg-type]


def test_what_was_found_is_json() -> None:
    model, (x, y) = made(Mlp), images()
    found = measure_criticality(model, x, y, QUICK, argmin_only=True)
    content = json.loads(json.dumps(found.to_dict()))
    assert content["ranking"] == [row.layer for row in found.ranking()]
    assert content["n"] == 10
    assert content["protocol"]["radius"] == 0.1
    for row, kept in zip(found.layers, content["layers"], strict=True):
        assert (kept["layer"], kept["mrc"], tuple(kept["shape"])) == (row.layer, row.mrc, row.shape)
        assert kept["drop"] == found.accuracy - row.accuracy


# --- the adversarial images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("l2", 0.5)])
def test_the_adversarial_images_are_in_the_ball_and_worse(norm: str, eps: float) -> None:
    model, (x, y) = made(Mlp), images(20)
    threat = create_threat(norm, eps)
    done: list[int] = []
    x_adv = adversarial_set(model, x, y, threat, batch_size=8, progress=done.append)
    size = (x_adv - x).abs().amax((1, 2, 3)) if norm == "linf" else (x_adv - x).flatten(1).norm(dim=1)

    assert done == [8, 8, 4]
    assert x_adv.shape == x.shape
    assert 0 <= float(x_adv.min()) <= float(x_adv.max()) <= 1
    assert 0.5 * eps < float(size.max()) <= eps * (1 + 1e-5)
    with torch.no_grad():
        assert F.cross_entropy(model(x_adv), y) > F.cross_entropy(model(x), y) + 0.01


def test_the_adversarial_images_are_those_of_the_seed() -> None:
    model, (x, y) = made(Mlp), images()
    grey = (x * 255).to(torch.uint8)
    threat = Linf(8 / 255)
    a, b, c = (adversarial_set(model, grey, y, threat, steps=1, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.dtype == torch.float32
    assert float((a - grey.float() / 255).abs().max()) <= 8 / 255 + 1e-6


# --- what it costs -------------------------------------------------------------------------------------------------


class Counter(TorchDispatchMode):
    """Counts by the formulas of `FlopCounterMode`, whose account of the modules would take four times as long."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def flops(run: Callable[[], object]) -> int:
    with Counter() as counter:
        run()
    return counter.total


def test_a_search_costs_less_than_the_release() -> None:
    """ResNet-18's 21 layers, ten epochs of two batches.

    The release runs the whole network for each layer, backwards down to the layer, and then evaluates it: all steps of
    a layer cost the same, so one is counted. Of ours, all epochs but the first cost the same, so two are counted.
    """
    model = made(lambda: resnet18(TASK, width=8)).eval()
    x, y = images(32)
    names = [name for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(names) == 21

    def step(name: str) -> None:
        own = copy.deepcopy(model).requires_grad_(False)
        weight = own.get_submodule(name).weight.requires_grad_()
        torch.autograd.grad(F.cross_entropy(own(x[:16]), y[:16]), weight)

    def ours(protocol: MRC, **settings: Any) -> Criticality:
        return measure_criticality(model, x, y, dataclasses.replace(protocol, batch_size=16), **settings)

    with torch.no_grad():
        forward = flops(lambda: model(x))
    steps = {name: flops(lambda name=name: step(name)) for name in names}
    released = forward + sum(10 * (2 * steps[name] + forward) for name in names)
    one, two = (flops(lambda epochs=epochs: ours(MRC(epochs=epochs))) for epochs in (1, 2))
    cached = one + 9 * (two - one)
    stem = flops(lambda: ours(MRC(epochs=1), strategy="naive", layers=["conv1"]))
    rows: list[LayerCriticality] = []
    far = dataclasses.replace(PROTOCOLS["paper"], lr=1e3)  # every layer leaves its ball in the first epoch
    paper = flops(lambda: rows.extend(ours(far).layers))
    print(f"release / cached {released / cached:.3f}, release / paper {released / paper:.2f}")

    assert stem == pytest.approx(forward + 2 * steps["conv1"] + forward, rel=0.05)  # two and one images more
    assert {row.epochs for row in rows} == {1}
    assert released / cached >= 1.6
    assert released / paper >= 8
