"""`gambeson diagnose response`: the tables, the record and the picture of a run, and what is refused."""

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
from gambeson.app.options import ResponseOptions
from gambeson.core.threat import Linf
from gambeson.diagnosis import measure_response
from gambeson.diagnosis.groups import parse_groups

Finished = Callable[[str], Path]
SMALL = ("--size", "20", "--device", "cpu")


def test_help_lists_every_option(cli: Cli) -> None:
    page = cli("diagnose", "response", "--help")
    assert page.out.startswith("usage: gambeson diagnose response RUN")
    options = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(ResponseOptions)}
    assert options <= set(re.findall(r"^  (--[a-z-]+)", page.out, re.MULTILINE))
    documented = set(re.findall(r"^        (\w+): ", ResponseOptions.__doc__ or "", re.MULTILINE))
    assert documented == {field.name for field in dataclasses.fields(ResponseOptions)}


def test_the_record_is_what_the_library_measures(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    words = ("--inputs", "clean,pgd-2", "--rho", "5,1", "--checkpoint", "best,final", "--seed", "3")
    result = cli("diagnose", "response", "r", *SMALL, *words)
    opened = build.open_run(run)
    test = build.splits(opened.call).test.head(20)
    (file,) = (run / "diagnosis").glob("response-test-*.json")
    record = json.loads(file.read_text())

    assert result.code == 0, result.err
    assert file.name == "response-test-rho-5+1-inputs-clean+pgd-2-checkpoint-best+final-size-20-seed-3.json"
    assert list(record["responses"]) == ["best (step 2)", "final (step 2)"]
    for name, row in zip(("best", "final"), record["responses"].values(), strict=True):
        model = build.load_model(opened, name, torch.device("cpu"))[0]
        wanted = measure_response(
            model, test.x, test.y, Linf(0.2), parse_groups(model, "layers,former,middle,latter"), num_classes=10,
            inputs=["clean", "pgd-2"], rhos=[0.01, 0.05], seed=3,
        )  # fmt: skip
        assert row == json.loads(json.dumps(wanted.to_dict()))
        assert row["sentences"]["pgd-2"] in result.out
        assert f"checkpoint {name} (step 2), digits test, Linf eps 0.2, n = 20; weights moved by 5 %" in result.out
        one = wanted.of("layer1.conv", "clean", 0.05)
        rise, change = wanted.rise(one), wanted.change(one)
        cells = f"{rise.value:+.3f} ± {(rise.high - rise.low) / 2:.3f}", f"{100 * change.value:+.1f}"
        assert re.search(rf"^ layer1\.conv +{re.escape(cells[0])} +{re.escape(cells[1])} ", result.out, re.MULTILINE)
    said = [record[key] for key in ("data", "split", "n", "norm", "eps", "method")]
    assert said == ["digits", "test", 20, "Linf", 0.2, "n-lap"]
    assert result.err == f"wrote {file.with_suffix('.png')} and {file}\n"
    with Image.open(file.with_suffix(".png")) as picture:
        assert min(picture.size) > 300


def test_json_of_remade_images_stands_alone(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    before = fingerprint(run)
    words = ("--groups", "former,latter", "--kinds", "random", "--inputs", "fgsm", "--remake", "--rho", "2")
    result = cli("diagnose", "response", "r", *SMALL, *words, "--json", "--out", "s.svg")
    record = json.loads(result.out)
    assert record == json.loads(Path("s.json").read_text())
    (found,) = record["responses"].values()
    assert [(row["group"], row["kind"], row["rho"]) for row in found["moves"]] == [
        ("former", "random", 0.02),
        ("latter", "random", 0.02),
    ]
    assert found["remake"] is True
    assert found["most"]["fgsm"]["by"] == "together"
    assert "<svg" in Path("s.svg").read_text()
    assert fingerprint(run) == before


@pytest.mark.parametrize(
    ("words", "code", "fragments"),
    [
        ((), 2, ("diagnose response needs one run directory, got 0",)),
        (("r", "--group", "3"), 2, ("unknown option --group", "--groups")),
        (("r", "--groups", "formr"), 2, ("no layer and no group 'formr'", "former")),
        (("r", "--groups", ""), 2, ("no groups of layers were named",)),
        (("r", "--rho", "0.5,much"), 2, ("--rho needs percentages, got '0.5,much'", "such as 0.5,1,2,5")),
        (("r", "--rho", "0"), 2, ("--rho needs percentages above 0, got '0'",)),
        (("r", "--rho", "nan"), 2, ("--rho needs percentages above 0",)),
        (("r", "--rho", ","), 2, ("--rho names nothing",)),
        (("r", "--kinds", "adverse"), 2, ("unknown kind 'adverse'",)),
        (("r", "--inputs", "pdg-5"), 2, ("unknown attack 'pdg-5'",)),
        (("r", "--inputs", ","), 2, ("--inputs names nothing",)),
        (("r", "--size", "0"), 2, ("--size must be at least 1, got 0",)),
        (("r", "--memory", "0"), 2, ("--memory must be gigabytes above 0, got 0",)),
        (("r", "--checkpoint", "newest"), 2, ("unknown checkpoint 'newest'",)),
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
    assert_error(cli("diagnose", "response", *words), code, *fragments)
    assert fingerprint(run) == before
