"""`gambeson evaluate`: what is measured, kept and refused; damaged checkpoints and records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from app.helpers import FAST, Cli, assert_error, bomb, edit_header, fingerprint, header_of, tensors_of, write_npz
from gambeson.attacks import AutoPGD
from gambeson.evaluation import ENSEMBLES

Finished = Callable[[str], Path]


def test_an_evaluation_is_shown_and_kept(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    before = fingerprint(run)
    result = cli("evaluate", "r", "--attack", "fgsm,pgd-3-2", "--test-size", "60")
    after = fingerprint(run)
    new = sorted(set(after) - set(before))

    assert result.code == 0
    assert result.err == ""
    assert result.out.startswith("r, checkpoint best (step 2), digits test, Linf eps 0.2, n = 60\n")
    assert [line.split()[0] for line in result.out.splitlines()[4:8]] == ["clean", "fgsm", "pgd-3-2", "worst"]
    assert new == [f"evaluations/best-test-fgsm-pgd-3-2-1.{kind}" for kind in ("json", "npz")]
    assert {name: after[name] for name in before} == before


def test_evaluations_are_numbered_never_overwritten(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    before = fingerprint(run)
    for _ in range(2):
        assert cli("evaluate", "r", "--attack", "fgsm", "--test-size", "20").code == 0
    after = fingerprint(run)

    assert {"evaluations/best-test-fgsm-2.npz", "evaluations/best-test-fgsm-3.json"} <= set(after)
    assert {name: after[name] for name in before} == before


def test_an_evaluation_as_json(cli: Cli, finished: Finished) -> None:
    finished("r")
    result = cli("evaluate", "--json", "r", "--attack", "fgsm", "--test-size", "60", "--split", "val")
    record = json.loads(result.out)

    assert result.err == ""
    assert (record["checkpoint"], record["data"], record["split"]) == ("best", "digits", "val")
    assert (record["attacks"], record["norm"], record["eps"], record["n"]) == (["clean", "fgsm"], "Linf", 0.2, 60)
    assert set(record["accuracy"]["fgsm"]) == {"value", "low", "high", "n"}
    assert set(record["per_class"]["clean"]) == {str(digit) for digit in range(10)}
    assert record["worst"] == record["accuracy"]["fgsm"]
    assert json.loads(Path("r/evaluations/best-val-fgsm-1.json").read_text()) == record


def test_an_evaluation_is_the_trainings_own(cli: Cli, finished: Finished) -> None:
    """The same split, budget and attack give the same outcomes as the table at the end of the training."""
    run = finished("r")
    assert cli("evaluate", "r", "--checkpoint", "final", "--attack", "fgsm", "--test-size", "50").code == 0
    with (
        np.load(run / "evaluations/final-test-fgsm-1.npz") as a,
        np.load(run / "evaluations/final-test-fgsm-2.npz") as b,
    ):
        assert all(np.array_equal(a[key], b[key]) for key in ("y", "clean", "fgsm"))


def test_accuracies_by_class(cli: Cli, finished: Finished) -> None:
    finished("r")
    out = cli("evaluate", "r", "--attack", "fgsm", "--test-size", "60", "--per-class").out

    assert [line.split()[0] for line in out.splitlines()[-11:-1]] == [str(digit) for digit in range(10)]


@pytest.mark.parametrize(
    ("words", "shown", "norm", "eps"),
    [
        (["--eps", "8/255"], "Linf eps 8/255", "Linf", 8 / 255),
        (["--norm", "linf"], "Linf eps 0.2", "Linf", 0.2),
        (["--norm", "l2", "--eps", "1.5"], "L2 eps 1.5", "L2", 1.5),
    ],
)
def test_another_budget(words: list[str], shown: str, norm: str, eps: float, cli: Cli, finished: Finished) -> None:
    finished("r")
    result = cli("evaluate", "r", "--attack", "pgd-2", "--test-size", "30", *words)
    record = json.loads(Path("r/evaluations/best-test-pgd-2-1.json").read_text())

    assert shown in result.out
    assert (record["norm"], record["eps"]) == (norm, eps)


@pytest.mark.parametrize("name", ["best", "final", "last"])
def test_another_checkpoint(name: str, cli: Cli, finished: Finished) -> None:
    finished("r")
    result = cli("evaluate", "r", "--checkpoint", name, "--attack", "clean", "--test-size", "30")

    assert result.out.startswith(f"r, checkpoint {name} (step 2), digits test")
    assert Path(f"r/evaluations/{name}-test-clean-1.json").is_file()


def test_a_snapshot_is_evaluated_and_compared(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    shutil.copy(run / "checkpoints/final.safetensors", run / "checkpoints/snapshot-2.safetensors")
    result = cli("evaluate", "r", "--checkpoint", "snapshot-2", "--attack", "fgsm", "--test-size", "50")
    found = json.loads(cli("runs", "compare", "r", "r", "--json").out)["accuracy"]

    assert result.out.startswith("r, checkpoint snapshot-2 (step 2), digits test")
    assert found["snapshot-2 fgsm Linf 0.2"] == found["final fgsm Linf 0.2"]
    assert_error(cli("evaluate", "r", "--checkpoint", "snapshot-9"), 2, "r has no snapshot-9", "last, snapshot-2")


def test_other_data_with_the_same_classes(cli: Cli, finished: Finished) -> None:
    finished("r")
    data = write_npz("ten.npz", [20] * 10)
    result = cli("evaluate", "r", "--data", data, "--attack", "fgsm")

    assert result.code == 0
    assert "npz:ten.npz test, Linf eps 0.2, n = 30" in result.out


def test_other_data_do_not_take_the_place_of_the_runs_own(cli: Cli, finished: Finished) -> None:
    finished("r")
    cli("evaluate", "r", "--data", write_npz("ten.npz", [20] * 10), "--attack", "fgsm")
    found = json.loads(cli("runs", "compare", "r", "r", "--json").out)

    assert found["accuracy"]["best clean"][0]["n"] == 50


def test_other_data_need_no_val_split_for_their_test_split(cli: Cli, finished: Finished) -> None:
    finished("r")
    data = write_npz("ten.npz", [20] * 9 + [2])

    assert cli("evaluate", "r", "--data", data, "--attack", "fgsm").code == 0


@pytest.mark.parametrize(
    ("words", "code", "fragments"),
    [
        (["r", "--eps", "8"], 2, ["eps must be a fraction", "got 8", "eps=8/255"]),
        (["r", "--norm", "L2"], 2, ["the run's budget is one of Linf, one of L2 must be given", "--eps 0.5"]),
        (["r", "--attack", "pgd-5", "--search-dtype", "bf16"], 2, ["--search-dtype is for ensembles", "autoattack"]),
        (["r", "--attack", " , "], 2, ["--attack names no attack", "clean"]),
        (["r", "--norm", "L3"], 2, ["unknown norm 'L3'", "Linf, L2"]),
        (["r", "--norm", "L2", "--eps", "-1"], 2, ["eps must be positive and finite, got -1"]),
        (["r", "--eps", "-8/255"], 2, ["eps must be a fraction of the pixel range in (0, 1], got -0.0313725"]),
        (["--eps", "-8/255", "r"], 2, ["eps must be a fraction of the pixel range in (0, 1], got -0.0313725"]),
        (["r", "--attack", "fgms"], 2, ["unknown attack 'fgms'", "did you mean fgsm?"]),
        (["r", "--attack", "pdg-50"], 2, ["did you mean pgd-50? pgd-50-10 is PGD with 50 steps and 10 restarts"]),
        (["r", "--checkpoint", "bset"], 2, ["unknown checkpoint 'bset'", "best, final, last"]),
        (["r", "--split", "train"], 2, ["unknown split 'train'", "test, val"]),
        (["r", "--batch-size", "0"], 2, ["batch_size must be at least 1"]),
        (["r", "--device", "gpu"], 2, ["unknown device 'gpu'", "hint: use auto, cpu"]),
        (["r", "--data", "digit"], 2, ["'digit'", "did you mean digits?"]),
        (["r", "--data", "npz:three.npz"], 2, ["1x8x8 images of 10 classes", "1x8x8 images of 3"]),
        (["r", "--data", "npz:large.npz"], 2, ["1x8x8 images of 10 classes", "3x16x16 images of 10"]),
        (["none"], 1, ["none is not a run directory", "gambeson runs list"]),
        ([], 2, ["evaluate needs one run directory, got 0"]),
        (["r", "s"], 2, ["evaluate needs one run directory, got 2"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else str(value),
)
def test_an_evaluation_that_cannot_work_is_refused_and_leaves_nothing(
    words: list[str], code: int, fragments: list[str], cli: Cli, finished: Finished, here: Path
) -> None:
    finished("r")
    write_npz("three.npz", [20] * 3)
    write_npz("large.npz", [20] * 10, size=16, channels=3)
    before = fingerprint(here)

    assert_error(cli("evaluate", *words), code, *fragments)
    assert fingerprint(here) == before


@pytest.mark.parametrize("words", [["--test-size", "0"], ["--test-size", "-5"]], ids=" ".join)
def test_a_test_size_of_nothing_is_said(words: list[str], cli: Cli, finished: Finished) -> None:
    finished("r")
    assert_error(cli("evaluate", "r", *words), 2, "test", words[1])


def test_a_val_split_that_is_empty_is_said(cli: Cli) -> None:
    assert cli("train", "n-lap", *FAST, "--val-fraction", "0", "--run", "r").code == 0
    assert_error(cli("evaluate", "r", "--split", "val"), 1, "val")


def test_a_flag_may_have_its_value(cli: Cli, finished: Finished) -> None:
    finished("r")
    result = cli("evaluate", "r", "--json", "true", "--attack", "fgsm", "--test-size", "10")

    assert result.code == 0


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "pickle": lambda file: file.write_bytes(bomb(Path("evil").absolute())),
    "torch.save": lambda file: torch.save({"model": torch.zeros(3)}, file),
    "foreign": lambda file: save_file({"a": torch.zeros(3)}, file),
    "other version": lambda file: edit_header(file, format=99),
    "other method": lambda file: edit_header(file, method="trades"),
    "other classes": lambda file: edit_header(file, task={**header_of(file)["task"], "num_classes": 3}),
    "gone": lambda file: file.unlink(),
}
"""What can be wrong with a checkpoint, as a change to its file."""


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("command", ["evaluate", "resume"])
def test_a_damaged_checkpoint_is_named_and_nothing_is_changed(
    command: str, damage: str, cli: Cli, finished: Finished, here: Path
) -> None:
    file = finished("r") / "checkpoints/last.safetensors"
    DAMAGE[damage](file)
    before = fingerprint(here)
    words = ["--checkpoint", "last"] if command == "evaluate" else []
    result = cli(command, "r", *words)

    assert_error(result, 1, str(file))
    if damage == "other version":
        assert "format 99" in result.err
    if damage == "other method":
        assert "'trades'" in result.err
        assert "'n-lap'" in result.err
    assert {k: v for k, v in fingerprint(here).items() if k != "r/.lock"} == {
        k: v for k, v in before.items() if k != "r/.lock"
    }
    assert not Path("evil").exists()


@pytest.mark.parametrize("command", ["evaluate", "resume"])
def test_a_header_that_is_no_json(command: str, cli: Cli, finished: Finished) -> None:
    run = finished("r")
    for name in ("last", "best"):
        file = run / f"checkpoints/{name}.safetensors"
        save_file(tensors_of(file), file, metadata={"gambeson": "{"})

    assert_error(cli(command, "r"), 1, "r/checkpoints/")


@pytest.mark.parametrize("command", ["evaluate", "resume"])
@pytest.mark.parametrize(
    "content",
    [
        b'{"format": 1, ',
        b'{"format": 2}',
        b"[]",
        b'{"format": 1}',
        b'{"format": 1, "method": "n-lap"}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_record_is_named(content: bytes, command: str, cli: Cli, finished: Finished) -> None:
    (finished("r") / "run.json").write_bytes(content)

    assert_error(cli(command, "r"), 1, "r/run.json")


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_run_that_was_selected_on_test_is_stamped_wherever_its_numbers_stand(
    split: str, cli: Cli, finished: Finished
) -> None:
    file = finished("r") / "run.json"
    call = json.loads(file.read_text())
    file.write_text(json.dumps({**call, "selection": {"split": split}}))
    small = ("--test-size", "10", "--device", "cpu")
    for words in (
        ("evaluate", "r", "--attack", "clean", *small),
        ("corruptions", "r", "--corruptions", "fog", "--severities", "1", "--out", "c.png", *small),
        ("diagnose", "criticality", "r", "--modules", "linear", "--size", "10", "--device", "cpu", "--out", "m.png"),
        ("diagnose", "eps", "r", "--attack", "fgsm", "--eps-grid", "0,0.1", "--out", "e.png", *small),
    ):
        table = cli(*words)
        assert table.code == 0, table.err
        assert ("selected on test: these numbers are optimistic" in table.out) == (split == "test"), words
        assert json.loads(cli(*words, "--json").out)["selection"] == {"split": split}, words


@pytest.mark.parametrize("begun", [False, True])
def test_an_interruption_says_where_to_go_on(
    begun: bool, cli: Cli, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished("r")
    if begun:
        (run / "autoattack").mkdir()

    def stop(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("gambeson.app.measuring._evaluate", stop)
    result = cli("evaluate", "r", "--attack", "autoattack")
    assert result.code == 130
    assert ("what was found is kept in r/autoattack: the same command goes on" in result.err) == begun
    assert "interrupted" in result.err


@pytest.mark.parametrize("words", [("--search-dtype", "bf16"), ()], ids=["bf16", "float32"])
def test_a_search_in_less_precision_is_said_beside_the_number(
    words: tuple[str, ...], cli: Cli, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENSEMBLES, "standard", ("short", lambda: (AutoPGD(loss="ce", steps=3),)))
    finished("r")
    call = ("evaluate", "r", "--attack", "autoattack,pgd-2", "--test-size", "8", "--device", "cpu", *words)
    result = cli(*call)
    record = json.loads(cli(*call, "--json").out)
    note = "autoattack searched in bfloat16; every fall was confirmed in float32\n"
    footnote = json.loads(Path("r/robustbench/best-test-autoattack-pgd-2-1.json").read_text())["footnote"]

    assert result.code == 0
    assert (note in result.out) == bool(words)
    assert (
        record["search_dtype"] == record["ensembles"]["autoattack"]["search_dtype"] == ("bfloat16" if words else None)
    )
    assert record["ensembles"]["autoattack"]["confirmed_in"] == "float32"
    assert ("searched in bfloat16, every fall confirmed in float32" in footnote) == bool(words)
    assert "search_dtype" not in json.loads(cli("evaluate", "r", "--attack", "pgd-2", "--test-size", "8", "--json").out)
