"""Runs that are stopped or killed, and go on: to the bit as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from app.helpers import COMMAND, ENV, Cli, assert_error, fingerprint, header_of, rows_of, tensors_of
from gambeson.app.cli import main
from gambeson.engine import checkpoint, run
from gambeson.engine.run import Run
from gambeson.engine.sentinel import Probe, Sentinel
from gambeson.engine.trainer import Trainer

COMMON = (
    "--no-report",
    "--train-size",
    "200",
    "--test-size",
    "20",
    "--attack",
    "clean,fgsm",
    "--device",
    "cpu",
    "--log-every",
    "1",
)

SHORT = (*COMMON, "--epochs", "2", "--batch-size", "20", "--checkpoint-every", "3", "--probe-every", "9")
"""Two epochs of ten steps; crashes are simulated in this process."""

LONG = (*COMMON, "--epochs", "6", "--train-size", "120", "--batch-size", "8", "--checkpoint-every", "3", "--lr", "0.05")
"""Six epochs of 15 steps in a process that is really killed."""

METHODS = {
    "n-lap": ("n-lap",),
    "free-at": ("free-at", "--replays", "2"),
    "ema": ("n-lap", "--ema", "0.9"),
    "bf16": ("rs-fgsm", "--bf16"),
    "trades-awp": ("trades-awp", "--warmup", "1", "--steps", "2"),
    "snapshots": ("fgsm", "--snapshots", "2"),
    "cosine": ("multi-grad", "--schedule", "cosine", "--val-fraction", "0"),
}
"""What carries state over a step: momentum, a perturbation, an average, nothing else."""


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing is saved after it."""


Reference = Callable[..., Path]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The run that was never interrupted, made once per call."""
    made: dict[tuple[str, ...], Path] = {}

    def train(*args: str) -> Path:
        if args not in made:
            made[args] = tmp_path_factory.mktemp("reference") / "run"
            assert main(["train", *args, "--run", str(made[args])]) == 0
        return made[args]

    return train


def assert_same(run: Path, reference: Path) -> None:
    """Weights to the bit, metrics but for the time, outcomes, and the state that a further step would start from."""
    snapshots = sorted({file.stem for folder in (run, reference) for file in folder.glob("checkpoints/snapshot-*")})
    for name in ("final", "best", "last", *snapshots):
        files = [folder / f"checkpoints/{name}.safetensors" for folder in (run, reference)]
        assert files[0].is_file() == files[1].is_file(), name
        if not files[0].is_file():
            continue
        here, there = map(tensors_of, files)
        assert here.keys() == there.keys()
        different = [key for key, t in here.items() if not torch.equal(t, there[key])]
        assert not different, (name, different)
        headers = [{k: v for k, v in header_of(file).items() if k != "elapsed"} for file in files]
        assert headers[0] == headers[1]
    assert rows_of(run) == rows_of(reference)


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """Die in the middle of the step after `step`."""
    with pytest.MonkeyPatch.context() as patch:
        train_step = Trainer._train_step

        def die(self: Trainer) -> None:
            train_step(self)
            if self.step == step + 1:
                raise Killed

        patch.setattr(Trainer, "_train_step", die)
        with pytest.raises(Killed):
            yield


# crashes at chosen moments, in this process


@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_in_mid_epoch_is_resumed_to_the_bit(method: str, cli: Cli, reference: Reference) -> None:
    words = (*METHODS[method], *SHORT)
    with killed_at(13):
        cli("train", *words, "--run", "r")
    assert header_of(Path("r/checkpoints/last.safetensors"))["step"] == 12
    result = cli("resume", "r")

    assert result.code == 0
    assert result.out.startswith("r: going on from step 12 of ")
    assert_same(Path("r"), reference(*words))


@pytest.mark.parametrize("step", [0, 9, 10, 19])
def test_a_run_may_be_killed_at_any_step(step: int, cli: Cli, reference: Reference) -> None:
    words = (*METHODS["n-lap"], *SHORT)
    with killed_at(step):
        cli("train", *words, "--run", "r")

    assert cli("resume", "r").code == 0
    assert_same(Path("r"), reference(*words))


def test_a_run_may_be_killed_again_and_again(cli: Cli, reference: Reference) -> None:
    words = (*METHODS["free-at"], *SHORT)
    with killed_at(5):
        cli("train", *words, "--run", "r")
    for step in (7, 7, 16, 31):
        with killed_at(step):
            cli("resume", "r")

    assert cli("resume", "r").code == 0
    assert_same(Path("r"), reference(*words))


def test_seldom_checkpoints_go_back_to_the_start(cli: Cli, reference: Reference) -> None:
    """The sentinel's first look is logged once, though the run begins twice."""
    words = (*METHODS["n-lap"], *SHORT, "--checkpoint-every", "1000")
    with killed_at(6):
        cli("train", *words, "--run", "r")
    result = cli("resume", "r")

    assert "going on from step 0 of 20" in result.out
    assert_same(Path("r"), reference(*words))


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("moment", ["written in part", "before it is in place"])
def test_a_run_may_be_killed_while_it_saves(
    moment: str, count: int, cli: Cli, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint that was there is whole; the one that was being written does not get its name."""
    words = (*METHODS["n-lap"], *SHORT)
    written = 0
    with monkeypatch.context() as patch:
        save_file = checkpoint.save_file

        def die(tensors: Any, path: Path, metadata: Any) -> None:
            nonlocal written
            save_file(tensors, path, metadata=metadata)
            written += 1
            if written == count + 1:
                if moment == "written in part":
                    path.write_bytes(path.read_bytes()[:1000])
                raise Killed

        patch.setattr(checkpoint, "save_file", die)
        with pytest.raises(Killed):
            cli("train", *words, "--run", "r")
    assert header_of(Path("r/checkpoints/last.safetensors"))["step"] <= 10

    assert cli("resume", "r").code == 0
    assert_same(Path("r"), reference(*words))


def test_a_line_of_metrics_that_was_cut_off_is_written_again(cli: Cli, reference: Reference) -> None:
    words = (*METHODS["n-lap"], *SHORT)
    with killed_at(13):
        cli("train", *words, "--run", "r")
    metrics = Path("r/metrics.jsonl")
    metrics.write_text(metrics.read_text()[:-20])

    assert cli("resume", "r").code == 0
    assert_same(Path("r"), reference(*words))


@pytest.fixture
def collapse_at_8(monkeypatch: pytest.MonkeyPatch) -> None:
    def pretend(self: Sentinel, model: torch.nn.Module, step: int) -> Probe:
        return Probe(0.9, 0.5, step == 8, aae=0.1, alignment=0.5)

    monkeypatch.setattr(Sentinel, "look", pretend)


ROLLBACK = (
    *(*COMMON, "--epochs", "1", "--batch-size", "10", "--checkpoint-every", "7", "--probe-every", "2"),
    *("--on-overfitting", "rollback"),
)


@pytest.mark.parametrize(
    "step",
    [
        8,
        12,
        15,
    ],
)
@pytest.mark.usefixtures("collapse_at_8")
def test_a_rollback_is_resumed_to_the_bit(step: int, cli: Cli, tmp_path: Path) -> None:
    """Steps 7 and 14 are saved, step 8 collapses, every other even step is healthy."""
    assert cli("train", "fgsm", *ROLLBACK, "--run", "reference").code == 0
    with killed_at(step):
        cli("train", "fgsm", *ROLLBACK, "--run", "r")

    assert cli("resume", "r").code == 0
    assert_same(Path("r"), Path("reference"))


def test_a_complete_run_is_evaluated_again_and_not_trained(cli: Cli, reference: Reference) -> None:
    words = (*METHODS["n-lap"], *SHORT)
    shutil.copytree(reference(*words), "r")
    before = fingerprint(Path("r"))
    result = cli("resume", "r")
    after = fingerprint(Path("r"))

    assert result.code == 0
    assert result.out.startswith("r is complete (20 steps); evaluating again\n")
    assert {name: after[name] for name in before if "last" not in name} == {
        name: before[name] for name in before if "last" not in name
    }
    assert_same(Path("r"), reference(*words))


def test_a_run_that_was_moved_goes_on(cli: Cli, reference: Reference) -> None:
    words = (*METHODS["n-lap"], *SHORT)
    with killed_at(13):
        cli("train", *words, "--run", "r")
    Path("r").rename("elsewhere")

    assert cli("resume", "elsewhere").code == 0
    assert_same(Path("elsewhere"), reference(*words))


def test_a_run_from_before_the_sizes_were_recorded_goes_on(cli: Cli, reference: Reference) -> None:
    words = (*METHODS["n-lap"], *SHORT)
    with killed_at(13):
        cli("train", *words, "--run", "r")
    file = Path("r/run.json")
    record = json.loads(file.read_text())
    del record["data"]["sizes"]
    file.write_text(json.dumps(record))

    assert cli("resume", "r").code == 0
    assert json.loads(file.read_text()) == record
    assert_same(Path("r"), reference(*words))


# refusals


def test_a_run_that_is_being_trained_is_refused(cli: Cli, finished: Callable[[str], Path]) -> None:
    path = finished("r")
    with Run.open(path).locked():
        before = fingerprint(path)
        assert_error(cli("resume", "r"), 1, "r is being trained by another process")
        assert fingerprint(path) == before

    assert cli("resume", "r").code == 0


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"method": {"name": "trades", "args": {"eps": 0.2}}}, ["method is 'n-lap' there, 'trades' here"]),
        ({"settings": {"lr": 0.5}}, ["settings.lr is 0.1 there, 0.5 here"]),
        (
            {"settings": {"lr": 0.5, "seed": 3}},
            ["settings.lr is 0.1 there, 0.5 here; settings.seed is 0 there, 3 here"],
        ),
        ({"ema": 0.9}, ["recipe is"]),
    ],
    ids=str,
)
def test_a_record_that_was_edited_is_refused(
    changes: dict[str, Any], fragments: list[str], cli: Cli, finished: Callable[[str], Path]
) -> None:
    path = finished("r")
    call = json.loads((path / "run.json").read_text())
    for key, value in changes.items():
        call[key] = {**call[key], **value} if isinstance(value, dict) else value
    (path / "run.json").write_text(json.dumps(call))
    before = fingerprint(path / "checkpoints")

    result = cli("resume", "r")
    assert_error(result, 1, "r/checkpoints/last.safetensors belongs to another training: ", *fragments)
    if "settings" in changes:  # nothing else is named
        assert result.err.endswith(f": {fragments[0]}\n")
    assert fingerprint(path / "checkpoints") == before


def test_the_best_weights_in_the_place_of_the_last_state_are_refused(cli: Cli, finished: Callable[[str], Path]) -> None:
    path = finished("r")
    shutil.copy(path / "checkpoints/best.safetensors", path / "checkpoints/last.safetensors")

    assert_error(cli("resume", "r"), 1, "r/checkpoints/last.safetensors")


@pytest.mark.parametrize(
    ("words", "code", "fragment"),
    [
        ([], 2, "resume needs one run directory, got 0"),
        (["none"], 1, "none is not a run directory"),
        (["r", "--device", "gpu"], 2, "unknown device 'gpu'"),
    ],
    ids=str,
)
def test_a_resume_that_cannot_work(
    words: list[str], code: int, fragment: str, cli: Cli, finished: Callable[[str], Path]
) -> None:
    path = finished("r")
    before = fingerprint(path)

    assert_error(cli("resume", *words), code, fragment)
    assert fingerprint(path) == before


def test_resume_takes_no_settings(cli: Cli, finished: Callable[[str], Path]) -> None:
    finished("r")
    result = cli("resume", "r", "--epochs", "3")

    assert result.code == 2
    assert "unknown option --epochs" in result.err


def test_data_that_have_changed_are_refused(cli: Cli) -> None:
    """A class more than the checkpoint knows."""
    import numpy as np

    def write(classes: int) -> None:
        y = np.repeat(np.arange(classes), 30)
        x = np.random.default_rng(0).integers(0, 256, (len(y), 8, 8), dtype=np.uint8)
        np.savez("own.npz", x_train=x, y_train=y, x_test=x, y_test=y)

    write(3)
    words = ("--data", "npz:own.npz", "--model", "small-cnn", "--eps", "0.1", "--epochs", "1", "--batch-size", "30")
    with killed_at(1):
        cli("train", "n-lap", *words, "--run", "r")
    write(4)

    assert_error(cli("resume", "r"), 1, "r/checkpoints/last.safetensors", "task.num_classes is 3 there, 4 here")


def test_nothing_is_left_half_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A record is old or new, never in between."""
    file = tmp_path / "run.json"
    run.write_json(file, {"a": 1})

    def die(source: Any, target: Any) -> None:
        raise Killed

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(Killed):
        run.write_json(file, {"a": 2})

    assert json.loads(file.read_text()) == {"a": 1}


# real signals to a real process


class Process:
    """`gambeson train` in a process of its own, held in the middle of an epoch."""

    def __init__(self, *words: str) -> None:
        command = [*COMMAND, "train", *words, "--run", "r"]
        self.child = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def hold(self, steps_per_epoch: int, after: int) -> None:
        """Stop it (SIGSTOP) at least 4 steps into an epoch and 4 before its end, once `after` steps are done."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self.child.poll() is None, self.child.communicate()[1]
            if self._step() >= after:
                self.child.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, self.child.pid, os.WSTOPPED)
                if 4 <= self._step() % steps_per_epoch <= steps_per_epoch - 4:
                    return
                self.child.send_signal(signal.SIGCONT)
            time.sleep(0.005)
        raise AssertionError("the run did not get there in two minutes")

    def end(self, signum: int) -> tuple[int, str]:
        """Send a signal, let it go on, and return exit status and standard error."""
        self.child.send_signal(signum)
        self.child.send_signal(signal.SIGCONT)
        err = self.child.communicate(timeout=120)[1]
        return self.child.returncode, err

    def _step(self) -> int:
        metrics = Path("r/metrics.jsonl")
        lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
        return int(json.loads(lines[-1])["step"]) if lines else -1


@pytest.fixture
def process(here: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(*words: str) -> Process:
        started.append(Process(*words))
        return started[-1]

    yield start
    for one in started:
        if one.child.poll() is None:
            one.child.kill()
            one.child.communicate()


@pytest.mark.parametrize(("method", "steps_per_epoch"), [("n-lap", 15), ("free-at", 30)])
def test_sigkill_in_mid_epoch(
    method: str, steps_per_epoch: int, process: Callable[..., Process], cli: Cli, reference: Reference
) -> None:
    words = (*METHODS[method], *LONG)
    started = process(*words)
    started.hold(steps_per_epoch, after=20)
    code, _ = started.end(signal.SIGKILL)
    step = header_of(Path("r/checkpoints/last.safetensors"))["step"]
    assert code == -signal.SIGKILL
    assert 0 < step < 6 * steps_per_epoch
    assert step % steps_per_epoch != 0
    if method == "n-lap":  # one is resumed by a process of its own too
        done = subprocess.run([*COMMAND, "resume", "r"], env=ENV, capture_output=True, text=True, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
        out = done.stdout
    else:
        result = cli("resume", "r")
        assert result.code == 0, result.err
        out = result.out

    assert out.startswith(f"r: going on from step {step} of ")
    assert_same(Path("r"), reference(*words))


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_exits(
    signum: signal.Signals, code: int, process: Callable[..., Process], cli: Cli, reference: Reference
) -> None:
    words = (*METHODS["n-lap"], *LONG)
    started = process(*words)
    started.hold(15, after=20)
    assert_error(cli("resume", "r"), 1, "r is being trained by another process")
    assert_error(cli("train", *words, "--run", "r"), 1, "r exists already; nothing was overwritten")
    status, err = started.end(signum)
    saved = header_of(Path("r/checkpoints/last.safetensors"))["step"]

    assert status == code
    assert "Traceback" not in err
    said = f"stopped by {signum.name} after step {saved}; saved. Go on with: gambeson resume r"
    assert err.rstrip().endswith(said), err
    assert rows_of(Path("r"))[-1]["step"] == saved
    assert cli("resume", "r").out.startswith(f"r: going on from step {saved} of 90")
    assert_same(Path("r"), reference(*words))


def test_signals_are_as_before_after_a_training(cli: Cli) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert cli("train", "fgsm", *SHORT, "--epochs", "1", "--run", "r").code == 0

    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
