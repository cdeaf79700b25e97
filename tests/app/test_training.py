"""`gambeson train`: what a run holds and says, and what is refused before it begins."""

from __future__ import annotations

import inspect
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from app.helpers import (
    FAST,
    Cli,
    assert_error,
    bomb,
    edit_header,
    fingerprint,
    header_of,
    rows_of,
    tensors_of,
    write_npz,
)
from gambeson.app.training import train_flags, train_parser
from gambeson.engine.checkpoint import section
from gambeson.engine.run import Run
from gambeson.engine.sentinel import Probe, Sentinel
from gambeson.engine.trainer import Trainer
from gambeson.methods import METHODS

Finished = Callable[[str], Path]


def test_a_run_has_its_files(trained: Path) -> None:
    files = {name for name, digest in fingerprint(trained).items() if digest != "folder"}

    assert files - {".lock"} == {
        "run.json",
        "metrics.jsonl",
        *[f"checkpoints/{name}.safetensors" for name in ("last", "best", "final")],
        *[f"evaluations/{name}-test-fgsm-1.{kind}" for name in ("best", "final") for kind in ("json", "npz")],
    }


def test_the_record_of_a_run(trained: Path) -> None:
    call = json.loads((trained / "run.json").read_text())

    assert call["command"][:3] == ["gambeson", "train", "n-lap"]
    assert call["command"][3:-2] == list(FAST)
    assert call["method"]["args"]["eps"] == 0.2
    assert list(call["method"]["args"])[:2] == ["eps", "beta"]
    assert call["data"]["train_size"] == 200
    assert call["data"]["sizes"] == {"train": 200, "val": 70, "test": 397}
    assert set(call["versions"]) >= {"gambeson", "torch", "numpy", "python"}
    assert call["selection"] == {"split": "val", "by": "val/pgd10_acc"}


def test_the_metrics_of_a_run(trained: Path) -> None:
    probe, training, validation = rows_of(trained)

    probed = ("fgsm_acc", "pgd10_acc", "gap", "aae", "alignment")
    assert set(probe) == {"step", "epoch", *(f"probe/{name}" for name in probed)}
    assert set(training) == {"step", "epoch", "train/loss", "train/adv_acc", "train/lr"}
    assert set(validation) == {"step", "epoch", "val/clean_acc", "val/pgd10_acc"}
    assert [row["step"] for row in (probe, training, validation)] == [0, 2, 2]
    assert validation["epoch"] == 1.0


def test_training_says_what_it_does_and_what_came_of_it(cli: Cli) -> None:
    result = cli("train", "n-lap", *FAST, "--run", "r[1]")

    assert result.code == 0
    assert "n-lap(eps=0.2, beta=0.005, gamma=0.3" in result.out
    assert "digits: 200 train, 70 val, 397 test, 1x8x8; small-cnn with 65,834 parameters on cpu" in result.out
    assert "run directory: r[1]\n" in result.out
    assert "accuracy on the test set, Linf eps 0.2, n = 50" in result.out
    assert "best (step 2)" in result.out
    assert "[..]: Wilson 95 % intervals. `best` was selected by PGD-10 accuracy on the validation split" in result.out
    assert "  gambeson evaluate 'r[1]' --attack pgd-50-10 --per-class\n" in result.out
    assert "  gambeson runs compare 'r[1]' ANOTHER\n" in result.out
    assert result.err.startswith("epoch 1/1  loss ")
    assert "val clean" in result.err


def test_the_final_table_and_the_stored_outcomes_agree(trained: Path) -> None:
    for name in ("best", "final"):
        record = json.loads((trained / f"evaluations/{name}-test-fgsm-1.json").read_text())
        with np.load(trained / f"evaluations/{name}-test-fgsm-1.npz", allow_pickle=False) as arrays:
            assert set(arrays) == {"y", "clean", "fgsm"}
            for attack in ("clean", "fgsm"):
                assert record["accuracy"][attack]["value"] == arrays[attack].mean()
                assert record["accuracy"][attack]["n"] == len(arrays["y"]) == 50
            assert not (arrays["fgsm"] & ~arrays["clean"]).any()


def test_default_run_names_count_up(cli: Cli) -> None:
    for _ in range(2):
        assert cli("train", "fgsm", *FAST).code == 0

    assert sorted(path.name for path in Path("runs").iterdir()) == ["digits-fgsm-1", "digits-fgsm-2"]
    first, second = (tensors_of(Path(f"runs/digits-fgsm-{n}/checkpoints/final.safetensors")) for n in (1, 2))
    assert all(torch.equal(t, second[name]) for name, t in first.items())


@pytest.mark.parametrize("method", ["standard", "free-at", "trades-awp", "grad-align"])
def test_other_kinds_of_method_train(method: str, cli: Cli) -> None:
    result = cli("train", method, *FAST, "--run", "r")

    assert result.code == 0
    key = "train/clean_acc" if method == "standard" else "train/adv_acc"
    assert any(key in row for row in rows_of(Path("r")))


def test_a_training_that_diverged_ends_with_what_can_be_measured(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacks on a saturated softmax would report the clean accuracy as robust."""
    monkeypatch.setattr("gambeson.evaluation.gradients.SHARE", 1e-9)  # it diverges to any accuracy above none
    result = cli("train", "standard", *FAST, "--lr", "100000", "--run", "r")

    assert result.code == 0
    assert "best was not attacked: the gradient of the cross-entropy is zero" in result.err
    assert "hint: the softmax saturates" in result.err
    header = result.out.split("accuracy on the test set")[1].splitlines()[2]
    assert header.split() == ["weights", "clean,", "%", "[95", "%]"]
    assert {path.stem for path in Path("r/evaluations").glob("*.json")} == {"best-test-clean-1", "final-test-clean-1"}


def test_standard_training_is_selected_by_clean_accuracy(cli: Cli) -> None:
    words = ("--train-size", "400", "--val-fraction", "0.2", "--epochs", "3", "--attack", "clean", "--test-size", "20")
    result = cli("train", "standard", *words, "--device", "cpu", "--run", "r")
    rows = [row for row in rows_of(Path("r")) if "val/clean_acc" in row]
    best = header_of(Path("r/checkpoints/best.safetensors"))["best"]

    assert result.code == 0
    assert json.loads(Path("r/run.json").read_text())["selection"] == {"split": "val", "by": "val/clean_acc"}
    assert len(rows) == 3
    assert not any("val/pgd10_acc" in row for row in rows)
    assert best["val/clean_acc"] == max(row["val/clean_acc"] for row in rows)
    assert "`best` was selected by clean accuracy on the validation split, never on test" in result.out
    assert json.loads(cli("runs", "list", "--root", ".", "--json").out)[0]["val clean"] == best["val/clean_acc"]


def test_a_standard_run_that_was_begun_with_pgd_goes_on_with_it(cli: Cli) -> None:
    """As a run of an earlier version: its record says by what it selects, or nothing."""
    words = ("--train-size", "200", "--epochs", "2", "--attack", "clean", "--test-size", "20", "--device", "cpu")
    for name, selection in (("named", {"split": "val", "by": "val/pgd10_acc"}), ("silent", None)):
        assert cli("train", "standard", *words, "--run", name).code == 0
        run = Path(name)
        call = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**call, "selection": selection}))
        for file in ("final", "best"):
            (run / f"checkpoints/{file}.safetensors").unlink()
        edit_header(run / "checkpoints/last.safetensors", step=2, best=None)  # an epoch is still to come
        assert cli("resume", name).code == 0
        assert set(header_of(run / "checkpoints/best.safetensors")["best"]) >= {"val/clean_acc", "val/pgd10_acc"}


def test_without_validation_nothing_is_selected(cli: Cli) -> None:
    result = cli("train", "n-lap", *FAST, "--val-fraction", "0", "--run", "r")

    assert result.code == 0
    assert "no validation split: the last weights are kept, nothing is selected" in result.out
    assert not Path("r/checkpoints/best.safetensors").exists()
    assert not any("val/pgd10_acc" in row for row in rows_of(Path("r")))
    assert "final" in result.out
    assert cli("evaluate", "r", "--attack", "fgsm", "--test-size", "20").out.startswith("r, checkpoint final")


def test_without_validation_no_selection_is_spoken_of(cli: Cli) -> None:
    assert "best" not in cli("train", "n-lap", *FAST, "--val-fraction", "0", "--run", "r").out


def test_the_average_is_validated_and_saved(cli: Cli) -> None:
    assert cli("train", "n-lap", *FAST, "--ema", "0.9", "--run", "r").code == 0
    last, final = (tensors_of(Path(f"r/checkpoints/{name}.safetensors")) for name in ("last", "final"))
    averages = [name for name in last if name.startswith("parts/")]

    assert averages
    assert any(not torch.equal(final[name], last[name]) for name in final)
    assert all(any(torch.equal(final[name], last[average]) for average in averages) for name in final)
    assert cli("evaluate", "r", "--attack", "fgsm", "--test-size", "20").code == 0


def test_bfloat16_trains_and_differs(cli: Cli, trained: Path) -> None:
    assert cli("train", "n-lap", *FAST, "--bf16", "--run", "r").code == 0
    other = tensors_of(trained / "checkpoints/final.safetensors")
    final = tensors_of(Path("r/checkpoints/final.safetensors"))

    assert {t.dtype for t in final.values()} == {t.dtype for t in other.values()}
    assert any(not torch.equal(t, other[name]) for name, t in final.items())


def test_bfloat16_with_an_average(cli: Cli) -> None:
    assert cli("train", "n-lap", *FAST, "--bf16", "--ema", "0.9", "--run", "r").code == 0


def test_tensorboard(cli: Cli) -> None:
    pytest.importorskip("tensorboard")
    assert cli("train", "n-lap", *FAST, "--tensorboard", "--run", "r").code == 0

    assert [path.name for path in Path("r/tensorboard").iterdir() if path.name.startswith("events.out.tfevents")]


def test_tensorboard_that_is_not_installed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = cli("train", "n-lap", *FAST, "--tensorboard", "--run", "r")

    assert result.code == 1
    assert "gambeson: TensorBoard is not installed\nhint: pip install 'gambeson[tensorboard]'\n" in result.err
    assert not Path("r/metrics.jsonl").exists()


def test_tensorboard_that_is_not_installed_leaves_no_run(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    cli("train", "n-lap", *FAST, "--tensorboard", "--run", "r")

    assert not Path("r").exists()


@pytest.fixture
def collapse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets the sentinel see a collapse at the given steps."""

    def at(*steps: int) -> None:
        def pretend(self: Sentinel, model: torch.nn.Module, step: int) -> Probe:
            return Probe(0.9, 0.0 if step in steps else 0.8, step in steps, aae=0.1, alignment=0.5)

        monkeypatch.setattr(Sentinel, "look", pretend)

    return at


PROBED = (*FAST, "--batch-size", "20", "--probe-every", "2", "--log-every", "2", "--run", "r")


def events(run: Path) -> list[tuple[int, str]]:
    return [(row["step"], row["event"]) for row in rows_of(run) if "event" in row]


def test_a_collapse_is_reported(cli: Cli, collapse: Callable[..., None]) -> None:
    collapse(4, 8)
    result = cli("train", "fgsm", *PROBED)

    assert result.code == 0
    assert events(Path("r")) == [(4, "catastrophic overfitting"), (8, "catastrophic overfitting")]
    assert "catastrophic overfitting at step 4: FGSM accuracy 90.0%, PGD-10 accuracy 0.0%" in " ".join(
        result.err.split()
    )


def test_a_collapse_stops_the_run(cli: Cli, collapse: Callable[..., None]) -> None:
    collapse(4)
    result = cli("train", "fgsm", *PROBED, "--on-overfitting", "stop")

    assert result.code == 1
    assert "gambeson: catastrophic overfitting at step 4: FGSM accuracy 90.0%, PGD-10 0.0%" in result.err
    assert "hint: try n-lap" in result.err
    assert header_of(Path("r/checkpoints/last.safetensors"))["step"] == 0
    assert not Path("r/checkpoints/final.safetensors").exists()


@pytest.mark.parametrize(("every", "kept"), [("1", 3), ("2", 2), ("4", 0)])
def test_a_collapse_leaves_the_last_good_state(
    every: str, kept: int, cli: Cli, collapse: Callable[..., None], here: Path
) -> None:
    """`last` is what it was before the step that collapsed: a run without the collapse has the same state there."""
    collapse(4)
    assert cli("train", "fgsm", *PROBED, "--on-overfitting", "stop", "--checkpoint-every", every).code == 1
    stopped = Path("r/checkpoints/last.safetensors")
    assert header_of(stopped)["step"] == kept

    Path("r").rename("stopped")
    collapse()
    with pytest.MonkeyPatch.context() as patch:
        save = Trainer.save

        def keep(self: Trainer, run: Run, name: str) -> None:
            save(self, run, name)
            if self.step == kept:
                shutil.copy(run.checkpoint("last"), here / "good.safetensors")

        patch.setattr(Trainer, "save", keep)
        assert cli("train", "fgsm", *PROBED, "--on-overfitting", "stop", "--checkpoint-every", every).code == 0
    good, left = tensors_of(Path("good.safetensors")), tensors_of(Path("stopped/checkpoints/last.safetensors"))
    assert good.keys() == left.keys()
    assert all(torch.equal(t, left[name]) for name, t in good.items())


def test_the_hint_after_a_collapse_names_a_checkpoint_that_is_there(cli: Cli, collapse: Callable[..., None]) -> None:
    collapse(4)
    err = cli("train", "fgsm", *PROBED, "--on-overfitting", "stop").err

    assert "checkpoints/best" not in err
    assert not Path("r/checkpoints/best.safetensors").exists()


def test_a_collapse_is_rolled_back(cli: Cli, collapse: Callable[..., None]) -> None:
    collapse(4, 8)
    assert cli("train", "fgsm", *PROBED, "--on-overfitting", "rollback").code == 0

    assert events(Path("r")) == [
        (4, "catastrophic overfitting"),
        (4, "rollback 1 of 3"),
        (8, "catastrophic overfitting"),
        (8, "rollback 2 of 3"),
    ]
    assert header_of(Path("r/checkpoints/healthy-10.safetensors"))["step"] == 10
    assert len(list(Path("r/checkpoints").glob("healthy*"))) == 1


def test_three_rollbacks_are_enough(cli: Cli, collapse: Callable[..., None]) -> None:
    collapse(2, 4, 6, 8)
    result = cli("train", "fgsm", *PROBED, "--on-overfitting", "rollback")

    assert result.code == 1
    assert "at step 8" in result.err
    assert "after 3 rollbacks" in result.err


def test_after_three_rollbacks_the_last_good_state_stays(cli: Cli, collapse: Callable[..., None]) -> None:
    """Steps 2, 4 and 6 went back to the start; what step 7 did to those weights is good, what step 8 did is not."""
    collapse(2, 4, 6, 8)
    assert cli("train", "fgsm", *PROBED, "--on-overfitting", "rollback", "--checkpoint-every", "6").code == 1
    last, healthy = (tensors_of(Path(f"r/checkpoints/{name}.safetensors")) for name in ("last", "healthy-0"))
    weights, start = section(last, "model"), section(healthy, "model")

    assert header_of(Path("r/checkpoints/last.safetensors"))["step"] == 6
    assert weights.keys() == start.keys()
    assert all(torch.equal(t, start[name]) for name, t in weights.items())
    assert not Path("r/checkpoints/final.safetensors").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(cli: Cli) -> None:
    result = cli("train", "n-lap", *FAST, "--batch-size", "20", "--lr", "1e30", "--run", "r")

    assert result.code == 1
    assert "the loss was NaN or infinite at step" in result.err
    assert "the last good checkpoint is r/checkpoints/last.safetensors" in result.err
    assert "hint: lower --lr" in result.err
    assert all(t.isfinite().all() for t in tensors_of(Path("r/checkpoints/last.safetensors")).values())


# refusals before anything is done


@pytest.mark.parametrize(
    ("words", "code", "fragments"),
    [
        (
            ["--eps", "8"],
            2,
            ["eps must be a fraction of the pixel range in (0, 1], got 8", "8 grey levels are eps=8/255"],
        ),
        (["--eps", "-0.1"], 2, ["eps must be a fraction of the pixel range", "got -0.1"]),
        (["--eps", "-8/255"], 2, ["eps must be a fraction of the pixel range in (0, 1], got -0.0313725"]),
        (["--eps=-8/255"], 2, ["eps must be a fraction of the pixel range in (0, 1], got -0.0313725"]),
        (["--eps", "0"], 2, ["eps must be a fraction of the pixel range", "got 0"]),
        (["--data", "digit"], 2, ["'digit'", "did you mean digits?"]),
        (["--data", "ciphar10"], 2, ["'ciphar10'", "did you mean cifar10"]),
        (["--data", "folder:nowhere"], 1, ["there is no folder nowhere"]),
        (["--data", "folder:"], 2, ["folder: needs a path"]),
        (["--data", "npz:nowhere.npz"], 1, ["there is no file nowhere.npz"]),
        (
            ["--data", "cifar10", "--data-dir", "nowhere"],
            1,
            ["is not in", "nowhere", "cannot be downloaded", "--data-dir"],
        ),
        (["--data", "cifar10", "--data-dir", "a-file"], 1, ["a-file is a file"]),
        (["--model", "smal-cnn"], 2, ["'smal-cnn'", "did you mean small-cnn?"]),
        (["--model", "small-cnn", "--width", "8"], 2, ["small-cnn comes in one width only"]),
        (["--attack", "clean,fgms"], 2, ["unknown attack 'fgms'", "did you mean fgsm?"]),
        (["--attack", "pgd-0"], 2, ["unknown attack 'pgd-0'"]),
        (
            ["--attack", "pdg-50"],
            2,
            ["unknown attack 'pdg-50'\nhint: did you mean pgd-50? pgd-50-10 is PGD with 50 steps and 10 restarts"],
        ),
        (["--device", "gpu"], 2, ["unknown device 'gpu'", "hint: use auto, cpu, cuda, cuda:N or mps"]),
        (["--batch-size", "2000"], 2, ["between 1 and the 1330 training images, got 2000", "--batch-size 128 or less"]),
        (["--train-size", "50"], 2, ["between 1 and the 50 training images, got 128", "--batch-size 50 or less"]),
        (["--train-size", "0"], 2, ["--train-size must be between 1 and the 1330 training images, got 0"]),
        (["--val-fraction", "1"], 2, ["val_fraction must be in [0, 1), got 1"]),
        (["--val-fraction", "0.001"], 1, ["holding out 0.001", "without any image of class", "val_fraction=0"]),
        (["--epochs", "0"], 2, ["epochs must be at least 1, got 0"]),
        (["--lr", "-1"], 2, ["lr must lie in [0, inf), got -1"]),
        (["--momentum", "1"], 2, ["momentum must lie in [0, 1), got 1"]),
        (["--seed", "-1"], 2, ["seed must lie in [0, 2^63), got -1"]),
        (["--seed", str(2**63)], 2, [f"seed must lie in [0, 2^63), got {2**63}"]),
        (["--beta", "-1"], 2, ["LAP needs beta >= 0", "beta=-1"]),
        (["--ema", "2"], 2, ["the decay of a moving average lies in (0, 1), got 2"]),
        (["--pad", "-3"], 2, ["pad must be at least 0, got -3"]),
        (["--pad", "9", "--fill", "reflect"], 2, ["a crop padding of 9 pixels does not fit images of 8 pixels"]),
        (["--size", "16"], 2, ["size=16 does not apply to digits"]),
        (["--verify", "--data", "npz:x.npz"], 2, ["verify does not apply to npz:PATH"]),
        (["--run", "a-file/r"], 1, ["cannot write the run directory a-file/r", "choose another with --run"]),
        (["--run", "a-folder"], 1, ["a-folder exists already; nothing was overwritten", "gambeson resume a-folder"]),
        (["--run", "a-file"], 1, ["a-file exists already; nothing was overwritten"]),
    ],
    ids=str,
)
def test_a_call_that_cannot_work_is_refused_and_leaves_nothing(
    words: list[str], code: int, fragments: list[str], cli: Cli, here: Path
) -> None:
    Path("a-file").write_text("kept")
    Path("a-folder").mkdir()
    Path("a-folder/file").write_text("kept")
    before = fingerprint(here)
    run = [] if "--run" in words else ["--run", "r"]
    result = cli("train", "n-lap", *words, *run)

    downloading = "Downloading data from"
    assert_error(result._replace(err="\n".join(x for x in result.err.splitlines() if downloading not in x)), code)
    for fragment in fragments:
        assert fragment in result.err
    assert fingerprint(here) == before


@pytest.mark.parametrize("size", ["0", "-5"])
def test_a_test_size_below_one_is_refused(size: str, cli: Cli) -> None:
    assert_error(cli("train", "n-lap", *FAST, "--test-size", size, "--run", "r"), 2, "test", size)
    assert not Path("r").exists()


def test_a_seed_beyond_64_bits(cli: Cli) -> None:
    assert_error(cli("train", "n-lap", *FAST, "--seed", "9" * 30, "--run", "r"), 2, "seed must lie in [0, 2^63)")
    assert not Path("r").exists()


def test_the_largest_seed_trains(cli: Cli) -> None:
    assert cli("train", "n-lap", *FAST, "--seed", str(2**63 - 1), "--run", "r").code == 0


def test_probe_every_below_zero_is_refused(cli: Cli) -> None:
    assert cli("train", "n-lap", *FAST, "--probe-every", "-1", "--run", "r").code == 2


def test_an_existing_run_is_refused_and_untouched(cli: Cli, finished: Finished) -> None:
    run = finished("r")
    before = fingerprint(run)

    assert_error(cli("train", "trades", *FAST, "--run", "r"), 1, "r exists already; nothing was overwritten")
    assert fingerprint(run) == before


def test_the_hint_to_continue_an_existing_run_can_be_pasted(cli: Cli, finished: Finished) -> None:
    finished("r 1")
    hint = cli("train", "n-lap", *FAST, "--run", "r 1").err.split("hint: ")[1]

    assert shlex.split(hint.split("`")[1]) == ["gambeson", "resume", "r 1"]


# the parser


def test_flags_of_any_method_are_known_before_the_method_is() -> None:
    assert {"ascent", "bf16", "tensorboard", "verify", "flip"} <= train_flags()
    assert not {"eps", "epochs", "run"} & train_flags()


def test_the_parser_has_the_methods_arguments_and_the_presets_of_the_data() -> None:
    parser, names = train_parser("n-lap", METHODS["n-lap"], "digits")
    values = parser.parse(["--eps", "8/255"])

    assert names == list(inspect.signature(METHODS["n-lap"]).parameters)
    assert (values["eps"], values["model"], values["epochs"]) == (8 / 255, "small-cnn", 40)


def test_a_class_too_small_for_val_is_named_and_val_can_be_left_out(cli: Cli) -> None:
    data = write_npz("three.npz", [30, 30, 3])
    words = ("train", "n-lap", "--data", data, "--model", "small-cnn", "--batch-size", "16", "--epochs", "1")
    words += ("--attack", "fgsm", "--eps", "0.1", "--run", "r")

    assert_error(cli(*words), 1, "holding out 0.05", "class 2 (3 images)", "val_fraction=0")
    assert not Path("r").exists()
    assert cli(*words, "--val-fraction", "0").code == 0


def test_labels_that_are_a_pickle_are_not_executed(cli: Cli) -> None:
    Path("evil.npz").write_bytes(bomb(Path("evil").absolute()))

    assert_error(cli("train", "n-lap", "--data", "npz:evil.npz", "--run", "r"), 1, "evil.npz")
    assert not Path("evil").exists()
    assert not Path("r").exists()
