"""`gambeson diagnose criticality`: the table, the record and the picture of a run, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.helpers import ENV, Cli, assert_error, fingerprint
from gambeson.app import build, layered
from gambeson.app.options import CriticalityOptions
from gambeson.attacks.pgd import PGD
from gambeson.diagnosis import PROTOCOLS, adversarial_set, measure_criticality
from gambeson.diagnosis.mrc import Criticality, LayerCriticality

Finished = Callable[[str], Path]
LAYERS = ["layer1.conv", "layer2.conv", "layer3.conv", "layer4.conv", "linear"]
SMALL = ("--size", "30", "--device", "cpu")


@pytest.fixture(scope="module")
def measured(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose criticality was measured with the defaults; look, do not touch."""
    from gambeson.app.cli import main

    path = tmp_path_factory.mktemp("measured") / "r"
    shutil.copytree(trained, path)
    assert main(["diagnose", "criticality", str(path), *SMALL]) == 0
    return path


def record_of(run: Path, name: str = "criticality-release-best-val-size-30") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / f"diagnosis/{name}.json").read_text())
    return found


def test_the_record_is_what_the_library_measures(measured: Path) -> None:
    record = record_of(measured)
    run = build.open_run(measured)
    model = build.load_model(run, "best", torch.device("cpu"))[0]
    data, threat = build.splits(run.call), build.recipe(run.call).threat
    x = adversarial_set(model, data.val.x[:30], data.val.y[:30], threat)
    found = measure_criticality(model, x, data.val.y[:30], PROTOCOLS["release"])
    assert [row["layer"] for row in record["layers"]] == LAYERS
    for row, wanted in zip(record["layers"], found.layers, strict=True):
        assert row["mrc"] == pytest.approx(wanted.mrc, rel=1e-4, abs=1e-6)
        assert row["drop"] == pytest.approx(found.drop(wanted))
    assert record["ranking"] == sorted(LAYERS, key=lambda name: {r["layer"]: r["mrc"] for r in record["layers"]}[name])
    with torch.no_grad():
        right = (model(x).argmax(1) == data.val.y[:30]).double().mean()
    assert record["accuracy"] == pytest.approx(float(right))
    said = ("checkpoint", "split", "data", "n", "method", "seed", "rel_step_size", "strategy")
    assert [record[key] for key in said] == ["best", "val", "digits", 30, "n-lap", 0, 0.25, "cached"]
    assert {"run", "step", "versions", "protocol", "untraced"} <= set(record)


def test_the_picture_names_every_layer_and_nothing_half_made_stays(measured: Path) -> None:
    picture = (measured / "diagnosis/criticality-release-best-val-size-30.svg").read_text()
    assert all(name in picture for name in LAYERS)
    assert "n = 30 adversarial images" in picture
    assert not list(measured.rglob("*partial*"))


def test_the_table_begins_with_the_least_critical_layer(cli: Cli, finished: Finished) -> None:
    finished("r")
    result = cli("diagnose", "criticality", "r", *SMALL)
    record = record_of(Path("r"))
    assert result.code == 0, result.err
    names = re.findall(r"^ (layer\d\.conv|linear) +(\S+)", result.out, re.MULTILINE)
    assert [name for name, _ in names] == record["ranking"]
    mrc = {row["layer"]: f"{row['mrc']:.4f}" for row in record["layers"]}
    assert dict(names) == mrc
    assert "digits val, n = 30 adversarial images" in result.out
    assert "on test" not in result.out
    stem = "r/diagnosis/criticality-release-best-val-size-30"
    assert f"wrote {stem}.svg and {stem}.json\n" in result.err


def test_json_is_what_is_kept_and_stands_alone(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    before = fingerprint(run)
    result = cli("diagnose", "criticality", "r", *SMALL, "--modules", "linear, layer4.conv", "--json", "--out", "c.png")
    record = json.loads(result.out)
    assert record == json.loads(Path("c.json").read_text())
    assert [row["layer"] for row in record["layers"]] == ["layer4.conv", "linear"]
    assert result.err == "wrote c.png and c.json\n"
    assert sorted(path.name for path in Path().iterdir()) == ["c.json", "c.png", "r"]
    assert fingerprint(run) == before


@pytest.mark.parametrize("protocol", ["release", "paper"])
def test_strategies_agree(protocol: str, cli: Cli, finished: Finished) -> None:
    finished("r")
    found = {}
    for strategy in ("cached", "wavefront", "naive"):
        words = ("--protocol", protocol, "--strategy", strategy, "--checkpoint", "final", "--json", "--memory", "0.01")
        found[strategy] = json.loads(cli("diagnose", "criticality", "r", *SMALL, *words).out)
    for strategy in ("cached", "wavefront"):
        assert found[strategy]["strategy"] == strategy
        assert found[strategy]["ranking"] == found["naive"]["ranking"]
        for one, other in zip(found[strategy]["layers"], found["naive"]["layers"], strict=True):
            assert one["mrc"] == pytest.approx(other["mrc"], rel=1e-3, abs=1e-5)
    assert Path(f"r/diagnosis/criticality-{protocol}-final-val-size-30.svg").is_file()
    epochs = {row["epochs"] for row in found["naive"]["layers"]}
    assert epochs == {10} if protocol == "release" else max(epochs) < 10


def test_only_the_least_critical_layer(cli: Cli, finished: Finished, measured: Path) -> None:
    finished("r")
    words = ("--argmin-only", "--protocol", "release")
    table = cli("diagnose", "criticality", "r", *SMALL, *words).out
    name = "criticality-release-best-val-size-30-argmin-only"
    record, whole = record_of(Path("r"), name), record_of(measured)
    assert record["ranking"][0] == whole["ranking"][0]
    pruned = [row["layer"] for row in record["layers"] if row["pruned"]]
    assert pruned
    assert table.count(">=") == 2 * len(pruned)


def test_on_test_it_is_stamped(cli: Cli, finished: Finished) -> None:
    finished("r")
    words = ("--modules", "linear", "--split", "test")
    assert "measured on test: what is chosen by it is selected on test" in cli(
        "diagnose", "criticality", "r", *SMALL, *words
    ).out.replace("\n", " ")
    assert Path("r/diagnosis/criticality-release-best-test-size-30-modules-linear.svg").is_file()


def test_other_settings_have_files_of_their_own(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    words = ("--modules", "linear", "--device", "cpu")
    every = [(), ("--size", "9"), ("--rel-step-size", "0.5"), ("--seed", "1"), ("--modules", "layer4.conv,linear")]
    for more in every:
        assert cli("diagnose", "criticality", "r", *words, *more).code == 0
    assert len(list((run / "diagnosis").glob("*.json"))) == len(every)


@pytest.mark.parametrize("protocol", ["paper", "release"])
def test_a_negative_criticality_is_explained(protocol: str, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(mrc: float) -> str:
        row = LayerCriticality("linear", (3, 4), mrc, 1 + mrc, 0.5, 0.1, 1)
        found = Criticality((row,), 1.0, 0.5, 10, PROTOCOLS[protocol], "cached")
        of = {"run": "r", "checkpoint": "best", "step": 2, "data": "digits", "split": "val"}
        layered.criticality({**of, **found.to_dict()})
        return capsys.readouterr().out

    assert "negative" not in shown(0.25)
    out = shown(-0.25)
    assert "note: a negative MRC is one whose search ended below the loss" in out
    assert ("this protocol keeps the last weights" in out) == (protocol == "paper")


def test_an_interrupted_search_measures_no_layer_twice(
    cli: Cli, finished: Finished, measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gambeson.diagnosis import criticality_store

    finished("r")
    write, kept = criticality_store.write_json, []

    class Killed(BaseException):
        pass

    def counted(path: Path, content: Any) -> None:
        write(path, content)
        kept.append(len(content["layers"]))
        if kept == [1, 2]:
            raise Killed

    monkeypatch.setattr(criticality_store, "write_json", counted)
    with pytest.raises(Killed):
        cli("diagnose", "criticality", "r", *SMALL)
    assert cli("diagnose", "criticality", "r", *SMALL).code == 0
    assert kept == [1, 2, 3, 4, 5]
    assert record_of(Path("r"))["layers"] == record_of(measured)["layers"]


@pytest.mark.parametrize(
    ("words", "code", "fragments"),
    [
        (("--modules", "liner"), 2, ("no Conv2d or Linear layer 'liner'", "did you mean linear")),
        (("--modules", "layer1.bn"), 2, ("'layer1.bn'",)),
        (("--size", "71"), 2, ("between 1 and the 70 images of the val split can be taken, got 71",)),
        (("--size", "0"), 2, ("between 1 and the 70 images",)),
        (("--split", "tst"), 2, ("unknown split 'tst'", "val, test, train")),
        (("--protocol", "papr"), 2, ("unknown protocol 'papr'", "release, paper")),
        (("--strategy", "fast"), 2, ("unknown strategy 'fast'",)),
        (("--memory", "-1"), 2, ("--memory must be gigabytes above 0, got -1",)),
        (("--memory", "0"), 2, ("--memory must be gigabytes above 0, got 0",)),
        (("--rel-step-size", "0"), 2, ("--rel-step-size must be above 0",)),
        (("--modules", ""), 2, ("--modules names no layer", "leave it out")),
        (("--rel-step-size", "-1"), 2, ("step of an attack",)),
        (("--checkpoint", "base"), 2, ("unknown checkpoint 'base'", "r has best, final, last")),
        (("--out", "c.xyz"), 2, ("cannot write the picture",)),
        (("--out", "nowhere/c.svg"), 1, ("there is no folder nowhere",)),
    ],
)
def test_what_cannot_be_measured_is_said_before_any_work(
    words: tuple[str, ...],
    code: int,
    fragments: tuple[str, ...],
    cli: Cli,
    finished: Finished,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = finished("r")
    monkeypatch.setattr(PGD, "__call__", lambda *_: pytest.fail("attacked"))
    before = {name: digest for name, digest in fingerprint(run).items() if name != "diagnosis"}
    assert_error(cli("diagnose", "criticality", "r", "--device", "cpu", *words), code, *fragments)
    assert {name: digest for name, digest in fingerprint(run).items() if name != "diagnosis"} == before


def test_an_empty_validation_split_is_said(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    call = json.loads((run / "run.json").read_text())
    call["data"]["val_fraction"] = 0.0
    (run / "run.json").write_text(json.dumps(call))
    assert_error(cli("diagnose", "criticality", "r"), 1, "the val split is empty", "--val-fraction 0.05")


def test_the_help(cli: Cli) -> None:
    page = cli("diagnose", "criticality", "--help")
    assert (page.code, page.err) == (0, "")
    options = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(CriticalityOptions)}
    assert options <= set(re.findall(r"^  (--[a-z-]+)", page.out, re.MULTILINE))
    documented = set(re.findall(r"^        (\w+): ", CriticalityOptions.__doc__ or "", re.MULTILINE))
    assert documented == {field.name for field in dataclasses.fields(CriticalityOptions)}
    code = """
import sys
from gambeson.app.cli import main
assert main(["diagnose", "criticality", "--help"]) == 0
assert not {"torch._C", "matplotlib", "scipy"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
