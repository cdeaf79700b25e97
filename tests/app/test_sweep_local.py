"""Jobs of a sweep as processes: how many at a time, what follows what, what a failure and a signal do.

The commands are a small script that leaves marks in the run directory, so that no test waits for a training.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from app.helpers import write_sweep
from gambeson.app import sweep_local
from gambeson.app.sweep_board import Board
from gambeson.app.sweep_local import Outcome, carry_out
from gambeson.app.sweep_plan import Job, Plan, plan_of

SCRIPT = """
import json, os, pathlib, signal, sys, time
words = sys.argv[1:]
device = words[words.index("--device") + 1] if "--device" in words else None
path = pathlib.Path(words[words.index("--run") + 1] if "--run" in words else words[1])
path.mkdir(parents=True, exist_ok=True)
events = path.parent / "events"
def say(what):
    with open(events, "a") as file:
        file.write(json.dumps({"run": path.name, "what": what, "command": words[0], "device": device}) + "\\n")
def stop(signum, frame):
    if "stubborn" not in path.name:
        say(f"saved {signum}")
        sys.exit(128 + signum)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
say("begins")
print("working", os.environ["OMP_NUM_THREADS"], flush=True)
if "fails" in path.name:
    print("gambeson: no luck\\nhint: try again", file=sys.stderr)
    sys.exit(3)
if ("slow" in path.name or "stubborn" in path.name) and words[0] == "train":
    for _ in range(600):
        time.sleep(0.05)
time.sleep(0.2)
if "lazy" not in path.name:
    (path / "done").touch()
say("ends")
"""


@pytest.fixture(autouse=True)
def scripted(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands are the script, and a run is done where it left its mark."""
    (here / "script.py").write_text(SCRIPT)
    monkeypatch.setattr(sweep_local, "COMMAND", (sys.executable, "-I", "-S", str(here / "script.py")))
    monkeypatch.setattr(sweep_local, "POLL", 0.01)

    def following(job: Job, plan: Plan) -> list[str] | None:
        if (job.path / "done").exists():
            return None
        return ["resume", str(job.path)] if job.path.exists() else list(job.command)

    monkeypatch.setattr(sweep_local, "next_command", following)
    monkeypatch.setattr(sweep_local, "is_done", lambda job, plan: following(job, plan) is None)


def planned(rows: str, seeds: Sequence[int] = (0,)) -> Plan:
    plan = plan_of(write_sweep(f"seeds: {list(seeds)}\nattack: clean\nthreads: 2\nrows: {{{rows}}}\n"))
    plan.root.mkdir(parents=True, exist_ok=True)
    return plan


def run(plan: Plan, slots: int = 1, devices: Sequence[str] = ()) -> Outcome:
    return carry_out(plan, slots, devices, Board(plan))


def events(plan: Plan) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (plan.root / "events").read_text().splitlines()]


def names(jobs: Sequence[Job]) -> list[str]:
    return [job.path.name for job in jobs]


def test_so_many_at_a_time_and_all_in_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned("a: fgsm, b: fgsm", range(3))

    outcome = run(plan, 2)

    assert sorted(names(outcome.done)) == sorted(names(plan.jobs))
    assert (outcome.failed, outcome.signum) == ({}, None)
    together, most = 0, 0
    for event in events(plan):
        together += {"begins": 1, "ends": -1}[event["what"]]
        most = max(most, together)
    assert most == 2
    log = plan.jobs[0].log.read_text().splitlines()
    assert log == [f"$ gambeson {' '.join(plan.jobs[0].command)}", "working 2"]
    assert "(6 of 6)" in capsys.readouterr().err


def test_what_is_done_is_left_alone() -> None:
    plan = planned("a: fgsm, b: fgsm")
    plan.jobs[0].path.mkdir(parents=True)
    (plan.jobs[0].path / "done").touch()

    outcome = run(plan)

    assert len(outcome.done) == 2
    assert {event["run"] for event in events(plan)} == {"b-seed0"}


def test_devices_are_handed_out_evenly() -> None:
    plan = planned("a: fgsm", range(4))

    run(plan, 2, ["cuda:0", "cuda:1"])

    begun = [event["device"] for event in events(plan) if event["what"] == "begins"]
    assert sorted(begun[:2]) == ["cuda:0", "cuda:1"]
    assert set(begun) == {"cuda:0", "cuda:1"}
    assert plan.jobs[0].log.read_text().startswith(f"$ gambeson {' '.join(plan.jobs[0].command)} --device cuda:")


def test_a_failing_row_does_not_stop_the_others_but_those_that_start_from_it() -> None:
    plan = planned("fails: fgsm, b: fgsm, c: {base: fails, finetune: bn}, d: {base: b, finetune: bn}")

    outcome = run(plan)

    assert names(outcome.done) == ["b-seed0", "d-seed0"]
    assert {job.label: why for job, why in outcome.failed.items()} == {
        "fails": "exit code 3: no luck",
        "c": "it starts from runs/s/fails-seed0, which failed",
    }
    order = [event["run"] for event in events(plan) if event["what"] == "ends"]
    assert order.index("b-seed0") < order.index("d-seed0")


def test_a_command_that_leaves_nothing_behind_is_a_failure_and_is_not_repeated() -> None:
    plan = planned("lazy: fgsm")

    outcome = run(plan)

    assert "train ended without error, and left no accuracy under clean" in outcome.failed[plan.jobs[0]]
    assert len(events(plan)) == 2


def test_a_command_that_cannot_be_started_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_local, "COMMAND", ("/no/such/program",))
    plan = planned("a: fgsm")

    assert "cannot be started" in run(plan).failed[plan.jobs[0]]


def once(there: Callable[[], bool], then: Callable[[], None]) -> threading.Thread:
    """Do something as soon as something is there."""

    def wait() -> None:
        until = time.monotonic() + 60
        while not there() and time.monotonic() < until:
            time.sleep(0.01)
        then()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def begun(plan: Plan, count: int) -> Callable[[], bool]:
    file = plan.root / "events"
    return lambda: file.exists() and file.read_text().count("begins") >= count


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_commands_save_and_the_next_sweep_resumes_them(
    signum: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned("slow: fgsm, b: fgsm")
    thread = once(begun(plan, 1), lambda: os.kill(os.getpid(), signum))

    outcome = run(plan)

    thread.join()
    assert (outcome.signum, names(outcome.stopped), outcome.failed) == (signum, ["slow-seed0"], {})
    assert [event["what"] for event in events(plan)] == ["begins", f"saved {signum.value}"]
    assert not (plan.root / "b-seed0").exists()  # what was waiting was not begun
    assert "1 run saves and stops" in capsys.readouterr().err

    assert len(run(plan).done) == 2
    commands = [
        event["command"] for event in events(plan) if event["run"] == "slow-seed0" and event["what"] == "begins"
    ]
    assert commands == ["train", "resume"]


def test_a_second_signal_kills() -> None:
    plan = planned("stubborn: fgsm")

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    end = once(begun(plan, 1), twice)
    before = time.monotonic()

    outcome = run(plan)

    end.join()
    assert names(outcome.stopped) == ["stubborn-seed0"]
    assert outcome.done == []
    assert time.monotonic() - before < 20  # of thirty seconds
    assert [event["what"] for event in events(plan)] == ["begins"]


def test_the_handlers_are_those_of_before_afterwards() -> None:
    old = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]

    run(planned("a: fgsm"))

    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == old
