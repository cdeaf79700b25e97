"""Which layers RiFT trains, and what its training changes: these, and BatchNorm's statistics unless frozen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gambeson.core.errors import InputError
from gambeson.core.threat import Linf
from gambeson.core.types import Task
from gambeson.diagnosis.mrc import MRC, Criticality, LayerCriticality
from gambeson.engine.run import Run
from gambeson.engine.settings import Settings
from gambeson.engine.trainer import Trainer
from gambeson.finetuning import choose_layers, rift_recipe
from gambeson.finetuning.rift import needs_criticality
from gambeson.models import create
from gambeson.parts import CrossEntropy

TASK = Task(num_classes=3, channels=1, size=8, mean=(0.5,), std=(0.25,))
THREAT = Linf(0.1)


def measured(*mrc: float) -> Criticality:
    names = ["layer1.conv", "layer2.conv", "layer3.conv", "layer4.conv", "linear"]
    rows = tuple(
        LayerCriticality(name, (1,), value, value, 0.5, 0.1, 1) for name, value in zip(names, mrc, strict=True)
    )
    return Criticality(rows, 0.0, 0.5, 10, MRC(), "cached")


@pytest.mark.parametrize(
    ("module", "wanted"),
    [
        ("argmin", ("layer2.conv",)),
        ("top-2", ("layer2.conv", "linear")),
        ("last", ("linear",)),
        ("all", ()),
        ("layer3.conv, layer1.conv", ("layer1.conv", "layer3.conv")),
    ],
)
def test_the_choice_of_layers(module, wanted):
    model = create("small-cnn", TASK, seed=0)
    assert choose_layers(model, module, measured(0.5, 0.1, 0.4, 0.9, 0.2)) == wanted


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("layr1.conv", "did you mean layer1.conv"),
        ("top-6", "more than the 5"),
        ("top-0", "no Conv2d"),
        (" , ", "names no layer"),
    ],
)
def test_choices_that_are_none(module, words):
    model = create("small-cnn", TASK, seed=0)
    with pytest.raises(InputError, match=words):
        choose_layers(model, module, measured(1, 2, 3, 4, 5))


def test_pruned_layers_are_never_the_least_critical():
    """Of them only a lower bound is known."""
    found = measured(0.5, 0.1, 0.4, 0.9, 0.2)
    rows = tuple(replace(row, pruned=row.layer == "layer2.conv") for row in found.layers)
    model = create("small-cnn", TASK, seed=0)
    assert choose_layers(model, "argmin", replace(found, layers=rows)) == ("linear",)
    assert choose_layers(model, "top-5", replace(found, layers=rows))[-1] == "layer2.conv"


@pytest.mark.parametrize(
    ("module", "needed"),
    [("argmin", True), ("top-1", True), ("top-12", True), ("last", False), ("all", False), ("top-0", False)],
)
def test_what_has_to_be_measured(module, needed):
    assert needs_criticality(module) == needed
    assert not needs_criticality(f"{module},linear")


def test_criticality_is_needed_for_the_least_critical():
    with pytest.raises(InputError, match="needs the layers' criticality"):
        choose_layers(create("small-cnn", TASK, seed=0), "argmin")


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [(("layer2.conv",), ("layer2.conv.weight",)), (("linear",), ("linear.weight", "linear.bias")), ((), None)],
)
def test_a_convolution_gives_its_weight_and_a_linear_layer_its_bias_too(layers, wanted):
    assert rift_recipe(create("small-cnn", TASK, seed=0), layers, THREAT).trainable == wanted


@pytest.mark.parametrize("layers", [(), ("linear",)])
@pytest.mark.parametrize("bn", ["update", "frozen"])
def test_it_is_cross_entropy_on_clean_images(layers, bn):
    recipe = rift_recipe(create("small-cnn", TASK, seed=0), layers, THREAT, bn)
    assert (recipe.objective, recipe.attack, recipe.threat, recipe.bn) == (CrossEntropy("clean"), None, THREAT, bn)


def test_several_layers_give_their_parameters_in_the_order_of_the_model():
    model = create("small-cnn", TASK, seed=0)
    found = rift_recipe(model, ("linear", "layer1.conv"), THREAT)
    assert found.trainable == ("layer1.conv.weight", "linear.weight", "linear.bias")
    with pytest.raises(InputError, match="did you mean linear"):
        rift_recipe(model, ("liner",), THREAT)


def test_all_changes_every_parameter(tiny_examples, snapshot, tmp_path):
    model = create("small-cnn", TASK, seed=0)
    before = snapshot(model)
    settings = Settings(epochs=1, batch_size=8, lr=0.01, schedule="constant")
    recipe = rift_recipe(model, choose_layers(model, "all"), THREAT, "frozen")
    Trainer(model, recipe, tiny_examples(24), tiny_examples(6), TASK, settings).fit(Run.create(tmp_path / "run", {}))
    changed = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("bn", ["update", "frozen"])
@pytest.mark.parametrize("lr", [0.01, 0.0])
def test_training_changes_the_layer_and_the_statistics_and_nothing_else(bn, lr, tiny_examples, snapshot, tmp_path):
    model = create("small-cnn", TASK, seed=0)
    before = snapshot(model)
    recipe = rift_recipe(model, ("layer2.conv",), THREAT, bn)
    settings = Settings(epochs=2, batch_size=8, lr=lr, schedule="constant")
    trainer = Trainer(model, recipe, tiny_examples(24), tiny_examples(6), TASK, settings, select="val/clean_acc")
    trainer.fit(Run.create(tmp_path / "run", {}))
    changed = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    statistics = {name for name in before if name.rpartition(".")[2] in ("running_mean", "running_var")}
    counters = {name for name in before if name.endswith("num_batches_tracked")}
    wanted = ({"layer2.conv.weight"} if lr else set()) | (statistics | counters if bn == "update" else set())
    assert changed == wanted
