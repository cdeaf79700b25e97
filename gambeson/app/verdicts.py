"""What the terminal shows of an examination and of a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape

from gambeson.app.show import interval, new_table, out, print_table, short, stamp

STYLES = {"pass": "green", "warn": "bold yellow", "error": "bold red", "fail": "bold red"}


def examination(record: Mapping[str, Any]) -> None:
    """The table of `doctor`, from its record."""
    of = record["of"] if record["step"] is None else f"{record['of']}, checkpoint {record['checkpoint']}"
    of += "" if record["step"] is None else f" (step {record['step']})"
    budget = f"{record['norm']} eps {short(record['eps'])}"
    ran = f"the model was run on {record['examined']} of {record['n']:,} images" if record["examined"] else ""
    out.print(
        escape(f"{of}, {record['data']} {record['split']}, {budget}: {ran or 'the model was not run'}"), soft_wrap=True
    )
    _say_normalisation(record["normalisation"])
    table = new_table("check", "result", "found", left=3)
    for row in record["findings"]:
        style = STYLES[row["level"]]
        table.add_row(row["check"], f"[{style}]{row['level']}[/{style}]", escape(row["message"]))
        if row["hint"]:
            table.add_row("", "", escape(f"hint: {row['hint']}"), style="dim")
    print_table(table)
    errors, warnings = (f"{record[key]} {key[:-1] if record[key] == 1 else key}" for key in ("errors", "warnings"))
    if record["errors"]:
        out.print(f"[bold red]{errors}[/bold red], {warnings}: an evaluation would be wrong", soft_wrap=True)
    else:
        out.print(f"{errors}, {warnings}", soft_wrap=True)


def _say_normalisation(found: Mapping[str, Any]) -> None:
    """The mean and std that the model normalises with, and those of the data where they are others."""

    def constants(one: Mapping[str, Any]) -> str:
        mean, std = (", ".join(f"{value:.4g}" for value in one[key]) for key in ("mean", "std"))
        return f"mean {mean} and std {std}"

    if not found["layers"]:
        out.print("no layer of the model normalises: images in [0, 1] go in as they are", soft_wrap=True)
    for one in found["layers"]:
        text, data = constants(one), constants(found["data"])
        customary = "" if text == data else f"; customary on these data: {data}"
        out.print(escape(f"{one['layer']} normalises images, with {text}{customary}"), soft_wrap=True)


def masking(record: Mapping[str, Any]) -> None:
    """The tables of `diagnose masking`, from its record."""
    from gambeson.evaluation import Interval

    out.print(
        escape(
            f"{record['run']}, checkpoint {record['checkpoint']} (step {record['step']}), {record['data']}"
            f" {record['split']}, {record['norm']} eps {short(record['eps'])}, n = {record['n']}"
        ),
        soft_wrap=True,
    )
    table = new_table("check", "verdict", "tolerated", "found", left=4)
    for row in record["evidence"]:
        style, tolerance = STYLES[row["verdict"].lower()], row["measured"].get("tolerance")
        tolerated = "" if tolerance is None else f"{100 * tolerance:g} %"
        table.add_row(row["check"], f"[{style}]{row['verdict']}[/{style}]", tolerated, escape(row["message"]))
        if row["hint"]:
            table.add_row("", "", "", escape(f"hint: {row['hint']}"), style="dim")
    print_table(table)
    out.print(
        "FAIL: the whole 95 % interval of the share lies above what is tolerated; WARN: the share itself does",
        style="dim",
        soft_wrap=True,
    )
    table = new_table("attack", "accuracy, % [95 %]")
    for name, value in record["accuracy"].items():
        table.add_row(name, interval(Interval(**value)))
    table.add_row("all together", interval(Interval(**record["worst"])))
    print_table(table)
    verdict = record["verdict"]
    said = {
        "PASS": "no sign that the gradients are masked; that is no proof that they are not",
        "WARN": "to be known beside an accuracy under attack",
        "FAIL": "an accuracy under the attacks of these checks would be too high",
    }
    named = ", ".join(row["check"] for row in record["evidence"] if row["verdict"] == verdict != "PASS")
    style = STYLES[verdict.lower()]
    out.print(f"[{style}]{verdict}[/{style}]: {escape(named)}{named and ': '}{said[verdict]}", soft_wrap=True)
    stamp(record["selection"])
