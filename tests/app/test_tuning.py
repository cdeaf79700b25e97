"""`gambeson finetune`, `diagnose criticality` and `interpolate` on digits, from a trained run to the table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from app.helpers import Cli, assert_error, header_of, tensors_of
from gambeson.app import build
from gambeson.app.cli import main
from gambeson.finetuning import interpolated

SHORT = ("--epochs", "1", "--alphas", "0,0.5,1", "--attack", "clean,fgsm", "--test-size", "60", "--device", "cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned a little; look, do not touch."""
    path = tmp_path_factory.mktemp("base") / "base"
    words = ["train", "n-fgsm", "--epochs", "4", "--test-size", "60", "--attack", "clean", "--device", "cpu"]
    assert main([*words, "--run", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished RiFT of it; look, do not touch."""
    path = tmp_path_factory.mktemp("tuned") / "tuned"
    assert main(["finetune", "rift", str(base), *SHORT, "--module", "top-2", "--run", str(path)]) == 0
    return path


def test_rift_measures_trains_and_interpolates(base: Path, tuned: Path) -> None:
    layers = json.loads((tuned / "layers.json").read_text())["layers"]
    criticality = json.loads((tuned / "criticality.json").read_text())
    line = json.loads((tuned / "line.json").read_text())
    start, ours = (
        tensors_of(base / "checkpoints" / "best.safetensors"),
        tensors_of(tuned / "checkpoints/base.safetensors"),
    )
    end, final = (tensors_of(tuned / "checkpoints" / f"{name}.safetensors") for name in ("finetuned", "final"))
    changed = {name for name in start if name.endswith(".weight") and not torch.equal(start[name], end[name])}

    assert layers == criticality["ranking"][:2]
    assert [point["alpha"] for point in line["points"]] == [0, 0.5, 1]
    assert all(torch.equal(start[name], t) for name, t in ours.items())
    assert changed == {f"model/{layer}.weight" for layer in layers}
    wanted = interpolated(ours, end, line["chosen"], "full-state", [])
    assert all(torch.equal(final[name], t) for name, t in wanted.items())
    assert header_of(tuned / "checkpoints" / "final.safetensors")["alpha"] == line["chosen"]
    assert not torch.equal(start["model/layer1.bn.running_mean"], end["model/layer1.bn.running_mean"])
    assert "<svg" in (tuned / "line.svg").read_text()
    assert all(row["layer"] in (tuned / "criticality.svg").read_text() for row in criticality["layers"])


def test_a_fine_tuned_run_is_a_run(tuned: Path, cli: Cli) -> None:
    for checkpoint in ("base", "finetuned", "final"):
        result = cli("evaluate", str(tuned), "--checkpoint", checkpoint, "--attack", "clean", "--test-size", "50")
        assert result.code == 0, result.err
        assert f"checkpoint {checkpoint}" in result.out
    assert "done" in cli("runs", "list", "--root", str(tuned.parent)).out


def test_it_goes_on_where_it_stopped(tuned: Path, cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = here / "copy"
    shutil.copytree(tuned, copy)
    before = (copy / "finetune" / "checkpoints" / "final.safetensors").read_bytes()
    for name in ("line.json", "checkpoints/final.safetensors"):
        (copy / name).unlink()
    monkeypatch.setattr("gambeson.app.tuning.search", None)  # nothing that is there is measured again

    result = cli("resume", str(copy))

    assert result.code == 0, result.err
    assert (copy / "finetune" / "checkpoints" / "final.safetensors").read_bytes() == before
    assert (copy / "checkpoints/final.safetensors").read_bytes() == (
        tuned / "checkpoints/final.safetensors"
    ).read_bytes()


def test_only_statistics_move_in_bn(base: Path, cli: Cli) -> None:
    result = cli("finetune", "bn", str(base), *SHORT, "--run", "bn")
    assert result.code == 0, result.err
    start, end = (tensors_of(Path(f"bn/checkpoints/{name}.safetensors")) for name in ("base", "finetuned"))
    changed = {name.rpartition(".")[2] for name in start if not torch.equal(start[name], end[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    assert json.loads(Path("bn/run.json").read_text())["settings"]["lr"] == 0


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (("--module", "layr2.conv"), ("layr2.conv", "did you mean layer2.conv")),
        (("--alphas", "0.5,1"), ("needs 0",)),
        (("--protocol", "papr"), ("unknown protocol 'papr'", "release, paper")),
        (("--select", "train"), ("unknown selection split",)),
        (("--select-size", "1000"), ("between 1 and the 70 images",)),
        (("--pgd-runs", "0"), ("--pgd-runs",)),
        (("--tolerance", "-1"), ("--tolerance",)),
        (("--checkpoint", "finetuned"), ("unknown checkpoint",)),
    ],
)
def test_wrong_options_are_said_before_a_run_is_made(
    words: tuple[str, ...], fragments: tuple[str, ...], base: Path, cli: Cli
) -> None:
    assert_error(cli("finetune", "rift", str(base), "--run", "new", "--device", "cpu", *words), 1, *fragments)
    assert not Path("new").exists()


def test_wrong_usage(cli: Cli) -> None:
    assert_error(cli("finetune"), 2, "known: rift, bn")
    assert_error(cli("finetune", "rft", "x"), 2, "did you mean rift")
    assert_error(cli("finetune", "rift"), 2, "one run directory")
    assert_error(cli("interpolate", "a"), 2, "two run directories")


def changed_call(run: Path, target: Path, **changes: object) -> str:
    shutil.copytree(run, target)
    call = json.loads((target / "run.json").read_text())
    (target / "run.json").write_text(json.dumps({**call, **changes}))
    return str(target)


def test_an_empty_split_is_refused_with_what_to_do(base: Path, cli: Cli, here: Path) -> None:
    data = {**json.loads((base / "run.json").read_text())["data"], "val_fraction": 0.0}
    run = changed_call(base, here / "no-val", data=data)
    assert_error(cli("finetune", "rift", run), 1, "the val split is empty", "test split")
    assert_error(cli("diagnose", "criticality", run), 1, "the val split is empty")


def test_a_base_that_selected_on_test_is_stamped(base: Path, cli: Cli, here: Path) -> None:
    run = changed_call(base, here / "on-test", selection={"split": "test"})
    result = cli("finetune", "rift", run, *SHORT, "--module", "last", "--run", "tuned")
    assert result.code == 0, result.err
    assert "was selected on the test set" in result.err
    assert "selected on test" in result.out
    assert json.loads(Path("tuned/run.json").read_text())["selection"]["split"] == "test"


def test_selection_on_test_is_stamped_and_a_run_is_not_another_one(base: Path, cli: Cli) -> None:
    words = ("finetune", "rift", str(base), *SHORT, "--module", "last", "--run", "tuned")
    result = cli(*words, "--select", "test", "--select-size", "50")
    assert result.code == 0, result.err
    assert "selected on test" in result.out
    assert json.loads(Path("tuned/run.json").read_text())["selection"]["split"] == "test"
    assert_error(cli(*words), 1, "another run", "finetune.select is 'test' there, 'val' here")


def test_a_base_that_has_changed_is_refused(base: Path, cli: Cli, here: Path) -> None:
    run = changed_call(base, here / "moving")
    assert cli("finetune", "rift", run, *SHORT, "--module", "last", "--run", "tuned").code == 0
    shutil.copy(here / "moving/checkpoints/last.safetensors", here / "moving/checkpoints/best.safetensors")
    assert cli("resume", "tuned").code == 1


def test_criticality_of_a_run(base: Path, cli: Cli, here: Path) -> None:
    run = changed_call(base, here / "copy")
    result = cli("diagnose", "criticality", run, "--size", "40", "--protocol", "paper", "--strategy", "wavefront")
    assert result.code == 0, result.err
    assert "layer1.conv" in result.out
    assert (here / "copy/diagnosis/criticality-paper-best-val.svg").is_file()
    record = json.loads(cli("diagnose", "criticality", run, "--modules", "linear,layer4.conv", "--json").out)
    assert [row["layer"] for row in record["layers"]] == ["layer4.conv", "linear"]
    assert record["n"] == 70
    on_test = cli("diagnose", "criticality", run, "--split", "test", "--size", "30", "--argmin-only")
    assert "selected on test" in on_test.out
    assert ">=" in on_test.out
    assert_error(cli("diagnose", "criticality", run, "--modules", "liner"), 1, "did you mean linear")
    assert_error(cli("diagnose", "criticality", run, "--size", "71"), 1, "between 1 and the 70 images")
    assert_error(cli("diagnose", "criticality", run, "--memory", "-1"), 1, "--memory")


def test_the_line_between_two_runs(base: Path, tuned: Path, cli: Cli, here: Path) -> None:
    words = ("interpolate", str(base), str(tuned), "--alphas", "0,0.5,1", "--size", "40", "--reestimate-bn", "128")
    record = json.loads(cli(*words, "--out", "line.svg", "--json").out)
    assert [point["alpha"] for point in record["points"]] == [0, 0.5, 1]
    assert record["points"][0]["clean"]["n"] == 40
    assert (here / "line.svg").is_file()
    model = build.load_model(build.open_run(base), "best", torch.device("cpu"))[0]
    data = build.splits(build.open_run(base).call)
    right = (model(data.val.x[:40].float() / 255).argmax(1) == data.val.y[:40]).float().mean()
    assert record["points"][0]["clean"]["value"] == pytest.approx(float(right))
    assert_error(cli("interpolate", str(base), str(tuned), "--alphas", "1"), 1, "needs 0")
    assert_error(cli("interpolate", str(base), str(tuned), "--reestimate-bn", "0"), 1, "at least 1 image")


def test_somebody_elses_weights(base: Path, cli: Cli) -> None:
    weights = {name.removeprefix("model/"): t for name, t in tensors_of(base / "checkpoints/best.safetensors").items()}
    torch.save({"net": {f"1.module.{name}": t for name, t in weights.items()}}, "theirs.pt")
    words = ("finetune", "rift", "--weights", "theirs.pt", "--model", "small-cnn", "--data", "digits")
    result = cli(*words, *SHORT, "--module", "last", "--run", "tuned")
    assert result.code == 0, result.err
    ours = tensors_of(Path("tuned/checkpoints/base.safetensors"))
    assert all(torch.equal(ours[f"model/{name}"], t) for name, t in weights.items())
    assert json.loads(Path("tuned/run.json").read_text())["selection"]["split"] == "unknown"
