"""Which layers RiFT trains, and what its training changes: these, and BatchNorm's statistics unless frozen."""

from __future__ import annotations

import pytest
import torch

from gambeson.core.errors import InputError
from gambeson.core.threat import Linf
from gambeson.core.types import Task
from gambeson.diagnosis.criticality import MRC, Criticality, LayerCriticality
from gambeson.engine.run import Run
from gambeson.engine.settings import Settings
from gambeson.engine.trainer import Trainer
from gambeson.finetuning import choose_layers, rift_recipe
from gambeson.models import create

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


def test_criticality_is_needed_for_the_least_critical():
    with pytest.raises(InputError, match="needs the layers' criticality"):
        choose_layers(create("small-cnn", TASK, seed=0), "argmin")


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [(("layer2.conv",), ("layer2.conv.weight",)), (("linear",), ("linear.weight", "linear.bias")), ((), None)],
)
def test_a_convolution_gives_its_weight_and_a_linear_layer_its_bias_too(layers, wanted):
    assert rift_recipe(create("small-cnn", TASK, seed=0), layers, THREAT).trainable == wanted


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
