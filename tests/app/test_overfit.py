"""`gambeson diagnose overfitting`: the tables, the record and the picture of a run, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.helpers import Cli, assert_error, fingerprint
from gambeson.app.options import OverfittingOptions
from gambeson.app.overfit import stored_reports
from gambeson.diagnosis import diagnose_overfitting
from gambeson.diagnosis.collapse import EVENT
from gambeson.engine.run import Run

Finished = Callable[[str], Path]


def write(run: Path, *looks: tuple[int, float, float, bool]) -> None:
    """Metrics of 50 steps an epoch: the looks (step, FGSM, PGD-10, collapsed), and two validations."""
    rows: list[dict[str, Any]] = []
    for step, fgsm, pgd, collapsed in looks:
        row = {"step": step, "epoch": step / 50, "seconds": 1.0, "probe/fgsm_acc": fgsm, "probe/pgd10_acc": pgd}
        rows.append({**row, "probe/aae": 0.25, "probe/alignment": 0.5, **({"event": EVENT} if collapsed else {})})
    rows.append({"step": 150, "epoch": 3.0, "seconds": 1.0, "val/clean_acc": 0.9, "val/pgd10_acc": 0.6})
    rows.append({"step": 200, "epoch": 4.0, "seconds": 1.0, "val/clean_acc": 0.9, "val/pgd10_acc": 0.4})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


COLLAPSE = ((0, 0.1, 0.1, False), (50, 0.5, 0.45, False), (100, 0.9, 0.1, True), (150, 0.95, 0.05, True))


def outcomes(run: Path, name: str, right: int, attack: str = "fgsm") -> None:
    """Let the first images only be right in an evaluation that is there, record and arrays."""
    file = run / f"evaluations/{name}.npz"
    with np.load(file) as stored:
        arrays = dict(stored)
    arrays["clean"][:] = True
    arrays[attack] = np.arange(len(arrays["y"])) < right
    np.savez(file, **arrays)


def test_help_lists_every_option_and_the_topic_is_listed(cli: Cli) -> None:
    page = cli("diagnose", "overfitting", "--help")
    assert page.out.startswith("usage: gambeson diagnose overfitting RUN")
    options = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(OverfittingOptions)}
    assert options <= set(re.findall(r"^  (--[a-z-]+)", page.out, re.MULTILINE))
    documented = set(re.findall(r"^        (\w+): ", OverfittingOptions.__doc__ or "", re.MULTILINE))
    assert documented == {field.name for field in dataclasses.fields(OverfittingOptions)}
    assert re.search(r"^  overfitting +when did", cli("diagnose", "--help").out, re.MULTILINE)


def test_the_record_is_what_the_library_finds(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    result = cli("diagnose", "overfitting", "r")
    opened = Run.open(run)
    reports, budget = stored_reports(opened)
    found = diagnose_overfitting(opened.rows(), reports=reports)
    record = json.loads((run / "diagnosis/overfitting.json").read_text())

    assert result.code == 0, result.err
    assert {key: record[key] for key in found.to_dict()} == json.loads(json.dumps(found.to_dict()))
    assert record["test"] == budget == {"attack": "fgsm", "norm": "Linf", "eps": 0.2, "n": 50}
    assert record["best_against_final"]["difference"]["value"] == 0  # the last weights are the best ones
    assert [record[key] for key in ("run", "method", "data", "complete")] == ["r", "n-lap", "digits", True]
    assert record["snapshots"] == []
    assert found.sentence() in result.out.replace("\n", " ")
    assert re.search(r"^ first look +0 +0 ", result.out, re.MULTILINE)
    assert re.search(r"^ wong +PGD-10 more than 20 points lower .* - +- $", result.out, re.MULTILINE)
    assert "final weights on the test images, Linf eps 0.2, n = 50\n" in result.out
    assert result.err == "wrote r/diagnosis/overfitting.png and r/diagnosis/overfitting.json\n"
    with Image.open(run / "diagnosis/overfitting.png") as picture:
        assert min(picture.size) > 300


def test_a_collapse_is_told_with_its_snapshots(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    write(run, *COLLAPSE)
    for step in (50, 100, 200):
        shutil.copy(run / "checkpoints/final.safetensors", run / f"checkpoints/snapshot-{step}.safetensors")
    out = cli("diagnose", "overfitting", "r").out
    record = json.loads((run / "diagnosis/overfitting.json").read_text())

    assert (record["collapse"]["step"], record["collapse"]["healthy"]["step"]) == (100, 50)
    assert [(one["name"], one["look"]) for one in record["snapshots"]] == [
        ("snapshot-50", "healthy"),
        ("snapshot-100", "collapsed"),
        ("snapshot-200", None),
    ]
    assert re.search(r"^ last healthy +50 +1 +50\.0 +45\.0 +5\.0 +25\.0 +0\.50 $", out, re.MULTILINE)
    assert re.search(r"^ collapsed +100 +2 +90\.0 +10\.0 +80\.0 +25\.0 +0\.50 $", out, re.MULTILINE)
    assert re.search(r"^ wong .* 100 +2 $", out, re.MULTILINE)
    assert re.search(r"^ aae .* 0 +0 $", out, re.MULTILINE)
    assert "snapshots: snapshot-50 (healthy), snapshot-100 (collapsed), snapshot-200\n" in out


def test_best_and_final_are_compared_on_the_test_images(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    write(run)
    outcomes(run, "best-test-fgsm-1", 40)
    outcomes(run, "final-test-fgsm-1", 20)
    record = json.loads(cli("diagnose", "overfitting", "r", "--json").out)
    pair = record["best_against_final"]

    assert (pair["only_best"], pair["only_final"], pair["difference"]["value"]) == (20, 0, 0.4)
    assert record["robust_overfitting"]["drop"] == pytest.approx(0.2)
    assert "more than chance: robust overfitting." in record["sentence"]
    assert set(record["classes"]) == {"best", "final"}
    assert record["looks"]["step"] == []


def add(run: Path, at: str, attack: str, accuracy: float, n: int) -> None:
    """Another evaluation of the first images, made from that of the training."""
    record = json.loads((run / f"evaluations/{at}-test-fgsm-1.json").read_text())
    record |= {"attacks": ["clean", attack], "n": n}
    record["accuracy"] = {"clean": record["accuracy"]["clean"], attack: {**record["worst"], "value": accuracy}}
    with np.load(run / f"evaluations/{at}-test-fgsm-1.npz") as stored:
        arrays = {"y": stored["y"][:n], "clean": stored["clean"][:n], attack: stored["fgsm"][:n]}
    np.savez(run / f"evaluations/{at}-test-{attack}-{n}.npz", **arrays)
    (run / f"evaluations/{at}-test-{attack}-{n}.json").write_text(json.dumps(record))


def test_the_evaluation_of_the_most_images_under_the_strongest_shared_attack_is_taken(finished: Finished) -> None:
    run = finished("r")
    for at in ("best", "final"):
        add(run, at, "pgd-10", -0.01, 50)  # lower than whatever FGSM left
        add(run, at, "pgd-10", -0.02, 20)
    add(run, "final", "mm3", -0.03, 50)  # only one of the two has it
    reports, budget = stored_reports(Run.open(run))
    assert budget == {"attack": "pgd-10", "norm": "Linf", "eps": 0.2, "n": 50}
    seen = {at: (list(one.outcomes), len(one.y)) for at, one in reports.items()}
    assert seen == dict.fromkeys(("best", "final"), (["clean", "pgd-10"], 50))


@pytest.mark.parametrize("wrong", [{"eps": 0.3}, {"norm": "L2"}, {"data": "other"}, {"split": "val"}, {"step": 1}])
def test_another_budget_other_images_and_earlier_weights_do_not_count(
    wrong: dict[str, Any], finished: Finished
) -> None:
    run = finished("r")
    file = run / "evaluations/final-test-fgsm-1.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **wrong}))
    assert list(stored_reports(Run.open(run))[0]) == ["best"]


def test_a_training_that_goes_on_and_a_damaged_row(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    write(run, *COLLAPSE, (140, 0.5, 0.5, False))  # of an earlier step than the look before it
    (run / "checkpoints/final.safetensors").unlink()
    result = cli("diagnose", "overfitting", "r", "--out", "o.svg")

    assert "The training is not complete: this is how it stands. Catastrophic overfitting" in result.out
    assert "1 damaged rows of metrics were left out" in result.out
    assert "<svg" in Path("o.svg").read_text()
    assert not (run / "diagnosis").exists()


def test_a_training_without_sentinel_and_validation(cli: Cli) -> None:
    words = ("--epochs", "1", "--train-size", "40", "--test-size", "20", "--attack", "clean", "--batch-size", "20")
    assert cli("train", "pgd-at", *words, "--val-fraction", "0", "--probe-every", "0", "--run", "r").code == 0
    result = cli("diagnose", "overfitting", "r")

    assert result.code == 0, result.err
    said = "No sentinel watched: of a collapse nothing is known. No validation under attack: of robust overfitting"
    assert said in result.out
    assert "detector" not in result.out


@pytest.mark.parametrize(
    ("words", "code", "fragments"),
    [
        ((), 2, ("diagnose overfitting needs one run directory, got 0",)),
        (("r", "--outt", "o.png"), 2, ("unknown option --outt", "--out")),
        (("r", "--out", "picture"), 2, ("the picture picture needs an ending",)),
        (("none",), 1, ("none is not a run directory",)),
        (("empty",), 1, ("empty has no metrics: no training was begun in it",)),
        (("damaged",), 1, ("damaged/metrics.jsonl is damaged",)),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(
    words: tuple[str, ...], code: int, fragments: tuple[str, ...], cli: Cli, finished: Finished
) -> None:
    for name, metrics in (("r", None), ("empty", ""), ("damaged", "[1]\n")):
        run = finished(name)
        if metrics is not None:
            (run / "metrics.jsonl").write_text(metrics)
    before = {name: fingerprint(Path(name)) for name in ("r", "empty", "damaged")}
    assert_error(cli("diagnose", "overfitting", *words), code, *fragments)
    assert {name: fingerprint(Path(name)) for name in before} == before
