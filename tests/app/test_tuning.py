"""`gambeson finetune` on digits, from a trained run to the table."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from app.helpers import ENV, Cli, assert_error, fingerprint, header_of, tensors_of
from gambeson.app.cli import main
from gambeson.app.options import RiftOptions
from gambeson.app.tuning import TITLES, finetune_parser
from gambeson.engine.trainer import Trainer
from gambeson.finetuning import interpolated

SHORT = (
    *("--epochs", "1", "--alphas", "0,0.5,1", "--attack", "clean,fgsm", "--test-size", "60"),
    *("--device", "cpu", "--no-report"),
)


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


def test_a_fine_tuned_run_is_a_run(tuned: Path, cli: Cli, here: Path) -> None:
    shutil.copytree(tuned, here / "copy")
    for checkpoint in ("base", "finetuned", "final"):
        result = cli("evaluate", "copy", "--checkpoint", checkpoint, "--attack", "clean", "--test-size", "50")
        assert result.code == 0, result.err
        assert f"checkpoint {checkpoint}" in result.out
    assert "done" in cli("runs", "list", "--root", str(tuned.parent)).out


def test_only_statistics_move_in_bn(base: Path, cli: Cli) -> None:
    result = cli("finetune", "bn", str(base), *SHORT, "--run", "bn")
    assert result.code == 0, result.err
    assert "only BatchNorm's running statistics move" in result.out
    assert "fine-tuning linear" not in result.out
    start, end = (tensors_of(Path(f"bn/checkpoints/{name}.safetensors")) for name in ("base", "finetuned"))
    changed = {name.rpartition(".")[2] for name in start if not torch.equal(start[name], end[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    assert json.loads(Path("bn/run.json").read_text())["settings"]["lr"] == 0


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (("--module", "layr2.conv"), ("layr2.conv", "did you mean layer2.conv", "argmin, top-K, last, all")),
        (("--alphas", "0.5,1"), ("needs 0",)),
        (("--protocol", "papr"), ("unknown protocol 'papr'", "release, paper")),
        (("--select", "train"), ("unknown selection split",)),
        (("--select-size", "1000"), ("between 1 and the 70 images",)),
        (("--pgd-runs", "0"), ("--pgd-runs",)),
        (("--tolerance", "-1"), ("--tolerance",)),
        (("--checkpoint", "finetuned"), ("unknown checkpoint",)),
        (("--alphas", "0,x"), ("alphas are numbers",)),
        (("--alphas", "0:nan:0.1"), ("finite numbers",)),
        (("--bn", "freeze"), ("unknown BatchNorm mode 'freeze'", "update, frozen")),
        (("--entries", "all"), ("unknown entries 'all'", "full-state, parameters")),
        (("--mrc-split", "tst"), ("unknown split 'tst'",)),
        (("--mrc-size", "0"), ("between 1 and the 70 images",)),
        (("--attack", "pdg-10"), ("pdg-10",)),
        (("--test-size", "0"), ("--test-size must be at least 1",)),
        (("--epochs", "0"), ("epochs must be at least 1",)),
    ],
)
def test_wrong_options_are_said_before_a_run_is_made(
    words: tuple[str, ...], fragments: tuple[str, ...], base: Path, cli: Cli
) -> None:
    assert_error(cli("finetune", "rift", str(base), "--run", "new", "--device", "cpu", *words), 2, *fragments)
    assert not Path("new").exists()


def test_wrong_usage(cli: Cli) -> None:
    assert_error(cli("finetune"), 2, "known: rift, bn")
    assert_error(cli("finetune", "rft", "x"), 2, "did you mean rift")
    assert_error(cli("finetune", "rift"), 2, "one run directory")
    assert_error(cli("finetune", "bn", "x", "--lr", "0.1"), 2, "finetune bn has no --lr", "statistics move")
    said = "--weights needs --model and --data: the file does not say"
    assert_error(cli("finetune", "rift", "--weights", "f.pt"), 2, said, "hint: gambeson finetune rift --weights FILE")
    assert_error(cli("finetune", "rift", "--weights", "f.pt", "--model", "resnet18"), 2, "--weights needs --data:")
    assert_error(cli("interpolate", "a"), 2, "two run directories")


def changed_call(run: Path, target: Path, **changes: object) -> str:
    shutil.copytree(run, target)
    call = json.loads((target / "run.json").read_text())
    (target / "run.json").write_text(json.dumps({**call, **changes}))
    return str(target)


def test_an_empty_split_is_refused_with_what_to_do(base: Path, cli: Cli, here: Path) -> None:
    data = {**json.loads((base / "run.json").read_text())["data"], "val_fraction": 0.0}
    run = changed_call(base, here / "no-val", data=data)
    assert_error(cli("finetune", "rift", run), 1, "the val split is empty", "--select test --mrc-split test,")
    assert_error(cli("finetune", "rift", run, "--module", "last"), 1, "the val split is empty", "--select test,")
    assert_error(cli("diagnose", "criticality", run), 1, "the val split is empty", "--split test,")


def test_a_run_that_is_no_fine_tuning_is_not_gone_on_with(base: Path, cli: Cli) -> None:
    before = fingerprint(base)
    result = cli("finetune", "rift", str(base), "--run", str(base), "--device", "cpu")
    assert_error(result, 1, "base is no fine-tuning run", "--run names a directory to create")
    assert fingerprint(base) == before


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
    assert re.search(r"^epoch 1/1 .*test clean \d", result.err, re.MULTILINE)
    assert "val clean" not in result.err
    assert "selected on test" in result.out
    assert json.loads(Path("tuned/run.json").read_text())["selection"]["split"] == "test"
    assert_error(cli(*words), 1, "another run", "finetune.select is 'test' there, 'val' here")


def test_the_sizes_of_the_splits_are_recorded_though_the_base_lacks_them(base: Path, cli: Cli, here: Path) -> None:
    data = json.loads((base / "run.json").read_text())["data"]
    sizes = data.pop("sizes")
    run = changed_call(base, here / "older", data=data)
    words = ("finetune", "rift", run, *SHORT, "--module", "last", "--run", "tuned")
    assert cli(*words).code == 0
    assert json.loads(Path("tuned/run.json").read_text())["data"]["sizes"] == sizes
    assert sizes == {"train": 1330, "val": 70, "test": 397}
    assert cli(*words).code == 0  # the same command goes on with it


def test_a_base_that_has_changed_is_refused(base: Path, cli: Cli, here: Path) -> None:
    run = changed_call(base, here / "moving")
    assert cli("finetune", "rift", run, *SHORT, "--module", "last", "--run", "tuned").code == 0
    shutil.copy(here / "moving/checkpoints/last.safetensors", here / "moving/checkpoints/best.safetensors")
    before = fingerprint(here / "tuned")
    said = "moving/checkpoints/best.safetensors is not the checkpoint that tuned started from any more"
    assert_error(cli("resume", "tuned"), 1, said)
    shutil.rmtree(here / "moving")
    assert_error(cli("resume", "tuned"), 1, "moving is not a run directory")
    assert fingerprint(here / "tuned") == before


def test_somebody_elses_weights(base: Path, cli: Cli) -> None:
    weights = {name.removeprefix("model/"): t for name, t in tensors_of(base / "checkpoints/best.safetensors").items()}
    torch.save({"net": {f"1.module.{name}": t for name, t in weights.items()}}, "theirs.pt")
    words = ("finetune", "rift", "--weights", "theirs.pt", "--model", "small-cnn", "--data", "digits")
    result = cli(*words, *SHORT, "--module", "last", "--run", "tuned")
    assert result.code == 0, result.err
    ours = tensors_of(Path("tuned/checkpoints/base.safetensors"))
    assert all(torch.equal(ours[f"model/{name}"], t) for name, t in weights.items())
    assert json.loads(Path("tuned/run.json").read_text())["selection"]["split"] == "unknown"


# what a run writes, and how it goes on


def moved(start: Path, end: Path) -> set[str]:
    """The entries that differ between two checkpoints."""
    here, there = tensors_of(start), tensors_of(end)
    assert here.keys() == there.keys()
    return {name.removeprefix("model/") for name, t in here.items() if not torch.equal(t, there[name])}


def test_a_run_holds_its_record_and_no_test_images_chose_it(base: Path, tuned: Path) -> None:
    call = json.loads((tuned / "run.json").read_text())
    assert call["finetune"]["base"] == {
        "run": str(base.resolve()),
        "checkpoint": "best",
        "sha256": fingerprint(base)["checkpoints/best.safetensors"],
    }
    assert call["selection"] == {"split": "val", "by": "val/clean_acc, then alpha"}
    assert call["command"][:3] == ["gambeson", "finetune", "rift"]
    assert {key: call["settings"][key] for key in ("epochs", "lr", "schedule", "milestones", "fill")} == {
        "epochs": 1,
        "lr": 0.001,
        "schedule": "piecewise",
        "milestones": [0.5],
        "fill": "reflect",
    }
    assert not (tuned / "criticality.partial.json").exists()
    names = {f"{name}.safetensors" for name in ("base", "finetuned", "final")}
    assert {path.name for path in (tuned / "checkpoints").iterdir()} == names
    line = json.loads((tuned / "line.json").read_text())
    assert (line["split"], line["entries"], line["tolerance"]) == ("val", "full-state", pytest.approx(0.001))
    assert all(point["clean"]["n"] == 70 for point in line["points"])
    evaluated = [json.loads(path.read_text()) for path in (tuned / "evaluations").glob("*.json")]
    assert {(one["checkpoint"], one["split"]) for one in evaluated} == {
        (name, "test") for name in ("base", "finetuned", "final")
    }
    assert all(one["selection"]["split"] == "val" for one in evaluated)
    for name in ("base", "finetuned", "final"):
        assert header_of(tuned / f"checkpoints/{name}.safetensors")["method"] == "n-fgsm"


def test_the_weights_at_one_are_those_of_the_cleanest_epoch(base: Path, cli: Cli) -> None:
    words = ("--epochs", "3", "--lr", "0.05", "--schedule", "constant", "--module", "layer1.conv,linear")
    result = cli("finetune", "rift", str(base), *SHORT, *words, "--run", "tuned")
    assert result.code == 0, result.err
    rows = [json.loads(text) for text in Path("tuned/finetune/metrics.jsonl").read_text().splitlines()]
    clean = [(row["val/clean_acc"], -row["step"]) for row in rows if "val/clean_acc" in row]
    assert len(clean) == 3
    assert not any("val/pgd10_acc" in row for row in rows)
    best = Path("tuned/finetune/checkpoints/best.safetensors")
    assert header_of(best)["step"] == -max(clean)[1]
    assert not moved(best, Path("tuned/checkpoints/finetuned.safetensors"))
    assert {name for name in moved(Path("tuned/checkpoints/base.safetensors"), best) if ".bn." not in name} == {
        "layer1.conv.weight",
        "linear.weight",
        "linear.bias",
    }
    assert not Path("tuned/criticality.json").exists()
    assert json.loads(Path("tuned/layers.json").read_text())["layers"] == ["layer1.conv", "linear"]


def test_frozen_statistics_and_parameters_only(base: Path, cli: Cli) -> None:
    words = ("--module", "last", "--bn", "frozen", "--entries", "parameters")
    assert cli("finetune", "rift", str(base), *SHORT, *words, "--run", "tuned").code == 0
    start, end = (Path(f"tuned/checkpoints/{name}.safetensors") for name in ("base", "finetuned"))
    assert moved(start, end) == {"linear.weight", "linear.bias"}
    assert json.loads(Path("tuned/line.json").read_text())["entries"] == "parameters"


def test_with_parameters_alone_the_fine_tuned_model_is_still_the_trained_one(base: Path, cli: Cli) -> None:
    words = ("--module", "last", "--entries", "parameters", "--alphas", "0,1", "--tolerance", "100")
    assert cli("finetune", "rift", str(base), *SHORT, *words, "--run", "tuned").code == 0
    best, *ends = (
        Path(f"tuned/{name}.safetensors")
        for name in ("finetune/checkpoints/best", "checkpoints/finetuned", "checkpoints/base", "checkpoints/final")
    )
    assert not moved(best, ends[0])
    assert any("running_mean" in name for name in moved(ends[1], ends[0]))
    assert not any("running" in name for name in moved(ends[1], ends[2]))


def test_the_whole_model(base: Path, cli: Cli) -> None:
    result = cli("finetune", "rift", str(base), *SHORT, "--module", "all", "--run", "tuned")
    assert result.code == 0, result.err
    assert "fine-tuning all parameters" in result.out
    start, end = (Path(f"tuned/checkpoints/{name}.safetensors") for name in ("base", "finetuned"))
    assert moved(start, end) == {name.removeprefix("model/") for name in tensors_of(start)}


def test_without_a_name_it_stands_beside_its_base(base: Path, cli: Cli, here: Path) -> None:
    shutil.copytree(base, here / "runs/mine")
    words = ("finetune", "rift", "runs/mine", *SHORT, "--module", "last")
    for number in (1, 2):
        assert f"wrote runs/mine-rift-{number}\n" in cli(*words).err


def test_the_table_is_of_the_three_models(base: Path, cli: Cli) -> None:
    result = cli("finetune", "rift", str(base), *SHORT, "--module", "last", "--run", "tuned")
    chosen = json.loads(Path("tuned/line.json").read_text())["chosen"]
    assert f"final (alpha {chosen:g})" in result.out
    assert "fine-tuned" in result.out
    assert "clean: final minus base " in result.out
    assert "fgsm: final minus base " in result.out
    assert "selected on test" not in result.out + result.err


def test_runs_are_listed_and_compared(base: Path, tuned: Path, cli: Cli) -> None:
    listed = cli("runs", "list", "--root", str(tuned.parent))
    assert re.search(r"tuned +n-fgsm \+ rift +digits +done", listed.out)
    result = cli("runs", "compare", str(base), str(tuned))
    assert result.code == 0, result.err
    assert "settings.lr" in result.out
    assert "finetune.module" in result.out


INTERRUPTED = {
    "in the interpolation": ("line.json", "line.svg", "checkpoints/final.safetensors"),
    "before the line was kept": ("line.json", "line.svg"),
    "after the training": ("line.json", "line.svg", "checkpoints", "evaluations"),
    "before the training": ("line.json", "line.svg", "checkpoints", "evaluations", "finetune"),
    "before the layers were kept": ("line.json", "line.svg", "checkpoints", "evaluations", "finetune", "layers.json"),
    "at the start": (
        *("line.json", "line.svg", "checkpoints", "evaluations", "finetune", "layers.json"),
        *("criticality.json", "criticality.svg", "criticality.partial.json"),
    ),
}


@pytest.mark.parametrize("moment", INTERRUPTED)
def test_a_run_killed_at_any_stage_ends_as_the_whole_one(
    moment: str, tuned: Path, cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tuned, here / "copy")
    gone = INTERRUPTED[moment]
    for name in gone:
        path = here / "copy" / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for name in ("checkpoints", "evaluations"):
        (here / "copy" / name).mkdir(exist_ok=True)
    before = fingerprint(here / "copy")
    if "finetune" not in gone:
        monkeypatch.setattr(Trainer, "_train_step", lambda self: pytest.fail("trained again"))
    if "layers.json" not in gone:
        monkeypatch.setattr("gambeson.app.tuning.search", lambda *_, **__: pytest.fail("measured again"))

    result = cli("resume", "copy")

    assert result.code == 0, result.err
    after, whole = fingerprint(here / "copy"), fingerprint(tuned)
    kept = {name: digest for name, digest in before.items() if digest != "folder" and "criticality" not in name}
    assert {name: after[name] for name in kept} == kept
    wanted = {f"checkpoints/{name}.safetensors" for name in ("base", "finetuned", "final")} | {"line.json", "line.svg"}
    wanted |= {"layers.json", "criticality.json", "criticality.svg"}
    for name in wanted:
        assert name in after
        if not name.endswith(".svg") and name != "criticality.json":  # the paths of its run are in it
            assert after[name] == whole[name], name


def test_a_signal_in_the_training_is_gone_on_from(
    tuned: Path, base: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    train_step = Trainer._train_step

    def counted(self: Trainer) -> None:
        train_step(self)
        steps.append(self.step)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_train_step", counted)
    words = ("finetune", "rift", str(base), *SHORT, "--module", "top-2", "--run", "mine")
    stopped = cli(*words)
    assert stopped.code == 130
    assert "stopped by SIGINT after step 4; saved. Go on with: gambeson resume mine" in stopped.err
    assert not Path("mine/line.json").exists()
    result = cli(*words)  # the same call goes on as well
    assert result.code == 0, result.err
    assert steps == list(range(1, 12))
    for name in ("base", "finetuned", "final"):
        file = f"checkpoints/{name}.safetensors"
        assert not moved(Path("mine") / file, tuned / file)


def test_a_picture_that_failed_is_drawn_by_the_resumed_run(
    base: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("gambeson.finetuning.line_picture.save", die)
        with pytest.raises(Killed):
            cli("finetune", "rift", str(base), *SHORT, "--module", "last", "--run", "tuned")
    assert not Path("tuned/line.svg").exists()
    assert cli("resume", "tuned").code == 0
    assert Path("tuned/line.svg").is_file()


@pytest.mark.parametrize(
    ("words", "difference"),
    [
        (("--epochs", "2"), "settings.epochs is 1 there, 2 here"),
        (("--module", "last"), "finetune.module is 'top-2' there, 'last' here"),
        (("--bn", "frozen"), "finetune.bn is 'update' there, 'frozen' here"),
        (("--alphas", "0,1"), "finetune.alphas is '0,0.5,1' there, '0,1' here"),
        (("--tolerance", "1", "--seed", "3"), "finetune.tolerance is 0.1 there, 1.0 here; settings.seed is 0 there, 3"),
        (("--attack", "clean"), "attack is 'clean,fgsm' there, 'clean' here"),
        (("--test-size", "7"), "test_size is 60 there, 7 here"),
        (("--threads", "2"), "threads is 1 there, 2 here"),
        (("--checkpoint", "final"), "finetune.base.checkpoint is 'best' there, 'final' here"),
    ],
)
def test_another_call_for_the_same_run_is_refused_and_named(
    words: tuple[str, ...], difference: str, base: Path, tuned: Path, cli: Cli, here: Path
) -> None:
    shutil.copytree(tuned, here / "copy")
    before = fingerprint(here / "copy")
    result = cli("finetune", "rift", str(base), *SHORT, "--module", "top-2", *words, "--run", "copy")
    assert_error(result, 1, f"copy is another run: {difference}", "another --run")
    assert_error(cli("finetune", "bn", str(base), *SHORT, "--run", "copy"), 1, "finetune.name is 'rift' there, 'bn'")
    assert fingerprint(here / "copy") == before


def test_a_base_of_unknown_selection_is_said(base: Path, cli: Cli, here: Path) -> None:
    run = changed_call(base, here / "foreign", selection={"split": "unknown"})
    result = cli("finetune", "rift", run, *SHORT, "--module", "last", "--run", "tuned")
    assert result.code == 0, result.err
    assert "it is not known what foreign was selected on" in result.err.replace(str(here) + "/", "")
    assert json.loads(Path("tuned/run.json").read_text())["selection"]["split"] == "unknown"


@pytest.mark.parametrize(("module", "stamped"), [("argmin", True), ("last", False)])
def test_criticality_on_test_is_stamped_where_it_chooses(module: str, stamped: bool, base: Path, cli: Cli) -> None:
    words = ("--module", module, "--mrc-split", "test", "--mrc-size", "40")
    result = cli("finetune", "rift", str(base), *SHORT, *words, "--run", "tuned")
    assert result.code == 0, result.err
    assert ("selects on the test set" in result.err) == stamped
    assert ("selected on test: these" in result.out) == stamped
    assert (json.loads(Path("tuned/run.json").read_text())["selection"]["split"] == "test") == stamped


def test_a_fine_tuned_run_can_be_fine_tuned(tuned: Path, cli: Cli) -> None:
    """It has no `best`: its `final` is taken."""
    result = cli("finetune", "rift", str(tuned), *SHORT, "--module", "last", "--run", "again")
    assert result.code == 0, result.err
    assert not moved(Path("again/checkpoints/base.safetensors"), tuned / "checkpoints/final.safetensors")
    record = json.loads(Path("again/run.json").read_text())["finetune"]["base"]
    assert record["checkpoint"] == "final"


def test_a_recipe_in_yaml_and_options_that_win(base: Path, cli: Cli) -> None:
    text = 'finetune: rift\nmodule: last\nepochs: 7\nlr: 0.02\nmilestones: [0.25]\nalphas: "0:1:0.5"\nbn: frozen\n'
    Path("mine.yaml").write_text(text)
    words = ("--config", "mine.yaml", "--epochs", "1", "--attack", "clean", "--test-size", "20", "--run", "tuned")
    result = cli("finetune", "rift", str(base), *words)
    assert result.code == 0, result.err
    call = json.loads(Path("tuned/run.json").read_text())
    assert {key: call["settings"][key] for key in ("epochs", "lr", "milestones", "schedule")} == {
        "epochs": 1,
        "lr": 0.02,
        "milestones": [0.25],
        "schedule": "piecewise",
    }
    assert (call["finetune"]["module"], call["finetune"]["bn"]) == ("last", "frozen")
    line = json.loads(Path("tuned/line.json").read_text())
    assert [point["alpha"] for point in line["points"]] == [0, 0.5, 1]
    assert_error(cli("finetune", "bn", str(base), "--config", "mine.yaml"), 2, "lacks `finetune: bn`")


def test_an_early_epoch_that_was_best_is_what_is_interpolated(
    base: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "_score", lambda self, row: (-row.get("step", self.step), 0))
    words = ("--epochs", "2", "--module", "last")
    assert cli("finetune", "rift", str(base), *SHORT, *words, "--run", "tuned").code == 0
    first, last = (Path(f"tuned/finetune/checkpoints/{name}.safetensors") for name in ("best", "final"))
    assert not moved(first, Path("tuned/checkpoints/finetuned.safetensors"))
    assert moved(first, last)


# known faults: take the mark away with the fault


def test_a_finished_run_is_not_evaluated_again(tuned: Path, cli: Cli, here: Path) -> None:
    shutil.copytree(tuned, here / "copy")
    before = fingerprint(here / "copy")
    assert cli("resume", "copy").code == 0
    assert fingerprint(here / "copy") == before


def test_the_same_call_with_weights_goes_on(base: Path, cli: Cli) -> None:
    weights = {name.removeprefix("model/"): t for name, t in tensors_of(base / "checkpoints/best.safetensors").items()}
    torch.save(weights, "theirs.pt")
    words = ("finetune", "rift", "--weights", "theirs.pt", "--model", "small-cnn", "--data", "digits", *SHORT)
    assert cli(*words, "--module", "last", "--run", "tuned").code == 0
    assert cli(*words, "--module", "last", "--run", "tuned").code == 0


@pytest.mark.parametrize(
    "words",
    [
        ("--module", "last", "--rel-step-size", "-1"),
        ("--module", "top-6", "--mrc-size", "10"),
        ("--module", "last", "--batch-size", "100000"),
        ("--module", "last", "--threads", "0"),
    ],
)
def test_what_cannot_be_done_is_said_before_a_run_is_made(words: tuple[str, ...], base: Path, cli: Cli) -> None:
    assert cli("finetune", "rift", str(base), *SHORT, *words, "--run", "new").code == 2
    assert not Path("new").exists()


# help


def test_the_help_shows_the_options(cli: Cli) -> None:
    for how in TITLES:
        assert f"RUN-{how}-N" in cli("finetune", how, "--help").out
    page = cli("finetune", "--help")
    assert (page.code, page.err) == (0, "")
    assert all(re.search(rf"^  {how} +\w", page.out, re.MULTILINE) for how in TITLES)
    options = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(RiftOptions)}
    shown = {}
    for how in TITLES:
        page = cli("finetune", how, "--help")
        assert (page.code, page.err) == (0, "")
        assert page.out.startswith(f"usage: gambeson finetune {how} RUN")
        shown[how] = set(re.findall(r"^  (--[a-z-]+)", page.out, re.MULTILINE))
    assert options <= shown["rift"]
    assert shown["rift"] - shown["bn"] == {"--module", "--protocol", "--mrc-split", "--mrc-size", "--bn", "--lr"}
    assert not {"--probe-every", "--on-overfitting", "--val-every"} & shown["rift"]


@pytest.mark.parametrize(
    "words", [(), ("rift",), ("bn",), ("rift", "--weights", "x.pt"), ("rift", "--config", "rift/release")]
)
def test_the_help_loads_no_torch(words: tuple[str, ...]) -> None:
    code = f"""
import contextlib, io, sys
from gambeson.app.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    try:
        assert main(["finetune", *{words!r}, "--help"]) == 0
    except SystemExit as stop:
        assert stop.code in (0, None)
assert not {{"torch._C", "matplotlib", "scipy"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_option_is_documented() -> None:
    documented = set(re.findall(r"^        (\w+): ", RiftOptions.__doc__ or "", re.MULTILINE))
    assert documented == {field.name for field in dataclasses.fields(RiftOptions)}


def test_the_defaults_are_the_releases() -> None:
    values = finetune_parser("rift").parse([])
    wanted = {"epochs": 10, "lr": 0.001, "schedule": "piecewise", "milestones": (0.5,), "fill": "reflect"}
    wanted |= {"batch_size": 128, "momentum": 0.9, "weight_decay": 5e-4, "module": "argmin", "alphas": "0:1:0.1"}
    wanted |= {"entries": "full-state", "bn": "update", "protocol": "release", "tolerance": 0.1}
    assert {key: values[key] for key in wanted} == wanted
