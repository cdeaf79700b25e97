"""Runs on a folder whose images stay in their files."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from app.helpers import COMMAND, ENV, Cli, assert_error, rows_of, tensors_of
from gambeson.data.folder import read_folder
from gambeson.data.stored import StoredImages

Write = Callable[..., Path]
QUICK = (
    *("--model", "small-cnn", "--size", "8", "--batch-size", "6", "--epochs", "2", "--val-fraction", "0.25"),
    *("--attack", "clean,fgsm", "--device", "cpu", "--threads", "1", "--no-report", "--log-every", "1"),
)
DATA = ("--data", "folder:mine")


@pytest.fixture
def mine(here: Path, photos: Path) -> Path:
    """A folder of 30 images in the working directory."""
    return Path(shutil.copytree(photos, here / "mine"))


def test_a_streamed_run_is_the_other_to_the_bit_and_its_record_says_so(cli: Cli, mine: Path) -> None:
    assert cli("train", "n-lap", *DATA, *QUICK, "--run", "memory").code == 0
    result = cli("train", "n-lap", *DATA, *QUICK, "--run", "streamed", "--stream", "on", "--workers", "2")
    assert result.code == 0, result.err
    assert "streamed: images are decoded by 2 worker processes when a batch needs them" in result.out
    assert rows_of(Path("streamed")) == rows_of(Path("memory"))
    for name in ("last", "best", "final"):
        a, b = (tensors_of(Path(run, "checkpoints", f"{name}.safetensors")) for run in ("memory", "streamed"))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    kept = [json.loads(Path(run, "run.json").read_text())["data"] for run in ("memory", "streamed")]
    assert [(data["stream"], data["workers"]) for data in kept] == [("off", None), ("on", 2)]
    assert "measured_on" not in kept[1]
    assert kept[0]["sizes"] == kept[1]["sizes"]
    assert sum(kept[1]["sizes"].values()) == 30
    assert min(kept[1]["sizes"].values()) > 0

    for command in (("evaluate", "streamed"), ("evaluate", "memory", *DATA), ("doctor", "streamed")):
        assert cli(*command, "--device", "cpu").code in (0, 1), command
    small = ("--epochs", "1", "--batch-size", "6", "--module", "last", "--device", "cpu", "--no-report")
    tuned = cli("finetune", "rift", "streamed", "--run", "t", *small)
    assert tuned.code == 0, tuned.err
    assert json.loads(Path("t/run.json").read_text())["data"]["stream"] == "on"


def test_auto_streams_by_the_memory_and_says_so(cli: Cli, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gambeson.data.folder.memory", lambda: 20_000)
    monkeypatch.setattr("gambeson.data.facts.SAMPLE", 10)
    result = cli("train", "fgsm", *DATA, *QUICK, "--run", "r", "--workers", "0")
    assert result.code == 0, result.err
    assert "gambeson: note: 30 images of mine would take 0.00 GB decoded to 8x8 pixels, more than 25%" in result.err
    assert "images are decoded by the training when a batch needs them" in result.out
    assert "mean and std are those of 10 of the training images" in result.out
    data = json.loads(Path("r/run.json").read_text())["data"]
    assert (data["stream"], data["measured_on"]) == ("on", 10)
    monkeypatch.setattr("gambeson.data.folder.memory", lambda: 2**40)  # the record decides, not the machine
    result = cli("resume", "r")
    assert result.code == 0, result.err
    assert "note" not in result.err


def test_a_run_from_before_there_was_a_choice_is_read_into_memory(cli: Cli, mine: Path) -> None:
    assert cli("train", "fgsm", *DATA, *QUICK, "--run", "r").code == 0
    file = Path("r/run.json")
    record = json.loads(file.read_text())
    for key in ("stream", "workers"):
        del record["data"][key]
    file.write_text(json.dumps(record))
    assert cli("resume", "r").code == 0
    assert cli("evaluate", "r", "--device", "cpu").code == 0


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ((*DATA, "--stream", "maybe"), 2, "--stream needs one of auto, on, off"),
        ((*DATA, "--workers", "-1"), 2, "workers must be at least 0, got -1"),
        (("--data", "digits", "--stream", "on"), 2, "--stream on does not apply to digits"),
        (("--data", "digits", "--workers", "2"), 2, "--workers 2 does not apply to digits"),
    ],
)
def test_what_cannot_be_streamed_is_refused(args: tuple[str, ...], code: int, words: str, cli: Cli, mine: Path) -> None:
    assert_error(cli("train", "fgsm", *args), code, words)


def test_other_data_have_no_such_record(trained: Path) -> None:
    assert not {"stream", "workers"} & json.loads((trained / "run.json").read_text())["data"].keys()


def test_an_image_that_is_damaged_is_named_when_it_is_needed(
    cli: Cli, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gambeson.data.facts.SAMPLE", 1)
    x = read_folder(mine, size=8, stream="on").train.x
    assert isinstance(x, StoredImages)
    (mine / x.names[int(x.rows[-1])]).write_bytes(b"cut")
    args = (*DATA, *QUICK, "--val-fraction", "0", "--stream", "on", "--workers", "1")
    result = cli("train", "fgsm", *args, "--run", "r")
    assert result.code == 1
    named = f"gambeson: mine/{x.names[int(x.rows[-1])]} cannot be decoded: "
    assert named in result.err
    assert "\nhint: remove or replace this image, or copy the data set again\n" in result.err
    assert "Traceback" not in result.err
    assert not multiprocessing.active_children()


LONG = (*QUICK, "--epochs", "60", "--val-fraction", "0", "--stream", "on", "--workers", "2")


def workers_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pids: list[int], seconds: float = 30) -> bool:
    """Whether the processes end within some seconds; those that nobody waits for count as ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        states = [Path(f"/proc/{pid}/stat") for pid in pids]
        if all(not file.exists() or ") Z " in file.read_text() for file in states):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for child processes in /proc")
@pytest.mark.parametrize(
    ("which", "group", "code"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, True, 143), (signal.SIGKILL, False, -9)],
)
def test_no_process_outlives_a_training(which: signal.Signals, group: bool, code: int, mine: Path) -> None:
    args = [*COMMAND, "train", "fgsm", *DATA, *LONG, "--run", "r"]
    process = subprocess.Popen(args, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        while not Path("r/metrics.jsonl").exists() or len(Path("r/metrics.jsonl").read_text().splitlines()) < 3:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        workers = workers_of(process.pid)
        (os.killpg if group else os.kill)(process.pid, which)
        err = process.communicate(timeout=60)[1].decode()
    finally:
        process.kill()
    assert process.returncode == code, err
    assert len(workers) == 2
    assert gone(workers)
    if group:
        assert f"stopped by {which.name}" in err
        assert "Traceback" not in err


@pytest.mark.parametrize("how", ["on", "off"])
def test_a_folder_that_has_changed_is_not_split_anew(how: str, cli: Cli, mine: Path) -> None:
    """Else images of training would come into the test split."""
    assert cli("train", "fgsm", *DATA, *QUICK, "--run", "r", "--stream", how).code == 0
    kept = json.loads(Path("r/run.json").read_text())["data"]["files"]
    assert kept[0] == 30
    assert cli("evaluate", "r", "--attack", "clean").code == 0
    file = next(path for path in mine.rglob("*.png"))
    content = file.read_bytes()
    file.unlink()
    for command in (("evaluate", "r"), ("resume", "r"), ("finetune", "rift", "r", "--run", "t")):
        assert_error(cli(*command), 1, "folder:mine has changed since the run was made: 29 images, then 30")
    file.with_name("another.png").write_bytes(content)  # as many images, but others
    assert_error(cli("evaluate", "r"), 1, "folder:mine has changed since the run was made")
    assert cli("evaluate", "r", *DATA, "--attack", "clean").code == 0  # said by hand
    file.with_name("another.png").rename(file)
    assert cli("evaluate", "r", "--attack", "clean").code == 0


def test_a_damaged_test_image_is_found_before_the_training(cli: Cli, mine: Path) -> None:
    test = read_folder(Path("mine"), size=8, stream="on", workers=0).test.x
    assert isinstance(test, StoredImages)
    name = test.names[int(test.rows[-1])]
    Path("mine", name).write_bytes(b"no image")
    result = cli("train", "fgsm", *DATA, *QUICK, "--run", "r", "--stream", "on", "--workers", "0")
    assert result.code == 1
    assert f"gambeson: mine/{name} cannot be decoded" in result.err
    assert not Path("r").exists()
    result = cli("train", "fgsm", *DATA, *QUICK, "--run", "r", "--stream", "on", "--workers", "0", "--test-size", "2")
    assert result.code == 0, result.err  # it is not looked at
    assert "validation and test are decoded once" in result.err
