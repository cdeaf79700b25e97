"""The tables of a sweep as Markdown, CSV and on the terminal."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from gambeson.app import sweep_text


def accuracy(mean: float, std: float | None, low: float | None, high: float | None) -> dict[str, Any]:
    return {"mean": mean, "std": std, "low": low, "high": high, "min": 0.8, "max": 0.9, "values": [0.9, 0.8]}


FOUND: dict[str, Any] = {
    "root": "runs/s",
    "columns": ["clean"],
    "interval": "student",
    "rows": [
        {
            "label": "V FGSM",
            "seeds": [0, 1],
            "runs": ["runs/s/V-FGSM-seed0", "runs/s/V-FGSM-seed1"],
            "accuracy": {"clean": accuracy(0.85, 0.0707, 0.2, 0.95)},
            "collapsed": 1,
            "watched": 2,
            "seconds": 5.0,
        }
    ],
    "pairs": [
        {
            "a": "b",
            "b": "a",
            "seeds": [0, 1],
            "difference": {"clean": {"mean": -0.01, "low": -0.035, "high": 0.015, "values": [0.0, -0.02]}},
        }
    ],
    "jobs": [
        {"label": "V FGSM", "seed": 0, "run": "r", "state": "done"},
        {"label": "b", "seed": 1, "run": "r", "state": "step 2 of 4"},
    ],
}


def test_markdown_has_spread_interval_and_range() -> None:
    assert sweep_text.markdown(FOUND).splitlines() == [
        "| row | seeds | clean, % | collapsed | seconds |",
        "|---|---|---|---|---|",
        "| V FGSM | 2 | 85.0 ± 7.1 [20.0, 95.0] (80.0 to 90.0) | 1 of 2 | 5 |",
        "",
        "| difference | seeds | clean, points |",
        "|---|---|---|",
        "| b - a | 2 | -1.0 [-3.5, +1.5] |",
        "",
        "±: standard deviation over seeds; [..]: Student's 95 % interval of the mean over seeds; (..): smallest and"
        " largest seed; accuracies of the last weights on the test set, seconds of training",
    ]


def test_one_seed_and_no_sentinel_leave_out_what_they_do_not_have() -> None:
    row = {**FOUND["rows"][0], "seeds": [0], "accuracy": {"clean": accuracy(0.85, None, None, None)}, "collapsed": None}

    assert sweep_text.markdown({**FOUND, "rows": [row], "pairs": []}).splitlines()[2:] == [
        "| V FGSM | 1 | 85.0 | - | 5 |",
        "",
        "one seed: nothing is known of the spread over seeds; accuracies of the last weights on the test set, seconds"
        " of training",
    ]


def test_csv_has_the_numbers_as_they_are() -> None:
    row, pair = csv.DictReader(io.StringIO(sweep_text.comma_separated(FOUND)))

    assert (row["row"], row["minus"], row["column"], row["n"]) == ("V FGSM", "", "clean", "2")
    assert [float(row[name]) for name in ("mean", "std", "low", "high", "min", "max")] == [
        *(0.85, 0.0707, 0.2, 0.95, 0.8, 0.9)
    ]
    assert (row["seeds"], row["values"]) == ("0 1", "0.9 0.8")
    assert (pair["row"], pair["minus"], pair["std"], float(pair["low"])) == ("b", "a", "", -0.035)


def test_the_terminal_says_what_the_brackets_are_and_what_comes_next(capsys: pytest.CaptureFixture[str]) -> None:
    sweep_text.states(FOUND, {"b seed 1": "PENDING"})
    sweep_text.tables(FOUND)

    out = capsys.readouterr().out
    assert "1 of 2 runs are done" in out
    assert " ".join(out.split()).count("b 1 step 2 of 4 PENDING") == 1
    assert "85.0 ± 7.1 [20.0, 95.0]" in out
    assert "-1.0 [-3.5, +1.5]" in out
    assert "Student's 95 % interval" in out
    assert "gambeson report runs/s/V-FGSM-seed0" in out


def test_without_a_complete_run_there_is_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    sweep_text.tables({**FOUND, "rows": []})

    assert capsys.readouterr().out == "no run is complete\n"
