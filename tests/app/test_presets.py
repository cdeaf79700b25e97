"""Presets name things that exist."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from gambeson.app import presets
from gambeson.app.options import TrainOptions
from gambeson.data import DATASETS
from gambeson.engine.settings import Settings
from gambeson.methods import METHODS
from gambeson.models import MODELS

OPTIONS = {f.name for schema in (Settings, TrainOptions) for f in fields(schema)}


@pytest.mark.parametrize("data", presets.TRAINING)
def test_training_presets_are_options_of_a_data_set(data: str, planned: Callable[..., dict[str, Any]]) -> None:
    values = presets.TRAINING[data]
    call = planned("n-lap", "--data", data)
    used = {**call, **call["settings"], "model": call["model"]["name"]}

    assert data in DATASETS
    assert set(values) <= OPTIONS
    assert values["model"] in MODELS
    assert {key: used[key] for key in values} == values


@pytest.mark.parametrize(("data", "name"), presets.METHOD)
def test_method_presets_are_arguments_of_the_method(
    data: str, name: str, planned: Callable[..., dict[str, Any]]
) -> None:
    values = presets.METHOD[data, name]
    args = planned(name, "--data", data)["method"]["args"]

    assert data in DATASETS
    assert set(values) <= set(inspect.signature(METHODS[name]).parameters)
    assert {key: args[key] for key in values} == values


def test_a_preset_gives_way_to_the_command_line(planned: Callable[..., dict[str, Any]]) -> None:
    call = planned("n-lap", "--beta", "0.7", "--epochs", "3")

    assert (call["method"]["args"]["beta"], call["settings"]["epochs"]) == (0.7, 3)


def test_other_data_keep_the_signatures_defaults(planned: Callable[..., dict[str, Any]]) -> None:
    call = planned("n-lap", "--data", "cifar10")
    signature = inspect.signature(METHODS["n-lap"]).parameters

    assert call["method"]["args"]["beta"] == signature["beta"].default
    assert (call["settings"]["epochs"], call["settings"]["lr"]) == (Settings().epochs, Settings().lr)
    assert call["model"]["name"] == "preact-resnet18"
