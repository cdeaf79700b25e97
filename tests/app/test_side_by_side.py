"""The tables of `gambeson runs compare`."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gambeson.app import side_by_side


def found(*adjusted: float, runs: tuple[str, ...] = ("one", "two")) -> dict[str, Any]:
    """A comparison with a test for each of the p-values, which are half of the adjusted ones."""
    pair = {"a": "one", "b": "two", "n": 50, "only_a": 3, "only_b": 9}
    by = {"value": -0.12, "low": -0.2512, "high": 0.0149, "n": 50}
    paired = [
        {"key": f"best pgd-{k}", **pair, "difference": by, "p": p / 2, "p_holm": p, "significant": p < 0.05}
        for k, p in enumerate(adjusted)
    ]
    correction = "holm" if len(adjusted) > 1 else None
    tested = {"paired": paired, "alpha": 0.05, "tests": len(paired), "correction": correction}
    return {
        "runs": runs,
        "selection": ["val"] * len(runs),
        "main": ["best"] * len(runs),
        "settings": {},
        "accuracy": {},
        **tested,
        "gaps": [],
        "unfinished": [None] * len(runs),
    }


def shown(comparison: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    side_by_side.comparison(comparison)
    return " ".join(capsys.readouterr().out.split())


def test_a_single_test_is_not_corrected(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(found(0.06), capsys)
    assert "best pgd-0 50 3 9 -12.0 [-25.1, +1.5] 0.03 not significant" in out
    assert "p: exact McNemar test; significant: p < 0.05; [..]: Tango's score interval of each difference alone" in out
    assert "first: one, second: two" in out
    assert "Holm" not in out


def test_several_tests_are_judged_by_what_holm_makes_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(found(0.049, 0.051), capsys)
    assert re.search(r"best pgd-0 50 3 9 -12\.0 \[-25\.1, \+1\.5\] 0\.02\d* 0\.049 significant", out)
    assert re.search(r"best pgd-1 50 3 9 -12\.0 \[-25\.1, \+1\.5\] 0\.02\d* 0\.051 not significant", out)
    assert "significant: p (Holm) < 0.05, Holm's correction for the 2 tests of this table" in out


def test_lines_that_repeat_a_test_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    said = "(3 lines: of the same weights under two names the test counts once)"
    out = shown({**found(0.04, 0.04, 0.5), "tests": 2}, capsys)
    assert f"Holm's correction for the 2 tests of this table {said}" in out
    out = shown({**found(0.06, 0.06), "tests": 1, "correction": None}, capsys)
    assert f"significant: p < 0.05 {said.replace('3', '2')}" in out
    assert "lines" not in shown(found(0.04, 0.04), capsys)


def test_of_more_than_two_runs_every_line_names_its_two(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(found(0.5, 0.5, runs=("one", "two", "three")), capsys)
    assert "best pgd-1 one two 50" in out
    assert "first: one" not in out


def test_nothing_in_common_is_not_tested(capsys: pytest.CaptureFixture[str]) -> None:
    assert "McNemar" not in shown(found(), capsys)


def test_runs_that_were_selected_on_test_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "selected on test" not in shown(found(), capsys)
    out = shown({**found(), "selection": ["val", "test"]}, capsys)
    assert out.endswith("two: selected on test: these numbers are optimistic")


@pytest.mark.parametrize(("sizes", "said"), [((50, 50), "n = 50 "), ((50, 1000), "n = 50 and 1,000 ")])
def test_the_number_of_images_stands_beside_the_accuracies(
    sizes: tuple[int, int], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [{"value": 0.5, "low": 0.4, "high": 0.6, "n": n} for n in sizes]
    assert f"best clean, {said}" in shown({**found(), "accuracy": {"best clean": values}}, capsys)


def gap(reason: str, **changes: Any) -> dict[str, Any]:
    usual = {"run": "two", "key": "best fgsm Linf 0.2", "reason": reason, "n": None, "wanted": 397, "has": []}
    return {**usual, "command": "gambeson evaluate two --attack fgsm --eps 0.2 --test-size 397", **changes}


def test_what_is_missing_is_said_with_the_command_that_helps(capsys: pytest.CaptureFixture[str]) -> None:
    has = ["best fgsm Linf 0.1, n = 100"]
    missing = [gap("missing", has=has), gap("missing", key="best pgd-40 Linf 0.2", has=has)]
    out = shown({**found(0.5), "gaps": missing}, capsys)
    assert (
        "two has no evaluation of best fgsm Linf 0.2, best pgd-40 Linf 0.2; it has best fgsm Linf 0.1, n = 100" in out
    )
    assert out.count("gambeson evaluate two --attack fgsm --eps 0.2 --test-size 397") == 1
    assert "to compare on the same images, run gambeson" in out


def test_fewer_images_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown({**found(0.5), "gaps": [gap("fewer images", n=100)]}, capsys)
    assert "two was evaluated on fewer images: best fgsm Linf 0.2 (n = 100, not 397)" in out


def test_where_no_command_helps_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown({**found(), "gaps": [gap("other data", command=None)]}, capsys)
    assert "two was trained on other data: no images in common for best fgsm Linf 0.2" in out
    assert "to compare" not in out
    assert "evaluate" not in shown(found(0.5), capsys)
