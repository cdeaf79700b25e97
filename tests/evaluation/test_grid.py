"""Grids of budgets as they are written on a command line."""

from __future__ import annotations

import pytest

from gambeson.core.errors import InputError
from gambeson.evaluation import parse_budgets


@pytest.mark.parametrize(
    ("text", "budgets"),
    [
        ("0:16/255:2/255", [k / 255 for k in range(0, 17, 2)]),
        ("2/255:6/255:2/255", [0, 2 / 255, 4 / 255, 6 / 255]),
        ("0:0.3:0.1", [0, 0.1, 0.2, 0.3]),
        ("8/255", [0, 8 / 255]),
        ("[0.1, 8/255, 0.1]", [0, 8 / 255, 0.1]),
        ("1e-2,8.5/255", [0, 0.01, 8.5 / 255]),
        ("0.1:0.1:0.1", [0, 0.1]),
    ],
)
def test_a_grid_is_to_the_last_bit_what_is_written(text: str, budgets: list[float]) -> None:
    assert parse_budgets(text) == tuple(budgets)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b", "made of numbers or fractions, got 'a,b'"),
        ("1/0", "made of numbers or fractions, got '1/0'"),
        ("1/2/3", "made of numbers or fractions"),
        ("0:1", "made of numbers or fractions"),
        ("nan", "made of numbers or fractions"),
        ("", "one of them above 0, got []"),
        ("0", "one of them above 0, got [0.0]"),
        ("-0.1,0.1", "finite numbers from 0"),
        ("0:1:0.3", "does not go from 0 to 1 in steps of 0.3"),
        ("0:1:0", "does not go from 0 to 1 in steps of 0"),
        ("1:0:0.5", "does not go from 1 to 0"),
        ("0:1:1/1000", "at most 1,000 budgets, got 1,001"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_budgets(text)
    assert message in error.value.message
