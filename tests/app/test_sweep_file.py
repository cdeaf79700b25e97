"""The file of a sweep: read as YAML in which nothing is said twice, and nothing that is not known."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.helpers import write_sweep
from gambeson.app.sweep_file import corruption_options, count_of, read_sweep, seeds_of, split
from gambeson.core.errors import FileError, InputError


@pytest.fixture(autouse=True)
def inside(here: Path) -> None:
    """Every file of these tests lies in a folder of their own."""


def test_values_are_those_of_yaml_and_fractions_stay_words() -> None:
    file = write_sweep("seeds: [0, 1]\ngrid: {eps: [8/255, 0.1]}\nrows: {a: fgsm}\n")

    assert read_sweep(file) == {"seeds": [0, 1], "grid": {"eps": ["8/255", 0.1]}, "rows": {"a": "fgsm"}}
    assert seeds_of({"seeds": [3, 0]}, file) == (3, 0)
    assert (count_of({}, "jobs"), count_of({"jobs": 4}, "jobs")) == (1, 4)


def test_what_yaml_merges_is_not_said_twice() -> None:
    text = "common: &c {epochs: 1, lr: 1}\nrows:\n  a: {<<: *c, method: fgsm, epochs: 2}\n"

    assert read_sweep(write_sweep(text))["rows"]["a"] == {"method": "fgsm", "epochs": 2, "lr": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- 1\n", "s.yaml must be a table with seeds, rows"),
        (
            "a: [\n",
            "s.yaml is not YAML: expected the node content, but found '<stream end>' while parsing a flow node (",
        ),
        ("a: \0\n", "s.yaml is not YAML: special characters are not allowed (character 4)"),
        ("rows: {a: fgsm}\nrows: {b: fgsm}\n", "s.yaml: 'rows' stands there twice (line 2, column 1)"),
        ("rows:\n  a: {method: fgsm, method: n-lap}\n", "s.yaml: 'method' stands there twice (line 2, column 21)"),
        ("rwos: {a: fgsm}\n", "s.yaml: unknown key 'rwos'\nhint: did you mean rows?"),
    ],
)
def test_what_is_no_sweep_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        read_sweep(write_sweep(text))
    assert said in str(refused.value)
    assert "unicode" not in str(refused.value)  # what the parser calls a text without a file


def test_a_file_that_is_not_there_is_refused_with_the_nearest() -> None:
    write_sweep("seeds: [0]\n", "story.yaml")

    with pytest.raises(FileError, match=r"cannot read storey.yaml.*\n.*did you mean story.yaml"):
        read_sweep(Path("storey.yaml"))


def test_words_are_split_as_in_a_shell() -> None:
    assert split("fgsm --data 'folder:my images'", "row") == ["fgsm", "--data", "folder:my images"]
    with pytest.raises(InputError, match=r"^row 'a': no closing quotation in"):
        split("fgsm 'x", "row 'a'")


def test_corruptions_are_those_of_the_command() -> None:
    options = corruption_options("--set rift18 --test-size 100")

    assert (options.set, options.test_size) == ("rift18", 100)
