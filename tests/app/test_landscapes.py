"""`gambeson diagnose landscape`: the table, the record and the picture of a run, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from app.helpers import Cli, assert_error, fingerprint
from gambeson.app import build
from gambeson.app.options import LandscapeOptions
from gambeson.core.threat import Linf
from gambeson.diagnosis import attacked_images, grid_axis, input_landscape, weight_landscape

Finished = Callable[[str], Path]
SMALL = ("--size", "20", "--points", "3", "--device", "cpu")


def test_help_lists_every_option(cli: Cli) -> None:
    page = cli("diagnose", "landscape", "--help")
    assert page.out.startswith("usage: gambeson diagnose landscape RUN")
    options = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(LandscapeOptions)}
    assert options <= set(re.findall(r"^  (--[a-z-]+)", page.out, re.MULTILINE))
    documented = set(re.findall(r"^        (\w+): ", LandscapeOptions.__doc__ or "", re.MULTILINE))
    assert documented == {field.name for field in dataclasses.fields(LandscapeOptions)}


def test_the_record_is_what_the_library_measures(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    words = ("--groups", "former,input", "--inputs", "fgsm", "--checkpoint", "best,final", "--seed", "3")
    result = cli("diagnose", "landscape", "r", *SMALL, *words)
    opened = build.open_run(run)
    test = build.splits(opened.call).test.head(20)
    (file,) = (run / "diagnosis").glob("landscape-fgsm-test-*.json")
    record = json.loads(file.read_text())

    assert result.code == 0, result.err
    assert list(record["landscapes"]) == ["best (step 2)", "final (step 2)"]
    for name, rows in zip(("best", "final"), record["landscapes"].values(), strict=True):
        model = build.load_model(opened, name, torch.device("cpu"))[0]
        images = attacked_images(model, test.x, test.y, "fgsm", Linf(0.2), seed=3)
        layers = rows[0]["layers"]
        wanted = weight_landscape(model, images, test.y, layers, axis=grid_axis(3, 1.0), title="former", seed=3)
        moved = input_landscape(model, test.x, test.y, Linf(0.2), axis=grid_axis(3, 1.0), seed=3)
        assert rows == json.loads(json.dumps([wanted.to_dict(), moved.to_dict()]))
        assert re.search(rf"^ {name} \(step 2\) +former +{wanted.centre:.3g} ", result.out, re.MULTILINE)
    said = [record[key] for key in ("data", "split", "n", "inputs", "norm", "eps", "method")]
    assert said == ["digits", "test", 20, "fgsm", "Linf", 0.2, "n-lap"]
    assert result.err == f"wrote {file.with_suffix('.png')} and {file}\n"
    with Image.open(file.with_suffix(".png")) as picture:
        assert min(picture.size) > 300


def test_all_snapshots_are_rows(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    for step in (10, 9):
        shutil.copy(run / "checkpoints/final.safetensors", run / f"checkpoints/snapshot-{step}.safetensors")
    words = ("--groups", "former", "--dims", "1", "--checkpoint", "snapshots,final", "--json", "--out", "l.svg")
    record = json.loads(cli("diagnose", "landscape", "r", *SMALL, *words).out)

    assert [name.split()[0] for name in record["landscapes"]] == ["snapshot-9", "snapshot-10", "final"]


def test_curves_in_json(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    before = fingerprint(run)
    result = cli("diagnose", "landscape", "r", *SMALL, "--dims", "1", "--groups", "five", "--json", "--out", "l.svg")
    record = json.loads(result.out)
    assert record == json.loads(Path("l.json").read_text())
    (rows,) = record["landscapes"].values()
    assert all(len(row["loss"]) == len(row["axis"]) == 3 for row in rows)
    assert "<svg" in Path("l.svg").read_text()
    assert fingerprint(run) == before


@pytest.mark.parametrize(
    ("words", "code", "fragments"),
    [
        ((), 2, ("diagnose landscape needs one run directory, got 0",)),
        (("r", "--group", "3"), 2, ("unknown option --group", "--groups")),
        (("r", "--groups", "formr"), 2, ("no layer and no group 'formr'", "former")),
        (("r", "--groups", ""), 2, ("no groups of layers were named",)),
        (("r", "--points", "4"), 2, ("odd number of points",)),
        (("r", "--span", "0"), 2, ("the span of a grid is positive",)),
        (("r", "--dims", "3"), 2, ("--dims is 1 or 2, got 3",)),
        (("r", "--dims", "1", "--groups", "input"), 2, ("the landscape of the input has two directions",)),
        (("r", "--inputs", "pdg-5"), 2, ("unknown attack 'pdg-5'",)),
        (("r", "--size", "0"), 2, ("--size must be at least 1, got 0",)),
        (("r", "--batch-size", "0"), 2, ("--batch-size must be at least 1, got 0",)),
        (("r", "--memory", "0"), 2, ("--memory must be gigabytes above 0, got 0",)),
        (("r", "--budget", "1000"), 2, ("images through the model, more than --budget 1,000", "fewer --points")),
        (("r", "--checkpoint", "newest"), 2, ("unknown checkpoint 'newest'",)),
        (("r", "--checkpoint", "snapshots"), 2, ("r kept no snapshots", "--snapshots N")),
        (("r", "--checkpoint", "best,snapshot-7"), 2, ("r kept no snapshots", "best, final, last")),
        (("r", "--checkpoint", ","), 2, ("--checkpoint names no checkpoint",)),
        (("r", "--split", "all"), 2, ("unknown split 'all'",)),
        (("r", "--out", "picture"), 2, ("the picture picture needs an ending",)),
        (("none",), 1, ("none is not a run directory",)),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(
    words: tuple[str, ...], code: int, fragments: tuple[str, ...], cli: Cli, finished: Finished
) -> None:
    run = finished("r")
    before = fingerprint(run)
    assert_error(cli("diagnose", "landscape", *words), code, *fragments)
    assert fingerprint(run) == before
