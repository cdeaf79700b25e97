"""Rows of a sweep's file: words and tables, common options, grids, and rows that start from other rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gambeson.app.sweep_rows import Row, rows_of
from gambeson.core.errors import InputError

HERE = Path()


def labels(content: dict[str, Any]) -> list[str]:
    return [row.label for row in rows_of(content, HERE)[0]]


def words(content: dict[str, Any]) -> tuple[str, ...]:
    (row,) = rows_of(content, HERE)[0]
    return row.words


def test_words_and_tables_are_rows() -> None:
    found, _ = rows_of(
        {"rows": {"a": "fgsm --eps 0.2", "b": {"method": "n-lap", "val-fraction": 0, "bf16": True}}}, HERE
    )

    assert found == [
        Row("a", ("fgsm", "--eps", "0.2")),
        Row("b", ("n-lap", "--val-fraction=0", "--bf16=true")),
    ]


def test_a_rows_option_comes_after_the_common_one_and_the_grids_after_both() -> None:
    common = {"eps": "8/255", "epochs": 3}

    assert words({"common": common, "rows": {"a": "fgsm --epochs 2"}}) == (
        *("--eps=8/255", "--epochs=3"),
        *("fgsm", "--epochs", "2"),
    )
    found, _ = rows_of(
        {"common": common, "grid": {"epochs": [4]}, "rows": {"a": {"method": "fgsm", "epochs": 2}}}, HERE
    )
    assert found == [Row("a epochs=4", ("fgsm", "--eps=8/255", "--epochs=4"))]
    assert words({"common": "--epochs 3", "rows": {"a": "fgsm"}}) == ("--epochs", "3", "fgsm")


def test_a_row_with_a_method_of_its_own_does_not_get_the_common_one() -> None:
    common = {"method": "fgsm", "eps": 0.2}

    assert words({"common": common, "rows": {"a": "n-lap"}}) == ("--eps=0.2", "n-lap")
    assert words({"common": common, "rows": {"a": {"method": "n-lap"}}}) == ("n-lap", "--eps=0.2")
    assert words({"common": common, "rows": {"a": {}}}) == ("fgsm", "--eps=0.2")


def test_a_recipe_is_found_beside_the_file_and_among_those_that_come_along(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("method: fgsm\n")

    (own,) = rows_of({"rows": {"a": {"recipe": "mine.yaml", "epochs": 2}}}, tmp_path)[0]
    (shipped,) = rows_of({"rows": {"a": {"recipe": "lap/cifar10-n-eps8"}}}, tmp_path)[0]

    assert own.words == (f"--config={tmp_path / 'mine.yaml'}", "--epochs=2")
    assert shipped.words[0].endswith("recipes/lap/cifar10-n-eps8.yaml")


def test_a_grid_is_the_product_of_its_values_and_names_the_rows() -> None:
    content = {"grid": {"eps": ["8/255", 0.1], "lr": [0.1, 0.2]}, "rows": {"A": "fgsm", "B": {"method": "n-lap"}}}

    found, groups = rows_of(content, HERE)

    assert [row.label for row in found] == [
        *("A eps=8/255 lr=0.1", "A eps=8/255 lr=0.2", "A eps=0.1 lr=0.1", "A eps=0.1 lr=0.2"),
        *("B eps=8/255 lr=0.1", "B eps=8/255 lr=0.2", "B eps=0.1 lr=0.1", "B eps=0.1 lr=0.2"),
    ]
    assert found[1].words == ("fgsm", "--eps=8/255", "--lr=0.2")
    assert groups["B"]["eps=0.1 lr=0.2"] == "B eps=0.1 lr=0.2"


def test_a_grid_alone_makes_the_rows() -> None:
    content = {"common": {"epochs": 1}, "grid": {"method": ["fgsm", "n-lap"], "eps": [0.1]}}

    assert rows_of(content, HERE)[0] == [
        Row("fgsm eps=0.1", ("fgsm", "--epochs=1", "--eps=0.1")),
        Row("n-lap eps=0.1", ("n-lap", "--epochs=1", "--eps=0.1")),
    ]


def test_a_row_has_a_grid_of_its_own() -> None:
    content = {"grid": {"eps": [0.1, 0.2]}, "rows": {"A": "fgsm", "B": {"method": "n-lap", "grid": {"beta": [1, 2]}}}}

    assert labels(content) == [
        *("A eps=0.1", "A eps=0.2"),
        *("B eps=0.1 beta=1", "B eps=0.1 beta=2", "B eps=0.2 beta=1", "B eps=0.2 beta=2"),
    ]


def test_a_fine_tuning_starts_from_every_row_of_its_bases_grid_and_gets_no_common_options() -> None:
    content = {
        "common": {"epochs": 3},
        "grid": {"eps": [0.1, 0.2]},
        "rows": {
            "R": {"base": "A", "finetune": "rift --lr 0.01", "grid": {"bn": ["update", "frozen"]}},
            "A": "fgsm",
        },
    }

    found, _ = rows_of(content, HERE)

    assert [row.label for row in found[:2]] == ["R eps=0.1 bn=update", "R eps=0.1 bn=frozen"]
    assert found[1] == Row("R eps=0.1 bn=frozen", ("rift", "--lr", "0.01", "--bn=frozen"), "A eps=0.1")
    assert [row.label for row in found[4:]] == ["A eps=0.1", "A eps=0.2"]


def test_a_recipe_for_fine_tuning_says_how() -> None:
    found, _ = rows_of({"rows": {"A": "fgsm", "R": {"base": "A", "recipe": "rift/table4-top1", "epochs": 1}}}, HERE)

    assert found[1].words[0] == "rift"
    assert found[1].words[1].startswith("--config=")
    assert found[1].words[2] == "--epochs=1"


WRONG = [
    ({}, "rows must be a table"),
    ({"rows": {}}, "rows must be a table"),
    ({"rows": ["fgsm"]}, "rows must be a table"),
    ({"rows": {"a": 3}}, "row 'a' must be words, or a table"),
    ({"rows": {"a": {"epochs": 1}}}, "row 'a' says neither method nor recipe"),
    ({"rows": {"a": {"recipee": "x"}}}, "did you mean recipe?"),
    ({"rows": {"a": {"finetune": "rift"}}}, "row 'a' is fine-tuned, but says no base"),
    ({"rows": {"a": {"recipe": "rift/table4-top1"}}}, "row 'a' says no base"),
    ({"rows": {"a": "fgsm", "b": {"base": "a"}}}, "row 'b' starts from a base, and does not say how"),
    ({"rows": {"a": "fgsm", "b": {"base": "a", "finetun": "bn"}}}, "did you mean finetune?"),
    ({"rows": {"alpha": "fgsm", "b": {"base": "alpa", "finetune": "bn"}}}, "did you mean alpha?"),
    ({"rows": {"a": "fgsm", "b": {"base": "a", "method": "fgsm"}}}, "its method is the base's"),
    (
        {"rows": {"a": {"base": "b", "finetune": "bn"}, "b": {"base": "a", "finetune": "bn"}}},
        "rows start from each other",
    ),
    ({"rows": {"a": {"base": "a", "finetune": "bn"}}}, "rows start from each other"),
    ({"rows": {"a": "fgsm"}, "grid": {"eps": 0.1}}, "grid needs a list of values for eps"),
    ({"rows": {"a": "fgsm"}, "grid": {"eps": []}}, "grid needs a list of values for eps"),
    ({"rows": {"a": "fgsm"}, "grid": [1]}, "grid must be a table"),
    ({"rows": {"a": {"method": "fgsm", "grid": 1}}}, "the grid of 'a' must be a table"),
    ({"rows": {"a": "fgsm"}, "common": [1]}, "common must be a table"),
    ({"rows": {"a": "fgsm"}, "grid": {"eps": [0.1, 0.1]}}, "label of its own, two are, got 'a eps=0.1'"),
    ({"rows": {"a": {"recipe": "no/such"}}}, "there is no recipe no/such"),
]


@pytest.mark.parametrize(("content", "said"), WRONG, ids=[said for _, said in WRONG])
def test_what_is_no_row_is_refused(content: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        rows_of(content, HERE)
    assert said in str(refused.value)
