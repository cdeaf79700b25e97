"""Former, middle and latter layers: LAP's numbering of the 17 main convolutions, and other models."""

from __future__ import annotations

import pytest
from torch import nn

from gambeson.core.errors import InputError
from gambeson.core.parameters import layer_weights
from gambeson.core.types import Task
from gambeson.diagnosis.groups import layer_groups, main_layers, parse_groups, sizes, spread
from gambeson.models import create

TASK = Task(num_classes=10, channels=3, size=32, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize("name", ["preact-resnet18", "resnet18"])
def test_an_18_layer_network_has_17_main_layers_5_former_and_4_latter(name: str) -> None:
    model = create(name, TASK, width=4)
    groups = layer_groups(model)
    assert [len(groups[key]) for key in ("former", "middle", "latter")] == [5, 8, 4]
    assert groups["former"] + groups["middle"] + groups["latter"] == main_layers(model)
    assert groups["whole"] == tuple(layer_weights(model))
    assert len(groups["whole"]) == 21
    shapes = {tuple(layer_weights(model)[key].shape[2:]) for key in main_layers(model)}
    assert shapes == {(3, 3)}  # no 1x1 shortcut, no classifier
    assert groups["former"][0] == next(iter(layer_weights(model)))
    assert all("layer4" in key for key in groups["latter"])


def test_other_networks_are_divided_in_the_same_shares() -> None:
    groups = layer_groups(create("vit-small", TASK))
    assert [len(groups[key]) for key in ("former", "middle", "latter")] == [14, 23, 12]


def test_small_networks() -> None:
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
    assert layer_groups(model)["former"] == ("0.weight",)
    assert layer_groups(model)["latter"] == ("2.weight",)
    with pytest.raises(InputError, match="at least 3 on the main path, got 2"):
        layer_groups(nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)]))


def test_groups_are_read_from_words() -> None:
    model = create("preact-resnet18", TASK, width=4)
    found = parse_groups(model, " former, conv1,layer1.0.conv1.weight,whole ")
    assert list(found) == ["former", "conv1", "layer1.0.conv1", "whole"]
    assert found["conv1"] == ("conv1.weight",)
    five = parse_groups(model, "five")
    assert [main_layers(model).index(names[0]) + 1 for names in five.values()] == [1, 5, 9, 13, 17]
    assert list(parse_groups(model, "layers").values()) == [(name,) for name in layer_weights(model)]
    assert sizes(model, {"conv1": ("conv1.weight",)}) == {"conv1": 4 * 3 * 9}


def test_unknown_words_are_refused_with_the_nearest() -> None:
    model = create("preact-resnet18", TASK, width=4)
    with pytest.raises(InputError, match="no layer and no group 'formr'") as error:
        parse_groups(model, "formr")
    assert "former" in (error.value.hint or "")
    with pytest.raises(InputError, match="no groups of layers"):
        parse_groups(model, " , ")


def test_names_are_spread_from_the_first_to_the_last() -> None:
    assert spread(("a", "b"), 5) == ("a", "b")
    assert spread(tuple("abcdefghij"), 4) == ("a", "d", "g", "j")
