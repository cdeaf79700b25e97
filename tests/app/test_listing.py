"""`gambeson list` and `gambeson runs`: the words they take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.helpers import Cli, assert_error
from gambeson.data import DATASETS
from gambeson.evaluation import ATTACKS
from gambeson.methods import METHODS
from gambeson.models import MODELS


def test_the_methods(cli: Cli) -> None:
    lines = cli("list", "methods").out.splitlines()

    assert lines[0] == "methods"
    assert [line.split()[0] for line in lines[1:]] == list(METHODS)
    column = {line.index(line.split(maxsplit=1)[1]) for line in lines[1:]}
    assert len(column) == 1
    assert all(len(line.split()) > 3 for line in lines[1:])


def test_the_methods_are_described_in_whole_sentences(cli: Cli) -> None:
    for line in cli("list", "methods").out.splitlines()[1:]:
        assert line.endswith("."), line
        assert line.split(maxsplit=1)[1] == line.split(maxsplit=1)[1].strip()
        assert "  " not in line.strip().split(maxsplit=1)[1], line


@pytest.mark.parametrize(
    ("topic", "names"),
    [("attacks", ATTACKS), ("models", MODELS), ("data", DATASETS)],
    ids=["attacks", "models", "data"],
)
def test_the_other_lists(topic: str, names: dict[str, Any], cli: Cli) -> None:
    lines = cli("list", topic).out.splitlines()

    assert lines[0] == topic
    assert [line.split()[0] for line in lines[1:]] == list(names)
    assert all(len(line.split()) > 2 for line in lines[1:])


def test_all_lists_one_after_the_other(cli: Cli) -> None:
    topics = ("methods", "attacks", "models", "data", "corruptions", "recipes")

    assert cli("list").out == "".join(cli("list", topic).out for topic in topics)


@pytest.mark.parametrize(
    ("args", "near"), [(["method"], "did you mean methods?"), (["zzz"], "known: attacks, corruptions, data")]
)
def test_what_cannot_be_listed(args: list[str], near: str, cli: Cli) -> None:
    assert_error(cli("list", *args), 2, repr(args[0]), near)


def test_two_lists_at_once(cli: Cli) -> None:
    result = cli("list", "methods", "attacks")

    assert (result.code, result.err) == (0, "")
    assert result.out == cli("list", "methods").out + cli("list", "attacks").out


def test_a_wrong_list_after_a_right_one_prints_nothing(cli: Cli) -> None:
    assert_error(cli("list", "methods", "atacks"), 2, "cannot list 'atacks'", "did you mean attacks")


# runs


@pytest.mark.parametrize(
    ("args", "fragments"),
    [
        ([], ["runs needs `list`, or `compare` and at least two runs"]),
        (["lst"], ["runs needs `list`, or `compare`", "hint: did you mean list?"]),
        (["comprae", "a", "b"], ["hint: did you mean compare?"]),
        (["xyz"], ["hint: known: compare, list"]),
        (["list", "r"], ["runs list takes no further words, got r", "hint: use --root FOLDER"]),
    ],
    ids=str,
)
def test_runs_needs_to_know_what(args: list[str], fragments: list[str], cli: Cli) -> None:
    assert_error(cli("runs", *args), 2, *fragments)


def test_a_folder_of_runs_that_is_not_there(cli: Cli, here: Path) -> None:
    (here / "a-file").write_text("")

    for name in ("nowhere", "a-file"):
        assert_error(cli("runs", "list", "--root", name), 1, f"there is no folder {name}")
        told = cli("runs", "list", "--root", name, "--json")
        assert (told.code, json.loads(told.out)["error"]) == (1, f"there is no folder {name}")


def test_before_the_first_run_there_is_no_folder_and_no_error(cli: Cli) -> None:
    result = cli("runs", "list")

    assert (result.code, result.err) == (0, "")
    assert result.out == "no runs in runs; start one with `gambeson train n-lap`, or name their folder with --root\n"
    assert cli("runs", "list", "--json").out == "[]\n"
