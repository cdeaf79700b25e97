"""A run whose training has not finished: what is said beside its numbers, in tables and in records."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.helpers import ENV, FAST, Cli, edit_header
from gambeson.app.states import sentence, unfinished
from gambeson.engine.run import Run

Finished = Callable[[str], Path]
HOLD = """
import sys
from pathlib import Path
from gambeson.engine.run import Run
with Run(Path("r"), {}).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def half(finished: Finished) -> Run:
    """A run that was stopped at step 2 of 2, before its last weights were written; `best` is of step 1."""
    run = finished("r")
    (run / "checkpoints/final.safetensors").unlink()
    edit_header(run / "checkpoints/best.safetensors", step=1)
    return Run.open(run)


@contextmanager
def trained_elsewhere() -> Iterator[None]:
    """Another live process holds the run, as a training does."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD], env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    try:
        yield
    finally:
        child.stdin.close()
        child.wait()
        child.stdout.close()


def test_a_finished_run_has_no_remark(finished: Finished) -> None:
    assert unfinished(Run.open(finished("r"))) is None


def test_how_far_a_run_is_and_whether_somebody_trains_it(half: Run) -> None:
    stopped = {"stage": "training", "step": 2, "steps": 2, "running": False}
    assert unfinished(half) == stopped
    with trained_elsewhere():
        assert unfinished(half) == {**stopped, "running": True}
    assert unfinished(half) == stopped


def test_the_number_of_steps_is_of_the_whole_training(half: Run) -> None:
    half.call["settings"]["epochs"] = 40
    found = unfinished(half)
    assert found is not None
    assert (found["step"], found["steps"]) == (2, 80)


@pytest.mark.parametrize(("file", "key"), [("metrics.jsonl", "steps"), ("checkpoints/last.safetensors", "step")])
def test_what_cannot_be_read_is_not_guessed_and_stops_nothing(file: str, key: str, half: Run, cli: Cli) -> None:
    (half.path / file).write_bytes(b"3\n")
    found = unfinished(half)
    assert found is not None
    assert found[key] is None
    assert cli("evaluate", "r", "--attack", "clean", "--test-size", "5", "--device", "cpu").code == 0


@pytest.mark.parametrize(
    ("step", "steps", "running", "said"),
    [
        (1200, 2400, True, "training has not finished: step 1,200 of 2,400, going on in another process"),
        (1200, None, False, "training has not finished: step 1,200, stopped"),
        (None, 2400, False, "training has not finished: no step is saved, stopped"),
    ],
)
def test_the_sentence(step: int | None, steps: int | None, running: bool, said: str) -> None:
    found = {"stage": "training", "step": step, "steps": steps, "running": running}
    assert sentence(found, {}) == said
    assert sentence(found, {"best": 900}) == f"{said}; the checkpoint best is of step 900"


COMMANDS = {
    "evaluate": ("evaluate", "r", "--attack", "clean", "--test-size", "10"),
    "doctor": ("doctor", "r"),
    "cam": ("diagnose", "cam", "r", "--test-size", "10", "--out", "c.png"),
    "criticality": ("diagnose", "criticality", "r", "--modules", "linear", "--size", "10", "--out", "m.png"),
    "eps": ("diagnose", "eps", "r", "--attack", "fgsm", "--eps-grid", "0,0.1", "--test-size", "10", "--out", "e.png"),
    "masking": ("diagnose", "masking", "r", "--test-size", "10", "--queries", "5", "--out", "m.json"),
    "corruptions": (
        *("corruptions", "r", "--corruptions", "fog", "--severities", "1", "--test-size", "10"),
        *("--out", "f.png"),
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_measurement_of_it_says_so(name: str, half: Run, cli: Cli) -> None:
    result = cli(*COMMANDS[name], "--device", "cpu", "--json")
    said = "training has not finished: step 2 of 2, stopped; the checkpoint best is of step 1"

    assert f"gambeson: note: r: {said}\n" in result.err
    assert json.loads(result.out)["unfinished"] == {"stage": "training", "step": 2, "steps": 2, "running": False}


def test_a_line_between_two_says_it_of_the_one(half: Run, finished: Finished, cli: Cli) -> None:
    finished("done")
    words = ("interpolate", "done", "r", "--alphas", "0,1", "--split", "test", "--size", "10", "--device", "cpu")
    result = cli(*words, "--out", "l.png", "--json")

    assert result.err.count("has not finished") == 1
    assert [found and found["step"] for found in json.loads(result.out)["unfinished"]] == [None, 2]


def test_a_comparison_says_it_of_the_one(half: Run, finished: Finished, cli: Cli) -> None:
    finished("done")
    assert cli("evaluate", "r", "--attack", "clean", "--test-size", "10", "--device", "cpu").code == 0
    with trained_elsewhere():
        table = cli("runs", "compare", "done", "r").out
        record = json.loads(cli("runs", "compare", "done", "r", "--json").out)

    said = "step 2 of 2, going on in another process; the checkpoint best is of step 1"
    assert f"r: training has not finished: {said}" in table
    assert "done: training" not in table
    assert record["unfinished"][0] is None
    assert record["unfinished"][1]["checkpoints"] == {"best": 1}


def test_a_finished_run_is_measured_without_a_remark(finished: Finished, cli: Cli) -> None:
    finished("done")
    result = cli("evaluate", "done", "--attack", "clean", "--test-size", "10", "--device", "cpu", "--json")

    assert (result.err, json.loads(result.out)["unfinished"]) == ("", None)
    assert "has not finished" not in cli("runs", "compare", "done", "done").out
    assert cli("train", "standard", *FAST, "--run", "again").err.count("has not finished") == 0


def test_a_fine_tuning_that_has_not_finished(finished: Finished) -> None:
    run = finished("tuned")
    call = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**call, "finetune": {"name": "rift"}}))
    (run / "layers.json").write_text("{}")
    found = unfinished(Run.open(run))

    assert found == {"stage": "fine-tuning, step 0", "step": None, "steps": None, "running": False}
    assert (
        sentence(found, {"base": 9})
        == "fine-tuning has not finished: step 0, stopped; the checkpoint base is of step 9"
    )
    (run / "line.json").write_text("{}")
    assert unfinished(Run.open(run)) is None
