"""`gambeson diagnose spectra`: the table, the record and the picture of a run, and what is refused."""

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
from gambeson.app.options import SpectraOptions
from gambeson.diagnosis import measure_spectra

Finished = Callable[[str], Path]


def test_help_lists_every_option(cli: Cli) -> None:
    page = cli("diagnose", "spectra", "--help")
    assert page.out.startswith("usage: gambeson diagnose spectra RUN")
    options = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(SpectraOptions)}
    assert options <= set(re.findall(r"^  (--[a-z-]+)", page.out, re.MULTILINE))
    documented = set(re.findall(r"^        (\w+): ", SpectraOptions.__doc__ or "", re.MULTILINE))
    assert documented == {field.name for field in dataclasses.fields(SpectraOptions)}


def test_the_record_is_what_the_library_measures(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    result = cli("diagnose", "spectra", "r", "--checkpoint", "best,final")
    opened = build.open_run(run)
    models = {f"{name} (step 2)": build.load_model(opened, name, torch.device("cpu"))[0] for name in ("best", "final")}
    found = measure_spectra(models)
    record = json.loads((run / "diagnosis/spectra-checkpoint-best+final.json").read_text())

    assert result.code == 0, result.err
    assert {key: record[key] for key in ("checkpoints", "layers")} == json.loads(json.dumps(found.to_dict()))
    first = found.layers[0][0]
    assert re.search(rf"^ best \(step 2\) +{re.escape(first.layer)} +\S+ +{first.norm:.3g} ", result.out, re.MULTILINE)
    assert result.err == "wrote r/diagnosis/spectra-checkpoint-best+final.png and " + (
        "r/diagnosis/spectra-checkpoint-best+final.json\n"
    )
    with Image.open(run / "diagnosis/spectra-checkpoint-best+final.png") as picture:
        assert min(picture.size) > 300


def test_all_snapshots_of_a_training_in_the_order_of_their_steps(cli: Cli) -> None:
    words = ("--epochs", "3", "--train-size", "200", "--test-size", "20", "--attack", "clean", "--device", "cpu")
    assert cli("train", "fgsm", *words, "--snapshots", "3", "--run", "r").code == 0
    result = cli("diagnose", "spectra", "r", "--checkpoint", "snapshots", "--json", "--out", "s.svg")
    record = json.loads(result.out)

    assert record["checkpoints"] == ["snapshot-2 (step 2)", "snapshot-4 (step 4)", "snapshot-6 (step 6)"]
    assert all(one["drift"] > 0 for one in record["layers"]["snapshot-6 (step 6)"])
    assert record["unfinished"] is None
    typed = cli("diagnose", "spectra", "r", "--checkpoint", "snapshot-6,snapshot-2", "--json", "--out", "s.svg")
    assert json.loads(typed.out)["checkpoints"] == ["snapshot-2 (step 2)", "snapshot-6 (step 6)"]


def test_json_of_some_layers_stands_alone(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    before = fingerprint(run)
    result = cli("diagnose", "spectra", "r", "--layers", "former", "--json", "--out", "s.svg")
    record = json.loads(result.out)
    assert record == json.loads(Path("s.json").read_text())
    (rows,) = record["layers"].values()
    assert len(rows) == 1
    assert rows[0]["drift"] is None
    assert "<svg" in Path("s.svg").read_text()
    assert fingerprint(run) == before


@pytest.mark.parametrize(
    ("words", "code", "fragments"),
    [
        ((), 2, ("diagnose spectra needs one run directory, got 0",)),
        (("r", "--layer", "conv1"), 2, ("unknown option --layer", "--layers")),
        (("r", "--layers", "formr"), 2, ("no layer and no group 'formr'", "former")),
        (("r", "--checkpoint", "newest"), 2, ("unknown checkpoint 'newest'",)),
        (("r", "--checkpoint", "snapshots"), 2, ("r kept no snapshots", "--snapshots N")),
        (("r", "--checkpoint", "best,snapshot-7"), 2, ("r kept no snapshots", "best, final, last")),
        (("r", "--checkpoint", ","), 2, ("--checkpoint names no checkpoint",)),
        (("r", "--out", "picture"), 2, ("the picture picture needs an ending",)),
        (("none",), 1, ("none is not a run directory",)),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(
    words: tuple[str, ...], code: int, fragments: tuple[str, ...], cli: Cli, finished: Finished
) -> None:
    run = finished("r")
    before = fingerprint(run)
    assert_error(cli("diagnose", "spectra", *words), code, *fragments)
    assert fingerprint(run) == before
