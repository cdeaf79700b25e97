"""`gambeson corruptions`: tables, records and pictures of runs on digits, and what is refused before any work."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.helpers import ENV, Cli, assert_error, fingerprint
from gambeson.app.cli import main
from gambeson.app.corrupting import FROST_NOTE, chosen_severities, published
from gambeson.app.options import CorruptionOptions
from gambeson.core.errors import InputError
from gambeson.data import corrupted
from gambeson.data.corruptions import CORRUPTIONS, SETS
from gambeson.data.splits import Examples

Finished = Callable[[str], Path]


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned something; look, do not touch."""
    path = tmp_path_factory.mktemp("learned") / "run"
    words = ("--epochs", "6", "--test-size", "10", "--attack", "clean", "--device", "cpu", "--model", "small-cnn")
    assert main(["train", "fgsm", *words, "--run", str(path)]) == 0
    return path


def test_help_and_options(cli: Cli) -> None:
    page = cli("corruptions", "--help")
    assert (page.code, page.err) == (0, "")
    options = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(CorruptionOptions)}
    assert options <= set(re.findall(r"^  (--[a-z-]+)", page.out, re.MULTILINE))
    documented = set(re.findall(r"^        (\w+): ", CorruptionOptions.__doc__ or "", re.MULTILINE))
    assert documented == {field.name for field in dataclasses.fields(CorruptionOptions)}
    assert "corruptions" in cli("--help").out


def test_help_loads_no_torch() -> None:
    code = """
import contextlib, io, sys
from gambeson.app.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    assert main(["corruptions", "--help"]) == 0
assert not {"torch._C", "matplotlib", "scipy"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_table_the_record_the_outcomes_and_the_picture(cli: Cli, finished: Finished) -> None:
    finished("r")
    words = ("--corruptions", "frost,gaussian-noise", "--severities", "5,1", "--test-size", "40")
    result = cli("corruptions", "r", *words)
    assert result.code == 0, result.err
    stem = "r/diagnosis/corruptions-best-corruptions-frost+gaussian-noise-severities-5+1-test-size-40"
    assert result.err == f"wrote {stem}.png, {stem}.json and {stem}.npz\n"
    record = json.loads(Path(f"{stem}.json").read_text())
    arrays = np.load(f"{stem}.npz")
    assert set(arrays) == {"y", "clean", *[f"{name}-{s}" for name in ("frost", "gaussian_noise") for s in (1, 5)]}
    shares = [arrays[key].mean() for key in arrays if key not in ("y", "clean")]
    assert record["ood"]["value"] == pytest.approx(np.mean(shares))
    assert record["clean"]["value"] == pytest.approx(arrays["clean"].mean())
    assert (record["n"], record["source"], record["parameters"], record["set"]) == (40, "generated", "cifar", None)
    assert record["frost_textures"] == "generated"
    assert FROST_NOTE in result.out
    rows = [line.split() for line in result.out.splitlines() if line.split()[:1] in (["frost"], ["gaussian_noise"])]
    for row in rows:
        levels = record["corruptions"][row[0]]["severities"]
        expected = [levels["1"]["value"], levels["5"]["value"], record["corruptions"][row[0]]["mean"]["value"]]
        assert row[1:] == [f"{100 * value:.1f}" for value in expected]
    assert len(rows) == 2
    ood = record["ood"]
    assert f"OOD {100 * ood['value']:.1f} % [{100 * ood['low']:.1f}, {100 * ood['high']:.1f}]" in result.out
    with Image.open(f"{stem}.png") as picture:
        assert min(picture.size) > 300
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_json_and_a_picture_elsewhere(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    before = fingerprint(run)
    words = ("--corruptions", "fog", "--severities", "2", "--test-size", "20", "--seed", "3")
    result = cli("corruptions", "r", *words, "--json", "--out", "a.svg")
    assert json.loads(result.out) == json.loads(Path("a.json").read_text())
    assert json.loads(result.out)["seed"] == 3
    assert Path("a.svg").read_text().startswith("<?xml")
    assert FROST_NOTE not in json.loads(result.out)["notes"]
    assert fingerprint(run) == before
    again = cli("corruptions", "r", *words, "--json", "--out", "b.svg", "--batch-size", "7")
    assert json.loads(again.out)["ood"] == json.loads(result.out)["ood"]


def test_other_settings_have_files_of_their_own_and_the_seed_matters(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    words = ("--corruptions", "gaussian-noise", "--severities", "5", "--test-size", "60")
    every = [(), ("--seed", "1"), ("--severities", "4"), ("--test-size", "50"), ("--corruptions", "fog")]
    for more in every:
        assert cli("corruptions", "r", *words, *more).code == 0
    files = {path.name: path for path in (run / "diagnosis").glob("*.npz")}
    assert len(files) == len(every)
    stem = "corruptions-best-corruptions-gaussian-noise-severities-5-test-size-60"
    first, other = (np.load(files[f"{stem}{seed}.npz"])["gaussian_noise-5"] for seed in ("", "-seed-1"))
    assert (first != other).any()
    again = cli("corruptions", "r", *words, "--seed", "1", "--out", "again.png")
    assert again.code == 0
    assert (np.load("again.npz")["gaussian_noise-5"] == other).all()


def test_more_severe_is_harder_for_a_trained_model(cli: Cli, learned: Path) -> None:
    result = cli("corruptions", str(learned), "--test-size", "150", "--json", "--out", "all.png")
    record = json.loads(result.out)
    assert list(record["corruptions"]) == list(SETS["standard15"])
    means = [record["by_severity"][str(s)]["value"] for s in range(1, 6)]
    assert record["clean"]["value"] > 0.6
    assert all(later <= earlier + 0.03 for earlier, later in pairwise(means)), means
    assert means[4] < means[0] - 0.05 < record["clean"]["value"]


def test_frost_of_a_folder(cli: Cli, finished: Finished) -> None:
    finished("r")
    Path("ice").mkdir()
    Image.new("RGB", (100, 100), (0, 0, 0)).save("ice/frost1.png")
    words = ("--corruptions", "frost", "--severities", "1", "--test-size", "20")
    result = cli("corruptions", "r", *words, "--frost-textures", "ice")
    assert result.code == 0, result.err
    assert FROST_NOTE not in result.out
    outcomes = np.load(next(Path("r/diagnosis").glob("corruptions-best-corruptions-frost-*-frost-textures-ice.npz")))
    assert (outcomes["frost-1"] == outcomes["clean"]).all()  # 1 x + 0.2 times black


@pytest.mark.parametrize(
    ("words", "code", "fragments"),
    [
        (("--set", "standard"), 2, ("unknown set 'standard'", "standard15, rift18, all19")),
        (("--corruptions", "fogg"), 2, ("unknown corruption 'fogg'", "did you mean fog?")),
        (("--corruptions", ","), 2, ("names none",)),
        (("--severities", "0,1"), 2, ("numbers from 1 to 5, got '0,1'",)),
        (("--test-size", "0"), 2, ("--test-size must be at least 1",)),
        (("--batch-size", "0"), 2, ("--batch-size must be at least 1",)),
        (("--out", "a.xyz"), 2, ("is no format for pictures",)),
        (("--set", "rift18"), 2, ("saturate means nothing to grey images", "standard15")),
        (("--published",), 2, ("no published corrupted images of digits",)),
        (("--published", "--frost-textures", "x"), 2, ("--published reads finished ones",)),
        (("--frost-textures", "nowhere"), 1, ("there is no folder nowhere",)),
        (("--checkpoint", "bets"), 2, ("unknown checkpoint 'bets'",)),
    ],
)
def test_refused_before_any_work(
    words: tuple[str, ...], code: int, fragments: tuple[str, ...], cli: Cli, trained: Path
) -> None:
    before = fingerprint(trained)
    assert_error(cli("corruptions", str(trained), *words), code, *fragments)
    assert fingerprint(trained) == before


def test_no_run(cli: Cli) -> None:
    assert_error(cli("corruptions"), 2, "corruptions needs one run directory, got 0")
    assert_error(cli("corruptions", "nowhere"), 1, "nowhere")


def test_published_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corrupted, "PER_SEVERITY", 3)
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    marks = np.arange(15, dtype=np.uint8)[:, None, None, None]
    np.save(folder / "fog.npy", np.broadcast_to(marks, (15, 32, 32, 3)))
    np.save(folder / "labels.npy", np.tile([1, 2, 3], 5))
    test = Examples(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([1, 2]))
    source, clean = published("cifar10", str(tmp_path), 2, test)
    assert clean is test
    assert source("fog", 4).x[:, 0, 0, 0].tolist() == [9, 10]
    # Tiny-ImageNet-C shows other images than Tiny-ImageNet's: there is no clean accuracy of the same ones.
    assert published("tiny-imagenet", str(tmp_path), 2, test)[1] is None


def test_severities() -> None:
    assert chosen_severities("5, 1,1") == (1, 5)
    for text in ("", "x", "6", "1.0", "²"):
        with pytest.raises(InputError, match="numbers from 1 to 5"):
            chosen_severities(text)


def test_the_names_are_listed(cli: Cli) -> None:
    lines = cli("list", "corruptions").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(CORRUPTIONS)
