"""What a sweep says while it runs: where every run is, in a line, and the events."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.helpers import make_run, write_sweep
from gambeson.app import heartbeat, sweep_board
from gambeson.app.sweep_board import Board, board
from gambeson.app.sweep_local import Outcome
from gambeson.app.sweep_plan import Job, Plan, plan_of


@pytest.fixture
def plan(here: Path) -> Plan:
    return plan_of(write_sweep("seeds: [0, 1]\nattack: clean\nrows: {'[a]': fgsm, b: fgsm}\n"))


def process(job: Job, word: str = "train", device: str | None = None) -> Any:
    return SimpleNamespace(job=job, words=[word], device=device, began=time.monotonic() - 90)


def test_a_line_says_where_every_run_is(plan: Plan) -> None:
    first, second, third, fourth = plan.jobs
    shown = Board(plan)
    assert shown.describe() is None
    path = make_run(first, {})
    (path / "checkpoints/final.safetensors").rename(path / "checkpoints/last.safetensors")

    shown.begin(Outcome(done=[third]), [fourth], [process(first), process(second, device="cuda:1")])

    assert shown.describe() == (
        "4 runs: 1 done, 2 running, 1 waiting; [a] seed 0: step 2 (1 min 30 s); b seed 0: starting (1 min 30 s, cuda:1)"
    )
    shown.begin(Outcome(failed={third: "x"}), [], [process(second, "corruptions")])
    assert shown.describe() == "4 runs: 0 done, 1 failed, 1 running; b seed 0: corruptions (1 min 30 s)"


def test_events_are_lines_and_labels_are_no_markup(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    job = plan.jobs[0]
    shown = Board(plan)

    shown.begin(Outcome(done=[plan.jobs[1]]), [job], [])
    shown.started(process(job, device="cuda:0"))
    shown.started(process(job, "resume"))
    shown.done(process(job))
    shown.failed(job, "exit code 1: [no] luck")
    shown.stopping(signal.SIGTERM, 2)

    assert capsys.readouterr().err.splitlines() == [
        "1 of 4 runs are there already",
        "started [a] seed 0 on cuda:0: runs/s/[a]-seed0",
        "going on with [a] seed 0: runs/s/[a]-seed0",
        "done [a] seed 0 (1 of 4)",
        "failed [a] seed 0: exit code 1: [no] luck",
        "SIGTERM: 2 runs save and stop; a second one kills",
    ]


def test_quiet_says_failures_only(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    with board(plan, quiet=True) as shown:
        shown.begin(Outcome(), list(plan.jobs), [])
        shown.started(process(plan.jobs[0]))
        shown.failed(plan.jobs[0], "why")
        shown.look()

    assert capsys.readouterr().err == "failed [a] seed 0: why\n"


def test_off_a_terminal_a_line_comes_now_and_then(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS", 0.05)
    said = ""

    with board(plan) as shown:
        shown.begin(Outcome(), list(plan.jobs[1:]), [process(plan.jobs[0])])
        until = time.monotonic() + 60
        while not said and time.monotonic() < until:
            time.sleep(0.05)
            said = capsys.readouterr().err

    assert "4 runs: 0 done, 1 running, 3 waiting; [a] seed 0: starting" in said


def test_on_a_terminal_the_lines_are_replaced_once_a_second(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    updates: list[str] = []
    live: Any = SimpleNamespace(update=lambda text: updates.append(text.plain))
    shown = Board(plan, live)
    shown.begin(Outcome(), list(plan.jobs[1:]), [process(plan.jobs[0])])

    shown.look()
    shown.look()
    assert updates == ["4 runs: 0 done, 1 running, 3 waiting\n  [a] seed 0: starting (1 min 30 s)"]
    monkeypatch.setattr(sweep_board, "LOOK", 0.0)
    shown.look()
    assert len(updates) == 2
