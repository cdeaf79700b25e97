"""Tables of tables: flat, and their differences."""

from __future__ import annotations

from typing import Any

import pytest

from gambeson.core.tables import differences, flat


@pytest.mark.parametrize(
    ("there", "here", "wanted"),
    [
        ({}, {}, []),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 1}}}, []),
        ({"b": 1, "a": {"x": "u"}}, {"b": 2, "a": {"x": "v"}}, ["a.x is 'u' there, 'v' here", "b is 1 there, 2 here"]),
        ({"a": 1}, {}, ["a is 1 there, None here"]),
        ({}, {"a": {"b": [1]}}, ["a.b is None there, [1] here"]),
        ({"a": {"b": 1}}, {"a": 1}, ["a is None there, 1 here", "a.b is 1 there, None here"]),
        ({"a": None}, {}, []),
        ({"a": 1}, {"a": 1.0}, []),
    ],
)
def test_differences_are_sentences_in_the_order_of_their_names(
    there: dict[str, Any], here: dict[str, Any], wanted: list[str]
) -> None:
    assert differences(there, here) == wanted


def test_differences_can_be_shown_in_another_way() -> None:
    assert differences({"a": "u"}, {"a": "v"}, str) == ["a is u there, v here"]


def test_a_flat_table_leaves_the_old_one_alone() -> None:
    table = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert flat(table) == {"a.b": 1, "a.c.d": 2, "e": 3}
    assert table == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
