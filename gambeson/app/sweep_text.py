"""The tables of a sweep as they are written and printed: on the terminal, as Markdown, as CSV."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Mapping
from typing import Any

from rich.markup import escape

from gambeson.app import show
from gambeson.app.show import new_table, print_table

INTERVALS = {
    "student": "Student's 95 % interval of the mean over seeds",
    "bootstrap": "95 % interval of the mean over seeds, by bootstrap (BCa), too narrow for few seeds",
    "images": "95 % interval of the mean over seeds and test images, by bootstrap",
}
Found = Mapping[str, Any]
REPORTED = 4
"""Runs that the last line names."""


def markdown(found: Found) -> str:
    """The tables for a document: mean ± standard deviation [interval] (smallest to largest seed), in percent."""
    columns = found["columns"]
    lines = [
        f"| row | seeds | {' | '.join(f'{name}, %' for name in columns)} | collapsed | seconds |",
        f"|---|---|{'---|' * len(columns)}---|---|",
    ]
    for row in found["rows"]:
        several = len(row["seeds"]) > 1
        cells = [f"{_cell(one)}{_range(one) if several else ''}" for one in row["accuracy"].values()]
        lines.append(f"| {' | '.join([row['label'], str(len(row['seeds'])), *cells, *_last(row)])} |")
    if found["pairs"]:
        lines += [
            "",
            f"| difference | seeds | {' | '.join(f'{name}, points' for name in columns)} |",
            f"|---|---|{'---|' * len(columns)}",
        ]
    for pair in found["pairs"]:
        cells = [_points(one) for one in pair["difference"].values()]
        first = f"{pair['a']} - {pair['b']}"
        lines.append(f"| {' | '.join([first, str(len(pair['seeds'])), *cells])} |")
    return "\n".join([*lines, "", _legend(found, "; (..): smallest and largest seed")])


def comma_separated(found: Found) -> str:
    """The tables for a spreadsheet: a line per row or difference and column, in shares, the seeds at the end."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = ("mean", "std", "low", "high", "min", "max")
    writer.writerow(["row", "minus", "column", "n", *numbers, "seeds", "values"])
    parts = [(row["label"], "", row["seeds"], row["accuracy"]) for row in found["rows"]]
    parts += [(pair["a"], pair["b"], pair["seeds"], pair["difference"]) for pair in found["pairs"]]
    for label, minus, seeds, columns in parts:
        for column, one in columns.items():
            values = ["" if one.get(name) is None else repr(one[name]) for name in numbers]
            lists = [" ".join(map(str, some)) for some in (seeds, one["values"])]
            writer.writerow([label, minus, column, len(seeds), *values, *lists])
    return text.getvalue()


def tables(found: Found) -> None:
    """The tables on the terminal, and what can be done next."""
    columns = found["columns"]
    if not found["rows"]:
        show.out.print("no run is complete")
        return
    table = new_table("row", "seeds", *[f"{name}, %" for name in columns], "collapsed", "seconds")
    for row in found["rows"]:
        cells = [escape(_cell(one)) for one in row["accuracy"].values()]
        table.add_row(escape(row["label"]), str(len(row["seeds"])), *cells, *_last(row))
    print_table(table)
    if found["pairs"]:
        table = new_table("difference", "seeds", *[f"{name}, points" for name in columns])
        for pair in found["pairs"]:
            cells = [escape(_points(one)) for one in pair["difference"].values()]
            table.add_row(escape(f"{pair['a']} - {pair['b']}"), str(len(pair["seeds"])), *cells)
        print_table(table)
    show.out.print(_legend(found), style="dim", markup=False, soft_wrap=True)
    following(found)


def following(found: Found) -> None:
    """Name the commands that look closer."""
    runs = [row["runs"][0] for row in found["rows"]][:REPORTED]
    show.out.print("Next:", style="dim")
    for command in (
        shlex.join(["gambeson", "report", *runs]),
        shlex.join(["gambeson", "runs", "list", "--root", found["root"]]),
    ):
        show.out.print(f"  {escape(command)}", soft_wrap=True)


def states(found: Found, queue: Mapping[str, str]) -> None:
    """Where the runs are that are not done, with what SLURM says of them."""
    left = [job for job in found["jobs"] if job["state"] != "done"]
    show.out.print(f"{len(found['jobs']) - len(left)} of {len(found['jobs'])} runs are done")
    if not left:
        return
    table = new_table("row", "seed", "state", *(["SLURM"] if queue else []), left=1)
    for job in left:
        said = [queue.get(f"{job['label']} seed {job['seed']}", "-")] if queue else []
        table.add_row(escape(job["label"]), str(job["seed"]), escape(job["state"]), *said)
    print_table(table)


def _legend(found: Found, more: str = "") -> str:
    """What the signs in the cells mean."""
    if any(len(row["seeds"]) > 1 for row in found["rows"]):
        note = f"±: standard deviation over seeds; [..]: {INTERVALS[found['interval']]}{more}"
    else:
        note = "one seed: nothing is known of the spread over seeds"
    return f"{note}; accuracies of the last weights on the test set, seconds of training"


def _range(one: Found) -> str:
    return f" ({100 * one['min']:.1f} to {100 * one['max']:.1f})"


def _cell(one: Found) -> str:
    deviation = "" if one["std"] is None else f" ± {100 * one['std']:.1f}"
    interval = "" if one["low"] is None else f" [{100 * one['low']:.1f}, {100 * one['high']:.1f}]"
    return f"{100 * one['mean']:.1f}{deviation}{interval}"


def _points(one: Found) -> str:
    interval = "" if one["low"] is None else f" [{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]"
    return f"{100 * one['mean']:+.1f}{interval}"


def _last(row: Found) -> list[str]:
    collapsed = "-" if row["collapsed"] is None else f"{row['collapsed']} of {row['watched']}"
    return [collapsed, f"{row['seconds']:.0f}"]
