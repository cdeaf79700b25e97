"""`gambeson diagnose eps`: the table, the record, the arrays and the picture of a run, and what is refused."""

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
from PIL import Image

from app.helpers import Cli, assert_error, fingerprint
from gambeson.app import build, findings
from gambeson.app.eps_curve import default_grid
from gambeson.app.options import EpsOptions
from gambeson.core.errors import InputError
from gambeson.core.threat import L2, Linf
from gambeson.evaluation import minimal_norms, robust_curve

Finished = Callable[[str], Path]
SMALL = ("--test-size", "60", "--device", "cpu", "--attack", "fgsm")


def record_of(run: Path) -> dict[str, Any]:
    """The only one."""
    (file,) = (run / "diagnosis").glob("eps-fgsm-linf-best-test*.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_help_lists_every_option(cli: Cli) -> None:
    page = cli("diagnose", "eps", "--help")
    assert page.out.startswith("usage: gambeson diagnose eps RUN")
    options = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(EpsOptions)}
    assert options <= set(re.findall(r"^  (--[a-z-]+)", page.out, re.MULTILINE))
    documented = set(re.findall(r"^        (\w+): ", EpsOptions.__doc__ or "", re.MULTILINE))
    assert documented == {field.name for field in dataclasses.fields(EpsOptions)}


def test_the_record_is_what_the_library_measures(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    result = cli("diagnose", "eps", "r", *SMALL, "--eps-grid", "0:0.2:0.1", "--minimal", "--seed", "3")
    record = record_of(run)
    opened = build.open_run(run)
    model = build.load_model(opened, "best", torch.device("cpu"))[0]
    test = build.splits(opened.call).test.head(60)
    found = robust_curve(model, test.x, test.y, "fgsm", (0.1, 0.2), num_classes=10, seed=3)
    norms = minimal_norms(model, test.x, test.y, num_classes=10)

    assert result.code == 0, result.err
    assert record["points"] == json.loads(json.dumps(found.to_dict()["points"]))
    assert record["minimal"]["median"] == pytest.approx(float(norms[norms > 0].quantile(0.5)))
    assert record["minimal"]["wrong"] + record["minimal"]["moved"] + record["minimal"]["not_found"] == 60
    assert [point["value"] for point in record["minimal"]["points"]] == [
        pytest.approx(float((norms > eps).double().mean())) for eps in found.grid
    ]
    only = [int(((norms <= eps) & (found.fell > eps)).sum()) for eps in found.grid]
    assert record["minimal"]["only_deepfool"] == only
    assert record["budget"] == {"norm": "Linf", "eps": 0.2}
    said = ("checkpoint", "data", "split", "n", "attack", "norm", "seed", "method", "batch_size", "failed")
    assert [record[key] for key in said] == ["best", "digits", "test", 60, "fgsm", "Linf", 3, "n-lap", 256, 0]
    assert {"run", "step", "versions", "warning"} <= set(record)
    stem = run / "diagnosis/eps-fgsm-linf-best-test-eps-grid-0_0.2_0.1-minimal-test-size-60-seed-3"
    with np.load(f"{stem}.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["fell"], found.fell.numpy())
        assert np.allclose(arrays["norms"], norms.numpy())
        assert np.array_equal(arrays["y"], test.y.numpy())
    with Image.open(f"{stem}.png") as picture:
        assert min(picture.size) > 400


def test_the_table_has_a_row_per_budget(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    result = cli("diagnose", "eps", "r", *SMALL)
    points = record_of(run)["points"]
    rows = dict(re.findall(r"^ (clean|[\d./]+) +(\d+\.\d \[\d+\.\d, \d+\.\d\])", result.out, re.MULTILINE))

    assert [point["eps"] for point in points] == pytest.approx([0.05 * k for k in range(9)])
    assert list(rows) == ["clean", "0.05", "0.1", "0.15", "0.2", "0.25", "0.3", "0.35", "0.4"]
    assert rows["0.2"].startswith(f"{100 * points[4]['value']:.1f} [{100 * points[4]['low']:.1f}")
    assert "digits test, Linf, n = 60; the run's budget is Linf 0.2" in result.out
    assert "DeepFool" not in result.out
    stem = "r/diagnosis/eps-fgsm-linf-best-test-test-size-60"
    assert result.err == f"wrote {stem}.png, {stem}.json and {stem}.npz\n"


def test_deepfool_stands_beside_the_attack(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    out = cli("diagnose", "eps", "r", *SMALL, "--minimal", "--eps-grid", "51/255,0.25").out
    minimal = record_of(run)["minimal"]
    row = re.search(r"^ 0.2 +\S+ \[\S+ \S+\] +(\S+) +(\d+) $", out, re.MULTILINE)
    assert row is not None
    assert row.groups() == (f"{100 * minimal['points'][1]['value']:.1f}", str(minimal["only_deepfool"][1]))
    assert f"DeepFool moved {minimal['moved']} images (median norm {minimal['median']:.4g}" in out
    assert "only deepfool: images that fgsm left standing" in out


def test_json_is_what_is_kept_and_stands_alone(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    before = fingerprint(run)
    words = ("--eps-grid", "1/255", "--norm", "l2", "--split", "val", "--checkpoint", "final", "--minimal")
    result = cli("diagnose", "eps", "r", *SMALL, *words, "--json", "--out", "c.svg")
    record = json.loads(result.out)
    assert record == json.loads(Path("c.json").read_text())
    assert [record[key] for key in ("norm", "split", "checkpoint", "n")] == ["L2", "val", "final", 60]
    assert "Infinity" not in result.out
    assert result.err == "wrote c.svg, c.json and c.npz\n"
    assert fingerprint(run) == before


def test_a_curve_that_does_not_come_down_is_noted(cli: Cli, finished: Finished) -> None:
    finished("r")
    out = cli("diagnose", "eps", "r", *SMALL, "--eps-grid", "0.001").out.replace("\n", " ")
    assert re.search(r"note: at the largest budget, 0.001, accuracy is \S+ %, not 0: a grid up to 0.5", out)


def test_a_broken_gradient_is_said(cli: Cli, finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    finished("r")
    cli("diagnose", "eps", "r", *SMALL, "--eps-grid", "0.001")
    record = record_of(Path("r")) | {"failed": 7, "warning": None}
    findings.eps(record)
    out = capsys.readouterr().out
    assert "NaN or infinite pixels were returned 7 times" in out
    assert "note:" not in out


@pytest.mark.parametrize(
    ("threat", "norm", "grid"),
    [
        (Linf(8 / 255), "Linf", [k * 2 / 255 for k in range(9)]),
        (L2(1.0), "L2", [k / 4 for k in range(9)]),
        (Linf(0.8), "Linf", [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    ],
)
def test_the_default_grid_goes_to_twice_the_budget(threat: Linf | L2, norm: str, grid: list[float]) -> None:
    assert default_grid(threat, norm) == pytest.approx(grid)


def test_nothing_follows_for_another_norm() -> None:
    with pytest.raises(InputError, match="the run's budget is one of Linf, a grid of L2 must be given"):
        default_grid(Linf(0.1), "L2")


@pytest.mark.parametrize(
    ("words", "code", "fragments"),
    [
        ((), 2, ("diagnose eps needs one run directory, got 0",)),
        (("r", "--eps", "3"), 2, ("unknown option --eps", "--eps-grid")),
        (("r", "--eps-grid", "0:1:0.3"), 2, ("does not go from 0 to 1 in steps of 0.3",)),
        (("r", "--eps-grid", "8"), 2, ("eps must be a fraction of the pixel range", "8/255")),
        (("r", "--attack", "clean"), 2, ("--attack clean is no attack",)),
        (("r", "--attack", "pdg-5"), 2, ("unknown attack 'pdg-5'", "did you mean pgd-5?")),
        (("r", "--attack", "autoattack"), 2, ("autoattack goes through a whole set of images", "pgd-K")),
        (("r", "--attack", "fgsm,pgd-5"), 2, ("unknown attack 'fgsm,pgd-5'",)),
        (("r", "--norm", "l2"), 2, ("a grid of L2 must be given", "--eps-grid 0:1:0.125")),
        (("r", "--norm", "l3"), 2, ("unknown norm 'l3'",)),
        (("r", "--test-size", "0"), 2, ("--test-size must be at least 1, got 0",)),
        (("r", "--batch-size", "0"), 2, ("--batch-size must be at least 1, got 0",)),
        (("r", "--split", "train"), 2, ("unknown split 'train'", "test, val")),
        (("r", "--checkpoint", "newest"), 2, ("unknown checkpoint 'newest'",)),
        (("r", "--out", "picture"), 2, ("the picture picture needs an ending",)),
        (("none",), 1, ("none is not a run directory",)),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(
    words: tuple[str, ...], code: int, fragments: tuple[str, ...], cli: Cli, finished: Finished
) -> None:
    run = finished("r")
    before = fingerprint(run)
    assert_error(cli("diagnose", "eps", *words), code, *fragments)
    assert fingerprint(run) == before
