"""The rows of a sweep's file as command lines: common options, grids, and rows that start from other rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from gambeson.app.recipes import find_recipe, read_yaml, recipes_folder, word_of
from gambeson.app.sweep_file import split
from gambeson.core.errors import InputError, nearest

Table = dict[str, Any]
WHAT = ("method", "recipe", "finetune")
"""Keys of a row that say what is run."""


@dataclass(frozen=True)
class Row:
    """One row of the results: a command line but for the seed, the attacks and the run directory.

    Attributes:
        label: Its name in the table.
        words: The words after `gambeson train`; of a row with a base HOW, and those after `gambeson finetune HOW RUN`.
        base: The label of the row that it starts from.
    """

    label: str
    words: tuple[str, ...]
    base: str | None = None


def rows_of(content: Mapping[str, Any], folder: Path) -> tuple[list[Row], dict[str, dict[str, str]]]:
    """The rows of a sweep's file, those of a grid one by one.

    Args:
        content: The file's `rows`, `common` and `grid`.
        folder: Where the file lies: recipes are looked for there first.

    Returns:
        The rows in the order of the file, and by label in the file what has become of it: a row's label by what its
        grid added to the name (nothing, under `""`, where there is no grid).

    Raises:
        InputError: Something in it is not what it should be; the row is named.
    """
    common, grid = content.get("common", {}), _grid(content.get("grid", {}), "grid")
    _require(isinstance(common, (str, dict)), "common must be a table of options, or words", common)
    given = content.get("rows", {"": {}} if grid else None)
    _require(isinstance(given, dict) and bool(given), "rows must be a table, a row by label", given)
    rows = {str(label): _table(str(label), row) for label, row in given.items()}
    _require_bases(rows)
    made: dict[str, list[Row]] = {}
    groups: dict[str, dict[str, str]] = {}
    while len(made) < len(rows):
        for label, row in rows.items():
            base = row.get("base")
            if label in made or (base is not None and base not in made):
                continue
            started = {"": ""} if base is None else groups[base]
            own = {**(grid if base is None else {}), **_grid(row.pop("grid", {}), f"the grid of {label!r}")}
            made[label], groups[label] = [], {}
            for suffix, full in started.items():
                for cell in _cells(own):
                    added = " ".join(filter(None, (suffix, _name(cell))))
                    name = " ".join(filter(None, (label, added)))
                    words = _tuned(label, row, cell, folder) if full else _trained(label, common, row, cell, folder)
                    made[label].append(Row(name, tuple(words), full or None))
                    groups[label][added] = name
    found = [row for label in rows for row in made[label]]
    labels = [row.label for row in found]
    for label in labels:
        _require(labels.count(label) == 1, "every row needs a label of its own, two are", label)
    return found, groups


def _table(label: str, row: Any) -> Table:
    """A row as a table; of a string the words are under `words`."""
    _require(isinstance(row, (str, dict)), f"row {label!r} must be words, or a table", row)
    return {"words": row} if isinstance(row, str) else {str(key).replace("-", "_"): row[key] for key in row}


def _require_bases(rows: Mapping[str, Table]) -> None:
    for label, row in rows.items():
        if "base" not in row:
            continue
        row["base"] = str(row["base"])
        if row["base"] not in rows:
            raise InputError(
                f"row {label!r} starts from an unknown row {row['base']!r}", hint=nearest(row["base"], rows)
            )
        seen = [label]
        while "base" in rows[seen[-1]]:
            seen.append(str(rows[seen[-1]]["base"]))
            _require(seen[-1] not in seen[:-1], "rows start from each other", " < ".join(seen))
            if seen[-1] not in rows:
                break


def _trained(label: str, common: str | Table, row: Table, cell: Table, folder: Path) -> list[str]:
    """The words after `gambeson train`; a row's options win over the common ones, the grid's over both."""
    shared = (
        {"words": common} if isinstance(common, str) else {str(key).replace("-", "_"): common[key] for key in common}
    )
    first = split(shared.pop("words", ""), "common")
    if "words" in row:
        for key in WHAT:
            shared.pop(key, None)  # the words say what is run
        return [*first, *_options(shared), *split(row["words"], f"row {label!r}"), *_options(cell)]
    table = {**shared, **row, **cell}
    if "method" in row or "recipe" in row:
        table = {key: value for key, value in table.items() if key not in WHAT or key in row or key in cell}
    said = [key for key in WHAT if key in table]
    if not said and not first:
        wrong = next((key for key in table if nearest(key, WHAT).startswith("did")), "")
        raise InputError(_of(label, "says neither method nor recipe"), hint=nearest(wrong, WHAT) if wrong else None)
    if "finetune" in table:
        raise InputError(_of(label, "is fine-tuned, but says no base"), hint="such as {base: LABEL, finetune: rift}")
    method, recipe = table.pop("method", None), table.pop("recipe", None)
    words = [] if method is None else [str(method)]
    if recipe is not None:
        file, content = _recipe(str(recipe), folder)
        if "finetune" in content:
            raise InputError(_of(label, f"says no base, and {file} is for fine-tuning"), hint="such as base: LABEL")
        words.append(f"--config={file}")
    return [*first, *words, *_options(table)]


def _tuned(label: str, row: Table, cell: Table, folder: Path) -> list[str]:
    """HOW, and the words after `gambeson finetune HOW RUN`."""
    table = {**row, **cell}
    table.pop("base")
    if "method" in table:
        raise InputError(_of(label, "starts from a base: its method is the base's"), hint="finetune: rift, or bn")
    said, recipe = table.pop("finetune", None), table.pop("recipe", None)
    words = [] if said is None else split(str(said), f"row {label!r}")
    if recipe is not None:
        file, content = _recipe(str(recipe), folder)
        words = [*(words or [str(content["finetune"])] if "finetune" in content else words), f"--config={file}"]
    if not words or words[0].startswith("-"):
        near = next((key for key in table if nearest(key, WHAT).startswith("did")), None)
        hint = nearest(near, WHAT) if near else "such as {base: LABEL, finetune: rift}"
        raise InputError(_of(label, "starts from a base, and does not say how it is fine-tuned"), hint=hint)
    return [*words, *_options(table)]


def _recipe(name: str, folder: Path) -> tuple[Path, Table]:
    file = folder / name if (folder / name).is_file() else find_recipe(name)
    return file, read_yaml(file, recipes_folder())


def _options(table: Table) -> list[str]:
    return [f"--{key.replace('_', '-')}={word_of(value)}" for key, value in table.items()]


def _grid(given: Any, where: str) -> dict[str, list[Any]]:
    """The options of a grid, each with its values."""
    _require(isinstance(given, dict), f"{where} must be a table, a list of values by option", given)
    for key, values in given.items():
        _require(isinstance(values, list) and bool(values), f"{where} needs a list of values for {key}", values)
    return {str(key).replace("-", "_"): values for key, values in given.items()}


def _cells(grid: Mapping[str, list[Any]]) -> list[Table]:
    """Every combination of the values."""
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def _name(cell: Table) -> str:
    """What a cell of the grid adds to a row's label."""
    return " ".join(word_of(value) if key in WHAT else f"{key}={word_of(value)}" for key, value in cell.items())


def _of(label: str, said: str) -> str:
    return f"row {label!r} {said}" if label else f"the grid {said}"


def _require(condition: bool, what: str, got: Any) -> None:
    if not condition:
        raise InputError(f"{what}, got {got!r}")
