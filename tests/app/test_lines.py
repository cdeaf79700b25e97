"""`gambeson interpolate`: the table, the record and the picture of a line between two runs, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from app.helpers import ENV, FAST, Cli, assert_error, fingerprint, write_npz
from gambeson.app import build
from gambeson.app.cli import main
from gambeson.app.options import InterpolateOptions
from gambeson.attacks.pgd import PGD
from gambeson.evaluation.statistics import wilson
from gambeson.finetuning import choose_alpha, interpolated, reestimate_statistics, walk
from gambeson.finetuning.interpolate import Point

Finished = Callable[[str], Path]
SMALL = ("--alphas", "0,0.5,1", "--size", "40", "--device", "cpu")


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another training of the same model; look, do not touch."""
    path = tmp_path_factory.mktemp("second") / "second"
    assert main(["train", "n-fgsm", *FAST, "--seed", "1", "--epochs", "2", "--run", str(path)]) == 0
    return path


@pytest.fixture
def pair(finished: Finished, second: Path, here: Path) -> tuple[str, str]:
    """Two runs in `here`."""
    finished("a")
    shutil.copytree(second, here / "b")
    return "a", "b"


def clean_accuracy(words: tuple[str, str], alpha: float, *, reestimate: int | None = None) -> float:
    """By hand, of the first 40 validation images."""
    runs = [build.open_run(Path(word)) for word in words]
    models = [build.load_model(run, "best", torch.device("cpu"))[0] for run in runs]
    states = [{name: t.clone() for name, t in model.state_dict().items()} for model in models]
    data = build.splits(runs[0].call)
    models[0].load_state_dict(interpolated(*states, alpha, "full-state", []))
    if reestimate:
        reestimate_statistics(models[0], data.train.x[:reestimate])
    with torch.no_grad():
        right = models[0].eval()(data.val.x[:40].float() / 255).argmax(1) == data.val.y[:40]
    return int(right.sum()) / 40


def test_the_table_and_the_record(pair: tuple[str, str], cli: Cli) -> None:
    before = fingerprint(Path("a")), fingerprint(Path("b"))
    result = cli("interpolate", *pair, *SMALL)
    assert result.code == 0, result.err
    stem = "b/diagnosis/line-from-a-best-val-alphas-0+0.5+1-size-40"
    assert result.err.endswith(f"wrote {stem}.svg and {stem}.json\n")
    record = json.loads(Path(f"{stem}.json").read_text())
    first, last = record["steps"]
    assert result.out.startswith(
        f"alpha 0: a, checkpoint best (step {first}); alpha 1: b, checkpoint best (step {last})\ndigits val, n = 40\n"
    )
    assert [point["alpha"] for point in record["points"]] == [0, 0.5, 1]
    for point in record["points"]:
        assert point["clean"]["value"] == clean_accuracy(pair, point["alpha"])
        assert (point["clean"]["n"], point["robust"]["n"]) == (40, 40)
    assert record["points"][0] != record["points"][2]
    assert (record["runs"], record["checkpoints"], record["split"]) == (["a", "b"], ["best", "best"], "val")
    assert {"steps", "data", "seed", "versions", "tolerance", "chosen"} <= set(record)
    rows = re.findall(r"^ (0|0\.5|1) +(\d+\.\d) \[.*\] +(\d+\.\d) \[[^]]*\]( +chosen)?", result.out, re.MULTILINE)
    assert [row[:3] for row in rows] == [
        (f"{p['alpha']:g}", f"{100 * p['clean']['value']:.1f}", f"{100 * p['robust']['value']:.1f}")
        for p in record["points"]
    ]
    assert [float(row[0]) for row in rows if row[3].strip()] == [record["chosen"]]
    assert "a to b" in Path(f"{stem}.svg").read_text()
    after = fingerprint(Path("b"))
    assert (fingerprint(Path("a")), {name: after[name] for name in before[1]}) == before


def test_the_options_reach_the_walk(pair: tuple[str, str], cli: Cli) -> None:
    words = ("--pgd-runs", "2", "--seed", "3", "--rel-step-size", "0.5", "--tolerance", "50", "--split", "test")
    words += ("--entries", "parameters", "--checkpoint", "final")
    record = json.loads(cli("interpolate", *pair, *SMALL, *words, "--json").out)
    runs = [build.open_run(Path(word)) for word in pair]
    models = [build.load_model(run, "final", torch.device("cpu"))[0] for run in runs]
    data = build.splits(runs[0].call)
    found = walk(
        models[0],
        models[0].state_dict(),
        models[1].state_dict(),
        data.test.x[:40],
        data.test.y[:40],
        build.recipe(runs[0].call).threat,
        num_classes=10,
        alphas=(0, 0.5, 1),
        entries="parameters",
        tolerance=0.5,
        attack=PGD(steps=10, rel_step_size=0.5),
        runs=2,
        seed=3,
    )
    wanted = json.loads(json.dumps(found.to_dict()))
    assert {key: record[key] for key in wanted} == wanted
    assert (record["pgd_runs"], record["rel_step_size"], record["entries"]) == (2, 0.5, "parameters")


def test_statistics_are_reestimated_from_training_images(pair: tuple[str, str], cli: Cli) -> None:
    words = ("--reestimate-bn", "128", "--out", "line.svg", "--json")
    result = cli("interpolate", *pair, *SMALL, *words)
    record = json.loads(result.out)
    assert record == json.loads(Path("line.json").read_text())
    assert record["reestimate_bn"] == 128
    assert result.err == "wrote line.svg and line.json\n"
    wanted = [clean_accuracy(pair, alpha, reestimate=128 if alpha == 0.5 else None) for alpha in (0, 0.5, 1)]
    assert [point["clean"]["value"] for point in record["points"]] == wanted
    assert wanted[1] != clean_accuracy(pair, 0.5)
    assert not Path("b/diagnosis").exists()
    many = len(build.splits(build.open_run(Path("a")).call).train)
    refused = cli("interpolate", *pair, *SMALL, "--reestimate-bn", str(many + 1))
    assert_error(refused, 2, f"--reestimate-bn can take the {many:,} training images at most, got {many + 1}")
    out = cli("interpolate", *pair, *SMALL, "--reestimate-bn", "128").out
    assert "; between them BatchNorm re-estimated from 128 training images\n" in out


def test_a_checkpoint_for_each_run(pair: tuple[str, str], cli: Cli) -> None:
    """A fine-tuned run has two more."""
    call = json.loads(Path("b/run.json").read_text())
    Path("b/run.json").write_text(json.dumps({**call, "finetune": {"name": "rift"}, "selection": {"split": "test"}}))
    shutil.copy("b/checkpoints/last.safetensors", "b/checkpoints/finetuned.safetensors")
    result = cli("interpolate", *pair, *SMALL, "--checkpoint", "best,finetuned")
    assert result.code == 0, result.err
    assert "alpha 0: a, checkpoint best (step " in result.out
    assert "; alpha 1: b, checkpoint finetuned (step " in result.out
    assert "b: selected on test: these numbers are optimistic" in result.out
    (file,) = Path("b/diagnosis").glob("line-from-a-best-to-finetuned-val-*.json")
    record = json.loads(file.read_text())
    assert record["checkpoints"] == ["best", "finetuned"]
    assert [one["split"] for one in record["selection"]] == ["val", "test"]
    assert_error(cli("interpolate", *pair, "--checkpoint", "base"), 2, "'base'", "hint: a has best, final, last")
    said = "hint: b has best, final, last, finetuned"
    assert_error(cli("interpolate", *pair, "--checkpoint", "best,x"), 2, "unknown checkpoint 'x'", said)
    for text in ("best,", "best,last,final"):
        assert_error(cli("interpolate", *pair, "--checkpoint", text), 2, "one checkpoint of both runs", text)


def test_the_caption_says_how_equals_are_told_apart(pair: tuple[str, str], cli: Cli) -> None:
    """As `choose_alpha` does."""
    points = [Point(alpha, wilson(9, 10), wilson(right, 10), ()) for alpha, right in ((0, 4), (0.5, 5), (1, 5))]
    assert choose_alpha(points) == 0.5
    out = " ".join(cli("interpolate", *pair, *SMALL).out.split())
    assert "below alpha 0; of equals the higher pgd-10, then the smaller alpha" in out


def test_a_choice_on_test_is_stamped_and_has_a_file_of_its_own(pair: tuple[str, str], cli: Cli) -> None:
    result = cli("interpolate", *pair, *SMALL, "--split", "test", "--entries", "parameters", "--checkpoint", "final")
    assert "selected on test" in result.out
    assert Path("b/diagnosis/line-from-a-final-test-parameters-alphas-0+0.5+1-size-40.svg").is_file()
    assert "selected on test" not in cli("interpolate", *pair, *SMALL).out


def test_a_run_and_itself(finished: Finished, cli: Cli) -> None:
    finished("a")
    record = json.loads(cli("interpolate", "a", "a", *SMALL, "--alphas", "0,1", "--json").out)
    first, last = ({k: v for k, v in point.items() if k != "alpha"} for point in record["points"])
    assert first == last
    assert record["chosen"] == 0


@pytest.mark.parametrize(
    ("words", "code", "fragments"),
    [
        (("a",), 2, ("needs two run directories, got 1", "gambeson interpolate runs/")),
        ((), 2, ("got 0",)),
        (("a", "b", "c"), 2, ("got 3",)),
        (("a", "b", "--alpha", "0"), 2, ("unknown option --alpha", "--alphas")),
        (("a", "nowhere"), 1, ("nowhere is not a run directory",)),
        (("a", "b", "--alphas", "0.5,1"), 2, ("needs 0",)),
        (("a", "b", "--alphas", "0,x"), 2, ("alphas are numbers",)),
        (("a", "b", "--split", "train"), 2, ("unknown split 'train'",)),
        (("a", "b", "--size", "71"), 2, ("between 1 and the 70 images",)),
        (("a", "b", "--reestimate-bn", "0"), 2, ("--reestimate-bn must be at least 1 image, got 0",)),
        (("a", "b", "--tolerance", "-1"), 2, ("--tolerance must be at least 0 points",)),
        (("a", "b", "--pgd-runs", "0"), 2, ("runs",)),
        (("a", "b", "--rel-step-size", "-1"), 2, ("step of an attack",)),
        (("a", "b", "--entries", "all"), 2, ("unknown entries 'all'",)),
        (("a", "b", "--checkpoint", "base"), 2, ("unknown checkpoint",)),
        (("a", "b", "--out", "l.xyz"), 2, ("cannot write the picture",)),
    ],
)
def test_what_is_refused(
    words: tuple[str, ...], code: int, fragments: tuple[str, ...], pair: tuple[str, str], cli: Cli
) -> None:
    before = fingerprint(Path())
    assert_error(cli("interpolate", *words), code, *fragments)
    assert fingerprint(Path()) == before


def test_models_of_different_data_or_architecture_are_refused(pair: tuple[str, str], cli: Cli) -> None:
    data = write_npz("other.npz", [40, 40, 40])
    train = ("--epochs", "1", "--attack", "clean", "--device", "cpu", "--batch-size", "32", "--model", "small-cnn")
    assert cli("train", "standard", "--data", data, *train, "--run", "other").code == 0
    assert cli("train", "standard", *FAST, "--model", "resnet18-tiny", "--run", "deep").code == 0
    assert_error(
        cli("interpolate", "a", "other", *SMALL),
        1,
        "a and other are models of different data: 1x8x8 images of 10 classes",
    )
    deep = cli("interpolate", "a", "deep", *SMALL)
    assert_error(deep, 1, "no line between these checkpoints", "layer4.conv.weight is only in the first", "linear.wei")
    assert not Path("other/diagnosis").exists()


def test_an_empty_validation_split_is_said(pair: tuple[str, str], cli: Cli) -> None:
    call = json.loads(Path("a/run.json").read_text())
    call["data"]["val_fraction"] = 0.0
    Path("a/run.json").write_text(json.dumps(call))
    assert_error(cli("interpolate", *pair, *SMALL), 1, "the val split is empty", "--val-fraction 0.05")


def test_the_help(cli: Cli) -> None:
    page = cli("interpolate", "--help")
    assert (page.code, page.err) == (0, "")
    assert page.out.startswith("usage: gambeson interpolate RUN RUN")
    options = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(InterpolateOptions)}
    assert options <= set(re.findall(r"^  (--[a-z-]+)", page.out, re.MULTILINE))
    documented = set(re.findall(r"^        (\w+): ", InterpolateOptions.__doc__ or "", re.MULTILINE))
    assert documented == {field.name for field in dataclasses.fields(InterpolateOptions)}
    code = """
import sys
from gambeson.app.cli import main
try:
    main(["interpolate", "--help"])
except SystemExit as stop:
    assert stop.code in (0, None)
assert not {"torch._C", "matplotlib", "scipy"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
