"""Presets name things that exist."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.helpers import Cli, assert_error
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


# folders of one's own images


def folder(count: int, side: int = 8, classes: int = 3, test: int = 4) -> str:
    """Images whose class is their bright part; returns the name of the data set."""
    draw = np.random.default_rng(0)
    for split, number in (("train", count), ("test", test)):
        for i in range(number):
            pixels = draw.integers(0, 90, (side, side), dtype=np.uint8)
            pixels[:, side * (i % classes) // classes : side * (i % classes + 1) // classes] += 150
            Path("mine", split, f"c{i % classes}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(Path("mine", split, f"c{i % classes}", f"{i}.png"))
    return "folder:mine"


@pytest.mark.parametrize(
    ("count", "batch", "model"),
    [(4, 3, "small-cnn"), (60, 8, "small-cnn"), (200, 16, "small-cnn"), (4999, 128, "small-cnn"), (5000, 128, None)],
)
def test_settings_follow_from_the_number_of_images(count: int, batch: int, model: str | None) -> None:
    chosen = presets.of_images(count, 32)

    assert (chosen["batch_size"], chosen.get("model")) == (batch, model)
    assert set(chosen) <= OPTIONS
    assert chosen.get("val_fraction") == (0.2 if model else None)
    assert "val_fraction" not in presets.of_images(count, 32, has_val=True)


@pytest.mark.parametrize(("side", "size"), [(4, 8), (8, 8), (32, 32), (64, 64), (500, 64)])
def test_images_are_not_enlarged(side: int, size: int) -> None:
    assert presets.of_images(200, side)["size"] == size


def test_a_small_folder_trains_with_nothing_but_its_name(cli: Cli) -> None:
    data = folder(60)
    result = cli(
        "train", "n-lap", "--data", data, "--epochs", "1", "--attack", "clean", "--device", "cpu", "--run", "r"
    )
    call = json.loads(Path("r/run.json").read_text())

    assert result.code == 0, result.err
    assert f"{data}: 48 train, 12 val, 4 test, 3x8x8; small-cnn with" in result.out
    said = "--size 8, --batch-size 8, --model small-cnn, --lr 0.1, --val-fraction 0.2"
    assert f"chosen by the number and the size of the images: {said}\n" in result.out
    assert (call["data"]["size"], call["data"]["val_fraction"], call["settings"]["batch_size"]) == (8, 0.2, 8)
    assert cli("evaluate", "r", "--attack", "clean", "--device", "cpu").code == 0
    assert cli("resume", "r").code == 0


def test_what_is_said_goes_before_what_is_chosen(here: Path, planned: Callable[..., dict[str, Any]]) -> None:
    data = folder(60)
    call = planned("n-lap", "--data", data, "--size", "12", "--batch-size", "4", "--model", "resnet18")

    assert (call["data"]["size"], call["settings"]["batch_size"], call["model"]["name"]) == (12, 4, "resnet18")
    assert call["settings"]["lr"] == 0.1


def test_a_folder_that_is_not_right_is_said_by_who_reads_it(cli: Cli) -> None:
    folder(60)
    Path("mine/train/c0/0.png").write_bytes(b"cut")
    assert_error(cli("train", "n-lap", "--data", "folder:mine"), 1, "0.png cannot be decoded")
    Path("empty").mkdir()
    assert_error(cli("train", "n-lap", "--data", "folder:empty"), 1, "one sub-folder per class")
