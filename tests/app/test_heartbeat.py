"""Lines about the progress of a long command, where there is no terminal to draw a bar on."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from app.helpers import Cli
from gambeson.app import heartbeat, measuring, show
from gambeson.app.report import examples, summary
from gambeson.evaluation import Pace

Finished = Callable[[str], Path]
Beats = Callable[[], None]
WORDS = ("evaluate", "r", "--attack", "autoattack", "--test-size", "12", "--device", "cpu")
LINE = re.compile(
    r"autoattack (apgd-ce|apgd-t|fab-t|square): step [\d,]+( of at most [\d,]+)?,"
    r" through with \d+ of \d+ images, \d+ fell; "
)


@pytest.fixture
def beat(monkeypatch: pytest.MonkeyPatch) -> Beats:
    """Lines are said every hundredth of a second; a function that returns when what is so now has been said."""
    monkeypatch.setattr(heartbeat, "SECONDS", 0.01)
    asked = threading.Semaphore(0)
    reached = show.reached

    def counted(bar: Progress) -> str | None:
        asked.release()
        return reached(bar)

    def wait() -> None:
        while asked.acquire(blocking=False):
            pass
        for _ in range(3):  # one may be under way, the next says what is so now, and at the third it has been said
            assert asked.acquire(timeout=60), "no line for a minute"

    monkeypatch.setattr(show, "reached", counted)
    return wait


def test_a_long_evaluation_says_how_far_every_stage_is(
    cli: Cli, finished: Finished, monkeypatch: pytest.MonkeyPatch, beat: Beats
) -> None:
    finished("r")
    pace = measuring.attack_pace

    def slow(*words: Any) -> None:
        pace(*words)
        beat()

    monkeypatch.setattr(measuring, "attack_pace", slow)
    result = cli(*WORDS)

    assert result.code == 0
    lines = [line for line in result.err.splitlines() if LINE.match(line)]
    assert len(lines) >= 2, result.err
    assert len(set(lines)) >= 2, result.err  # they move
    assert any("apgd-ce: step 1 of at most 101, " in line for line in lines), result.err  # of the 100 of AutoAttack
    assert "in all" not in result.out
    assert [name for name in ("apgd-ce", "square") if f"autoattack: {name} fooled" in result.err] == [
        "apgd-ce",
        "square",
    ]


@pytest.mark.parametrize(
    ("steps", "most", "said"),
    [(0, 0, "step 0"), (7, 5001, "step 7 of at most 5,001"), (5002, 5001, "step 5,002")],
)
def test_the_pace_of_an_attack_says_how_many_steps_it_can_take(steps: int, most: int, said: str) -> None:
    with show.progress(quiet=True) as bar:
        task = bar.add_task("evaluating", total=10)
        heartbeat.attack_pace(bar, task, Pace("autoattack", "square", standing=9, steps=steps, most=most))

        assert show.reached(bar) == f"autoattack square: {said}, through with 0 of 9 images, 0 fell"


def test_json_is_quiet(cli: Cli, finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    finished("r")
    monkeypatch.setattr(heartbeat, "SECONDS", 0.02)
    result = cli(*WORDS, "--json")

    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out)["n"] == 12


def test_a_report_says_which_run_it_is_at(
    cli: Cli, finished: Finished, monkeypatch: pytest.MonkeyPatch, beat: Beats
) -> None:
    finished("r[b]")

    def slow(work: Callable[..., Any], *words: Any) -> Any:
        beat()
        return work(*words)

    monkeypatch.setattr(examples, "examples", partial(slow, examples.examples))
    monkeypatch.setattr(summary, "part", partial(slow, summary.part))
    result = cli("report", "r[b]", "--examples", "2", "--device", "cpu")

    assert (result.code, result.out) == (0, "r[b]/report.html\n")
    assert re.search(r"^attacking examples of r\[b\]: 0 of 3; \d+ s in all$", result.err, re.MULTILINE), result.err
    assert re.search(r"^drawing r\[b\]: 1 of 3; \d+ s in all$", result.err, re.MULTILINE), result.err


def test_a_name_with_brackets_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(show, "err", Console(file=written, force_terminal=True, width=100))
    with show.progress() as bar:
        bar.advance(bar.add_task("drawing r[b]", total=3))

    assert "drawing r[b]" in written.getvalue()


def test_an_attack_without_stages_counts_images(capsys: pytest.CaptureFixture[str], beat: Beats) -> None:
    with show.progress() as bar:
        task = bar.add_task("evaluating", total=2000)
        bar.advance(task, 1234)
        beat()
        bar.advance(task, 766)
    out, err = capsys.readouterr()

    assert out == ""
    assert err.startswith("evaluating: 1,234 of 2,000; 0 s in all\n")


def test_a_task_of_unknown_length_is_named(capsys: pytest.CaptureFixture[str], beat: Beats) -> None:
    with show.progress() as bar:
        beat()  # no task yet: nothing to say
        assert capsys.readouterr().err == ""
        bar.add_task("examining", total=None)
        beat()

    assert capsys.readouterr().err.startswith("examining; ")


def test_on_a_terminal_there_is_a_bar_and_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(heartbeat, "SECONDS", 0.02)
    monkeypatch.setattr(show, "err", Console(file=written, force_terminal=True, width=100))
    with show.progress() as bar:
        bar.advance(bar.add_task("evaluating", total=2000), 1234)
        time.sleep(0.2)

    assert "1234/2000" in written.getvalue()
    assert "in all" not in written.getvalue()


def test_a_reader_that_has_gone_stops_the_lines_and_not_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS", 0.01)
    calls = []
    called = threading.Event()

    def broken(line: str) -> None:
        calls.append(line)
        called.set()
        raise BrokenPipeError

    with heartbeat.heartbeat(broken, lambda: "working"):
        assert called.wait(60)
        time.sleep(0.1)

    assert len(calls) == 1
