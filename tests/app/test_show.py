"""What the terminal shows, word for word."""

from __future__ import annotations

import pytest
import torch

from gambeson.app import show
from gambeson.evaluation import Report
from gambeson.evaluation.autoattack import Stage


@pytest.fixture
def report() -> Report:
    outcomes = {
        "clean": torch.tensor([True, True, True, False]),
        "fgsm": torch.tensor([True, True, False, False]),
        "pgd-10": torch.tensor([True, False, True, False]),
    }
    settings = {"norm": "Linf", "eps": 8 / 255, "failed": {}}
    return Report(outcomes, torch.tensor([0, 0, 1, 1]), ("cat", "dog [x]", "none"), settings)


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.strip() and "───" not in line]


def test_a_report_gives_the_budget_and_n_and_intervals(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    show.report(report, "run [a]")

    assert lines(capsys.readouterr().out) == [
        "run [a], Linf eps 8/255, n = 4",
        "attack accuracy, % [95 %]",
        "clean 75.0 [30.1, 95.4]",
        "fgsm 50.0 [15.0, 85.0]",
        "pgd-10 50.0 [15.0, 85.0]",
        "worst of all 25.0 [4.6, 69.9]",
    ]


def test_a_report_by_class_marks_classes_without_examples(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    show.report(report, "run", per_class=True)

    assert lines(capsys.readouterr().out)[-3:] == [
        "cat 100.0 [34.2, 100.0] 100.0 [34.2, 100.0] 50.0 [9.5, 90.5]",
        "dog [x] 50.0 [9.5, 90.5] 0.0 [0.0, 65.8] 50.0 [9.5, 90.5]",
        "none - - -",
    ]


def test_the_worst_is_left_out_where_it_says_nothing_new(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    del report.outcomes["pgd-10"]
    show.report(report, "run")

    assert "worst" not in capsys.readouterr().out


def test_an_attack_that_failed_is_not_passed_over(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    report.settings["failed"] = {"fgsm": 3}
    show.report(report, "run")

    assert "fgsm returned NaN or infinite pixels for 3 examples" in " ".join(capsys.readouterr().err.split())


def test_names_are_aligned_and_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    show.names("things", {"a": "one [bold]", "long": "two"})

    assert capsys.readouterr().out == "things\n  a     one [bold]\n  long  two\n"


def test_an_empty_overview_says_how_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    show.overview([], "runs")

    assert (
        capsys.readouterr().out
        == "no runs in runs; start one with `gambeson train n-lap`, or name their folder with --root\n"
    )


def test_nothing_is_drawn_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with show.progress() as bar:
        bar.advance(bar.add_task("evaluating", total=2))

    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("kept", "said"), [(0, "left\n"), (30, "left; of the 40, 30 had been attacked before\n")])
def test_a_stage_says_what_was_kept_from_before(kept: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    show.stage("autoattack", Stage("square", 40, 28, 12, 3.21, 100, 0, kept))
    assert capsys.readouterr().err == f"autoattack: square fooled 28 of 40 in 3.2 s, 12 {said}"
