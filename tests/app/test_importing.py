"""`gambeson import`: a foreign checkpoint becomes a run that the other commands accept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from app.helpers import Cli, assert_error, bomb, fingerprint, header_of, tensors_of, write_npz
from gambeson.app import build
from gambeson.app.compare import overview
from gambeson.app.importing import import_weights
from gambeson.app.options import ImportOptions
from gambeson.core.errors import GambesonWarning
from gambeson.core.types import Task
from gambeson.data import FACTS, load
from gambeson.engine.run import Run
from gambeson.methods import standard
from gambeson.models import create

Finished = Callable[[str], Path]
DIGITS = ("--model", "small-cnn", "--data", "digits")


def wrapped(weights: dict[str, Tensor], mean: float = 0.3059, std: float = 0.3759) -> dict[str, Tensor]:
    """As RiFT's script wraps a network, with a last layer of another name."""
    constants = {"0.mean": torch.tensor([mean]), "0.std": torch.tensor([std])}
    return constants | {f"1.module.{key.replace('linear.', 'fc.')}": t for key, t in weights.items()}


def export(run: Path, file: str) -> Path:
    """The best weights of a run, in a foreign file."""
    weights = tensors_of(run / "checkpoints/best.safetensors")
    torch.save({"model": wrapped({k.removeprefix("model/"): t for k, t in weights.items()}), "acc": 50.0}, file)
    return Path(file)


@pytest.fixture
def theirs(finished: Finished) -> Path:
    return export(finished("trained"), "theirs.pt")


def test_the_imported_run_has_the_accuracies_of_the_original(cli: Cli) -> None:
    how = ("--train-size", "600", "--model", "small-cnn", "--run", "trained", "--attack", "clean", "--device", "cpu")
    assert cli("train", "standard", "--epochs", "3", *how).code == 0
    theirs = export(Path("trained"), "theirs.pt")
    result = cli("import", str(theirs), *DIGITS, "--run", "r")
    assert result.code == 0, result.err
    assert "imported theirs.pt under model: small-cnn for digits, Linf eps 0.2; 26 tensors renamed" in result.out
    assert "left out, as this network has no use for it: 0.mean, 0.std" in result.out
    assert "run directory: r" in result.out
    assert "note: what the weights were selected on is not known" in result.err
    for run in ("r", "trained"):
        assert cli("evaluate", run, "--attack", "clean,pgd-3", "--test-size", "80", "--device", "cpu").code == 0
    mine, original = (Run.open(Path(run)) for run in ("r", "trained"))
    ours, there = mine.outcomes("final-test-pgd-3-1"), original.outcomes("best-test-pgd-3-1")
    assert 20 < ours["clean"].sum() < 80
    for name in ("clean", "pgd-3", "y"):
        assert np.array_equal(ours[name], there[name])


def test_the_record_says_where_the_weights_come_from(theirs: Path, cli: Cli) -> None:
    args = ["import", str(theirs), *DIGITS, "--run", "r", "--eps", "1/255", "--norm", "L2", "--val-fraction", "0.1"]
    assert cli(*args).code == 0
    call = json.loads(Path("r/run.json").read_text())
    assert call["command"] == ["gambeson", *args]
    assert call["method"] == {"name": "external", "args": {"eps": 1 / 255, "norm": "L2"}}
    assert call["model"] == {"name": "small-cnn", "width": None}
    assert call["selection"] == {"split": "unknown"}
    assert (call["data"]["name"], call["data"]["val_fraction"]) == ("digits", 0.1)
    imported = call["imported"]
    assert imported["sha256"] == hashlib.sha256(theirs.read_bytes()).hexdigest()
    assert (imported["file"], imported["key"], imported["dropped"]) == ("theirs.pt", "model", ["0.mean", "0.std"])
    assert imported["renamed"]["1.module.fc.bias"] == "linear.bias"
    header = header_of(Path("r/checkpoints/final.safetensors"))
    assert (header["method"], header["step"], header["best"]) == ("external", 0, None)
    assert header["task"]["mean"] == [0.3059]
    assert build.recipe(build.open_run(Path("r")).call) == standard(eps=1 / 255, norm="L2")
    assert header["recipe"] == repr(standard(eps=1 / 255, norm="L2"))
    assert sorted(file.name for file in Path("r/checkpoints").iterdir()) == ["final.safetensors"]


def test_the_other_commands_work_on_it(theirs: Path, cli: Cli) -> None:
    assert cli("import", str(theirs), *DIGITS, "--run", "runs/r").code == 0
    assert cli("diagnose", "cam", "runs/r", "--images", "2", "--test-size", "10", "--device", "cpu").code == 0
    assert cli("evaluate", "runs/r", "--split", "val", "--attack", "clean", "--device", "cpu").code == 0
    row = overview(Path("runs"))[0]
    assert (row["method"], row["data"], row["model"], row["state"]) == ("external", "digits", "small-cnn", "imported")
    assert "imported" in cli("runs", "list").out
    assert cli("runs", "compare", "runs/r", "trained").code == 0


def test_there_is_nothing_to_resume(theirs: Path, cli: Cli) -> None:
    assert cli("import", str(theirs), *DIGITS, "--run", "r").code == 0
    before = fingerprint(Path("r"))
    result = cli("resume", "r")
    assert_error(result, 1, "r was not trained here but imported from theirs.pt: there is nothing to resume")
    assert "hint: gambeson evaluate r" in result.err
    assert fingerprint(Path("r")) == before


def test_runs_count_up_and_nothing_is_overwritten(theirs: Path, cli: Cli) -> None:
    for number in (1, 2):
        assert cli("import", str(theirs), *DIGITS).code == 0
        assert Path(f"runs/digits-external-{number}/run.json").is_file()
    assert_error(cli("import", str(theirs), *DIGITS, "--run", "trained"), 1, "trained exists already", "hint: choose")


def test_another_normalisation_is_refused_with_what_to_add(theirs: Path, cli: Cli) -> None:
    weights = torch.load(theirs)["model"]
    torch.save(weights | {"0.mean": torch.tensor([0.5]), "0.std": torch.tensor([0.25])}, "other.pt")
    result = cli("import", "other.pt", *DIGITS, "--run", "r")
    assert_error(result, 1, "other.pt normalises with mean [0.5], the data set [0.3059]; std [0.25], the data set")
    assert "hint: add --mean '[0.5]' --std '[0.25]'" in result.err
    assert not Path("r").exists()
    result = cli("import", "other.pt", *DIGITS, "--run", "r", "--mean", "[0.5]", "--std", "[0.25]")
    assert result.code == 0, result.err
    model, task, *_ = build.load_model(Run.open(Path("r")), "best", torch.device("cpu"))
    assert (task.mean, task.std) == ((0.5,), (0.25,))
    normal = build.load_model(Run.open(Path("trained")), "best", torch.device("cpu"))[0]
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(model(x * 0.25 + 0.5), normal(x * 0.3759 + 0.3059), atol=1e-4)


def test_given_constants_are_compared_too(theirs: Path, cli: Cli) -> None:
    result = cli("import", str(theirs), *DIGITS, "--mean", "[0.5]", "--run", "r")
    assert_error(result, 1, "theirs.pt normalises with mean [0.3059], the data set [0.5]", "add --mean '[0.3059]'")


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ([], 2, "import needs one file, got 0"),
        (["a", "b", *DIGITS], 2, "import needs one file, got 2"),
        (["theirs.pt", "--data", "digits"], 2, "import needs --model: the file does not say"),
        (["theirs.pt"], 2, "import needs --model and --data"),
        (["theirs.pt", *DIGITS, "--norm", "L1"], 2, "--norm needs one of Linf, L2, got 'L1'"),
        (["theirs.pt", *DIGITS, "--norm", "L2"], 2, "--norm L2 needs --eps"),
        (["theirs.pt", *DIGITS, "--eps", "8"], 2, "eps must be"),
        (["theirs.pt", *DIGITS, "--mean", "[0.1,0.2]"], 2, "--mean needs 1 numbers, one per channel, got 2"),
        (["theirs.pt", *DIGITS, "--std", "[64]"], 2, "--std is on the scale of pixels in [0, 1], got [64.0]"),
        (["theirs.pt", *DIGITS, "--key", "net"], 2, "theirs.pt has no key 'net'"),
        (["theirs.pt", "--model", "small-cnn", "--data", "digit"], 2, "there is no data set 'digit'"),
        (["theirs.pt", "--model", "alexnet", "--data", "digits"], 2, "unknown model 'alexnet'"),
        (["none.pt", *DIGITS], 1, "there is no file none.pt"),
        (["theirs.pt", *DIGITS, "--mean", "0.3,x"], 2, "--mean needs numbers, comma-separated, got '0.3,x'"),
        (["theirs.pt", *DIGITS, "--mean", "0.3,0.4"], 2, "--mean needs 1 numbers, one per channel, got 2"),
        (["theirs.pt", *DIGITS, "--mean", "0.4"], 1, "normalises with mean [0.3059], the data set [0.4]"),
    ],
)
def test_wrong_calls(args: list[str], code: int, said: str, theirs: Path, cli: Cli) -> None:
    assert_error(cli("import", *args, "--run", "r") if args else cli("import"), code, said)
    assert not Path("r").exists()


def test_another_model_is_refused_with_the_one_that_fits(cli: Cli, theirs: Path) -> None:
    result = cli("import", str(theirs), "--model", "resnet18", "--data", "digits", "--run", "r")
    assert_error(result, 1, "theirs.pt does not fit the model: missing", "unexpected 1.module.", "more missing")
    assert result.err.endswith("hint: the names and shapes fit --model small-cnn\n")
    task = Task(num_classes=10, channels=1, size=8, mean=(0.3059,), std=(0.3759,))
    torch.save(create("wrn-28-10", task, width=16, seed=0).state_dict(), "wide.pt")
    result = cli("import", "wide.pt", "--model", "wrn-28-10", "--data", "digits", "--run", "r")
    assert result.err.endswith("hint: the names and shapes fit --model wrn-28-10 --width 16\n")
    assert not Path("r").exists()


def test_a_hostile_file_is_refused(cli: Cli, here: Path) -> None:
    (here / "f.pt").write_bytes(bomb(here / "evil"))
    assert_error(
        cli("import", "f.pt", *DIGITS), 1, "f.pt is not a whole file of torch.save", "a plain pickle, which is not read"
    )
    assert not (here / "evil").exists()
    assert not (here / "runs").exists()


def options(**changes: Any) -> ImportOptions:
    return ImportOptions(**{"model": "resnet18", "data": "cifar10", "width": 4, "run": "r", **changes})


def save(name: str, data: str, file: str = "f.pt") -> None:
    torch.save({"net": create(name, FACTS[data].task, width=4, seed=0).state_dict()}, file)


def test_images_need_not_be_there(here: Path) -> None:
    save("resnet18", "cifar10")
    run = import_weights(Path("f.pt"), options())
    assert run.call["method"]["args"] == {"eps": 8 / 255, "norm": "Linf"}
    assert "command" not in run.call
    assert build.load_model(run, "best", torch.device("cpu"))[1] == FACTS["cifar10"].task


def test_a_network_that_computes_something_else_from_the_weights_is_named(here: Path) -> None:
    """The two PreActResNets differ in what their shortcuts take, which no name and no shape shows."""
    save("preact-resnet18", "cifar10")
    with pytest.warns(GambesonWarning, match=r"also fit preact-resnet18-tiny, which computes other logits"):
        import_weights(Path("f.pt"), options(model="preact_resnet18"))
    assert Run.open(Path("r")).call["model"]["name"] == "preact-resnet18"


@pytest.mark.filterwarnings("error")
def test_networks_that_compute_the_same_are_not(here: Path) -> None:
    save("resnet18", "cifar10")  # also resnet18-tiny's
    import_weights(Path("f.pt"), options())


def test_data_of_ones_own_are_measured(here: Path) -> None:
    name = write_npz("own.npz", [20] * 3)
    facts = load(name).facts
    torch.save(create("small-cnn", facts.task, seed=0).state_dict(), "f.pt")
    run = import_weights(Path("f.pt"), options(model="small-cnn", data=name, width=None, run=None, eps=0.1))
    assert run.path == Path("runs/npz-own-external-1")
    assert build.load_model(run, "final", torch.device("cpu"))[1] == facts.task
