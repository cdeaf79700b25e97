"""`gambeson diagnose`: pictures and numbers of a run's maps, and the regional experiment as ordinary runs."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from app.helpers import ENV, FAST, Cli, assert_error, fingerprint, header_of, rows_of, tensors_of, write_npz
from gambeson.app.cli import main
from gambeson.app.diagnosing import TOPICS
from gambeson.app.options import CamOptions, RegionsOptions
from gambeson.app.regional_plan import parse_seeds
from gambeson.core.errors import InputError
from gambeson.diagnosis import SETUPS
from gambeson.engine.trainer import Trainer

Finished = Callable[[str], Path]
TINY = ("--epochs", "1", "--train-size", "200", "--steps", "1", "--device", "cpu")
REGIONS = (*TINY, "--test-size", "60", "--attack", "clean,fgsm", "--seeds", "0,1")


@pytest.fixture(scope="session")
def part_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with budgets per pixel; look, do not touch."""
    path = tmp_path_factory.mktemp("part") / "run"
    words = ("--epochs", "2", "--warmup", "1", "--steps", "1", "--mask", "quantile:0.75", "--cam", "layercam")
    assert main(["train", "part", *FAST, *words, "--run", str(path)]) == 0
    return path


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished regional experiment of ten runs; look, do not touch."""
    root = tmp_path_factory.mktemp("regions") / "root"
    assert main(["diagnose", "regions", *REGIONS, "--root", str(root)]) == 0
    return root


def test_help_lists_the_topics_and_their_options(cli: Cli) -> None:
    page = cli("diagnose", "--help")
    assert (page.code, page.err) == (0, "")
    assert all(re.search(rf"^  {topic} +\w", page.out, re.MULTILINE) for topic in TOPICS)
    for topic, schema in (("cam", CamOptions), ("regions", RegionsOptions)):
        page = cli("diagnose", topic, "--help")
        assert (page.code, page.err) == (0, "")
        assert page.out.startswith(f"usage: gambeson diagnose {topic}")
        options = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(schema)}
        assert options <= set(re.findall(r"^  (--[a-z-]+)", page.out, re.MULTILINE))
    assert not {"--seed", "--run"} & set(re.findall(r"^  (--[a-z-]+)", page.out, re.MULTILINE))


def test_the_help_of_the_topics_loads_no_torch() -> None:
    code = """
import contextlib, io, sys
from gambeson.app.cli import main
for topic in ("cam", "eps", "regions"):
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["diagnose", topic, "--help"]) == 0
    assert not {"torch._C", "matplotlib", "scipy"} & set(sys.modules), topic
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("schema", [CamOptions, RegionsOptions])
def test_every_option_is_documented(schema: type) -> None:
    documented = set(re.findall(r"^        (\w+): ", schema.__doc__ or "", re.MULTILINE))
    assert documented == {field.name for field in dataclasses.fields(schema)}


KNOWN = "cam, criticality, eps, landscape, masking, overfitting, regions, response, shortcuts, spectra"


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        ((), (f"known: {KNOWN}",)),
        (("--jason",), (f"known: {KNOWN}",)),
        (("region",), ("cannot diagnose 'region'", "did you mean regions?")),
        (("cam",), ("diagnose cam needs one run directory, got 0",)),
        (("cam", "r", "--imges", "3"), ("unknown option --imges", "did you mean --images")),
        (("regions", "r"), ("takes options only, got r",)),
        (("regions", "--seed", "3"), ("unknown option --seed", "--seeds")),
    ],
)
def test_wrong_usage(words: tuple[str, ...], fragments: tuple[str, ...], cli: Cli) -> None:
    assert_error(cli("diagnose", *words), 2, *fragments)


# cam


def test_the_maps_of_a_run_with_budgets(cli: Cli, part_run: Path, here: Path) -> None:
    shutil.copytree(part_run, here / "r")
    result = cli("diagnose", "cam", "r", "--test-size", "100")
    record = json.loads(Path("r/diagnosis/cam.json").read_text())

    assert result.code == 0, result.err
    assert result.err == "wrote r/diagnosis/cam.png and r/diagnosis/cam.json\n"
    assert "layercam of layer4 (closed form, one forward), mask quantile:0.75 (the run's own)" in result.out
    with Image.open("r/diagnosis/cam.png") as picture:
        assert min(picture.size) > 500
    share = record["groups"]["all"]["full"]["mean"]
    assert record["n"] == record["groups"]["all"]["full"]["n"] == 100
    assert 0.2 < share <= 1
    assert record["budget"]["mean"] == pytest.approx(0.175 + 0.025 * share)
    assert f"mean budget {record['budget']['mean']:.4g} (eps 0.2, eps_low 0.175)" in result.out
    assert {"run", "checkpoint", "step", "data", "split", "layer", "closed_form", "cam", "versions"} <= set(record)
    assert len(record["shown"]["index"]) == 8
    assert f"{100 * share:.2f} ± " in result.out


def test_the_maps_of_any_run_in_json(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    words = ("--mask", "zscore:0.5", "--cam", "xgradcam", "--layer", "layer2", "--images", "2", "--out", "m.svg")
    before = fingerprint(run)
    result = cli("diagnose", "cam", "r", *words, "--split", "val", "--checkpoint", "final", "--json")
    record = json.loads(result.out)

    assert record == json.loads(Path("m.json").read_text())
    said = {key: record[key] for key in ("mask", "mask_from", "cam", "layer", "closed_form", "split", "checkpoint")}
    assert said == {
        "mask": "zscore:0.5",
        "mask_from": "option",
        "cam": "xgradcam",
        "layer": "layer2",
        "closed_form": False,
        "split": "val",
        "checkpoint": "final",
    }
    assert record["n"] == 70  # the images held out
    assert "budget" not in record
    assert Path("m.svg").read_text().count("<image ") == 2 * 3 + 1  # two images in three panels, and the scale
    assert result.err == "wrote m.svg and m.json\n"
    assert fingerprint(run) == before  # the picture went elsewhere


def test_an_empty_map_has_the_budget_that_the_run_gave_it(cli: Cli, part_run: Path, here: Path) -> None:
    shutil.copytree(part_run, here / "r")
    assert json.loads(cli("diagnose", "cam", "r", "--json").out)["dead_budget"] == "full"
    call = json.loads(Path("r/run.json").read_text())
    call["method"]["args"]["protocol"] = "release"
    Path("r/run.json").write_text(json.dumps(call))

    assert json.loads(cli("diagnose", "cam", "r", "--json").out)["dead_budget"] == "low"


def test_a_run_without_a_mask_is_shown_with_the_default(cli: Cli, finished: Finished) -> None:
    finished("r")
    assert "mask zscore:1 (the default: the run has no mask from maps)" in cli("diagnose", "cam", "r").out


@pytest.mark.parametrize(
    ("words", "code", "fragments"),
    [
        (("--mask", "quadrant:br"), 2, ("the mask quadrant:br is not made from class-activation maps", "zscore[:T]")),
        (("--mask", "zcore"), 2, ("unknown mask 'zcore'", "did you mean zscore?")),
        (("--mask", "jet"), 2, ("the jet mask has three channels, the images have 1", "use zscore or quantile")),
        (("--cam", "scorecam"), 2, ("unknown class-activation map 'scorecam'", "gradcam")),
        (("--layer", "layer9"), 2, ("no layer 'layer9'", "layer4")),
        (("--images", "0"), 2, ("--images must be between 1 and 64, got 0",)),
        (("--test-size", "0"), 2, ("--test-size must be at least 1, got 0",)),
        (("--split", "train"), 2, ("unknown split 'train'", "test, val")),
        (("--out", "m.xyz"), 2, ("cannot write the picture m.xyz", ".svg or .png")),
        (("--out", "nowhere/m.png"), 1, ("there is no folder nowhere",)),
    ],
)
def test_what_cannot_be_shown_is_said(
    words: tuple[str, ...], code: int, fragments: tuple[str, ...], cli: Cli, finished: Finished
) -> None:
    run = finished("r")
    before = fingerprint(run)
    assert_error(cli("diagnose", "cam", "r", *words), code, *fragments)
    assert fingerprint(run) == before


# regions


def test_every_training_is_the_one_that_train_would_make(experiment: Path, planned: Callable[..., Any]) -> None:
    """Field by field, but for the folder and what was typed."""
    common = (*TINY, "--val-fraction", "0", "--test-size", "60", "--attack", "clean,fgsm", "--seed", "1")
    part = ("part", "--mask", "quadrant:bl", "--eps", "0.3", "--eps-low", "0.15", "--warmup", "0")
    control = ("part", "--mask", "uniform", "--eps", "0.3", "--eps-low", "0.2625", "--warmup", "0")
    for name, words in (("low-bl", part), ("uniform", control)):
        call = json.loads((experiment / f"{name}-seed-1" / "run.json").read_text())
        expected = json.loads(json.dumps(planned(*words, *common)))
        assert {key: call[key] for key in expected} == expected


def test_the_record_says_what_the_runs_say(experiment: Path) -> None:
    record = json.loads((experiment / "regions.json").read_text())
    assert (record["eps"], record["eps_low"], record["uniform_eps"], record["eval_eps"]) == (0.3, 0.15, 0.2625, 0.2)
    assert (record["n"], record["seeds"], record["flip"]) == (60, [0, 1], False)
    assert len(record["runs"]) == 10
    for setup in SETUPS:
        for place, seed in enumerate((0, 1)):
            run = experiment / f"{setup}-seed-{seed}"
            (file,) = (run / "evaluations").glob("*.json")
            outcomes = np.load(file.with_suffix(".npz"))
            for attack in ("clean", "fgsm"):
                value = record["accuracy"][setup][attack]["values"][place]
                assert value == pytest.approx(outcomes[attack].mean())
            assert (json.loads(file.read_text())["eps"], header_of(run / "checkpoints/final.safetensors")["step"]) == (
                0.2,
                2,
            )
            assert {"setup": setup, "seed": seed} in record["runs"].values()
    assert {"settings", "model", "data", "command", "versions", "sentences", "differences"} <= set(record)
    with Image.open(experiment / "regions.png") as picture:
        assert min(picture.size) > 500


def test_a_finished_experiment_is_not_repeated(
    experiment: Path, cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(experiment, here / "runs/regions")
    before = fingerprint(here / "runs")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", lambda self: pytest.fail("trained again"))
        result = cli("diagnose", "regions", *REGIONS)
        other = cli("diagnose", "regions", *REGIONS, "--eval-eps", "0.1", "--json")
    after = fingerprint(here / "runs")

    assert result.code == 0, result.err
    assert result.err.count("measured before") == 10
    assert "training from" not in result.err
    assert "low-ul - uniform" in result.out
    assert "eps 0.3, 0.15 in one quarter, uniform 0.2625; seeds 0, 1" in result.out
    assert json.loads(other.out)["eval_eps"] == 0.1
    assert {name: after[name] for name in before if "seed" in name} == {k: v for k, v in before.items() if "seed" in k}
    assert len([name for name in after if name.endswith(".npz")]) == 20  # another budget, another evaluation


def test_an_interrupted_experiment_goes_on_where_it_stopped(
    experiment: Path, cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    train_step = Trainer._train_step

    def counted(self: Trainer) -> None:
        train_step(self)
        steps.append(self.step)
        if len(steps) == 5:  # the first of the third run's two steps
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", counted)
        stopped = cli("diagnose", "regions", *REGIONS, "--seeds", "0", "--root", "root")
        assert stopped.code == 130
        assert "stopped by SIGINT after step 1; saved. Go on with: gambeson diagnose regions --epochs 1" in stopped.err
        assert sorted(path.name for path in Path("root").iterdir()) == [
            "low-ul-seed-0",
            "low-ur-seed-0",
            "uniform-seed-0",
        ]
        result = cli("diagnose", "regions", *REGIONS, "--seeds", "0", "--root", "root")

    assert result.code == 0, result.err
    assert len(steps) == 10
    assert result.err.count("measured before") == 2
    assert "3/5  low-ur, seed 0: training from step 1 of 2" in result.err
    for run in Path("root").glob("*-seed-*"):
        reference = experiment / run.name
        here_, there = (tensors_of(path / "checkpoints/final.safetensors") for path in (run, reference))
        assert all(torch.equal(t, there[name]) for name, t in here_.items())
        assert rows_of(run) == rows_of(reference)
    here_, there = (json.loads((root / "regions.json").read_text())["accuracy"] for root in (Path("root"), experiment))
    for setup in SETUPS:
        assert here_[setup]["fgsm"]["values"] == there[setup]["fgsm"]["values"][:1]


@pytest.mark.parametrize(
    ("words", "difference"),
    [
        (("--epochs", "2"), "settings.epochs is 1 there, 2 here"),
        (
            ("--eps", "0.32"),
            "method.args.eps is 0.3 there, 0.32 here; method.args.eps_low is 0.2625 there, 0.2775 here",
        ),
        (("--rel-step-size", "0.5"), "method.args.rel_step_size is 0.25 there, 0.5 here"),
        (("--train-size", "300"), "data.train_size is 200 there, 300 here"),
        (("--width", "8"), "model.width is None there, 8 here"),
    ],
)
def test_a_run_of_another_training_is_refused(
    words: tuple[str, ...], difference: str, experiment: Path, cli: Cli, here: Path
) -> None:
    shutil.copytree(experiment / "uniform-seed-0", here / "root/uniform-seed-0")
    before = fingerprint(here / "root")
    result = cli("diagnose", "regions", *REGIONS, *words, "--root", "root")

    assert_error(result, 1, f"uniform-seed-0 is another training: {difference}\n", "another --root")
    assert fingerprint(here / "root") == before


def test_device_threads_and_final_attacks_do_not_make_another_training(
    experiment: Path, cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(experiment, here / "root")
    file = here / "root/uniform-seed-0/run.json"
    call = json.loads(file.read_text())
    file.write_text(json.dumps({**call, "device": "cuda:0", "threads": 7, "attack": "clean", "test_size": None}))
    monkeypatch.setattr(Trainer, "_train_step", lambda self: pytest.fail("trained again"))

    assert cli("diagnose", "regions", *REGIONS, "--root", "root").code == 0


def test_its_runs_are_ordinary_runs(experiment: Path, cli: Cli, here: Path) -> None:
    shutil.copytree(experiment, here / "root")

    assert cli("evaluate", "root/low-br-seed-0", "--attack", "fgsm").code == 0
    assert "root/low-br-seed-0 is complete (2 steps)" in cli("resume", "root/low-br-seed-0").out
    assert cli("runs", "list", "--root", "root").out.count("done") == 10


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (("--seeds", "0,0"), ("given twice",)),
        (("--seeds", "a"), ("seeds are whole numbers from 0, got 'a'", "--seeds 0,1,2")),
        (("--eps-low", "0.4"), ("the low budget must not exceed the other, got eps_low 0.4 and eps 0.3",)),
        (("--eval-eps", "3"), ("eps must be a fraction",)),
        (("--attack", "clean,pgb-20"), ("unknown attack 'pgb-20'",)),
        (("--out", "m.xyz"), ("cannot write the picture m.xyz",)),
    ],
)
def test_what_cannot_work_is_said_before_any_training(
    words: tuple[str, ...], fragments: tuple[str, ...], cli: Cli, here: Path
) -> None:
    assert_error(cli("diagnose", "regions", *REGIONS, *words), 2, *fragments)
    assert list(here.iterdir()) == []


def test_images_without_equal_quarters_are_refused(cli: Cli, here: Path) -> None:
    data = write_npz("odd.npz", [40, 40], size=9)
    words = ("--data", data, *REGIONS, "--train-size", "80", "--batch-size", "20")
    assert_error(cli("diagnose", "regions", *words), 2, "images of 9 pixels have no four equal quarters")


@pytest.mark.parametrize(("text", "seeds"), [("0,1,2", (0, 1, 2)), ("[3, 1]", (3, 1)), ("7", (7,))])
def test_seeds(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "1,", "-1", "1.5", "[]"])
def test_wrong_seeds(text: str) -> None:
    with pytest.raises(InputError, match="whole numbers"):
        parse_seeds(text)


def test_one_seed_and_mirrored_images(cli: Cli) -> None:
    result = cli("diagnose", "regions", *REGIONS, "--seeds", "3", "--flip", "true", "--out", "m.svg")
    record = json.loads(Path("runs/regions/regions.json").read_text())

    assert result.code == 0, result.err
    assert "Fewer than three seeds" in result.out
    assert "Images were mirrored in training" in result.out
    assert record["flip"] is True
    assert sorted(path.name for path in Path("runs/regions").glob("*-*")) == sorted(f"{name}-seed-3" for name in SETUPS)
    assert Path("m.svg").stat().st_size > 5000
    assert not Path("runs/regions/regions.png").exists()
