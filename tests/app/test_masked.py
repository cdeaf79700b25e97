"""`gambeson diagnose masking`: the tables, the record and the outcomes of a run, its exit code, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.helpers import Cli, assert_error, fingerprint
from gambeson.app import build, verdicts
from gambeson.app.options import MaskingOptions
from gambeson.core.threat import Linf
from gambeson.diagnosis import diagnose_masking

Finished = Callable[[str], Path]
SMALL = ("--test-size", "30", "--device", "cpu", "--queries", "20")


def test_help_lists_every_option(cli: Cli) -> None:
    page = cli("diagnose", "masking", "--help")
    assert page.out.startswith("usage: gambeson diagnose masking RUN")
    options = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(MaskingOptions)}
    assert options <= set(re.findall(r"^  (--[a-z-]+)", page.out, re.MULTILINE))
    documented = set(re.findall(r"^        (\w+): ", MaskingOptions.__doc__ or "", re.MULTILINE))
    assert documented == {field.name for field in dataclasses.fields(MaskingOptions)}


def test_the_record_is_what_the_library_finds(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    result = cli("diagnose", "masking", "r", *SMALL, "--eps", "0.1", "--seed", "3")
    opened = build.open_run(run)
    model = build.load_model(opened, "best", torch.device("cpu"))[0]
    test = build.splits(opened.call).test.head(30)
    found = diagnose_masking(model, test.x, test.y, Linf(0.1), num_classes=10, queries=20, seed=3)
    stem = run / "diagnosis/masking-linf-0.1-best-test-queries-20-test-size-30-seed-3"
    record = json.loads(Path(f"{stem}.json").read_text())

    assert result.code == (1 if found.verdict == "FAIL" else 0)
    assert result.err == f"wrote {stem}.json and {stem}.npz\n"
    assert record["verdict"] == found.verdict
    wanted = json.loads(json.dumps(found.to_dict()))
    assert {key: record[key] for key in wanted} == wanted
    said = ("checkpoint", "data", "split", "n", "norm", "eps", "seed", "method", "transfer_from")
    assert [record[key] for key in said] == ["best", "digits", "test", 30, "Linf", 0.1, 3, "n-lap", None]
    assert {"run", "step", "versions", "selection"} <= set(record)
    with np.load(f"{stem}.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {"y", *found.outcomes}
        assert all(np.array_equal(arrays[name], flags.numpy()) for name, flags in found.outcomes.items())
    for evidence in found.evidence:
        assert re.search(rf"^ {re.escape(evidence.check)} +{evidence.verdict} ", result.out, re.MULTILINE)
    assert re.search(rf"^ square +{100 * found.accuracy('square').value:.1f} \[", result.out, re.MULTILINE)
    assert re.search(r"^ all together +", result.out, re.MULTILINE)
    assert re.search(rf"^{found.verdict}: ", result.out, re.MULTILINE)


def test_another_run_gives_transferred_images_and_json_stands_alone(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    before = fingerprint(run)
    words = ("--transfer", "r", "--norm", "l2", "--eps", "0.5", "--split", "val", "--json", "--out", "m.json")
    result = cli("diagnose", "masking", "r", *SMALL, *words)
    record = json.loads(result.out)
    assert record == json.loads(Path("m.json").read_text())
    assert record["transfer_from"] == "r"
    assert "transfer" in [evidence["check"] for evidence in record["evidence"]]
    assert "transfer" in record["accuracy"]
    assert [record[key] for key in ("norm", "eps", "split")] == ["L2", 0.5, "val"]
    assert fingerprint(run) == before


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [("PASS", "no proof"), ("WARN", "to be known"), ("FAIL", "would be too high")],
)
def test_the_verdict_is_said_in_words(verdict: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    share = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    evidence: dict[str, Any] = {
        "check": "black box",
        "verdict": verdict,
        "message": "Square fools [b]7[/b]",
        "hint": "look",
    }
    evidence["measured"] = {"tolerance": 0.01}
    record: dict[str, Any] = {
        "run": "r",
        "checkpoint": "best",
        "step": 3,
        "data": "digits",
        "split": "test",
        "norm": "Linf",
        "eps": 8 / 255,
        "n": 9,
        "evidence": [evidence],
        "accuracy": {"clean": share},
        "worst": share,
        "verdict": verdict,
        "selection": {"split": "test"},
    }
    verdicts.masking(record)
    out = capsys.readouterr().out
    assert "r, checkpoint best (step 3), digits test, Linf eps 8/255, n = 9" in out
    assert "Square fools [b]7[/b]" in out  # as it stands, not as markup
    assert "hint: look" in out
    named = "" if verdict == "PASS" else "black box: "
    assert re.search(rf"^{verdict}: {named}.*{sentence}", out, re.MULTILINE)
    assert "selected on" in out


@pytest.mark.parametrize(
    ("words", "code", "fragments"),
    [
        ((), 2, ("diagnose masking needs one run directory, got 0",)),
        (("r", "--eps-grid", "3"), 2, ("unknown option --eps-grid",)),
        (("r", "--eps", "8"), 2, ("eps must be a fraction of the pixel range", "8/255")),
        (("r", "--norm", "l3"), 2, ("unknown norm 'l3'",)),
        (("r", "--test-size", "0"), 2, ("--test-size must be at least 1, got 0",)),
        (("r", "--batch-size", "0"), 2, ("--batch-size must be at least 1, got 0",)),
        (("r", "--queries", "0"), 2, ("--queries must be at least 1, got 0",)),
        (("r", "--split", "train"), 2, ("unknown split 'train'", "test, val")),
        (("r", "--checkpoint", "newest"), 2, ("unknown checkpoint 'newest'",)),
        (("r", "--out", "record.txt"), 2, ("--out is a record and ends in .json, got record.txt",)),
        (("r", "--transfer", "none"), 1, ("none is not a run directory",)),
        (("none",), 1, ("none is not a run directory",)),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(
    words: tuple[str, ...], code: int, fragments: tuple[str, ...], cli: Cli, finished: Finished
) -> None:
    run = finished("r")
    before = fingerprint(run)
    assert_error(cli("diagnose", "masking", *words), code, *fragments)
    assert fingerprint(run) == before
