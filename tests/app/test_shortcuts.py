"""`gambeson diagnose shortcuts`: the table, the record and the picture of a run, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from app.helpers import Cli, assert_error, fingerprint
from gambeson.app import build
from gambeson.app.options import ShortcutsOptions
from gambeson.core.threat import Linf
from gambeson.diagnosis import find_shortcuts
from gambeson.diagnosis.groups import layer_groups

Finished = Callable[[str], Path]
SMALL = ("--size", "20", "--shares", "10,50", "--device", "cpu", "--attack", "fgsm,pgd-2")


def test_help_lists_every_option(cli: Cli) -> None:
    page = cli("diagnose", "shortcuts", "--help")
    assert page.out.startswith("usage: gambeson diagnose shortcuts RUN")
    options = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(ShortcutsOptions)}
    assert options <= set(re.findall(r"^  (--[a-z-]+)", page.out, re.MULTILINE))
    documented = set(re.findall(r"^        (\w+): ", ShortcutsOptions.__doc__ or "", re.MULTILINE))
    assert documented == {field.name for field in dataclasses.fields(ShortcutsOptions)}


def test_the_record_is_what_the_library_measures(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    result = cli("diagnose", "shortcuts", "r", *SMALL, "--seed", "3", "--pooled")
    opened = build.open_run(run)
    test = build.splits(opened.call).test.head(20)
    (file,) = (run / "diagnosis").glob("shortcuts-final-test-*.json")
    record = json.loads(file.read_text())
    model = build.load_model(opened, "final", torch.device("cpu"))[0]
    groups = {key: names for key, names in layer_groups(model).items() if key != "whole"}
    found = find_shortcuts(
        model, test.x, test.y, Linf(0.2), groups, num_classes=10, shares=[0.1, 0.5], attacks=("fgsm", "pgd-2"),
        pooled=True, seed=3,
    )  # fmt: skip

    assert result.code == 0, result.err
    wanted = json.loads(json.dumps(found.to_dict()))
    assert {key: record[key] for key in wanted} == wanted
    assert len(record["removals"]) == 18
    assert re.search(r"^ former +largest +10 ", result.out, re.MULTILINE)
    assert found.sentence() in result.out
    said = [record[key] for key in ("data", "split", "n", "checkpoint", "method", "pooled")]
    assert said == ["digits", "test", 20, "final", "n-lap", True]
    assert result.err == f"wrote {file.with_suffix('.png')} and {file}\n"
    with Image.open(file.with_suffix(".png")) as picture:
        assert min(picture.size) > 300


def test_json_stands_alone(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    before = fingerprint(run)
    words = ("--groups", "latter", "--modes", "largest", "--json", "--out", "s.svg")
    result = cli("diagnose", "shortcuts", "r", *SMALL, *words)
    record = json.loads(result.out)
    assert record == json.loads(Path("s.json").read_text())
    assert [(row["group"], row["mode"], row["share"]) for row in record["removals"]] == [
        ("latter", "largest", 0.1), ("latter", "largest", 0.5),
    ]  # fmt: skip
    assert "<svg" in Path("s.svg").read_text()
    assert fingerprint(run) == before


@pytest.mark.parametrize(
    ("words", "code", "fragments"),
    [
        ((), 2, ("diagnose shortcuts needs one run directory, got 0",)),
        (("r", "--share", "3"), 2, ("unknown option --share", "--shares")),
        (("r", "--groups", "formr"), 2, ("no layer and no group 'formr'", "former")),
        (("r", "--modes", "biggest"), 2, ("unknown mode 'biggest'", "largest")),
        (("r", "--modes", ""), 2, ("needs groups of layers, modes and shares",)),
        (("r", "--shares", "few"), 2, ("--shares are percentages, got 'few'",)),
        (("r", "--shares", "0,10"), 2, ("shares of weights to remove lie in (0, 1]",)),
        (("r", "--shares", "110"), 2, ("shares of weights to remove lie in (0, 1]",)),
        (("r", "--attack", "fgsm"), 2, ("--attack names two attacks, got 'fgsm'", "fgsm,pgd-10")),
        (("r", "--attack", "fgsm,pdg-5"), 2, ("unknown attack 'pdg-5'",)),
        (("r", "--size", "0"), 2, ("--size must be at least 1, got 0",)),
        (("r", "--batch-size", "0"), 2, ("--batch-size must be at least 1, got 0",)),
        (("r", "--split", "train"), 2, ("unknown split 'train'",)),
        (("r", "--checkpoint", "newest"), 2, ("unknown checkpoint 'newest'",)),
        (("r", "--out", "picture"), 2, ("the picture picture needs an ending",)),
        (("none",), 1, ("none is not a run directory",)),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(
    words: tuple[str, ...], code: int, fragments: tuple[str, ...], cli: Cli, finished: Finished
) -> None:
    run = finished("r")
    before = fingerprint(run)
    assert_error(cli("diagnose", "shortcuts", *words), code, *fragments)
    assert fingerprint(run) == before
