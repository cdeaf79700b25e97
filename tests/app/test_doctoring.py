"""`gambeson doctor`: a run, or somebody else's checkpoint, examined before it is evaluated."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.helpers import Cli, assert_error, fingerprint, header_of, tensors_of
from gambeson.data.facts import FACTS
from gambeson.evaluation import CHECKS

Finished = Callable[[str], Path]
CPU = ("--device", "cpu")


def export(run: Path, file: str) -> str:
    weights = tensors_of(run / "checkpoints/best.safetensors")
    torch.save({"net": {k.removeprefix("model/"): t for k, t in weights.items()}}, file)
    return file


def levels(out: str) -> dict[str, str]:
    """Result by check, as the table shows them."""
    return {m[1].strip(): m[2] for m in re.finditer(r"^ (\S.*?)  +(pass|warn|error) ", out, re.MULTILINE)}


def scale_last_layer(file: Path, factor: float) -> None:
    tensors = load_file(file)
    header = header_of(file)
    tensors["model/linear.weight"] *= factor
    tensors["model/linear.bias"] *= factor
    save_file(tensors, file, metadata={"gambeson": json.dumps(header)})


def test_a_run_is_examined_and_left_alone(finished: Finished, cli: Cli) -> None:
    run = finished("r")
    before = fingerprint(run)
    result = cli("doctor", "r", *CPU)
    assert (result.code, result.err) == (0, "")
    assert "r, checkpoint best (step 2), digits test, Linf eps 0.2: the model was run on 64 of 397 images" in result.out
    assert list(levels(result.out)) == list(CHECKS)
    assert "error" not in levels(result.out).values()
    assert re.search(r"^0 errors, \d warnings?$", result.out, re.MULTILINE)
    assert fingerprint(run) == before


def test_an_error_is_exit_code_1_and_has_a_hint(finished: Finished, cli: Cli) -> None:
    run = finished("r")
    scale_last_layer(run / "checkpoints/best.safetensors", 1e8)
    result = cli("doctor", "r", *CPU)
    assert (result.code, result.err) == (1, "")
    assert levels(result.out)["gradient (ce)"] == "error"
    assert "hint: the softmax saturates" in result.out
    assert "1 error, " in result.out
    assert ": an evaluation would be wrong" in result.out
    assert_error(
        cli("evaluate", "r", "--attack", "fgsm", *CPU), 1, "gradient of the cross-entropy is zero", "saturates"
    )
    assert cli("evaluate", "r", "--attack", "clean", *CPU).code == 0


def test_the_record(finished: Finished, cli: Cli) -> None:
    finished("r")
    result = cli("doctor", "r", "--json", "--eps", "128/255", "--norm", "l2", "--images", "9", "--split", "val", *CPU)
    assert result.code == 0
    record = json.loads(result.out)
    assert (record["of"], record["checkpoint"], record["data"], record["split"]) == ("r", "best", "digits", "val")
    assert (record["norm"], record["eps"], record["examined"]) == ("L2", 128 / 255, 9)
    assert [row["check"] for row in record["findings"]] == list(CHECKS)
    assert record["errors"] == 0
    assert "torch" in record["versions"]
    (layer,) = record["normalisation"]["layers"]
    assert layer["layer"] == "normalize"
    assert layer["mean"] == pytest.approx(FACTS["digits"].mean, rel=1e-6)
    assert layer["std"] == pytest.approx(FACTS["digits"].std, rel=1e-6)
    assert record["normalisation"]["data"] == {"mean": list(FACTS["digits"].mean), "std": list(FACTS["digits"].std)}


def test_the_constants_of_the_normalisation_are_shown(finished: Finished, cli: Cli) -> None:
    file = export(finished("r"), "theirs.pt")
    mean, std = (f"{values[0]:.4g}" for values in (FACTS["digits"].mean, FACTS["digits"].std))
    run = cli("doctor", "r", *CPU)
    assert f"\nnormalize normalises images, with mean {mean} and std {std}\n" in run.out
    words = ("doctor", file, "--model", "small-cnn", "--data", "digits", *CPU)
    other = cli(*words, "--mean", "[0.25]", "--std", "[0.3]").out
    assert f"with mean 0.25 and std 0.3; customary on these data: mean {mean} and std {std}\n" in other
    plain = cli(*words, "--mean", "[0]", "--std", "[1]").out
    assert "no layer of the model normalises: images in [0, 1] go in as they are" in plain


def test_a_budget_is_judged_in_its_norm(finished: Finished, cli: Cli) -> None:
    finished("r")
    result = cli("doctor", "r", "--eps", "0.5", *CPU)
    assert (result.code, levels(result.out)["eps"]) == (0, "warn")
    assert "hint: an L2 budget" in result.out
    assert_error(cli("doctor", "r", "--eps", "8", *CPU), 2, "eps must be a fraction", "8 grey levels are eps=8/255")


def test_a_foreign_checkpoint_is_examined_without_a_run(finished: Finished, cli: Cli, here: Path) -> None:
    file = export(finished("r"), "theirs.pt")
    before = fingerprint(here)
    result = cli("doctor", file, "--model", "small-cnn", "--data", "digits", *CPU)
    assert result.code == 0, result.err
    assert "theirs.pt, digits test, Linf eps 0.2" in result.out
    assert levels(result.out) == levels(cli("doctor", "r", *CPU).out)
    other = cli("doctor", file, "--model", "small-cnn", "--data", "digits", "--mean", "[0.9]", "--std", "[0.05]", *CPU)
    assert levels(other.out)["normalisation"] == "warn"
    assert fingerprint(here) == before


@pytest.mark.parametrize(
    ("args", "code", "fragments"),
    [
        ((), 2, ("doctor needs one run directory or checkpoint file, got 0", "gambeson doctor runs/")),
        (("a", "b"), 2, ("got 2",)),
        (("theirs.pt",), 2, ("a checkpoint file needs --model and --data", "--model wrn-34-10")),
        (("theirs.pt", "--data", "digits"), 2, ("needs --model:",)),
        (("r", "--model", "small-cnn", "--key", "net"), 2, ("--model, --key is for a checkpoint file",)),
        (("r", "--split", "train"), 2, ("unknown split 'train'",)),
        (("r", "--images", "0"), 2, ("--images must be at least 1, got 0",)),
        (("nowhere",), 1, ("nowhere",)),
        (("theirs.pt", "--model", "resnet18", "--data", "digits"), 1, ("does not fit the model", "small-cnn")),
        (("theirs.pt", "--model", "small-cnn", "--data", "digits", "--norm", "l1"), 2, ("unknown norm 'l1'",)),
        (("none.pt", "--model", "small-cnn", "--data", "digits"), 1, ("there is no file none.pt",)),
        (("theirs.pt", "--model", "small-cnn", "--data", "digits", "--norm", "L2"), 2, ("--norm L2 needs --eps",)),
    ],
)
def test_what_cannot_be_examined_is_refused(
    args: tuple[str, ...], code: int, fragments: tuple[str, ...], finished: Finished, cli: Cli
) -> None:
    export(finished("r"), "theirs.pt")
    assert_error(cli("doctor", *args), code, *fragments)
